//! Start: a stopped instance boots again, with its disks as it left them.

use std::sync::Arc;

use super::{Outcome, Subject, boot};
use crate::error::OpError;
use crate::host::Host;
use crate::run::Run;

pub(super) async fn start(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    subject.record.exit = None;
    boot::boot(host, subject, run).await.map(Outcome::Running)
}
