//! `GET /instances/{id}/stats` and `/stat`: what an instance uses, and what is in its file system.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use hearth_agent_client::{AgentError, FileKind, PathStat};
use hearth_api::ErrorBody;
use hearth_api::instances::{InstanceStats, PathInfo, StatQuery};

use super::error::Failure;
use super::input::{Named, Query};
use crate::error::OpError;
use crate::serve::App;

/// For an agent that is there, or is just being met.
pub(super) const AGENT_WAIT: Duration = Duration::from_secs(2);

/// What an instance uses now
#[utoipa::path(get, path = "/instances/{id}/stats", tag = "instances", operation_id = "getInstanceStats",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "What its VMM uses; nothing without one.", body = InstanceStats),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn stats(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
) -> Result<Json<InstanceStats>, Failure> {
    let instance = app.registry.resolve(&id)?;
    let view = instance.view();
    let allocated = view.record.spec.memory.size().bytes();
    let usage = instance.usage();
    let traffic = app.host.networks.usage(&view.record.id);
    // Sizes of memory are far below where a float is less exact.
    #[allow(clippy::cast_precision_loss)]
    let ratio = usage.map(|usage| usage.rss_bytes as f64 / allocated as f64);
    Ok(Json(InstanceStats {
        allocated_memory_bytes: allocated,
        allocated_vcpus: view.record.spec.vcpus.into(),
        cpu_seconds: usage.map_or(0.0, |usage| usage.cpu_seconds),
        instance_id: view.record.id.to_string(),
        instance_name: view.record.spec.name.to_string(),
        memory_rss_bytes: usage.map_or(0, |usage| usage.rss_bytes),
        memory_vms_bytes: usage.map_or(0, |usage| usage.vms_bytes),
        // Of QEMU's own network nobody counts.
        network_rx_bytes: traffic.map_or(0, |traffic| traffic.rx_bytes),
        network_tx_bytes: traffic.map_or(0, |traffic| traffic.tx_bytes),
        memory_utilization_ratio: ratio,
        memory_private_bytes: usage.map(|usage| usage.private_bytes),
    }))
}

/// What is at a path in a guest
#[utoipa::path(get, path = "/instances/{id}/stat", tag = "instances", operation_id = "statInstancePath",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."), StatQuery), responses(
    (status = 200, description = "What is there, or that nothing is.", body = PathInfo),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn stat(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Query { query, .. }: Query<StatQuery>,
) -> Result<Json<PathInfo>, Failure> {
    if !query.path.starts_with('/') {
        return Err(Failure::invalid(format!("query parameter \"path\": {:?} is not an absolute path", query.path)));
    }
    let agent = app.registry.resolve(&id)?.agent(AGENT_WAIT).await?;
    match agent.stat(&query.path, query.follow_links.unwrap_or(false)).await {
        Ok(None) => Ok(Json(PathInfo::default())),
        Ok(Some(stat)) => Ok(Json(info(stat))),
        // The guest answered: that it may not look is an answer too.
        Err(AgentError::Refused { text, .. }) => Ok(Json(PathInfo { error: Some(text), ..PathInfo::default() })),
        Err(error) => Err(OpError::from(error).into()),
    }
}

fn info(stat: PathStat) -> PathInfo {
    let target = match &stat.kind {
        FileKind::Symlink { target } => Some(target.clone()),
        FileKind::File | FileKind::Dir | FileKind::Other => None,
    };
    PathInfo {
        exists: true,
        error: None,
        is_dir: Some(stat.kind == FileKind::Dir),
        is_file: Some(stat.kind == FileKind::File),
        is_symlink: Some(target.is_some()),
        link_target: target,
        mode: Some(stat.mode & 0o7777),
        size: Some(stat.size),
    }
}
