//! Booting a guest in its directory: what create and start share.
//!
//! It runs when its agent has been told who it is and its program has started.

use std::sync::Arc;

use super::{Born, Live, Subject};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::run::{Run, blocking};
use crate::{agents, host};

pub(super) async fn boot(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Born, OpError> {
    let dir = subject.dir.clone();
    let memory = dir.memory();
    run.undo("memory file", blocking(move || hearth_disk::remove(&memory)));
    run.undo("vmm", end_vmm(Arc::clone(host), dir.clone(), None));
    let vmm = Arc::new(run.step("launch vmm", host.boot(&dir, &subject.record.spec)).await?);
    subject.record.seat = host::seat_value(&vmm);

    let within = host.config.timeouts.boot();
    let (agent, mut events) = run.step("reach agent", agents::meet(&vmm, within)).await?;
    run.step("start program", agents::start_program(&vmm, &agent, &mut events, &subject.record, within)).await?;
    let identity = agents::identity(&subject.record);
    let refreshed = run.step("refresh identity", agents::refresh(&agent, &identity, within)).await;
    refreshed.inspect_err(|_| host.metrics.refresh_failed(subject.record.spec.backend))?;

    subject.record.started_at_ms = Some(crate::clock::now_ms());
    subject.record.stopped_at_ms = None;
    Ok(Born { live: Live { vmm, agent: Some(agent) }, events })
}
