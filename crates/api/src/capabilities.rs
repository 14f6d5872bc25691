//! `GET /capabilities`: what this server and this host can do.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What this server and this host can do, so that clients need not know hypervisors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capabilities {
    /// What runs an instance that names nothing.
    pub default_runtime: DefaultRuntime,
    /// Features of the server: `instances`, `images`, `exec`, `logs`, …
    pub features: Vec<String>,
    /// The host.
    pub host: HostInfo,
    /// Which images run here.
    pub images: ImageSupport,
    /// How guests reach the network.
    pub network: NetworkSupport,
    /// Every runtime of this build, by name.
    pub runtimes: Vec<Runtime>,
    /// The server.
    pub server: ServerInfo,
}

/// What runs an instance that names nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DefaultRuntime {
    /// Whether it can run here.
    pub available: bool,
    /// Its name.
    pub name: String,
}

/// The host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostInfo {
    /// CPU architecture, in Go's words: `amd64`.
    pub arch: String,
    /// Operating system: `linux`.
    pub os: String,
}

/// Which images run here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImageSupport {
    /// The platform chosen when a request names none.
    pub default_platform: String,
    /// All of them, as `os/arch`.
    pub platforms: Vec<String>,
}

/// How guests reach the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkSupport {
    /// Whether guests reach each other.
    pub guest_to_guest: bool,
    /// How they are connected.
    pub model: NetworkModel,
    /// The host as guests see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// The guests' addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
}

/// How guests are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkModel {
    /// A bridge of the host with a tap for each guest.
    Bridge,
    /// Address translation by the VMM.
    Nat,
}

/// One runtime of this build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Runtime {
    /// Whether it can run here now.
    pub available: bool,
    /// What it can do: `snapshots`, `standby`, `fork`, …
    pub features: Vec<String>,
    /// Its name, as `hypervisor` takes it.
    pub name: String,
    /// Ours: how vCPUs are executed, `kvm` or `tcg`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accel: Option<String>,
    /// Ours: how availability and acceleration were found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerInfo {
    /// Version of the API, as in the OpenAPI document.
    pub api_version: String,
    /// Version of the server.
    pub version: String,
}
