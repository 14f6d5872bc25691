//! The API over HTTP: routes by resource, and what is around them.
//!
//! In: requests. Out: the wire types of `hearth_api`. Handlers parse, ask the registry, and put
//! what they get into wire types; nothing is decided here that another caller of the registry
//! would decide otherwise. The OpenAPI document is made of the same routes (`spec`).

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn, from_fn_with_state};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Auth;
use crate::serve::App;

pub(crate) use sessions::Sessions;

mod capabilities;
mod cp;
mod error;
mod exec;
mod fork;
mod gate;
mod health;
mod images;
mod input;
mod instances;
mod logs;
mod metrics;
mod network;
mod observe;
mod recovery;
mod refuse;
mod resources;
mod restart;
mod sessions;
mod snapshots;
mod spec;
mod stat;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;
mod tail;
mod timeline;
mod view;
mod wait;

#[cfg(test)]
mod tests;

/// Everything that is served.
pub(crate) fn router(app: Arc<App>) -> Router {
    let auth = Auth::new(app.config.auth.token_secret.as_ref());
    let body = usize::try_from(app.config.limits.body.bytes()).unwrap_or(usize::MAX);
    let (routes, document) = routes().split_for_parts();
    routes
        .merge(spec::routes(&document))
        .fallback(refuse::no_such_route)
        .method_not_allowed_fallback(refuse::no_such_method)
        .layer(DefaultBodyLimit::max(body))
        .layer(from_fn_with_state((Arc::clone(&app), auth), gate::gate))
        .layer(from_fn(observe::observe))
        .with_state(app)
}

/// The routes of the API, which are also its document.
fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(spec::frame())
        .routes(routes!(health::health))
        .routes(routes!(capabilities::capabilities))
        .routes(routes!(resources::resources))
        .routes(routes!(recovery::recovery))
        .routes(routes!(metrics::metrics))
        .routes(routes!(images::list, images::create))
        .routes(routes!(images::import))
        .routes(routes!(images::get, images::delete))
        .routes(routes!(instances::list, instances::create))
        .routes(routes!(instances::get, instances::update, instances::delete))
        .routes(routes!(instances::start))
        .routes(routes!(instances::stop))
        .routes(routes!(instances::standby))
        .routes(routes!(instances::restore))
        .routes(routes!(fork::instance))
        .routes(routes!(wait::wait))
        .routes(routes!(logs::logs))
        .routes(routes!(stat::stats))
        .routes(routes!(stat::stat))
        .routes(routes!(timeline::timeline))
        .routes(routes!(exec::exec))
        .routes(routes!(cp::cp))
        .routes(routes!(snapshots::create))
        .routes(routes!(snapshots::restore))
        .routes(routes!(snapshots::list))
        .routes(routes!(snapshots::import))
        .routes(routes!(snapshots::get, snapshots::delete))
        .routes(routes!(snapshots::verify))
        .routes(routes!(fork::snapshot))
}
