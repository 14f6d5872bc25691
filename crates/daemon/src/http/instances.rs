//! `/instances`: making, showing, moving between states, removing.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hearth_api::ErrorBody;
use hearth_api::instances::{
    CreateInstance, CreateQuery, DeleteInstance, Instance, ListInstances, StandbyInstance, StartInstance,
    UpdateInstance,
};
use hearth_model::spec::{MAX_VCPUS, Program};
use hearth_model::{Backend, ByteSize, ErrorKind, InstanceSpec, MemMib};
use hearth_store::ImageRecord;
use tracing::{info, warn};

use super::error::Failure;
use super::input::{Body, Named, Query, parse_field, parse_name};
use super::observe::to_the_end;
use super::{restart, view};
use crate::config::Defaults;
use crate::error::OpError;
use crate::handle::{InstanceHandle, Request};
use crate::images::parse_ref;
use crate::networks::Networks;
use crate::resources;
use crate::serve::App;

/// Hypeman's runtimes that this build does not have.
const OTHER_RUNTIMES: [&str; 2] = ["cloud-hypervisor", "vz"];

/// All instances
#[utoipa::path(get, path = "/instances", tag = "instances", operation_id = "listInstances",
    params(ListInstances, ("tags" = Option<BTreeMap<String, String>>, Query, style = DeepObject, explode)), responses(
    (status = 200, description = "The oldest first.", body = Vec<Instance>),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn list(
    State(app): State<Arc<App>>,
    Query { query, tags }: Query<ListInstances>,
) -> Json<Vec<Instance>> {
    let views = app.registry.list();
    let wanted = views
        .iter()
        .filter(|view| query.state.is_none_or(|state| state == view::state(view)))
        .filter(|view| view::has_tags(&view.record.spec.tags, &tags));
    Json(wanted.map(view::instance).collect())
}

/// Make an instance of an image, and boot it
///
/// The answer comes when its program has started. If it cannot, nothing of the instance is left.
#[utoipa::path(post, path = "/instances", tag = "instances", operation_id = "createInstance",
    params(CreateQuery), request_body = CreateInstance, responses(
    (status = 201, description = "It runs.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Query { query, .. }: Query<CreateQuery>,
    Body(request): Body<CreateInstance>,
) -> Result<(StatusCode, Json<Instance>), Failure> {
    let image = app.images.get(&parse_ref(&request.image)?)?;
    let digest = image.digest.clone();
    let spec = spec(&app.config.defaults, &app.host.networks, request, image)?;
    let host = ByteSize(resources::capacity(&app.config.data_dir).memory);
    fits_into(host, &spec)?;
    let instance = app.registry.begin(spec, digest)?;
    let guard = query.attached.unwrap_or(false).then(|| DeletedIfDropped(Some(instance.clone())));
    let made = to_the_end({
        let instance = instance.clone();
        async move { instance.submit(Request::Create).await }
    });
    let made = made.await;
    // It runs, or nothing is left of it.
    if let Some(mut guard) = guard {
        guard.0 = None;
    }
    made?;
    Ok((StatusCode::CREATED, Json(view::instance(&instance.view()))))
}

/// An instance that nobody wants once its client has hung up.
struct DeletedIfDropped(Option<InstanceHandle>);

impl Drop for DeletedIfDropped {
    fn drop(&mut self) {
        let Some(instance) = self.0.take() else { return };
        tokio::spawn(async move {
            info!(instance = %instance.name(), "the client that made it has hung up");
            if let Err(error) = instance.delete(false).await {
                warn!(instance = %instance.name(), %error, "it could not be removed");
            }
        });
    }
}

/// One instance
#[utoipa::path(get, path = "/instances/{id}", tag = "instances", operation_id = "getInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "It.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn get(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<Instance>, Failure> {
    Ok(Json(view::instance(&app.registry.resolve(&id)?.view())))
}

/// Change an instance
///
/// Its restart policy can be changed, and nothing else yet: all other fields of Hypeman's are refused
/// unless they say nothing. What waits to be booted again goes on waiting, unless the policy is
/// `never` now; what rests is not booted by it.
#[utoipa::path(patch, path = "/instances/{id}", tag = "instances", operation_id = "updateInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = UpdateInstance, responses(
    (status = 200, description = "It, as it is now.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn update(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(UpdateInstance { restart_policy }): Body<UpdateInstance>,
) -> Result<Json<Instance>, Failure> {
    let instance = app.registry.resolve(&id)?;
    if let Some(policy) = restart_policy {
        let policy = restart::asked(Some(policy))?;
        restart::can_be_had(&instance.view().record, &policy)?;
        instance.set_restart_policy(policy).await?;
    }
    Ok(Json(view::instance(&instance.view())))
}

/// Remove an instance, whatever its state
///
/// Its snapshots stay.
#[utoipa::path(delete, path = "/instances/{id}", tag = "instances", operation_id = "deleteInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."), DeleteInstance), responses(
    (status = 204, description = "It is gone."),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn delete(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Query { query, .. }: Query<DeleteInstance>,
) -> Result<StatusCode, Failure> {
    app.registry.resolve(&id)?.delete(query.graceful_shutdown.unwrap_or(false)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Boot a stopped instance
#[utoipa::path(post, path = "/instances/{id}/start", tag = "instances", operation_id = "startInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = Option<StartInstance>, responses(
    (status = 200, description = "It runs.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn start(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(StartInstance {}): Body<StartInstance>,
) -> Result<Json<Instance>, Failure> {
    Ok(Json(view::instance(&app.registry.resolve(&id)?.start().await?)))
}

/// Shut an instance down; its memory is lost
#[utoipa::path(post, path = "/instances/{id}/stop", tag = "instances", operation_id = "stopInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "It is stopped.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn stop(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<Instance>, Failure> {
    Ok(Json(view::instance(&app.registry.resolve(&id)?.stop().await?)))
}

/// Save an instance's memory, and end its VMM
#[utoipa::path(post, path = "/instances/{id}/standby", tag = "instances", operation_id = "standbyInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")),
    request_body = Option<StandbyInstance>, responses(
    (status = 200, description = "It is in standby.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn standby(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Body(StandbyInstance {}): Body<StandbyInstance>,
) -> Result<Json<Instance>, Failure> {
    Ok(Json(view::instance(&app.registry.resolve(&id)?.standby().await?)))
}

/// Bring an instance back from standby
///
/// The answer comes when it runs, is itself, and is reachable.
#[utoipa::path(post, path = "/instances/{id}/restore", tag = "instances", operation_id = "restoreInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 200, description = "It runs.", body = Instance),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn restore(State(app): State<Arc<App>>, Named(id): Named<String>) -> Result<Json<Instance>, Failure> {
    Ok(Json(view::instance(&app.registry.resolve(&id)?.restore().await?)))
}

/// The request as a specification, with defaults filled in.
pub(super) fn spec(
    defaults: &Defaults,
    networks: &Networks,
    request: CreateInstance,
    image: ImageRecord,
) -> Result<InstanceSpec, Failure> {
    let name = parse_name("instance", &request.name)?;
    let env = request.env.unwrap_or_default();
    check_env(&env)?;
    // An empty list is what a client sends that has nothing to say.
    let cmd = request.cmd.filter(|cmd| !cmd.is_empty());
    let program = Program::resolve(&image.name, &image.config, request.entrypoint, cmd, &env).map_err(|error| {
        OpError::new(ErrorKind::Invalid, error.to_string())
            .hinted("say what to run: `hearth run IMAGE -- CMD`, or \"cmd\" or \"entrypoint\" in the request")
            .about("image", image.name.as_str())
    })?;
    let backend = backend(defaults, request.hypervisor.as_deref())?;
    Ok(InstanceSpec {
        foreign: None,
        name,
        backend,
        memory: match given(request.size.as_deref()) {
            Some(text) => MemMib::from_size(parse_field("size", text)?)
                .map_err(|error| Failure::invalid(format!("field \"size\": {error}")))?,
            None => defaults.memory,
        },
        vcpus: match request.vcpus {
            None => defaults.vcpus,
            Some(number) => u8::try_from(number)
                .ok()
                .filter(|number| (1..=MAX_VCPUS).contains(number))
                .ok_or_else(|| Failure::invalid(format!("field \"vcpus\": {number} is not from 1 to {MAX_VCPUS}")))?,
        },
        overlay: match given(request.overlay_size.as_deref()) {
            Some(text) => overlay(text)?,
            None => defaults.overlay,
        },
        network: super::network::asked(networks, backend, request.network)?,
        restart: restart::asked(request.restart_policy)?,
        agent: !request.skip_guest_agent.unwrap_or(false),
        tags: request.tags.unwrap_or_default(),
        env,
        program,
        image: image.name,
    })
}

/// More memory than the host has can never be had; whether it is free is the kernel's to say.
fn fits_into(host: ByteSize, spec: &InstanceSpec) -> Result<(), OpError> {
    let wanted = spec.memory.size();
    if wanted <= host {
        return Ok(());
    }
    let message = format!("instance {}: {wanted} of memory are more than this host has, {host}", spec.name);
    Err(OpError::new(ErrorKind::Exhausted, message)
        .hinted("give it a smaller size")
        .about("instance", spec.name.as_str()))
}

fn given(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

fn overlay(text: &str) -> Result<ByteSize, Failure> {
    let size: ByteSize = parse_field("overlay_size", text)?;
    let (least, most) = (ByteSize::mib(16), ByteSize::gib(16 << 10));
    if (least..=most).contains(&size) {
        return Ok(size);
    }
    Err(Failure::invalid(format!("field \"overlay_size\": {size} is not from {least} to {most}")))
}

fn backend(defaults: &Defaults, asked: Option<&str>) -> Result<Backend, Failure> {
    let Some(name) = given(asked) else { return Ok(defaults.hypervisor) };
    name.parse().map_err(|error: hearth_model::runtime::UnknownBackend| {
        let message = format!("field \"hypervisor\": {error}");
        let hint = "`hearth doctor` and GET /capabilities say which can run here";
        let kind = if OTHER_RUNTIMES.contains(&name) { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        OpError::new(kind, message).hinted(hint).into()
    })
}

pub(super) fn check_env(env: &BTreeMap<String, String>) -> Result<(), Failure> {
    match env.iter().find(|(name, value)| name.is_empty() || name.contains(['=', '\0']) || value.contains('\0')) {
        None => Ok(()),
        Some((name, _)) => Err(Failure::invalid(format!("field \"env\": {name:?} cannot be a variable"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_api::instances::{NetworkRequest, Outbound};
    use hearth_model::spec::ImageConfig;

    fn image() -> ImageRecord {
        ImageRecord {
            name: "app".parse().expect("a reference"),
            digest: "sha256:0".into(),
            config: ImageConfig { cmd: vec!["/serve".into()], ..ImageConfig::default() },
            size_bytes: 1,
            platform: "linux/amd64".into(),
            created_at_ms: 0,
            tags: BTreeMap::new(),
        }
    }

    fn of(change: impl FnOnce(&mut CreateInstance)) -> Result<InstanceSpec, Failure> {
        let mut request = CreateInstance { image: "app".into(), name: "web".into(), ..CreateInstance::default() };
        change(&mut request);
        let networks = Networks::User("a test".into());
        spec(&crate::config::Config::default().defaults, &networks, request, image())
    }

    fn network(change: impl FnOnce(&mut NetworkRequest)) -> Option<NetworkRequest> {
        let mut network = NetworkRequest::default();
        change(&mut network);
        Some(network)
    }

    #[test]
    fn what_is_left_out_or_empty_is_the_default() {
        let plain = of(|_| ()).expect("valid");
        assert_eq!((plain.memory.mib(), plain.vcpus, plain.overlay), (256, 1, ByteSize::gib(10)));
        assert_eq!(plain.network, Some(hearth_model::Network::default()));
        assert_eq!(plain.program.argv, ["/serve"]);
        let empty = of(|request| {
            request.size = Some(String::new());
            request.cmd = Some(Vec::new());
            request.hypervisor = Some(String::new());
        });
        assert_eq!(empty.expect("valid"), plain);
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        type Change = fn(&mut CreateInstance);
        let cases: [(&str, ErrorKind, Change); 19] = [
            ("Web_1", ErrorKind::Invalid, |r| r.name = "Web_1".into()),
            ("size", ErrorKind::Invalid, |r| r.size = Some("lots".into())),
            ("too small", ErrorKind::Invalid, |r| r.size = Some("1MB".into())),
            ("overlay_size", ErrorKind::Invalid, |r| r.overlay_size = Some("1KB".into())),
            ("vcpus", ErrorKind::Invalid, |r| r.vcpus = Some(0)),
            ("vcpus", ErrorKind::Invalid, |r| r.vcpus = Some(300)),
            ("hypervisor", ErrorKind::Unsupported, |r| r.hypervisor = Some("cloud-hypervisor".into())),
            ("hypervisor", ErrorKind::Invalid, |r| r.hypervisor = Some("bochs".into())),
            ("A=B", ErrorKind::Invalid, |r| r.env = Some([("A=B".to_owned(), String::new())].into())),
            ("under firecracker", ErrorKind::Unsupported, |r| {
                r.hypervisor = Some("firecracker".into());
                r.network = network(|n| n.enabled = Some(true));
            }),
            ("bandwidth", ErrorKind::Unsupported, |r| {
                r.network = network(|n| n.bandwidth_upload = Some("1Mbps".into()));
            }),
            ("a list", ErrorKind::Unsupported, |r| r.network = network(|n| n.allow = Some(vec!["a.com".into()]))),
            ("network.allow", ErrorKind::Invalid, |r| r.network = network(|n| n.allow = Some(vec!["::1".into()]))),
            ("network.outbound", ErrorKind::Invalid, |r| r.network = network(|n| n.outbound = Some(Outbound::List))),
            ("given twice", ErrorKind::Invalid, |r| {
                r.network = network(|n| n.ports = Some(vec!["80:80".into(), "80:81".into()]));
            }),
            ("network.enabled", ErrorKind::Invalid, |r| {
                r.network = network(|n| (n.enabled, n.outbound) = (Some(false), Some(Outbound::None)));
            }),
            ("at most 256", ErrorKind::Invalid, |r| {
                r.network = network(|n| n.ports = Some((1..258).map(|port| format!("{port}:80")).collect()));
            }),
            ("at most 1024", ErrorKind::Invalid, |r| {
                r.network = network(|n| n.allow = Some(vec!["a.com".into(); 1025]));
            }),
            ("names no command", ErrorKind::Invalid, |r| r.entrypoint = Some(Vec::new())),
        ];
        for (says, kind, change) in cases {
            let error = of(change).expect_err(says).error;
            assert_eq!(error.kind, kind, "{says}");
            assert!(error.message.contains(says), "{says}: {}", error.message);
        }
    }
}
