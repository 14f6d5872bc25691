//! `GET /metrics`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};

use crate::metrics::Format;
use crate::serve::App;

/// Figures of the daemon for Prometheus
///
/// Ours. OpenMetrics for who accepts it, else the older text format. Needs a token like any other
/// route, unless the server is configured with `metrics.public`.
#[utoipa::path(get, path = "/metrics", tag = "host", operation_id = "metrics", responses(
    (status = 200, description = "What was counted and timed since the daemon started, and what there is now.",
        content((String = "text/plain"), (String = "application/openmetrics-text")))))]
pub(super) async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Response {
    let format = Format::wanted(headers.get(ACCEPT).and_then(|accept| accept.to_str().ok()));
    let text = app.host.metrics.text(format, &app.host.vmms.usable(), &app.registry.list(), app.host.hatch.now());
    ([(CONTENT_TYPE, format.content_type())], text).into_response()
}
