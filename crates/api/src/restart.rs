//! `restart_policy` and `restart_status` of an instance: whether it boots again when it has ended by
//! itself, and where it is with that.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether and how an instance that ended by itself boots again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RestartPolicy {
    /// After which ends; `never` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<RestartMode>,
    /// How long to wait before each attempt, as Go writes durations; "5s" if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "5s")]
    pub backoff: Option<String>,
    /// Attempts in a row before it is given up; 0 or left out is without limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 0)]
    pub max_attempts: Option<u32>,
    /// Having run for so long, it counts attempts from 0 again; "10m" if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(example = "10m")]
    pub stable_after: Option<String>,
}

/// After which ends an instance boots again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RestartMode {
    /// After none.
    Never,
    /// After every one that nobody asked for.
    Always,
    /// Unless its program exited with 0.
    OnFailure,
}

impl RestartMode {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Always => "always",
            Self::OnFailure => "on_failure",
        }
    }
}

/// Where an instance is with its restart policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RestartStatus {
    /// Attempts in a row so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Why no attempt is made although the policy would make one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blocked_reason: Option<BlockedReason>,
    /// When the last attempt began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_attempt_at: Option<Timestamp>,
    /// When the next one is due.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_attempt_at: Option<Timestamp>,
}

/// Why an instance is not booted again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BlockedReason {
    /// Somebody stopped it.
    ManualStop,
    /// `max_attempts` were in vain.
    MaxAttemptsExceeded,
}

/// Ours: how an instance ended, beyond `exit_code` and `exit_message`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceEnd {
    /// What ended.
    pub of: Ended,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<i32>,
    /// The host's kernel killed the VMM for want of memory.
    pub out_of_memory: bool,
    /// The last lines of the console, when nobody had asked it to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

/// What ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// The guest's program.
    Program,
    /// The VMM, before the program's end was told.
    Vmm,
}
