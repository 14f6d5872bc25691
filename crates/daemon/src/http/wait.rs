//! `GET /instances/{id}/wait`: the answer comes when the instance is there, or time is up.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::instances::{InstanceState, WaitQuery, Waited};
use hearth_model::ErrorKind;
use tokio::sync::watch;

use super::error::Failure;
use super::input::{Named, Query, parse_duration};
use super::view;
use crate::error::OpError;
use crate::handle::InstanceView;
use crate::serve::App;

const DEFAULT: Duration = Duration::from_secs(60);
const MOST: Duration = Duration::from_secs(300);

/// Wait until an instance is in a state
///
/// Ends early when the instance can no longer get there by itself: when its state is `Unknown`, or
/// it is deleted (then it is not found).
#[utoipa::path(get, path = "/instances/{id}/wait", tag = "instances", operation_id = "waitForInstanceState",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."), WaitQuery), responses(
    (status = 200, description = "How it ended.", body = Waited),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn wait(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Query { query, .. }: Query<WaitQuery>,
) -> Result<Json<Waited>, Failure> {
    let timeout = match query.timeout.as_deref().filter(|text| !text.is_empty()) {
        Some(text) => parse_duration("timeout", text)?.min(MOST),
        None => DEFAULT,
    };
    let mut watch = app.registry.resolve(&id)?.watch();
    let reached = tokio::select! {
        reached = tokio::time::timeout(timeout, reach(&mut watch, query.state)) => reached.is_ok(),
        () = app.draining.cancelled() => {
            return Err(OpError::new(ErrorKind::Cancelled, "the daemon is shutting down").into());
        }
    };
    let seen = watch.borrow().clone();
    if seen.gone {
        let name = seen.record.spec.name.as_str();
        let error = OpError::new(ErrorKind::NotFound, format!("instance {name} was deleted")).about("instance", name);
        return Err(error.into());
    }
    Ok(Json(Waited { state: view::state(&seen), timed_out: !reached, state_error: view::state_error(&seen) }))
}

/// Resolves when the instance is there, or never will be.
async fn reach(watch: &mut watch::Receiver<InstanceView>, wanted: InstanceState) {
    let settled = |view: &InstanceView| {
        let state = view::state(view);
        view.gone || state == wanted || state == InstanceState::Unknown
    };
    // An error means that its driver is gone, and so is the instance.
    watch.wait_for(settled).await.map(drop).unwrap_or_default();
}
