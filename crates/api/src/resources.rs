//! `GET /resources`: what the host has, and who has it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What the host has, and who has it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Resources {
    /// Each instance's share.
    pub allocations: Vec<Allocation>,
    /// Virtual CPUs.
    pub cpu: ResourceStatus,
    /// Disk, in bytes.
    pub disk: ResourceStatus,
    /// Memory, in bytes.
    pub memory: ResourceStatus,
    /// Network bandwidth, in bits per second; all zero where none is accounted.
    pub network: ResourceStatus,
    /// Ours: descriptors of the daemon.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub files: Option<ResourceStatus>,
    /// Ours: processes and threads of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub processes: Option<ResourceStatus>,
    /// What the disk is used for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_breakdown: Option<DiskBreakdown>,
}

/// One resource of the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ResourceStatus {
    /// Given to instances; of the disk, what cannot be given any more, whoever has it.
    pub allocated: u64,
    /// Still to give.
    pub available: u64,
    /// What the host has.
    pub capacity: u64,
    /// `capacity` × `oversub_ratio`; of the disk, `capacity` less what is always left free.
    pub effective_limit: u64,
    /// How many times over it may be given.
    pub oversub_ratio: f64,
    /// Which resource.
    #[serde(rename = "type")]
    pub kind: String,
    /// `detected` or `configured`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

/// One instance's share.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Allocation {
    /// vCPUs.
    pub cpu: u32,
    /// Size of its writable disks, in bytes.
    pub disk_bytes: u64,
    /// Whose.
    pub instance_id: String,
    /// Whose, by name.
    pub instance_name: String,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

/// What the disk is used for, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskBreakdown {
    /// Root file systems of images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub images_bytes: Option<u64>,
    /// Writable layers of instances.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlays_bytes: Option<u64>,
    /// Ours: snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshots_bytes: Option<u64>,
}
