//! Fork: a new instance from a snapshot. The source is not touched, nor held: any number of forks
//! load one bundle side by side, from one memory file in one page cache.

use std::sync::Arc;

use hearth_model::InstanceState;
use hearth_snapshot::Bundle;
use hearth_store::SnapshotKind;

use super::{ForkPlan, Outcome, Subject, Target, bring_back, bundle, files};
use crate::error::OpError;
use crate::fresh;
use crate::host::Host;
use crate::run::{Run, blocking};

pub(super) async fn fork(
    host: &Arc<Host>,
    subject: &mut Subject,
    plan: &ForkPlan,
    run: &mut Run,
) -> Result<Outcome, OpError> {
    let snapshot = plan.source.snapshot();
    let dir = subject.dir.clone();
    let whole = dir.clone();
    run.undo("instance directory", blocking(move || fresh::remove(&whole)));
    // Four names: handing that to another thread and back would take longer.
    run.step("make directory", async { fresh::make(&dir) }).await?;

    match plan.target {
        Target::Running => {
            let (bundle, place) = bring_back::open(host, subject, snapshot, run).await?;
            link_image(subject, &bundle, run).await?;
            let started = bring_back::place_and_start(host, subject, (&bundle, place), run).await?;
            let born = bring_back::bring_back(host, subject, &bundle, started, run).await?;
            run.commit();
            Ok(Outcome::Running(born))
        }
        Target::Stopped => {
            let bundle = run.step("open snapshot", bundle::open(host, snapshot)).await?;
            link_image(subject, &bundle, run).await?;
            run.step("clone overlay", files::replace_by_clones(files::writable_disks(&bundle, &dir))).await?;
            run.commit();
            Ok(Outcome::Rests(InstanceState::Stopped))
        }
        Target::Standby => {
            let bundle = run.step("open snapshot", bundle::open(host, snapshot)).await?;
            link_image(subject, &bundle, run).await?;
            // A bundle is immutable, so a bundle of one's own is one of links.
            run.step("link overlay", files::replace_links(files::writable_disks(&bundle, &dir))).await?;
            let own = bundle::copy(host, subject, &bundle, bundle::Use::internal(SnapshotKind::Standby), run).await?;
            run.commit();
            Ok(Outcome::Rests(InstanceState::Standby { snapshot: own.id }))
        }
    }
}

async fn link_image(subject: &Subject, bundle: &Bundle, run: &mut Run) -> Result<(), OpError> {
    run.step("link image", files::replace_links(files::read_only_disks(bundle, &subject.dir))).await
}
