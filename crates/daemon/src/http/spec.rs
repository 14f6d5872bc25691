//! The OpenAPI document, made of the routes themselves.

use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityRequirement, SecurityScheme};

use crate::serve::App;

/// Everything of the document that is not a route.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Hearth",
        description = "Runs OCI images as microVMs, and restores and forks them from memory snapshots. \
                       Resources, fields and states are Hypeman's; what is Hearth's own is marked \"Ours\".",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(
        hearth_api::ErrorBody,
        hearth_api::exec::ExecRequest,
        hearth_api::exec::ExecControl,
        hearth_api::exec::ExecEnd,
        hearth_api::cp::CpRequest,
        hearth_api::cp::CpFrame,
        hearth_api::logs::LogSource,
    )),
    tags(
        (name = "instances", description = "Guest machines"),
        (name = "snapshots", description = "Saved instances"),
        (name = "images", description = "What instances are made of"),
        (name = "host", description = "The server and its host"),
    )
)]
struct Frame;

pub(super) fn frame() -> Document {
    let mut document = Frame::openapi();
    let bearer = SecurityScheme::Http(Http::builder().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build());
    if let Some(components) = &mut document.components {
        components.add_security_scheme("bearer", bearer);
    }
    // An empty one beside it: without a secret no token is asked for.
    document.security = Some(vec![SecurityRequirement::new("bearer", [] as [&str; 0]), SecurityRequirement::default()]);
    document
}

/// `/spec.json` and `/spec.yaml`.
pub(super) fn routes(document: &Document) -> Router<Arc<App>> {
    let json: Arc<str> = document.to_pretty_json().unwrap_or_default().into();
    let yaml: Arc<str> = document.to_yaml().unwrap_or_default().into();
    Router::new()
        .route("/spec.json", get(async move || text("application/json", &json)))
        .route("/spec.yaml", get(async move || text("application/yaml", &yaml)))
}

fn text(kind: &'static str, text: &str) -> Response {
    ([(CONTENT_TYPE, kind)], text.to_owned()).into_response()
}

#[cfg(test)]
mod tests {
    /// A schema that is only named leaves its readers with nothing.
    #[test]
    fn every_schema_that_is_referred_to_is_there() {
        let (_, document) = crate::http::routes().split_for_parts();
        let document = serde_json::to_value(&document).expect("plain data");
        let text = document.to_string();
        let mut references = text.split("\"#").skip(1).filter_map(|rest| rest.split('"').next()).peekable();
        assert!(references.peek().is_some());
        for reference in references {
            assert!(document.pointer(reference).is_some(), "{reference} is referred to and not there");
        }
    }

    /// Run with `HEARTH_UPDATE_SPEC=1` to write the file anew, and look at what changed.
    #[test]
    fn the_committed_document_is_the_codes() {
        let (_, document) = crate::http::routes().split_for_parts();
        let made = document.to_pretty_json().expect("plain data") + "\n";
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../api/openapi.json");
        if std::env::var_os("HEARTH_UPDATE_SPEC").is_some() {
            std::fs::write(path, &made).expect("written");
        }
        let committed = std::fs::read_to_string(path).unwrap_or_default();
        let differs = committed.lines().zip(made.lines()).position(|(a, b)| a != b);
        assert!(
            committed == made,
            "crates/api/openapi.json differs from the code (first at line {:?}): \
             HEARTH_UPDATE_SPEC=1 cargo test -p hearth-daemon the_committed_document writes it anew",
            differs.map(|at| at + 1)
        );
    }
}
