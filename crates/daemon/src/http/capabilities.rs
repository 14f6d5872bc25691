//! `GET /capabilities`.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hearth_api::ErrorBody;
use hearth_api::capabilities::{
    Capabilities, DefaultRuntime, HostInfo, ImageSupport, NetworkModel, NetworkSupport, Runtime, ServerInfo,
};
use hearth_model::Backend;

use super::view::PLATFORM;
use crate::host::Host;
use crate::networks::Networks;
use crate::serve::App;

/// What every runtime of this build can do.
const RUNTIME_FEATURES: [&str; 3] = ["fork", "snapshots", "standby"];
/// What this server can do, in Hypeman's words where it has them.
const FEATURES: [&str; 8] = ["cp", "exec", "fork-count", "image-import", "images", "instances", "logs", "timeline"];

/// What this server and its host can do
#[utoipa::path(get, path = "/capabilities", tag = "host", operation_id = "getCapabilities", responses(
    (status = 200, description = "What it can do.", body = Capabilities),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn capabilities(State(app): State<Arc<App>>) -> Json<Capabilities> {
    Json(of(&app.host))
}

fn of(host: &Host) -> Capabilities {
    let mut runtimes: Vec<Runtime> = Backend::ALL.into_iter().map(|backend| runtime(host, backend)).collect();
    runtimes.sort_by(|a, b| a.name.cmp(&b.name));
    let default = host.default_backend();
    Capabilities {
        default_runtime: DefaultRuntime {
            available: runtimes.iter().any(|runtime| runtime.available && runtime.name == default.as_str()),
            name: default.to_string(),
        },
        features: FEATURES.map(Into::into).into(),
        host: HostInfo { arch: "amd64".into(), os: "linux".into() },
        images: ImageSupport { default_platform: PLATFORM.into(), platforms: vec![PLATFORM.into()] },
        network: network(host),
        runtimes,
        server: ServerInfo { api_version: env!("CARGO_PKG_VERSION").into(), version: env!("CARGO_PKG_VERSION").into() },
    }
}

fn network(host: &Host) -> NetworkSupport {
    let user = NetworkSupport { guest_to_guest: false, model: NetworkModel::Nat, gateway: None, subnet: None };
    match &host.networks {
        Networks::User(_) => user,
        Networks::Slots(_) => {
            let config = &host.config.network;
            NetworkSupport {
                guest_to_guest: !config.isolated,
                gateway: config.cidr.hosts().next().map(|address| address.to_string()),
                subnet: Some(config.cidr.to_string()),
                ..user
            }
        }
    }
}

fn runtime(host: &Host, backend: Backend) -> Runtime {
    let probe = host.probe(backend);
    let available = probe.is_some_and(|probe| probe.available);
    Runtime {
        available,
        features: RUNTIME_FEATURES.map(Into::into).into(),
        name: backend.to_string(),
        accel: available.then(|| host.accel(backend).as_str().to_owned()),
        reason: match probe {
            Some(probe) if !probe.available => Some(probe.why.clone()),
            Some(probe) if backend == Backend::Firecracker => Some(probe.why.clone()),
            Some(_) => Some(host.vmms.accel_why.clone()),
            None => Some("not looked for".into()),
        },
    }
}
