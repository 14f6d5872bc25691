//! `GET /instances/{id}/timeline` (ours).

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::timeline::{TimedOperation, TimedStep, Timeline, TimelineQuery};
use hearth_store::{StepTime, TimelineRecord};

use super::error::Failure;
use super::input::{Named, Query};
use super::view::time;
use crate::serve::App;

/// Operations that come when `limit` is left out.
const DEFAULT_LIMIT: u32 = 20;

/// The timed steps of its last operations (ours)
#[utoipa::path(get, path = "/instances/{id}/timeline", tag = "instances", operation_id = "getInstanceTimeline",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."), TimelineQuery), responses(
    (status = 200, description = "The latest first.", body = Timeline),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn timeline(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Query { query, .. }: Query<TimelineQuery>,
) -> Result<Json<Timeline>, Failure> {
    let instance = app.registry.resolve(&id)?;
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT) as usize;
    let operations = instance.timeline(limit)?;
    Ok(Json(Timeline {
        instance_id: instance.id().to_string(),
        operations: operations.into_iter().map(operation).collect(),
    }))
}

fn operation(record: TimelineRecord) -> TimedOperation {
    TimedOperation {
        op: record.op.to_string(),
        started_at: time(record.at_ms),
        duration_ms: ms(record.total_us),
        error: (!record.ok).then(|| record.error.unwrap_or_else(|| "failed".into())),
        steps: record.steps.into_iter().map(step).collect(),
    }
}

fn step(step: StepTime) -> TimedStep {
    TimedStep { step: step.name, start_ms: ms(step.start_us), duration_ms: ms(step.took_us), note: step.note }
}

/// Microseconds of an operation are far below where a float is less exact.
#[allow(clippy::cast_precision_loss)]
fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}
