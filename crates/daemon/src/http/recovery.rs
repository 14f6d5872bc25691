//! `GET /recovery`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::instances::InstanceState;
use hearth_api::recovery::{RecoveredInstance, Recovery, Swept, Unswept};
use hearth_model::Phase;

use super::view::time;
use crate::recover::{self, Entry, Told};
use crate::serve::App;

/// What the daemon found when it started
///
/// Ours: what it did about each recorded instance, and what it removed that nobody owns. Of the last
/// start alone; an instance that could not be seen then has, once it is seen, what became of it.
#[utoipa::path(get, path = "/recovery", tag = "host", operation_id = "getRecovery", responses(
    (status = 200, description = "What was found and done.", body = Recovery),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn recovery(State(app): State<Arc<App>>) -> Json<Recovery> {
    let Told { began_at_ms, took, outcomes, instances, unlisted, swept } = app.host.recovery.told();
    Json(Recovery {
        started_at: time(began_at_ms),
        duration_ms: took.as_secs_f64() * 1e3,
        outcomes: outcomes.into_iter().map(|(outcome, count)| (outcome.as_str().to_owned(), count)).collect(),
        instances: instances.into_iter().map(instance).collect(),
        unlisted,
        swept: self::swept(swept),
    })
}

fn instance(entry: Entry) -> RecoveredInstance {
    let Entry { id, name, found, observed, outcome, state, reason, looks } = entry;
    RecoveredInstance {
        id: id.to_string(),
        name: name.to_string(),
        found: InstanceState::from(&found),
        cut_off: match found {
            Phase::Busy { op, .. } => Some(op.to_string()),
            Phase::Resting(_) => None,
        },
        vmm: observed.into(),
        outcome: outcome.into(),
        state: state.map(|state| InstanceState::from(&Phase::Resting(state))),
        reason,
        looks,
    }
}

fn swept(swept: recover::Swept) -> Swept {
    let list = |list: Vec<(String, String)>| list.into_iter().map(|(what, why)| Unswept { what, why }).collect();
    let recover::Swept {
        bundles,
        withdrawn_records,
        unpublished_records,
        directories,
        imports,
        images,
        drafts,
        cgroups,
        slots,
        left,
        failed,
        unlisted,
    } = swept;
    Swept {
        bundles,
        withdrawn_records,
        unpublished_records,
        directories,
        imports,
        images,
        drafts,
        cgroups,
        slots,
        left: list(left),
        failed: list(failed),
        unlisted,
    }
}
