//! Firecracker's requests: paths, bodies, and what is wrong with them, in its words.
//!
//! In: method, path, body. Out: an [`Action`], or the text of the refusal (always status 400).
//! Nothing here knows in which state the machine is.

use std::path::PathBuf;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Serialize};

/// What is asked for.
#[derive(Debug)]
pub(crate) enum Action {
    GetInstance,
    GetVersion,
    GetMachineConfig,
    GetConfig,
    PutMachineConfig(MachineConfigUpdate),
    PutBootSource(BootSource),
    PutDrive(Drive),
    PatchDrive(DriveUpdate),
    PutNetwork(Network),
    PutVsock(Vsock),
    PutSerial(SerialConfig),
    PutEntropy(EntropyConfig),
    Start,
    SendCtrlAltDel,
    FlushMetrics,
    Pause,
    Resume,
    Create(CreateSnapshot),
    Load(LoadSnapshot),
    Unplug,
    /// Taken, and without effect here.
    Ignored,
}

/// One request, parsed.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) action: Action,
    /// Whether something in it is deprecated, which the answer's headers say.
    pub(crate) deprecated: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum CpuTemplate {
    C3,
    T2,
    T2S,
    T2CL,
    T2A,
    V1N1,
    None,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum HugePages {
    #[default]
    None,
    #[serde(rename = "2M")]
    Hugetlbfs2M,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfig {
    pub(crate) vcpu_count: u8,
    pub(crate) mem_size_mib: usize,
    #[serde(default)]
    pub(crate) smt: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) cpu_template: Option<CpuTemplate>,
    #[serde(default)]
    pub(crate) track_dirty_pages: bool,
    #[serde(default)]
    pub(crate) huge_pages: HugePages,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MachineConfigUpdate {
    pub(crate) vcpu_count: Option<u8>,
    pub(crate) mem_size_mib: Option<usize>,
    pub(crate) smt: Option<bool>,
    pub(crate) cpu_template: Option<CpuTemplate>,
    pub(crate) track_dirty_pages: Option<bool>,
    pub(crate) huge_pages: Option<HugePages>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct BootSource {
    pub(crate) kernel_image_path: String,
    pub(crate) initrd_path: Option<String>,
    pub(crate) boot_args: Option<String>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct TokenBucket {
    size: u64,
    one_time_burst: Option<u64>,
    refill_time: u64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RateLimiter {
    bandwidth: Option<TokenBucket>,
    ops: Option<TokenBucket>,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) enum CacheType {
    #[default]
    Unsafe,
    Writeback,
}

#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) enum IoEngine {
    #[default]
    Sync,
    Async,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Drive {
    pub(crate) drive_id: String,
    pub(crate) partuuid: Option<String>,
    pub(crate) is_root_device: bool,
    #[serde(default)]
    pub(crate) cache_type: CacheType,
    pub(crate) is_read_only: Option<bool>,
    pub(crate) path_on_host: Option<String>,
    pub(crate) rate_limiter: Option<RateLimiter>,
    pub(crate) io_engine: Option<IoEngine>,
    pub(crate) socket: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DriveUpdate {
    pub(crate) drive_id: String,
    pub(crate) path_on_host: Option<String>,
    pub(crate) rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Network {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
    pub(crate) guest_mac: Option<Mac>,
    pub(crate) mtu: Option<u16>,
    pub(crate) rx_rate_limiter: Option<RateLimiter>,
    pub(crate) tx_rate_limiter: Option<RateLimiter>,
}

/// A MAC address, as it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct Mac(String);

impl TryFrom<String> for Mac {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let mut octets = 0;
        for octet in text.split(':') {
            octets += 1;
            if octet.len() != 2 || u8::from_str_radix(octet, 16).is_err() {
                octets = 0;
                break;
            }
        }
        if octets == 6 { Ok(Self(text.to_lowercase())) } else { Err("The provided MAC address is invalid.") }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Vsock {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) vsock_id: Option<String>,
    pub(crate) guest_cid: u32,
    pub(crate) uds_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SerialConfig {
    pub(crate) serial_out_path: Option<PathBuf>,
    #[serde(rename = "rate_limiter")]
    _rate_limiter: Option<TokenBucket>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct EntropyConfig {
    rate_limiter: Option<RateLimiter>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum SnapshotType {
    Diff,
    #[default]
    Full,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CreateSnapshot {
    #[serde(default)]
    pub(crate) snapshot_type: SnapshotType,
    pub(crate) snapshot_path: PathBuf,
    pub(crate) mem_file_path: PathBuf,
}

#[derive(Debug, Deserialize)]
pub(crate) struct NetworkOverride {
    pub(crate) iface_id: String,
    pub(crate) host_dev_name: String,
}

#[derive(Debug, Deserialize)]
pub(crate) struct VsockOverride {
    pub(crate) uds_path: String,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
pub(crate) enum MemBackendType {
    File,
    Uffd,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MemBackend {
    pub(crate) backend_path: PathBuf,
    pub(crate) backend_type: MemBackendType,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadBody {
    snapshot_path: PathBuf,
    mem_file_path: Option<PathBuf>,
    mem_backend: Option<MemBackend>,
    #[serde(default)]
    enable_diff_snapshots: bool,
    #[serde(default)]
    track_dirty_pages: bool,
    #[serde(default)]
    resume_vm: bool,
    #[serde(default)]
    network_overrides: Vec<NetworkOverride>,
    vsock_override: Option<VsockOverride>,
    #[serde(default)]
    clock_realtime: bool,
}

/// What is loaded, and how.
#[derive(Debug)]
pub(crate) struct LoadSnapshot {
    pub(crate) snapshot_path: PathBuf,
    pub(crate) memory: MemBackend,
    pub(crate) track_dirty_pages: bool,
    pub(crate) resume_vm: bool,
    pub(crate) network_overrides: Vec<NetworkOverride>,
    pub(crate) vsock_override: Option<VsockOverride>,
    pub(crate) clock_realtime: bool,
}

#[derive(Debug, Deserialize)]
enum ActionType {
    FlushMetrics,
    InstanceStart,
    SendCtrlAltDel,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ActionBody {
    action_type: ActionType,
}

#[derive(Debug, Deserialize)]
enum VmState {
    Paused,
    Resumed,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vm {
    state: VmState,
}

/// What a request asks for; or why it cannot mean anything.
pub(crate) fn parse(method: &str, path: &str, body: &[u8]) -> Result<Request, String> {
    let mut words = path.trim_start_matches('/').split_terminator('/');
    let first = words.next().unwrap_or("");
    let has_body = !body.is_empty();
    let mut deprecated = false;
    let action = match (method, first, has_body) {
        ("GET", "", false) => Action::GetInstance,
        ("GET", "version", false) => Action::GetVersion,
        ("GET", "machine-config", false) => Action::GetMachineConfig,
        ("GET", "vm", false) if words.next() == Some("config") => Action::GetConfig,
        ("GET", _, true) => return Err("GET request cannot have a body.".to_owned()),
        ("PUT", "actions", true) => match json::<ActionBody>(body)?.action_type {
            ActionType::FlushMetrics => Action::FlushMetrics,
            ActionType::InstanceStart => Action::Start,
            ActionType::SendCtrlAltDel => Action::SendCtrlAltDel,
        },
        ("PUT", "boot-source", true) => Action::PutBootSource(json(body)?),
        ("PUT", "drives", true) => {
            let id = id(words.next())?;
            let drive: Drive = json(body)?;
            same_id(id, &drive.drive_id)?;
            Action::PutDrive(drive)
        }
        ("PUT", "logger", true) => Action::Ignored,
        ("PUT", "serial", true) => Action::PutSerial(json(body)?),
        ("PUT", "machine-config", true) => {
            let config: MachineConfig = json(body)?;
            deprecated = config.cpu_template.is_some();
            Action::PutMachineConfig(MachineConfigUpdate {
                vcpu_count: Some(config.vcpu_count),
                mem_size_mib: Some(config.mem_size_mib),
                smt: Some(config.smt),
                cpu_template: config.cpu_template,
                track_dirty_pages: Some(config.track_dirty_pages),
                huge_pages: Some(config.huge_pages),
            })
        }
        ("PUT", "network-interfaces", true) => {
            let id = id(words.next())?;
            let network: Network = json(body)?;
            if id != network.iface_id {
                let of_body = &network.iface_id;
                return Err(format!("The id from the path [{id}] does not match the id from the body [{of_body}]!"));
            }
            Action::PutNetwork(network)
        }
        ("PUT", "snapshot", true) => match words.next() {
            Some("create") => Action::Create(json(body)?),
            Some("load") => {
                let (load, old) = load(json(body)?)?;
                deprecated = old;
                Action::Load(load)
            }
            Some(other) => return Err(format!("Invalid request method and/or path: PUT /snapshot/{other}.")),
            None => return Err("Missing snapshot operation type.".to_owned()),
        },
        ("PUT", "vsock", true) => {
            let vsock: Vsock = json(body)?;
            deprecated = vsock.vsock_id.is_some();
            Action::PutVsock(vsock)
        }
        ("PUT", "entropy", true) => Action::PutEntropy(json(body)?),
        ("PUT", _, false) => return Err("Empty PUT request.".to_owned()),
        ("PATCH", "drives", true) => {
            let id = id(words.next())?;
            let update: DriveUpdate = json(body)?;
            same_id(id, &update.drive_id)?;
            Action::PatchDrive(update)
        }
        ("PATCH", "machine-config", true) => Action::PutMachineConfig(json(body)?),
        ("PATCH", "vm", true) => match json::<Vm>(body)?.state {
            VmState::Paused => Action::Pause,
            VmState::Resumed => Action::Resume,
        },
        ("PATCH", _, false) => return Err("Empty PATCH request.".to_owned()),
        ("DELETE", "drives" | "network-interfaces" | "pmem", false) => {
            id(words.next())?;
            Action::Unplug
        }
        ("DELETE", _, true) => return Err("Empty Delete request.".to_owned()),
        (method, first, _) => return Err(format!("Invalid request method and/or path: {method} {first}.")),
    };
    Ok(Request { action, deprecated })
}

fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    serde_json::from_slice(body).map_err(|error| not_json(&error))
}

fn not_json(error: &serde_json::Error) -> String {
    format!("An error occurred when deserializing the json body of a request: {error}.")
}

fn id(word: Option<&str>) -> Result<&str, String> {
    match word {
        None | Some("") => Err("The ID cannot be empty.".to_owned()),
        Some(id) if id.chars().all(|c| c == '_' || c.is_alphanumeric()) => Ok(id),
        Some(_) => Err("API Resource IDs can only contain alphanumeric characters and underscores.".to_owned()),
    }
}

fn same_id(of_path: &str, of_body: &str) -> Result<(), String> {
    if of_path == of_body {
        Ok(())
    } else {
        Err("The id from the path does not match the id from the body!".to_owned())
    }
}

/// Also says whether it was asked for in the old way.
fn load(body: LoadBody) -> Result<(LoadSnapshot, bool), String> {
    let deprecated = body.mem_file_path.is_some() || body.enable_diff_snapshots;
    let refused = |why| Err(not_json(&serde_json::Error::custom(why)));
    let memory = match (body.mem_backend, body.mem_file_path) {
        (Some(_), Some(_)) => {
            return refused("too many fields: either `mem_backend` or `mem_file_path` exclusively is required");
        }
        (None, None) => return refused("missing field: either `mem_backend` or `mem_file_path` is required"),
        (Some(memory), None) => memory,
        (None, Some(backend_path)) => MemBackend { backend_path, backend_type: MemBackendType::File },
    };
    let load = LoadSnapshot {
        snapshot_path: body.snapshot_path,
        memory,
        track_dirty_pages: body.track_dirty_pages || body.enable_diff_snapshots,
        resume_vm: body.resume_vm,
        network_overrides: body.network_overrides,
        vsock_override: body.vsock_override,
        clock_realtime: body.clock_realtime,
    };
    Ok((load, deprecated))
}
