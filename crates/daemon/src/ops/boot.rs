//! Booting a guest in its directory: what create and start share.
//!
//! It runs when its agent has been told who it is and its program has started; one without an
//! agent, when its vCPUs do.

use std::path::Path;
use std::sync::Arc;

use super::{Born, Live, Subject, slot};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::run::{Run, blocking};
use crate::{agents, console, host};

pub(super) async fn boot(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Born, OpError> {
    let dir = subject.dir.clone();
    let place = slot::take(host, subject, run).await?;
    let memory = dir.memory();
    let files = [memory, dir.memory_base()];
    run.undo("memory file", blocking(move || files.iter().try_for_each(|file| hearth_disk::remove(file))));
    run.undo("vmm", end_vmm(Arc::clone(host), dir.clone(), None));
    let vmm = Arc::new(run.step("launch vmm", host.boot(&dir, &subject.record.spec, place)).await?);
    subject.record.seat = host::seat_value(&vmm);

    let (mut agent, mut events) = (None, None);
    if subject.record.spec.agent {
        let within = host.config.timeouts.boot();
        let meet = async { agents::meet(&vmm, within).await.map_err(|error| with_console(error, &dir.serial_log())) };
        let (met, mut heard) = run.wait("reach agent", meet).await?;
        run.wait("start program", agents::start_program(&vmm, &met, &mut heard, &subject.record, within)).await?;
        let identity = agents::identity(&subject.record);
        let refreshed = run.step("refresh identity", agents::refresh(&met, &identity, within)).await;
        refreshed.inspect_err(|_| host.metrics.refresh_failed(subject.record.spec.backend))?;
        (agent, events) = (Some(met), Some(heard));
    }
    slot::open(host, subject, run).await?;

    subject.record.started_at_ms = Some(crate::clock::now_ms());
    subject.record.stopped_at_ms = None;
    Ok(Born { live: Live { vmm, agent }, events })
}

/// Why a guest does not come up is what it said last; its log goes when its creation is undone.
fn with_console(mut error: OpError, log: &Path) -> OpError {
    match console::last_lines(log).as_slice() {
        [] => error.causes.push("its console is empty".to_owned()),
        lines => error.causes.push(format!("its console ends with:\n    {}", lines.join("\n    "))),
    }
    error
}
