//! `/instances`: guest machines, and what can be asked of them.

use std::collections::BTreeMap;

use hearth_model::{Op, Phase};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::error::ErrorBody;
use crate::restart::{InstanceEnd, RestartPolicy, RestartStatus};

/// One guest machine, running or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// Names it for ever.
    #[schema(example = "tz4a98xxat96iws9zmbrgj3a")]
    pub id: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// The image that it was made of.
    pub image: String,
    /// Its name, also the guest's hostname.
    #[schema(example = "web-1")]
    pub name: String,
    /// What it is doing.
    pub state: InstanceState,
    /// Why `state` is `Unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
    /// Key of `phase_durations_ms` that counts now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_phase: Option<String>,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_phase_since: Option<Timestamp>,
    /// The user's variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// What the guest's program exited with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_message: Option<String>,
    /// Whether its memory is in a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub has_snapshot: Option<bool>,
    /// What runs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "qemu-microvm")]
    pub hypervisor: Option<String>,
    /// Its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<InstanceNetwork>,
    /// Size of its writable layer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10 GB")]
    pub overlay_size: Option<String>,
    /// Milliseconds spent in each phase, the current one included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase_durations_ms: Option<BTreeMap<String, u64>>,
    /// `os/arch` of its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Whether it boots again when it has ended by itself; left out where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// Where it is with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_status: Option<RestartStatus>,
    /// Its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "512 MB")]
    pub size: Option<String>,
    /// When it was last started or restored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// When it last stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_at: Option<Timestamp>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Virtual CPUs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u32>,
    /// Ours: the operation that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy: Option<Busy>,
    /// Ours: how it ended, beyond `exit_code` and `exit_message`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<InstanceEnd>,
    /// Ours: what it was forked from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked_from: Option<ForkedFrom>,
    /// Ours: how often its identity was refreshed, once for each restore or fork.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// What an instance is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum InstanceState {
    /// Made, and not yet started. Not used by this server.
    Created,
    /// Coming up: its agent has not answered yet.
    Initializing,
    /// Up: its agent has answered.
    Running,
    /// Its processors are halted. Not used by this server.
    Paused,
    /// Ended, with its VMM still there. Not used by this server.
    Shutdown,
    /// No VMM, no memory.
    Stopped,
    /// No VMM, memory in a snapshot.
    Standby,
    /// Nothing is known for certain; `state_error` says why.
    Unknown,
}

impl InstanceState {
    /// Every state.
    pub const ALL: [Self; 8] = [
        Self::Created,
        Self::Initializing,
        Self::Running,
        Self::Paused,
        Self::Shutdown,
        Self::Stopped,
        Self::Standby,
        Self::Unknown,
    ];

    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Initializing => "Initializing",
            Self::Running => "Running",
            Self::Paused => "Paused",
            Self::Shutdown => "Shutdown",
            Self::Stopped => "Stopped",
            Self::Standby => "Standby",
            Self::Unknown => "Unknown",
        }
    }

    /// The state of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == name)
    }
}

impl std::fmt::Display for InstanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

impl From<&Phase> for InstanceState {
    /// What the outside sees: an instance that is coming up is `Initializing`, any other busy one
    /// shows the state that it came from.
    fn from(phase: &Phase) -> Self {
        use hearth_model::InstanceState as Rest;
        match phase {
            Phase::Busy { op: Op::Create | Op::Fork | Op::Start, .. } => Self::Initializing,
            Phase::Busy { from: state, .. } | Phase::Resting(state) => match state {
                Rest::Stopped => Self::Stopped,
                Rest::Running => Self::Running,
                Rest::Standby { .. } => Self::Standby,
                Rest::Failed { .. } => Self::Unknown,
            },
        }
    }
}

/// An instance's network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceNetwork {
    /// Whether it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Its address, as the host sees it.
    #[serde(default)]
    pub ip: Option<String>,
    /// Its link address.
    #[serde(default)]
    pub mac: Option<String>,
    /// Always `default`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// To the guest at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_download: Option<String>,
    /// From the guest at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_upload: Option<String>,
    /// Ours: what the guest may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Outbound>,
    /// Ours: with `outbound: list`, what it may reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow: Option<Vec<String>>,
    /// Ours: ports of the host that lead to it, as `HOST:GUEST/PROTOCOL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ports: Option<Vec<String>>,
}

/// What a guest may reach beyond its own host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outbound {
    /// Everything.
    Open,
    /// Nothing.
    None,
    /// What a list says, and no other.
    List,
}

/// The operation that is under way on an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Busy {
    /// The verb.
    pub op: String,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Timestamp>,
}

/// What an instance was forked from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkedFrom {
    /// The instance, which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<String>,
    /// The snapshot, which may be gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_id: Option<String>,
}

/// `POST /instances`: makes an instance of an image and boots it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateInstance {
    /// OCI image reference of an imported image.
    #[schema(example = "docker.io/library/alpine:latest")]
    pub image: String,
    /// Its name: lower-case letters, digits and dashes, no dash first or last.
    #[schema(example = "web-1")]
    pub name: String,
    /// Instead of the image's cmd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Instead of the image's entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Variables on top of the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// What runs it: one of the capabilities' runtimes. The server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "qemu-microvm")]
    pub hypervisor: Option<String>,
    /// Its network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRequest>,
    /// Size of its writable layer. The server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10GB")]
    pub overlay_size: Option<String>,
    /// Whether it boots again when it has ended by itself; it does not if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
    /// For a guest that does not run the agent: it counts as running when its vCPUs do, and exec, cp
    /// and stat do not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skip_guest_agent: Option<bool>,
    /// Its memory. The server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "512MB")]
    pub size: Option<String>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Virtual CPUs. The server's default if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub vcpus: Option<u32>,
}

/// The network that an instance is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NetworkRequest {
    /// Whether it has one; it does if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// To the guest at most. No limit if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "1Gbps")]
    pub bandwidth_download: Option<String>,
    /// From the guest at most. No limit if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "125MB/s")]
    pub bandwidth_upload: Option<String>,
    /// Ours: what the guest may reach. Left out, it is `list` if there is a list, else `open`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outbound: Option<Outbound>,
    /// Ours: what it may reach, and nothing else: networks, addresses, names, `*.` and a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["192.0.2.0/24", "example.com", "*.example.com"]))]
    pub allow: Option<Vec<String>>,
    /// Ours: ports of the host that lead to it, as `HOST:GUEST` or `HOST:GUEST/udp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = json!(["8080:80"]))]
    pub ports: Option<Vec<String>>,
}

/// `POST /instances/{id}/start`: nothing to say yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StartInstance {}

/// `POST /instances/{id}/standby`: nothing to say yet.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StandbyInstance {}

/// `PATCH /instances/{id}`: what is left out stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct UpdateInstance {
    /// Instead of the policy that it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<RestartPolicy>,
}

/// Where a new or restored instance is to rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
pub enum TargetState {
    /// No memory.
    Stopped,
    /// Memory in a snapshot.
    Standby,
    /// Running.
    Running,
}

/// `POST /instances/{id}/fork`: makes new instances of this one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ForkInstance {
    /// The new instance's name; with `count` above 1, what their names begin with.
    pub name: String,
    /// Must be set to fork a running instance, which goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_running: Option<bool>,
    /// Where to rest afterwards; the source's state if left out.
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

/// Ours: the answer to a fork with `count` above 1.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forked {
    /// Those that were made, in the order of their numbers.
    pub instances: Vec<Instance>,
    /// Those that were not.
    pub errors: Vec<ForkFailure>,
}

/// A fork that was not made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForkFailure {
    /// The name that it would have had.
    pub name: String,
    /// Why.
    pub error: ErrorBody,
}

/// The answer to a fork: one instance, or with `count` above 1 a [`Forked`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum ForkAnswer {
    /// Of several.
    Many(Forked),
    /// Of one.
    One(Box<Instance>),
}

impl From<ForkAnswer> for Forked {
    fn from(answer: ForkAnswer) -> Self {
        match answer {
            ForkAnswer::Many(forked) => forked,
            ForkAnswer::One(instance) => Self { instances: vec![*instance], errors: Vec::new() },
        }
    }
}

/// Query of `GET /instances`. Tags are `tags[key]=value`, and all must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListInstances {
    /// In that state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<InstanceState>,
}

/// Query of `POST /instances`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct CreateQuery {
    /// Ours: if the client hangs up before the answer, the instance is removed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<bool>,
}

/// Query of `DELETE /instances/{id}`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct DeleteInstance {
    /// Let the guest shut down first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub graceful_shutdown: Option<bool>,
}

/// Query of `GET /instances/{id}/wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct WaitQuery {
    /// What to wait for.
    pub state: InstanceState,
    /// How long at most, as Go writes durations ("30s", "2m"); 60 s if left out, 5 min at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
}

/// How a wait ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Waited {
    /// The state that it ended in.
    pub state: InstanceState,
    /// Whether time ran out first.
    pub timed_out: bool,
    /// Why `state` is `Unknown`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state_error: Option<String>,
}

/// `GET /instances/{id}/stats`: what an instance uses now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct InstanceStats {
    /// Its memory, in bytes.
    pub allocated_memory_bytes: u64,
    /// Its vCPUs.
    pub allocated_vcpus: u32,
    /// CPU time that its VMM has used, in seconds.
    pub cpu_seconds: f64,
    /// Whose.
    pub instance_id: String,
    /// Whose, by name.
    pub instance_name: String,
    /// What its VMM holds in memory, in bytes.
    pub memory_rss_bytes: u64,
    /// What its VMM has mapped, in bytes.
    pub memory_vms_bytes: u64,
    /// Bytes received; 0 where nobody counts.
    pub network_rx_bytes: u64,
    /// Bytes sent; 0 where nobody counts.
    pub network_tx_bytes: u64,
    /// `memory_rss_bytes` / `allocated_memory_bytes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_utilization_ratio: Option<f64>,
    /// Ours: the part of `memory_rss_bytes` that is not shared with forks or files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_private_bytes: Option<u64>,
}

/// Query of `GET /instances/{id}/stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct StatQuery {
    /// Where in the guest.
    pub path: String,
    /// Look at what a symbolic link leads to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow_links: Option<bool>,
}

/// What is at a path in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PathInfo {
    /// Whether there is anything.
    pub exists: bool,
    /// Why nothing is known of it, when that is not because it is not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// A directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_dir: Option<bool>,
    /// A regular file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_file: Option<bool>,
    /// A symbolic link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub is_symlink: Option<bool>,
    /// Where the link leads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
    /// Permissions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Size in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::InstanceState as Rest;

    #[test]
    fn what_comes_up_is_initializing_and_what_goes_shows_where_it_came_from() {
        let snapshot = hearth_model::SnapshotId::from_entropy([1; 16]);
        for (phase, shown) in [
            (Phase::Resting(Rest::Running), InstanceState::Running),
            (Phase::Resting(Rest::Failed { reason: "x".into() }), InstanceState::Unknown),
            (Phase::Busy { op: Op::Create, from: Rest::Stopped }, InstanceState::Initializing),
            (Phase::Busy { op: Op::Start, from: Rest::Stopped }, InstanceState::Initializing),
            (Phase::Busy { op: Op::Standby, from: Rest::Running }, InstanceState::Running),
            (Phase::Busy { op: Op::Restore, from: Rest::Standby { snapshot } }, InstanceState::Standby),
        ] {
            assert_eq!(InstanceState::from(&phase), shown, "{phase:?}");
        }
    }

    #[test]
    fn state_names_are_the_wires() {
        for state in InstanceState::ALL {
            assert_eq!(serde_json::to_value(state).expect("a name"), state.as_str());
            assert_eq!(InstanceState::from_name(state.as_str()), Some(state));
        }
    }

    #[test]
    fn an_answer_to_a_fork_is_read_as_what_it_is() {
        let many = r#"{"instances": [], "errors": []}"#;
        assert!(matches!(serde_json::from_str(many), Ok(ForkAnswer::Many(_))));
        let one = r#"{"id": "a", "created_at": "2026-01-01T00:00:00Z", "image": "i", "name": "n", "state": "Running"}"#;
        let one: ForkAnswer = serde_json::from_str(one).expect("an instance");
        assert_eq!(Forked::from(one).instances.len(), 1);
    }
}
