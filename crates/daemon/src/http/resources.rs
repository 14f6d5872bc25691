//! `GET /resources`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::resources::{Allocation, DiskBreakdown, ResourceStatus, Resources};

use super::error::Failure;
use crate::error::OpError;
use crate::resources::{Taken, capacity, taken};
use crate::serve::App;

/// What the host has, and who has it
#[utoipa::path(get, path = "/resources", tag = "host", operation_id = "getResources", responses(
    (status = 200, description = "What there is.", body = Resources),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn resources(State(app): State<Arc<App>>) -> Result<Json<Resources>, Failure> {
    let mut total = Taken::default();
    let mut allocations = Vec::new();
    for view in app.registry.list() {
        let taken = taken(&view);
        total.cpus += taken.cpus;
        total.memory += taken.memory;
        total.disk += taken.disk;
        allocations.push(Allocation {
            cpu: u32::try_from(taken.cpus).unwrap_or(u32::MAX),
            disk_bytes: taken.disk,
            instance_id: view.record.id.to_string(),
            instance_name: view.record.spec.name.to_string(),
            memory_bytes: taken.memory,
        });
    }
    let host = capacity(app.host.data.root());
    Ok(Json(Resources {
        allocations,
        cpu: status("cpu", host.cpus, total.cpus),
        disk: status("disk", host.disk, total.disk),
        memory: status("memory", host.memory, total.memory),
        network: status("network", 0, 0),
        disk_breakdown: Some(breakdown(&app)?),
    }))
}

fn status(kind: &str, capacity: u64, allocated: u64) -> ResourceStatus {
    ResourceStatus {
        allocated,
        available: capacity.saturating_sub(allocated),
        capacity,
        effective_limit: capacity,
        oversub_ratio: 1.0,
        kind: kind.into(),
        source: Some("detected".into()),
    }
}

fn breakdown(app: &App) -> Result<DiskBreakdown, Failure> {
    // Several names may lead to one content.
    let images: BTreeMap<String, u64> =
        app.images.list()?.into_iter().map(|image| (image.digest, image.size_bytes)).collect();
    let snapshots = app.host.store.snapshots().map_err(OpError::from)?.iter().map(|snapshot| snapshot.size_bytes).sum();
    Ok(DiskBreakdown {
        images_bytes: Some(images.values().sum()),
        overlays_bytes: None,
        snapshots_bytes: Some(snapshots),
    })
}
