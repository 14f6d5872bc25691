//! Delete: ends and removes an instance. Every step may be repeated, so a delete that was cut off
//! is finished by another one.

use std::sync::Arc;

use super::{Outcome, Subject, stop};
use crate::error::OpError;
use crate::fresh;
use crate::host::Host;
use crate::run::{Run, blocking};

pub(super) async fn delete(
    host: &Arc<Host>,
    subject: &mut Subject,
    graceful: bool,
    run: &mut Run,
) -> Result<Outcome, OpError> {
    if graceful {
        stop::shut_down(host, subject, run).await;
    }
    stop::end(host, subject, run).await;
    let whole = subject.dir.clone();
    run.finish("remove directory", || {
        let whole = whole.clone();
        blocking(move || fresh::remove(&whole))
    })
    .await;
    Ok(Outcome::Gone)
}
