//! Records as the wire's types: one function for each.

use std::collections::BTreeMap;

use hearth_api::Tags;
use hearth_api::images::{Image, ImageStatus};
use hearth_api::instances::{Busy, ForkedFrom, Instance, InstanceState};
use hearth_api::snapshots::{CompressionState, Damage, Snapshot, SnapshotKind};
use hearth_model::{InstanceState as Rest, Phase};
use hearth_store::{ImageRecord, Origin, SnapshotRecord};
use jiff::Timestamp;
use tracing::debug;

use crate::clock::now_ms;
use crate::handle::InstanceView;
use crate::serve::App;

/// The one platform of this build.
pub(super) const PLATFORM: &str = "linux/amd64";

pub(super) fn instance(view: &InstanceView) -> Instance {
    let record = &*view.record;
    let spec = &record.spec;
    Instance {
        id: record.id.to_string(),
        created_at: time(record.created_at_ms),
        image: spec.image.to_string(),
        name: spec.name.to_string(),
        state: state(view),
        state_error: state_error(view),
        current_phase: Some(record.phases.current.clone()),
        current_phase_since: Some(time(record.phases.since_ms)),
        env: some(&spec.env),
        exit_code: record.exit.as_ref().map(|exit| exit.code),
        exit_message: record.exit.as_ref().map(|exit| exit.message.clone()),
        has_snapshot: Some(matches!(view.state(), Rest::Standby { .. })),
        hypervisor: Some(spec.backend.to_string()),
        network: Some(super::network::shown(record)),
        overlay_size: Some(spec.overlay.to_string()),
        phase_durations_ms: Some(record.phases.durations_at(now_ms())),
        platform: Some(PLATFORM.into()),
        restart_policy: super::restart::policy(record),
        restart_status: super::restart::status(record),
        size: Some(spec.memory.to_string()),
        started_at: record.started_at_ms.map(time),
        stopped_at: record.stopped_at_ms.map(time),
        tags: some(&spec.tags),
        vcpus: Some(spec.vcpus.into()),
        busy: match &record.phase {
            Phase::Busy { op, .. } => Some(Busy { op: op.to_string(), since: view.busy_since_ms.map(time) }),
            Phase::Resting(_) => None,
        },
        end: super::restart::end(record),
        forked_from: record.source.as_ref().map(|origin| match origin {
            Origin::Instance(id) => ForkedFrom { instance_id: Some(id.to_string()), snapshot_id: None },
            Origin::Snapshot(id) => ForkedFrom { instance_id: None, snapshot_id: Some(id.to_string()) },
        }),
        generation: Some(record.generation),
    }
}

pub(super) fn state(view: &InstanceView) -> InstanceState {
    InstanceState::from(&view.record.phase)
}

pub(super) fn state_error(view: &InstanceView) -> Option<String> {
    match &view.record.phase {
        Phase::Resting(Rest::Failed { reason }) => Some(reason.clone()),
        _ => None,
    }
}

pub(super) fn image(record: &ImageRecord) -> Image {
    let config = &record.config;
    let variable = |entry: &String| {
        let (name, value) = entry.split_once('=').unwrap_or((entry, ""));
        (name.to_owned(), value.to_owned())
    };
    Image {
        created_at: time(record.created_at_ms),
        digest: record.digest.clone(),
        name: record.name.to_string(),
        status: ImageStatus::Ready,
        cmd: (!config.cmd.is_empty()).then(|| config.cmd.clone()),
        entrypoint: (!config.entrypoint.is_empty()).then(|| config.entrypoint.clone()),
        env: some(&config.env.iter().map(variable).collect()),
        error: None,
        platform: Some(record.platform.clone()),
        size_bytes: Some(record.size_bytes),
        tags: some(&record.tags),
        user: (!config.user.is_empty()).then(|| config.user.clone()),
        working_dir: (!config.workdir.is_empty()).then(|| config.workdir.clone()),
    }
}

pub(super) fn snapshot(app: &App, record: &SnapshotRecord) -> Snapshot {
    Snapshot {
        id: record.id.to_string(),
        created_at: time(record.created_at_ms),
        kind: kind(record.kind),
        size_bytes: record.size_bytes,
        source_hypervisor: record.backend.to_string(),
        source_instance_id: record.source_instance.to_string(),
        source_instance_name: record.source_name.to_string(),
        compression_state: Some(CompressionState::None),
        name: record.name.as_ref().map(ToString::to_string),
        tags: some(&record.tags),
        memory_bytes: record.memory.map(|memory| memory.size().bytes()),
        damage: damage(app, record),
    }
}

/// What the mark in its bundle says; one that cannot be read is noticed when it is loaded.
fn damage(app: &App, record: &SnapshotRecord) -> Option<Damage> {
    let marked = hearth_snapshot::damage(&app.host.data.snapshots(), &record.id);
    let marked = marked.inspect_err(|error| debug!(snapshot = %record.id, %error, "its mark cannot be read"));
    marked.ok().flatten().map(|hearth_snapshot::Damage { file, problem, found_at_ms }| Damage {
        file,
        problem,
        found_at: time(found_at_ms),
    })
}

pub(super) fn kind(kind: hearth_store::SnapshotKind) -> SnapshotKind {
    match kind {
        hearth_store::SnapshotKind::Standby => SnapshotKind::Standby,
        hearth_store::SnapshotKind::Stopped => SnapshotKind::Stopped,
    }
}

/// Whether something has all the tags that were asked for.
pub(super) fn has_tags(tags: &Tags, wanted: &Tags) -> bool {
    wanted.iter().all(|(key, value)| tags.get(key) == Some(value))
}

/// A time of a record, which is in the range of any clock.
pub(super) fn time(ms: i64) -> Timestamp {
    Timestamp::from_millisecond(ms).unwrap_or_default()
}

fn some(map: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!map.is_empty()).then(|| map.clone())
}
