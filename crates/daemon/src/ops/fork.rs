//! Fork: a new instance from a snapshot. The source is not touched, nor held: any number of forks
//! load one bundle side by side, from one memory file in one page cache.

use std::sync::Arc;

use hearth_model::InstanceState;
use hearth_store::SnapshotKind;

use super::{ForkPlan, Outcome, Subject, Target, bring_back, bundle, files};
use crate::error::OpError;
use crate::host::Host;
use crate::run::{Run, blocking};

pub(super) async fn fork(
    host: &Arc<Host>,
    subject: &mut Subject,
    plan: &ForkPlan,
    run: &mut Run,
) -> Result<Outcome, OpError> {
    let snapshot = plan.source.snapshot();
    let bundle = match plan.target {
        Target::Running => run.step("open snapshot", bundle::open_to_run(host, snapshot)).await?,
        Target::Stopped | Target::Standby => run.step("open snapshot", bundle::open(host, snapshot)).await?,
    };

    let dir = subject.dir.clone();
    let whole = dir.path().to_owned();
    run.undo("instance directory", blocking(move || hearth_disk::remove(&whole)));
    run.step("make directory", files::make_dir(dir.disks())).await?;
    run.step("link image", files::replace_links(files::read_only_disks(&bundle, &dir))).await?;

    match plan.target {
        Target::Running => {
            let started = bring_back::start(host, subject, &bundle, run).await?;
            let born = bring_back::bring_back(host, subject, &bundle, started, run).await?;
            run.commit();
            Ok(Outcome::Running(born))
        }
        Target::Stopped => {
            run.step("clone overlay", files::replace_by_clones(files::writable_disks(&bundle, &dir))).await?;
            run.commit();
            Ok(Outcome::Rests(InstanceState::Stopped))
        }
        Target::Standby => {
            // A bundle is immutable, so a bundle of one's own is one of links.
            run.step("link overlay", files::replace_links(files::writable_disks(&bundle, &dir))).await?;
            let own = bundle::copy(host, subject, &bundle, bundle::Use::internal(SnapshotKind::Standby), run).await?;
            run.commit();
            Ok(Outcome::Rests(InstanceState::Standby { snapshot: own.id }))
        }
    }
}
