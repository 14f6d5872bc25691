//! `GET /health`: whether the daemon answers.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Health {
    /// Always `ok`.
    pub status: HealthState,
}

/// The one thing that health can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum HealthState {
    /// It answers.
    Ok,
}
