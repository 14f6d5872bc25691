//! `GET /resources`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::resources::{Allocation, DiskBreakdown, ResourceStatus, Resources};

use super::error::Failure;
use crate::error::OpError;
use crate::reservations::Figures;
use crate::resources::{capacity, memory_for_instances};
use crate::serve::App;

/// What the host has, and who has it
#[utoipa::path(get, path = "/resources", tag = "host", operation_id = "getResources", responses(
    (status = 200, description = "What there is.", body = Resources),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn resources(State(app): State<Arc<App>>) -> Result<Json<Resources>, Failure> {
    let room = &app.host.room;
    let allocations = app.registry.list().into_iter().map(|view| {
        let (spec, held) = (&view.record.spec, room.of(&view.record.id));
        Allocation {
            cpu: u32::try_from(held.vcpus).unwrap_or(u32::MAX),
            disk_bytes: spec.overlay.bytes(),
            instance_id: view.record.id.to_string(),
            instance_name: spec.name.to_string(),
            memory_bytes: held.memory,
        }
    });
    let (config, host) = (&app.host.config, capacity(app.host.data.root()));
    let Figures { limits, held, shown } = room.figures();
    let memory = ResourceStatus {
        source: Some(if config.memory.capacity.is_some() { "configured" } else { "detected" }.into()),
        ..counted("memory", memory_for_instances(config, &host), limits.most.memory, held.memory)
    };
    Ok(Json(Resources {
        allocations: allocations.collect(),
        cpu: ResourceStatus {
            oversub_ratio: config.cpu.oversubscription,
            ..counted("cpu", host.cpus, limits.most.vcpus, held.vcpus)
        },
        disk: disk(host.disk, limits.disk_reserve, shown.disk_free.saturating_sub(held.disk)),
        memory: ResourceStatus { oversub_ratio: config.memory.oversubscription, ..memory },
        network: counted("network", 0, 0, 0),
        files: Some(counted("files", limits.most.files, limits.most.files, held.files)),
        processes: Some(counted("processes", limits.most.processes, limits.most.processes, held.processes)),
        disk_breakdown: Some(breakdown(&app)?),
    }))
}

/// What is given to instances as long as they run.
fn counted(kind: &str, capacity: u64, limit: u64, allocated: u64) -> ResourceStatus {
    ResourceStatus {
        allocated,
        available: limit.saturating_sub(allocated),
        capacity,
        effective_limit: limit,
        oversub_ratio: 1.0,
        kind: kind.into(),
        source: Some("detected".into()),
    }
}

/// Space is never given away beforehand: what can be had is what is free, less the reserve.
fn disk(capacity: u64, reserve: u64, free: u64) -> ResourceStatus {
    let (limit, available) = (capacity.saturating_sub(reserve), free.saturating_sub(reserve));
    ResourceStatus { available, ..counted("disk", capacity, limit, limit.saturating_sub(available)) }
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
