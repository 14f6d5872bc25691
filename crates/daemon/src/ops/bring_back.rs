//! Bringing a guest back from a bundle: what restore, fork and revert share.
//!
//! Everything the guest can see is in its own directory, by its own links and clones, before the
//! VMM loads: so it may resume inside the load. It counts as running only when its agent has
//! acknowledged who it is now.

use std::sync::Arc;

use hearth_snapshot::Bundle;
use hearth_vmm::{Loaded, SavedState};

use super::{Born, Live, Subject, files};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::metrics::Plan;
use crate::run::{Run, blocking};
use crate::{agents, host};

/// Loads `bundle` in the subject's directory, whose disks are in place.
pub(super) async fn bring_back(
    host: &Arc<Host>,
    subject: &mut Subject,
    bundle: &Bundle,
    run: &mut Run,
) -> Result<Born, OpError> {
    let counted = host.metrics.restore(subject.record.spec.backend, Plan::LoadResume);
    let dir = subject.dir.clone();
    let links = [dir.memory_base(), dir.vmstate()];
    run.undo("memory links", {
        let links = links.clone();
        blocking(move || links.iter().try_for_each(|link| hearth_disk::remove(link)))
    });
    let files = [bundle.memory(), bundle.vmstate()];
    run.step("link memory", files::replace_links(files.into_iter().zip(links).collect())).await?;

    let from =
        SavedState { vmstate: dir.vmstate(), memory: dir.memory_base(), format: super::bundle::state_format(bundle)? };
    run.undo("vmm", end_vmm(Arc::clone(host), dir.clone(), None));
    let loaded = run.step("load snapshot", host.load(&dir, &subject.record.spec, &from)).await?;
    counted.loaded(matches!(loaded, Loaded::Resumed(_)));
    let vmm = match loaded {
        Loaded::Resumed(vmm) => {
            tracing::info!(instance = %subject.id(), "VM was resumed during snapshot load");
            vmm
        }
        Loaded::Paused(vmm) => {
            run.step("resume", async { vmm.resume().await.map_err(OpError::from) }).await?;
            vmm
        }
    };
    let vmm = Arc::new(vmm);
    subject.record.seat = host::seat_value(&vmm);

    let within = host.config.timeouts.agent();
    let (agent, events) = run.step("reach agent", agents::meet(&vmm, within)).await?;
    subject.record.generation += 1;
    let identity = agents::identity(&subject.record);
    // Only now is it somebody: until here the guest believes that it is its source.
    let refreshed = run.step("refresh identity", agents::refresh(&agent, &identity, within)).await;
    refreshed.inspect_err(|_| host.metrics.refresh_failed(subject.record.spec.backend))?;

    subject.record.started_at_ms = Some(crate::clock::now_ms());
    subject.record.stopped_at_ms = None;
    counted.done();
    Ok(Born { live: Live { vmm, agent: Some(agent) }, events })
}
