//! What Hypeman's clients may ask and this server does not do yet: refused by name.

use axum::http::{Method, StatusCode, Uri};
use hearth_api::images::{CreateImage, ImportImage};
use hearth_api::instances::{CreateInstance, ForkInstance, StandbyInstance, StartInstance, UpdateInstance};
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, ImportSnapshot, RestoreSnapshot};
use hearth_api::unsupported::{self, Field};
use hearth_model::ErrorKind;

use super::error::Failure;
use crate::error::OpError;

/// A request's body, and which of Hypeman's fields it is not acted on.
pub(super) trait Fields {
    const FIELDS: &'static [Field];
}

macro_rules! fields {
    ($($body:ty => $fields:expr,)*) => {
        $(impl Fields for $body { const FIELDS: &'static [Field] = $fields; })*
    };
}

fields! {
    CreateInstance => unsupported::CREATE_INSTANCE,
    UpdateInstance => unsupported::UPDATE_INSTANCE,
    StartInstance => unsupported::START_INSTANCE,
    StandbyInstance => unsupported::STANDBY_INSTANCE,
    ForkInstance => &[],
    CreateSnapshot => unsupported::CREATE_SNAPSHOT,
    RestoreSnapshot => &[],
    ForkSnapshot => &[],
    CreateImage => unsupported::CREATE_IMAGE,
    ImportImage => &[],
    ImportSnapshot => &[],
}

/// Hypeman's resources that are not here yet, by how their paths begin.
const RESOURCES: [(&str, &str); 7] = [
    ("/volumes", "volumes"),
    ("/devices", "device passthrough"),
    ("/ingresses", "ingresses"),
    ("/builds", "building images"),
    ("/builders", "building images"),
    ("/pushes", "pushing images"),
    ("/resources/memory", "reclaiming memory"),
];

/// Parts of instances and images that are not here yet, by what their paths have in them.
const PARTS: [(&str, &str); 4] = [
    ("/auto-standby/", "automatic standby"),
    ("/snapshot-schedule", "scheduled snapshots"),
    ("/volumes/", "volumes"),
    ("/tag", "tagging images"),
];

/// A path that no route has.
pub(super) async fn no_such_route(method: Method, uri: Uri) -> Failure {
    let path = uri.path();
    let begins = |with: &str| path.strip_prefix(with).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    let resource = RESOURCES.iter().find(|(beginning, _)| begins(beginning));
    let part = || PARTS.iter().find(|(part, _)| (begins("/instances") || begins("/images")) && path.contains(part));
    match resource.or_else(part) {
        Some((_, what)) => Failure::unsupported(
            format!("{what}: not supported by this server yet"),
            "GET /capabilities lists what it can do",
        ),
        None => OpError::new(ErrorKind::NotFound, format!("there is no {method} {path}"))
            .hinted("GET /spec.json lists all routes")
            .into(),
    }
}

/// A route that has other methods.
pub(super) async fn no_such_method(method: Method, uri: Uri) -> Failure {
    let error = OpError::new(ErrorKind::Invalid, format!("{} has no method {method}", uri.path()))
        .hinted("GET /spec.json lists all routes");
    Failure::with_status(error, StatusCode::METHOD_NOT_ALLOWED)
}
