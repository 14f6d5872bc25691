//! Revert: puts a snapshot in the place of a stopped or standby instance. What was there before
//! is kept aside until the snapshot has taken its place.

use std::path::PathBuf;
use std::sync::Arc;

use hearth_model::InstanceState;
use hearth_store::SnapshotKind;

use super::{Outcome, RevertPlan, Subject, Target, bring_back, bundle, files};
use crate::error::OpError;
use crate::host::Host;
use crate::run::{Run, blocking};

pub(super) async fn revert(
    host: &Arc<Host>,
    subject: &mut Subject,
    plan: &RevertPlan,
    run: &mut Run,
) -> Result<Outcome, OpError> {
    let snapshot = plan.source.snapshot();
    let dir = subject.dir.clone();
    let disks = subject.record.spec.disks().into_iter().filter(|disk| !disk.read_only);
    let aside: Vec<_> = disks.map(|disk| (dir.disk(&disk.path), dir.disk_before(&disk.path))).collect();

    let outcome = match plan.target {
        Target::Running => {
            let (bundle, place) = bring_back::open(host, subject, snapshot, run).await?;
            put_aside(&aside, run).await?;
            let started = bring_back::place_and_start(host, subject, (&bundle, place), run).await?;
            Outcome::Running(bring_back::bring_back(host, subject, &bundle, started, run).await?)
        }
        Target::Stopped => {
            let bundle = run.step("open snapshot", bundle::open(host, snapshot)).await?;
            put_aside(&aside, run).await?;
            run.step("clone overlay", files::replace_by_clones(files::writable_disks(&bundle, &dir))).await?;
            Outcome::Rests(InstanceState::Stopped)
        }
        Target::Standby => {
            let bundle = run.step("open snapshot", bundle::open(host, snapshot)).await?;
            put_aside(&aside, run).await?;
            run.step("link overlay", files::replace_links(files::writable_disks(&bundle, &dir))).await?;
            let own = bundle::copy(host, subject, &bundle, bundle::Use::internal(SnapshotKind::Standby), run).await?;
            Outcome::Rests(InstanceState::Standby { snapshot: own.id })
        }
    };
    run.commit();
    run.finish("remove old overlay", || {
        let aside = aside.clone();
        blocking(move || aside.iter().try_for_each(|(_, before)| hearth_disk::remove(before)))
    })
    .await;
    Ok(outcome)
}

/// Renames each disk to where it rests meanwhile.
async fn put_aside(aside: &[(PathBuf, PathBuf)], run: &mut Run) -> Result<(), OpError> {
    let aside = aside.to_vec();
    run.undo("overlay", {
        let aside = aside.clone();
        blocking(move || aside.iter().try_for_each(|(disk, before)| files::put_back(before, disk)))
    });
    run.step(
        "put overlay aside",
        blocking(move || aside.iter().try_for_each(|(disk, before)| files::put_aside(disk, before))),
    )
    .await
}
