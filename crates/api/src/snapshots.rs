//! `/snapshots`: saved instances that others can be made of, and `/instances/{id}/snapshots`.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::instances::TargetState;

/// A saved instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Snapshot {
    /// Names it for ever.
    pub id: String,
    /// When it was taken.
    pub created_at: Timestamp,
    /// What it holds.
    pub kind: SnapshotKind,
    /// What it takes on disk, in bytes.
    pub size_bytes: u64,
    /// What ran its source.
    pub source_hypervisor: String,
    /// Its source.
    pub source_instance_id: String,
    /// Its source's name then.
    pub source_instance_name: String,
    /// Always `none` here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compression_state: Option<CompressionState>,
    /// Its name, unique among its source's snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Ours: size of the guest's memory in bytes; left out without memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Ours: what a verification found to be wrong with it. It is not loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub damage: Option<Damage>,
}

/// What is wrong with a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Damage {
    /// The file, by its path in the snapshot.
    pub file: String,
    /// What is wrong with it.
    #[schema(example = "has other bytes than it was saved with")]
    pub problem: String,
    /// When that was found.
    pub found_at: Timestamp,
}

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum SnapshotKind {
    /// Memory, devices and disks.
    Standby,
    /// Disks.
    Stopped,
}

/// How a snapshot's memory is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CompressionState {
    /// As it is.
    None,
}

/// `POST /instances/{id}/snapshots`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateSnapshot {
    /// What to save: `Standby` needs a running instance or one in standby, `Stopped` a stopped one.
    pub kind: SnapshotKind,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// `POST /snapshots/import` (ours): takes over a guest that plain Firecracker saved, as a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportSnapshot {
    /// Absolute path on the server: the directory with the guest's state and memory. Nothing in it
    /// is changed.
    #[schema(example = "/srv/firecracker/web")]
    pub path: String,
    /// The snapshot's name.
    #[schema(example = "web")]
    pub name: String,
    /// The state file, absolute or in the directory; needed where it is not obvious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vmstate: Option<String>,
    /// The memory file, absolute or in the directory; needed where it is not obvious.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Whether Hearth's agent runs in the guest: `true` by default. A guest without one is running
    /// when its vCPUs are, and is not told who it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<bool>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// `POST /instances/{id}/snapshots/{snapshot_id}/restore`: puts the snapshot in the instance's place.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoreSnapshot {
    /// Must be the one that ran its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_hypervisor: Option<String>,
    /// Where to rest afterwards: `Running` by default for kind `Standby`, `Stopped` for `Stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_state: Option<TargetState>,
}

/// `POST /snapshots/{snapshot_id}/verify` (ours): the snapshot is what it was when it was taken.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifiedSnapshot {
    /// Which one.
    pub id: String,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// How long its files are together, holes too, in bytes.
    pub bytes: u64,
    /// When that was found.
    pub verified_at: Timestamp,
}

/// `POST /snapshots/{snapshot_id}/fork`: makes new instances of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkSnapshot {
    /// The new instance's name; with `count` above 1, what their names begin with.
    pub name: String,
    /// Must be the one that ran its source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_hypervisor: Option<String>,
    /// Where to rest afterwards: `Running` by default for kind `Standby`, `Stopped` for `Stopped`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_state: Option<TargetState>,
    /// Ours: how many; above 1 the answer is `Forked`, and their names end in `-1` … `-count`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub count: Option<u32>,
    /// Ours: variables over the source's. Commands and hooks in the fork have them, and its
    /// `/run/hearth/env`; the program that runs already has them when it is started anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Ours: instead of the source's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// Query of `GET /snapshots`; all must match. Tags are `tags[key]=value`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListSnapshots {
    /// Of that kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SnapshotKind>,
    /// Of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Of that source: its id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_instance_id: Option<String>,
}
