//! Restore: from standby to running. The bundle stays whole until the guest has answered, so a
//! restore that fails can be tried again.

use std::sync::Arc;

use hearth_model::{ErrorKind, InstanceState};

use super::{Outcome, Subject, bring_back, files};
use crate::error::OpError;
use crate::host::Host;
use crate::run::Run;

pub(super) async fn restore(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    let InstanceState::Standby { snapshot } = subject.record.phase.state().clone() else {
        return Err(OpError::new(ErrorKind::Internal, "restore was admitted without a snapshot"));
    };
    let (bundle, place) = bring_back::open(host, subject, &snapshot, run).await?;

    // In standby the overlay is a hard link to the bundle's; the guest gets a clone to write to.
    run.undo("overlay", files::replace_links(files::writable_disks(&bundle, &subject.dir)));
    let started = bring_back::place_and_start(host, subject, (&bundle, place), run).await?;
    let born = bring_back::bring_back(host, subject, &bundle, started, run).await?;
    run.commit();
    Ok(Outcome::Running(born))
}
