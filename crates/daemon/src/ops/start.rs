//! Start: a stopped instance boots again, with its disks as it left them.

use std::sync::Arc;

use hearth_model::ErrorKind;

use super::{Outcome, Subject, boot};
use crate::error::OpError;
use crate::host::Host;
use crate::run::Run;

pub(super) async fn start(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    let spec = &subject.record.spec;
    if spec.foreign.is_some() {
        return Err(OpError::new(
            ErrorKind::Unsupported,
            format!("instance {} was imported with its memory: it has no image to boot from", spec.name),
        )
        .hinted("fork its snapshot, or restore one of the instance's own")
        .about("instance", spec.name.as_str()));
    }
    subject.record.exit = None;
    boot::boot(host, subject, run).await.map(Outcome::Running)
}
