//! Forks, of instances and of snapshots: one instance, or with `count` several.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hearth_api::ErrorBody;
use hearth_api::instances::{ForkAnswer, ForkFailure, ForkInstance, Forked, TargetState};
use hearth_api::snapshots::ForkSnapshot;

use super::error::{Failure, body};
use super::input::{Body, Named, parse_name};
use super::instances::check_env;
use super::observe::to_the_end;
use super::{snapshots, view};
use crate::ops::Target;
use crate::registry::{ForkRequest, ForkSource};
use crate::serve::App;

/// Make new instances of this one
#[utoipa::path(post, path = "/instances/{id}/fork", tag = "instances", operation_id = "forkInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = ForkInstance, responses(
    (status = 201, description = "They are there.", body = ForkAnswer),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn instance(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(request): Body<ForkInstance>,
) -> Result<(StatusCode, Json<ForkAnswer>), Failure> {
    let source = app.registry.resolve(&id)?;
    let request = ForkRequest {
        name: parse_name("instance", &request.name)?,
        count: count(&app, request.count)?,
        from_running: request.from_running.unwrap_or(false),
        target: request.target_state.map(target),
        env: variables(request.env)?,
        tags: request.tags,
    };
    fork(&app, ForkSource::Instance(source), request).await
}

/// Make new instances of a snapshot
#[utoipa::path(post, path = "/snapshots/{snapshot_id}/fork", tag = "snapshots", operation_id = "forkSnapshot",
    params(("snapshot_id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = ForkSnapshot, responses(
    (status = 201, description = "They are there.", body = ForkAnswer),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn snapshot(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(request): Body<ForkSnapshot>,
) -> Result<(StatusCode, Json<ForkAnswer>), Failure> {
    let source = snapshots::resolve(&app, &id)?;
    snapshots::same_hypervisor(&source, request.target_hypervisor.as_deref())?;
    let request = ForkRequest {
        name: parse_name("instance", &request.name)?,
        count: count(&app, request.count)?,
        from_running: false,
        target: request.target_state.map(target),
        env: variables(request.env)?,
        tags: request.tags,
    };
    fork(&app, ForkSource::Snapshot(source.id), request).await
}

/// An instance, as Hypeman's clients expect; of several a list of what became of each.
async fn fork(app: &App, source: ForkSource, request: ForkRequest) -> Result<(StatusCode, Json<ForkAnswer>), Failure> {
    let registry = app.registry.clone();
    if request.count == 1 {
        let made = to_the_end(async move { registry.fork(source, request).await }).await?;
        return Ok((StatusCode::CREATED, Json(ForkAnswer::One(Box::new(view::instance(&made.view()))))));
    }
    let mut forked = Forked::default();
    let mut first_error = None;
    for (name, result) in to_the_end(async move { registry.fork_many(source, request).await }).await? {
        match result {
            Ok(made) => forked.instances.push(view::instance(&made.view())),
            Err(error) => {
                forked.errors.push(ForkFailure { name: name.to_string(), error: body(&error) });
                first_error.get_or_insert(error);
            }
        }
    }
    match first_error {
        Some(error) if forked.instances.is_empty() => Err(error.into()),
        _ => Ok((StatusCode::CREATED, Json(ForkAnswer::Many(forked)))),
    }
}

fn count(app: &App, asked: Option<u32>) -> Result<usize, Failure> {
    let most = app.config.limits.fork_count;
    match asked.unwrap_or(1) {
        count if (1..=most).contains(&count) => Ok(count as usize),
        count => Err(Failure::invalid(format!("field \"count\": {count} is not from 1 to {most}"))),
    }
}

fn variables(env: Option<BTreeMap<String, String>>) -> Result<BTreeMap<String, String>, Failure> {
    let env = env.unwrap_or_default();
    check_env(&env)?;
    Ok(env)
}

pub(super) fn target(state: TargetState) -> Target {
    match state {
        TargetState::Running => Target::Running,
        TargetState::Standby => Target::Standby,
        TargetState::Stopped => Target::Stopped,
    }
}
