//! `/snapshots` and `/instances/{id}/snapshots`.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hearth_api::ErrorBody;
use hearth_api::instances::Instance;
use hearth_api::snapshots::{
    CreateSnapshot, ImportSnapshot, ListSnapshots, RestoreSnapshot, Snapshot, SnapshotKind, VerifiedSnapshot,
};
use hearth_model::ErrorKind;
use hearth_store::lookup::{Called, Lookup};
use hearth_store::{SnapshotRecord, lookup};
use jiff::Timestamp;

use super::error::Failure;
use super::fork::target;
use super::input::{Body, Named, Query, parse_name};
use super::observe::to_the_end;
use super::view;
use crate::error::OpError;
use crate::handle::InstanceHandle;
use crate::ops::{ImportPlan, SnapshotPlan, import_guest, is_imported};
use crate::registry::ambiguous;
use crate::serve::App;

/// All snapshots
#[utoipa::path(get, path = "/snapshots", tag = "snapshots", operation_id = "listSnapshots",
    params(ListSnapshots, ("tags" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode)), responses(
    (status = 200, description = "The oldest first.", body = Vec<Snapshot>),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query { query, tags }: Query<ListSnapshots>,
) -> Result<Json<Vec<Snapshot>>, Failure> {
    let snapshots = app.host.store.listed_snapshots().map_err(OpError::from)?;
    let wanted = snapshots
        .iter()
        .filter(|snapshot| query.kind.is_none_or(|kind| kind == view::kind(snapshot.kind)))
        .filter(|snapshot| {
            query.name.as_deref().is_none_or(|name| snapshot.name.as_ref().is_some_and(|n| n.as_str() == name))
        })
        .filter(|snapshot| query.source_instance_id.as_deref().is_none_or(|id| snapshot.source_instance.as_str() == id))
        .filter(|snapshot| view::has_tags(&snapshot.tags, &tags));
    Ok(Json(wanted.map(|snapshot| view::snapshot(&app, snapshot)).collect()))
}

/// One snapshot
#[utoipa::path(get, path = "/snapshots/{snapshot_id}", tag = "snapshots", operation_id = "getSnapshot",
    params(("snapshot_id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "It.", body = Snapshot),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn get(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<Snapshot>, Failure> {
    Ok(Json(view::snapshot(&app, &resolve(&app, &id)?)))
}

/// Remove a snapshot
///
/// Instances that were made of it stay.
#[utoipa::path(delete, path = "/snapshots/{snapshot_id}", tag = "snapshots", operation_id = "deleteSnapshot",
    params(("snapshot_id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 204, description = "It is gone."),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn delete(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<StatusCode, Failure> {
    let snapshot = resolve(&app, &id)?;
    let registry = app.registry.clone();
    to_the_end(async move { registry.drop_snapshot(&snapshot.id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Save an instance; it goes on
#[utoipa::path(post, path = "/instances/{id}/snapshots", tag = "snapshots", operation_id = "createInstanceSnapshot",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = CreateSnapshot, responses(
    (status = 201, description = "It is saved.", body = Snapshot),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(request): Body<CreateSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), Failure> {
    let instance = app.registry.resolve(&id)?;
    let plan = SnapshotPlan {
        name: request.name.filter(|name| !name.is_empty()).map(|name| parse_name("snapshot", &name)).transpose()?,
        tags: request.tags.unwrap_or_default(),
        kind: match request.kind {
            SnapshotKind::Standby => hearth_store::SnapshotKind::Standby,
            SnapshotKind::Stopped => hearth_store::SnapshotKind::Stopped,
        },
        internal: false,
    };
    let record = instance.snapshot(plan).await?;
    Ok((StatusCode::CREATED, Json(view::snapshot(&app, &record))))
}

/// Make a snapshot of a guest that plain Firecracker saved (ours)
///
/// The answer comes when it is there. It can be forked like any other; the files that its drives
/// are named by must stay where they are, though nothing of them is used.
#[utoipa::path(post, path = "/snapshots/import", tag = "snapshots", operation_id = "importSnapshot",
    request_body = ImportSnapshot, responses(
    (status = 201, description = "It is there.", body = Snapshot),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn import(
    State(app): State<Arc<App>>,
    Body(request): Body<ImportSnapshot>,
) -> Result<(StatusCode, Json<Snapshot>), Failure> {
    let dir = PathBuf::from(&request.path);
    if !dir.is_absolute() {
        return Err(Failure::invalid(format!(
            "field \"path\": {:?} is not an absolute path on the server",
            request.path
        )));
    }
    let plan = ImportPlan {
        dir,
        vmstate: request.vmstate.filter(|name| !name.is_empty()),
        memory: request.memory.filter(|name| !name.is_empty()),
        name: parse_name("snapshot", &request.name)?,
        agent: request.agent.unwrap_or(true),
        tags: request.tags.unwrap_or_default(),
    };
    let host = Arc::clone(&app.host);
    let record = to_the_end(import_guest(host, plan)).await?;
    Ok((StatusCode::CREATED, Json(view::snapshot(&app, &record))))
}

/// Compare a snapshot with its checksums (ours)
///
/// Every file of it is read. If one is not what it was, the answer is an error that names it, and
/// the snapshot is not loaded any more until a later verification succeeds. By its id, the memory
/// of an instance in standby is verified too, which is in no list.
#[utoipa::path(post, path = "/snapshots/{snapshot_id}/verify", tag = "snapshots", operation_id = "verifySnapshot",
    params(("snapshot_id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "It is what it was.", body = VerifiedSnapshot),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn verify(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
) -> Result<Json<VerifiedSnapshot>, Failure> {
    let internal = match id.parse() {
        Ok(id) => app.host.store.snapshot(&id).map_err(OpError::from)?,
        Err(_) => None,
    };
    let snapshot = match internal {
        Some(record) => record,
        None => resolve(&app, &id)?,
    };
    let bytes = app.host.scrubber.verify(&snapshot.id).await?;
    Ok(Json(VerifiedSnapshot {
        id: snapshot.id.to_string(),
        name: snapshot.name.as_ref().map(ToString::to_string),
        bytes,
        verified_at: Timestamp::now(),
    }))
}

/// Put one of an instance's snapshots in its place
#[utoipa::path(post, path = "/instances/{id}/snapshots/{snapshot_id}/restore", tag = "snapshots",
    operation_id = "restoreInstanceSnapshot",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."),
        ("snapshot_id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = Option<RestoreSnapshot>, responses(
    (status = 200, description = "It is what it was then.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn restore(
    State(app): State<Arc<App>>,
    Named((id, snapshot)): Named<(String, String)>,
    Body(request): Body<RestoreSnapshot>,
) -> Result<Json<Instance>, Failure> {
    let instance = app.registry.resolve(&id).map_err(|missing| no_place_for(&app, &snapshot, missing))?;
    let snapshot = resolve_of(&app, &instance, &snapshot)?;
    same_hypervisor(&snapshot, request.target_hypervisor.as_deref())?;
    let (registry, target) = (app.registry.clone(), request.target_state.map(target));
    let view = to_the_end(async move { registry.revert(&instance, &snapshot, target).await }).await?;
    Ok(Json(view::instance(&view)))
}

/// Why there is no instance for a snapshot to be put in the place of, if that is why it is missing.
fn no_place_for(app: &App, snapshot: &str, missing: OpError) -> OpError {
    let Ok(Lookup::Found(snapshot)) = app.host.store.find_snapshot(snapshot) else { return missing };
    if missing.kind != ErrorKind::NotFound || app.registry.resolve(snapshot.source_instance.as_str()).is_ok() {
        return missing;
    }
    let name = snapshot.name.as_ref().map_or(snapshot.id.as_str(), |name| name.as_str());
    let why = if is_imported(&snapshot) {
        format!("snapshot {name} was imported: there is no instance that it was taken of")
    } else {
        format!("instance {}, which snapshot {name} was taken of, is no more", snapshot.source_name)
    };
    OpError::new(ErrorKind::NotFound, why)
        .hinted(format!("make a new instance of it: `hearth snapshot fork {name} NAME`"))
        .about("snapshot", snapshot.id.as_str())
}

/// The snapshot that a text means.
pub(super) fn resolve(app: &App, text: &str) -> Result<SnapshotRecord, Failure> {
    match app.host.store.find_snapshot(text).map_err(OpError::from)? {
        Lookup::Found(record) => Ok(record),
        Lookup::NotFound { similar } => Err(OpError::not_found("snapshot", text, &similar).into()),
        Lookup::Ambiguous { candidates } => Err(ambiguous("snapshot", text, &candidates).into()),
    }
}

/// The same among those of one instance, where a name is unique.
fn resolve_of(app: &App, instance: &InstanceHandle, text: &str) -> Result<SnapshotRecord, Failure> {
    let mut own = app.host.store.listed_snapshots().map_err(OpError::from)?;
    own.retain(|snapshot| snapshot.source_instance == *instance.id());
    let called: Vec<Called> = own
        .iter()
        .map(|snapshot| Called { id: snapshot.id.to_string(), name: snapshot.name.as_ref().map(ToString::to_string) })
        .collect();
    match lookup::resolve(text, &called) {
        Lookup::Found(id) => own
            .into_iter()
            .find(|snapshot| snapshot.id.as_str() == id)
            .ok_or_else(|| OpError::not_found("snapshot", text, &[]).into()),
        // Another instance's is found too, and refused with that reason.
        Lookup::NotFound { .. } => resolve(app, text),
        Lookup::Ambiguous { candidates } => Err(ambiguous("snapshot", text, &candidates).into()),
    }
}

/// Another runtime than the source's is not possible here.
pub(super) fn same_hypervisor(snapshot: &SnapshotRecord, asked: Option<&str>) -> Result<(), Failure> {
    match asked.filter(|asked| !asked.is_empty()) {
        Some(asked) if asked != snapshot.backend.as_str() => Err(Failure::unsupported(
            format!(
                "field \"target_hypervisor\": snapshot {} is one of {}, not of {asked}",
                snapshot.id, snapshot.backend
            ),
            "leave \"target_hypervisor\" out of the request",
        )),
        _ => Ok(()),
    }
}
