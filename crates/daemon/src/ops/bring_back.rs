//! Bringing a guest back from a bundle: what restore, fork and revert share.
//!
//! Everything the guest can see is in its own directory, by its own links and clones, before the
//! VMM loads: so it may resume inside the load. It counts as running, and its network opens, only
//! when its agent has acknowledged who it is now; one without an agent, when it runs.

use std::sync::Arc;

use hearth_model::SnapshotId;
use hearth_model::foreign::ForeignState;
use hearth_snapshot::Bundle;
use hearth_vmm::{Loaded, Ready, SavedState, SocketWait, Started};

use super::{Born, Live, Subject, bundle, files, slot};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::metrics::Plan;
use crate::networks::Place;
use crate::paths::InstanceDir;
use crate::run::{Run, blocking};
use crate::{agents, host};

/// Takes the guest's place on the network, and opens the bundle.
pub(super) async fn open(
    host: &Arc<Host>,
    subject: &mut Subject,
    snapshot: &SnapshotId,
    run: &mut Run,
) -> Result<(Bundle, Place), OpError> {
    let place = slot::take(host, subject, run).await?;
    let bundle = run.step("open snapshot", bundle::open_to_run(host, snapshot)).await?;
    Ok((bundle, place))
}

/// Clones the bundle's writable disks to the guest's own and links what the VMM will load, while the VMM
/// comes up: of a guest it needs nothing but the directory. What undoes the clones, the caller has said.
pub(super) async fn place_and_start(
    host: &Arc<Host>,
    subject: &Subject,
    (bundle, place): (&Bundle, Place),
    run: &mut Run,
) -> Result<Started, OpError> {
    let dir = &subject.dir;
    let links = [dir.memory_base(), dir.vmstate()];
    run.undo("memory links", {
        let links = links.clone();
        blocking(move || links.iter().try_for_each(|link| hearth_disk::remove(link)))
    });
    run.undo("vmm", end_vmm(Arc::clone(host), dir.clone(), None));
    let files = [bundle.memory(), bundle.vmstate()];
    let clone = files::replace_by_clones(files::writable_disks(bundle, dir));
    let link = files::replace_links(files.into_iter().zip(links).collect());
    let start = host.start(dir, &subject.record.spec, place);
    // The VMM last, because that is done on this thread, and the others on their own.
    run.steps_together(("clone overlay", clone), ("link memory", link), ("start vmm", start))
        .await
        .map(|((), (), started)| started)
}

/// Loads `bundle` in the subject's directory, where it was put in place.
pub(super) async fn bring_back(
    host: &Arc<Host>,
    subject: &mut Subject,
    bundle: &Bundle,
    started: Started,
    run: &mut Run,
) -> Result<Born, OpError> {
    let backend = subject.record.spec.backend;
    let plan = host.load_plan(bundle.manifest());
    let counted = host.metrics.restore(backend, Plan::from(&plan));
    let dir = subject.dir.clone();
    if let Some(foreign) = &bundle.manifest().foreign {
        stand_in(&dir, foreign, run).await?;
        // Said once more: what runs is ended before its files are taken away.
        run.undo("vmm", end_vmm(Arc::clone(host), dir.clone(), None));
    }

    let from = SavedState { vmstate: dir.vmstate(), memory: dir.memory_base(), format: bundle::state_format(bundle)? };
    let ready = host.counting_the_wait(backend, started.ready(&from), Ready::socket_wait);
    let ready = run.step("await vmm", ready).await?;
    if let Some((wait, _)) = ready.socket_wait() {
        run.note(match wait {
            SocketWait::Polling(why) => format!("{} ({why})", wait.as_str()),
            SocketWait::Immediate | SocketWait::Inotify => wait.as_str().to_owned(),
        });
    }
    let loaded = run.step("load snapshot", async { ready.load(&plan).await.map_err(OpError::from) }).await?;
    run.note(match &bundle.manifest().foreign {
        Some(foreign) if foreign.is_named_as_here() => format!("{plan}, though its drives are named as here"),
        Some(_) | None => plan.to_string(),
    });
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

    subject.record.generation += 1;
    let (mut agent, mut events) = (None, None);
    if subject.record.spec.agent {
        let within = host.config.timeouts.agent();
        let (met, heard) = run.step("reach agent", agents::meet(&vmm, within)).await?;
        let identity = agents::identity(&subject.record).coming_back(host.config.timeouts.hooks());
        // Only now is it somebody: until here the guest believes that it is its source.
        let refresh = async {
            tokio::select! {
                biased;
                refreshed = agents::refresh(&met, &identity, within) => match refreshed {
                    Ok(refreshed) => Ok(refreshed),
                    Err(error) => Err(agents::look_again(&vmm, error).await),
                },
                exit = vmm.exited() => Err(agents::died(&exit)),
            }
        };
        let refreshed = run.step("refresh identity", refresh).await;
        run.note(refreshed.inspect_err(|_| host.metrics.refresh_failed(subject.record.spec.backend))?.to_string());
        (agent, events) = (Some(met), Some(heard));
    }
    slot::open(host, subject, run).await?;

    subject.record.started_at_ms = Some(crate::clock::now_ms());
    subject.record.stopped_at_ms = None;
    subject.record.exit = None;
    counted.done();
    Ok(Born { live: Live { vmm, agent }, events })
}

/// A state that was saved elsewhere may name drives by relative paths too. What it names is opened
/// before it is replaced, so the drive that takes its place stands in for it.
async fn stand_in(dir: &InstanceDir, foreign: &ForeignState, run: &mut Run) -> Result<(), OpError> {
    let own = |path: &str| foreign.drives.iter().any(|drive| drive.id.path() == path);
    let relative = foreign.drives.iter().filter(|drive| !drive.path.starts_with('/') && !own(&drive.path));
    let links: Vec<_> = relative.map(|drive| (dir.disk(&drive.id.path()), dir.disk(&drive.path))).collect();
    if links.is_empty() {
        return Ok(());
    }
    run.undo("links of drives", {
        let links = links.clone();
        blocking(move || links.iter().try_for_each(|(_, link)| hearth_disk::remove(link)))
    });
    run.step("link drives", async {
        for parent in links.iter().filter_map(|(_, link)| link.parent()) {
            files::make_dir(parent.to_owned()).await?;
        }
        files::replace_links(links).await
    })
    .await
}
