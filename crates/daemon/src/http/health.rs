//! `GET /health`.

use axum::Json;
use hearth_api::health::{Health, HealthState};

/// Whether the daemon answers
#[utoipa::path(get, path = "/health", tag = "host", operation_id = "health", security(()),
    responses((status = 200, description = "It does.", body = Health)))]
pub(super) async fn health() -> Json<Health> {
    Json(Health { status: HealthState::Ok })
}
