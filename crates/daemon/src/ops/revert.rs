//! Revert: puts a snapshot in the place of a stopped or standby instance. What was there before
//! is kept aside until the snapshot has taken its place.

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
    let bundle = run.step("open snapshot", bundle::open(host, plan.source.snapshot())).await?;

    let dir = subject.dir.clone();
    let (overlay, before) = (dir.overlay(), dir.overlay_before());
    run.undo("overlay", {
        let (overlay, before) = (overlay.clone(), before.clone());
        blocking(move || files::put_back(&before, &overlay))
    });
    run.step("put overlay aside", {
        let (overlay, before) = (overlay.clone(), before.clone());
        blocking(move || files::put_aside(&overlay, &before))
    })
    .await?;

    let saved = bundle.overlay();
    let outcome = match plan.target {
        Target::Running => {
            let started = bring_back::start(host, subject, &bundle, run).await?;
            Outcome::Running(bring_back::bring_back(host, subject, &bundle, started, run).await?)
        }
        Target::Stopped => {
            run.step("clone overlay", blocking(move || files::replace_by_clone(&saved, &overlay))).await?;
            Outcome::Rests(InstanceState::Stopped)
        }
        Target::Standby => {
            run.step("link overlay", files::replace_links(vec![(saved, overlay)])).await?;
            let own = bundle::copy(host, subject, &bundle, bundle::Use::internal(SnapshotKind::Standby), run).await?;
            Outcome::Rests(InstanceState::Standby { snapshot: own.id })
        }
    };
    run.commit();
    run.finish("remove old overlay", || {
        let before = before.clone();
        blocking(move || hearth_disk::remove(&before))
    })
    .await;
    Ok(outcome)
}
