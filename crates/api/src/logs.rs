//! `GET /instances/{id}/logs`: lines as server-sent events, each one a JSON string.

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

/// Whose lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogSource {
    /// The guest's: its console.
    #[default]
    App,
    /// The VMM's own.
    Vmm,
    /// What the daemon did with this instance. `hypeman` means the same.
    #[serde(alias = "hypeman")]
    Hearth,
}

/// Query of the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct LogsQuery {
    /// How many lines from the end come first; 100 if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<u64>,
    /// Go on with new lines as they are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub follow: Option<bool>,
    /// Whose lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<LogSource>,
}

/// How many lines come when `tail` is left out.
pub const DEFAULT_TAIL: u64 = 100;
