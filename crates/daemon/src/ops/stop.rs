//! Stop: the guest is asked to end, then its VMM is ended. Memory is lost, disks stay.
//!
//! There is no way back from asking, so every step is a finish: what cannot be ended is named.
//! Stopped out of standby, the overlay in the directory is the bundle's own file by another name:
//! it stays when the driver drops the bundle.

use std::sync::Arc;
use std::time::Duration;

use hearth_model::InstanceState;

use super::{Outcome, Subject, slot};
use crate::error::OpError;
use crate::host::{Host, end_vmm, recorded_seat};
use crate::run::{Run, blocking};

/// Beyond the grace that the program has: to write back its disks and power off.
const POWER_OFF: Duration = Duration::from_secs(5);

pub(super) async fn stop(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    shut_down(host, subject, run).await;
    end(host, subject, run).await;
    subject.record.stopped_at_ms = Some(crate::clock::now_ms());
    Ok(Outcome::Rests(InstanceState::Stopped))
}

/// Asks the guest to end and waits for it; a guest that does not is left to [`end`].
pub(super) async fn shut_down(host: &Arc<Host>, subject: &Subject, run: &mut Run) {
    let Some(live) = subject.live.clone() else { return };
    let Some(agent) = live.agent else { return };
    let grace = host.config.timeouts.shutdown_grace();
    let asked = run
        .step("shut down guest", async {
            agent.shutdown(grace).await.map_err(OpError::from)?;
            match tokio::time::timeout(grace + POWER_OFF, live.vmm.exited()).await {
                Ok(_) => Ok(()),
                Err(_) => Err(OpError::new(
                    hearth_model::ErrorKind::GuestUnresponsive,
                    format!("the guest did not power off within {} s", (grace + POWER_OFF).as_secs()),
                )),
            }
        })
        .await;
    if let Err(error) = asked {
        tracing::warn!(instance = %subject.id(), %error, "the VMM is ended without the guest");
    }
}

/// Ends the VMM and removes what only it used.
pub(super) async fn end(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) {
    let (dir, seat) = (subject.dir.clone(), recorded_seat(&subject.record));
    run.finish("end vmm", || end_vmm(Arc::clone(host), dir.clone(), seat.clone())).await;
    slot::give_up(host, subject, run).await;
    let files = [dir.memory(), dir.memory_base(), dir.vmstate()];
    run.finish("remove memory", || {
        let files = files.clone();
        blocking(move || files.iter().try_for_each(|file| hearth_disk::remove(file)))
    })
    .await;
    subject.record.seat = None;
}
