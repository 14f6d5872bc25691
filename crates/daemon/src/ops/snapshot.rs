//! Snapshot: a copy of an instance as a bundle of its own; the instance rests where it was.

use std::sync::Arc;

use hearth_model::{ErrorKind, InstanceState};
use hearth_store::{SnapshotKind, SnapshotRecord};

use super::{Outcome, SnapshotPlan, Subject, bundle};
use crate::error::OpError;
use crate::host::Host;
use crate::run::Run;

/// Whether an instance in that state can be saved so; [`snapshot`] says why not.
pub(crate) fn can_be_saved(state: &InstanceState, kind: SnapshotKind) -> bool {
    match kind {
        SnapshotKind::Standby => matches!(state, InstanceState::Running | InstanceState::Standby { .. }),
        SnapshotKind::Stopped => *state == InstanceState::Stopped,
    }
}

pub(super) async fn snapshot(
    host: &Arc<Host>,
    subject: &mut Subject,
    plan: &SnapshotPlan,
    run: &mut Run,
) -> Result<(Outcome, SnapshotRecord), OpError> {
    let purpose =
        bundle::Use { kind: plan.kind, name: plan.name.clone(), tags: plan.tags.clone(), internal: plan.internal };
    let state = subject.record.phase.state().clone();
    match (&state, plan.kind) {
        (InstanceState::Running, SnapshotKind::Standby) => {
            let saved = bundle::save(host, subject, purpose, bundle::Then::GoOn, run).await?;
            run.commit();
            Ok((saved.reached_anew.map_or(Outcome::StillRunning, Outcome::Running), saved.record))
        }
        (InstanceState::Standby { snapshot }, SnapshotKind::Standby) => {
            let bundle = run.step("open snapshot", bundle::open(host, snapshot)).await?;
            let saved = bundle::copy(host, subject, &bundle, purpose, run).await?;
            run.commit();
            Ok((Outcome::Rests(state), saved))
        }
        (InstanceState::Stopped, SnapshotKind::Stopped) => {
            let saved = bundle::save_disks(host, subject, purpose, run).await?;
            run.commit();
            Ok((Outcome::Rests(state), saved))
        }
        (state, kind) => {
            let (name, wants) = (
                &subject.record.spec.name,
                match kind {
                    SnapshotKind::Standby => "running or in standby",
                    SnapshotKind::Stopped => "stopped",
                },
            );
            Err(OpError::new(
                ErrorKind::WrongState,
                format!("a {kind} snapshot needs instance {name} to be {wants}; it is {}", state.name()),
            )
            .about("instance", name.as_str()))
        }
    }
}
