//! The machine's states, and what each request does in which.
//!
//! ```text
//!   Preboot ── PUT /actions InstanceStart ──► Built: Running ◄── PATCH /vm ──► Paused
//!      │  └─── PUT /snapshot/load ──────────► Built: Paused, or Running with resume_vm
//!      └────── PUT /snapshot/load fails ────► the process ends with code 1
//! ```
//!
//! A refusal has status 400 and Firecracker's text. Only a load that fails takes the process along.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::net::UnixListener as Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::faults::Faults;
use crate::memory::Memory;
use crate::request::{
    Action, BootSource, Drive, DriveUpdate, EntropyConfig, HugePages, IoEngine, MachineConfig, MachineConfigUpdate,
    Network, Vsock,
};
use crate::running::{Guest, Shared};
use crate::serial::Serial;
use crate::vsock::{self, Door, Past};
use crate::{load, save};

/// The version that is simulated.
pub(crate) const VERSION: &str = "1.16.1";
const PREBOOT: &str = "The requested operation is not supported before starting the microVM.";
const POSTBOOT: &str = "The requested operation is not supported after starting the microVM.";
const NO_PCI: &str = "PCI is not enabled";
const MAX_VCPUS: u8 = 32;
/// The kernel's limit for the name of an interface, with the zero at its end.
const IFNAMSIZ: usize = 16;

/// What answers a request that was not refused.
#[derive(Debug)]
pub(crate) enum Done {
    /// 204.
    Nothing,
    /// 200 with this JSON.
    Told(String),
}

/// Why not.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) why: String,
    /// Whether the process ends of it.
    pub(crate) fatal: bool,
}

impl From<String> for Refused {
    fn from(why: String) -> Self {
        Self { why, fatal: false }
    }
}

impl From<&str> for Refused {
    fn from(why: &str) -> Self {
        why.to_owned().into()
    }
}

/// A machine's configuration: what `GET /vm/config` shows and a snapshot keeps.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Devices {
    pub(crate) machine: MachineConfig,
    pub(crate) boot_source: BootSource,
    pub(crate) drives: Vec<Drive>,
    pub(crate) networks: Vec<Network>,
    pub(crate) vsock: Option<Vsock>,
    pub(crate) entropy: Option<EntropyConfig>,
}

/// What `GET /version` shows.
#[derive(Serialize)]
struct Version {
    firecracker_version: &'static str,
}

/// What `GET /` shows.
#[derive(Serialize)]
struct Instance<'a> {
    id: &'a str,
    state: &'static str,
    vmm_version: &'static str,
    app_name: &'static str,
}

/// What `GET /vm/config` shows, in Firecracker's order.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Shown<'a> {
    balloon: Option<()>,
    drives: &'a [Drive],
    boot_source: &'a BootSource,
    cpu_config: Option<()>,
    logger: Option<()>,
    machine_config: &'a MachineConfig,
    metrics: Option<()>,
    mmds_config: Option<()>,
    network_interfaces: &'a [Network],
    vsock: Option<&'a Vsock>,
    entropy: Option<&'a EntropyConfig>,
    pmem: [(); 0],
    memory_hotplug: Option<()>,
}

fn told(what: &impl Serialize) -> Done {
    Done::Told(serde_json::to_string(what).expect("nothing in it that JSON has not"))
}

/// One process's machine.
#[derive(Debug)]
pub(crate) struct Machine {
    id: String,
    faults: Arc<Faults>,
    exit: mpsc::UnboundedSender<u8>,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Preboot(Setup),
    Built(Vm),
}

/// The drives' open files, by id.
pub(crate) type Disks = BTreeMap<String, File>;

/// What was said before the start.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) devices: Devices,
    kernel: Option<File>,
    /// Held open from when they are named, as Firecracker does: who removes a file later has not
    /// taken it away.
    disks: Disks,
    door: Option<Bound>,
    pub(crate) serial: Option<PathBuf>,
    /// Something that a load would have to take back was said.
    boots: bool,
}

/// A machine that was built.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) devices: Devices,
    pub(crate) guest: Guest,
    pub(crate) memory: Shared,
    pub(crate) serial: Serial,
    pub(crate) door: Option<Door>,
    pub(crate) disks: Disks,
    /// While it runs.
    pub(crate) running: Option<JoinHandle<()>>,
    /// Whether the guest, once it runs, finds that its vsock was reset.
    pub(crate) reset: bool,
    pub(crate) realtime: bool,
}

impl Machine {
    pub(crate) fn new(id: String, faults: Arc<Faults>, exit: mpsc::UnboundedSender<u8>) -> Self {
        let machine = MachineConfig {
            vcpu_count: 1,
            mem_size_mib: 128,
            smt: false,
            cpu_template: None,
            track_dirty_pages: false,
            huge_pages: HugePages::None,
        };
        let devices = Devices {
            machine,
            boot_source: BootSource::default(),
            drives: Vec::new(),
            networks: Vec::new(),
            vsock: None,
            entropy: None,
        };
        let setup = Setup { devices, kernel: None, disks: Disks::new(), door: None, serial: None, boots: false };
        Self { id, faults, exit, phase: Phase::Preboot(setup) }
    }

    /// Does what is asked for.
    pub(crate) fn handle(&mut self, action: Action) -> Result<Done, Refused> {
        match (&mut self.phase, action) {
            (_, Action::GetVersion) => Ok(told(&Version { firecracker_version: VERSION })),
            (_, Action::GetInstance) => Ok(told(&self.instance())),
            (Phase::Preboot(setup), action) => match action {
                Action::Start => self.start(),
                Action::Load(params) => {
                    if setup.boots {
                        return Err("Load snapshot error: Loading a microVM snapshot not allowed after configuring \
                                    boot-specific resources."
                            .into());
                    }
                    match load::load(&params, setup, &self.faults) {
                        Ok(mut vm) => {
                            if params.resume_vm {
                                vm.resume(&self.exit);
                            }
                            self.phase = Phase::Built(vm);
                            Ok(Done::Nothing)
                        }
                        Err(why) => Err(Refused { why: format!("Load snapshot error: {why}"), fatal: true }),
                    }
                }
                action => setup.handle(action),
            },
            (Phase::Built(vm), action) => vm.handle(action, &self.exit),
        }
    }

    fn instance(&self) -> Instance<'_> {
        let state = match &self.phase {
            Phase::Preboot(_) => "Not started",
            Phase::Built(Vm { running: Some(_), .. }) => "Running",
            Phase::Built(Vm { running: None, .. }) => "Paused",
        };
        Instance { id: &self.id, state, vmm_version: VERSION, app_name: "Firecracker" }
    }

    fn start(&mut self) -> Result<Done, Refused> {
        let Phase::Preboot(setup) = &mut self.phase else { return Err(POSTBOOT.into()) };
        let refused = |why: String| Refused::from(format!("Start microvm error: {why}"));
        let Some(kernel) = &setup.kernel else {
            return Err(refused("Cannot start microvm without kernel configuration.".to_owned()));
        };
        let machine = &setup.devices.machine;
        let memory = Shared::new(Memory::new(machine.mem_size_mib, machine.track_dirty_pages));
        let serial = Serial::open(setup.serial.as_deref())
            .map_err(|error| refused(format!("Failed to create device manager: Error with EventFd: {error}")))?;
        let guest = Guest::boot(kernel, &memory, &serial).map_err(|why| {
            refused(format!(
                "System configuration error: Cannot load kernel due to invalid memory configuration or invalid kernel \
                 image: Kernel Loader: failed to load ELF kernel image: Kernel Loader: {why}"
            ))
        })?;
        let plan = self.faults.plan().map_err(|error| refused(error.to_string()))?;
        let takes = match &guest {
            Guest::Agent(_) => Duration::from_millis(plan.boot_ms),
            Guest::Counter(_) | Guest::Dead => Duration::ZERO,
        };
        let past = Past::Booted { takes };
        let door = setup.door.take().map(|door| Door::open(door, guest.listener(), past, Arc::clone(&self.faults)));
        let door = door.transpose().map_err(|error| refused(format!("Could not attach device: {error}")))?;
        let devices = setup.devices.clone();
        let disks = std::mem::take(&mut setup.disks);
        let realtime = plan.stable_tsc;
        let mut vm = Vm { devices, guest, memory, serial, door, disks, running: None, reset: false, realtime };
        vm.resume(&self.exit);
        self.phase = Phase::Built(vm);
        Ok(Done::Nothing)
    }
}

impl Setup {
    fn handle(&mut self, action: Action) -> Result<Done, Refused> {
        match action {
            Action::GetMachineConfig => return Ok(told(&self.devices.machine)),
            Action::GetConfig => return Ok(told(&self.devices.shown())),
            Action::Ignored => {}
            Action::PutSerial(config) => self.serial = config.serial_out_path,
            Action::PutMachineConfig(update) => {
                self.boots = true;
                self.devices.machine = self.devices.machine.updated(&update).map_err(machine_refused)?;
            }
            Action::PutBootSource(source) => {
                self.boots = true;
                self.put_boot_source(source)?;
            }
            Action::PutDrive(drive) => {
                self.boots = true;
                self.put_drive(drive)?;
            }
            Action::PutNetwork(network) => {
                self.boots = true;
                self.devices.networks.retain(|other| other.iface_id != network.iface_id);
                if network.host_dev_name.len() >= IFNAMSIZ {
                    return Err("Network config error: Could not create the network device: Open tap device failed: \
                                Invalid interface name"
                        .into());
                }
                self.devices.networks.push(network);
            }
            Action::PutVsock(vsock) => {
                self.boots = true;
                self.put_vsock(vsock)?;
            }
            Action::PutEntropy(config) => {
                self.boots = true;
                self.devices.entropy = Some(config);
            }
            Action::Pause
            | Action::Resume
            | Action::Create(_)
            | Action::PatchDrive(_)
            | Action::SendCtrlAltDel
            | Action::FlushMetrics
            | Action::Unplug => return Err(PREBOOT.into()),
            Action::Start | Action::Load(_) | Action::GetInstance | Action::GetVersion => {
                unreachable!("the machine has done these")
            }
        }
        Ok(Done::Nothing)
    }

    fn put_boot_source(&mut self, source: BootSource) -> Result<(), Refused> {
        let kernel = File::open(&source.kernel_image_path)
            .map_err(|error| format!("Boot source error: The kernel file cannot be opened: {error}"))?;
        if let Some(initrd) = &source.initrd_path {
            File::open(initrd).map_err(|error| {
                format!(
                    "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. \
                     {error}"
                )
            })?;
        }
        self.kernel = Some(kernel);
        self.devices.boot_source = source;
        Ok(())
    }

    fn put_drive(&mut self, mut drive: Drive) -> Result<(), Refused> {
        let drives = &mut self.devices.drives;
        let at = drives.iter().position(|other| other.drive_id == drive.drive_id);
        if drive.is_root_device && drives.first().is_some_and(|first| first.is_root_device) && at != Some(0) {
            return Err("Drive config error: A root block device already exists!".into());
        }
        let (Some(path), None) = (&drive.path_on_host, &drive.socket) else {
            return Err("Drive config error: Unable to create the virtio block device: Invalid block config.".into());
        };
        let read_only = drive.is_read_only.unwrap_or_default();
        let disk = open_disk(path, read_only)
            .map_err(|why| format!("Drive config error: Unable to create the virtio block device: {why}"))?;
        self.disks.insert(drive.drive_id.clone(), disk);
        drive.is_read_only = Some(read_only);
        drive.io_engine = Some(drive.io_engine.unwrap_or(IoEngine::Sync));
        match at {
            Some(at) => {
                let root = drive.is_root_device;
                drives[at] = drive;
                if root {
                    drives.swap(0, at);
                }
            }
            None if drive.is_root_device => drives.insert(0, drive),
            None => drives.push(drive),
        }
        Ok(())
    }

    fn put_vsock(&mut self, vsock: Vsock) -> Result<(), Refused> {
        let unbound = |error: io::Error| {
            format!(
                "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix \
                 socket: {error}"
            )
        };
        self.door = None;
        if let Some(before) = self.devices.vsock.take() {
            std::fs::remove_file(before.uds_path).map_err(unbound)?;
        }
        self.door = Some(vsock::bind(&vsock.uds_path).map_err(unbound)?);
        self.devices.vsock = Some(Vsock { vsock_id: None, ..vsock });
        Ok(())
    }
}

impl Vm {
    fn handle(&mut self, action: Action, exit: &mpsc::UnboundedSender<u8>) -> Result<Done, Refused> {
        match action {
            Action::GetMachineConfig => return Ok(told(&self.devices.machine)),
            Action::GetConfig => return Ok(told(&self.devices.shown())),
            Action::Pause => self.pause(),
            Action::Resume => self.resume(exit),
            Action::Create(params) => {
                save::save(self, &params).map_err(|why| format!("Create snapshot error: {why}"))?;
            }
            Action::PatchDrive(update) => self.patch_drive(update)?,
            Action::SendCtrlAltDel => {
                if self.guest.ends_on_ctrl_alt_del() && self.running.is_some() {
                    let _ = exit.send(0);
                }
            }
            Action::FlushMetrics => {}
            Action::PutDrive(_) | Action::PutNetwork(_) | Action::Unplug => return Err(NO_PCI.into()),
            Action::PutMachineConfig(_)
            | Action::PutBootSource(_)
            | Action::PutVsock(_)
            | Action::PutSerial(_)
            | Action::PutEntropy(_)
            | Action::Start
            | Action::Load(_)
            | Action::Ignored => return Err(POSTBOOT.into()),
            Action::GetInstance | Action::GetVersion => unreachable!("the machine has done these"),
        }
        Ok(Done::Nothing)
    }

    /// Also of a guest that runs: then nothing changes but what the defect of the vsock does.
    pub(crate) fn resume(&mut self, exit: &mpsc::UnboundedSender<u8>) {
        crate::log::say("main", "Artificially kick devices");
        if let Some(door) = &self.door {
            door.resumed(self.reset);
            if self.reset {
                self.guest.was_reset(&self.serial);
            }
        }
        self.reset = false;
        if self.running.is_none() {
            self.running = Some(self.guest.run(&self.memory, &self.serial, exit));
        }
    }

    fn pause(&mut self) {
        if let Some(running) = self.running.take() {
            running.abort();
        }
        if let Some(door) = &self.door {
            door.paused();
        }
    }

    fn patch_drive(&mut self, update: DriveUpdate) -> Result<(), Refused> {
        let refused = |why: &str| {
            let request = "Please verify the request arguments.";
            Refused::from(format!("Drive config error: Unable to patch the block device: {why} {request}"))
        };
        let drive = self.devices.drives.iter_mut().find(|drive| drive.drive_id == update.drive_id);
        let Some(drive) = drive else {
            return Err(refused("Failed perform action on device: Device not found"));
        };
        match update.path_on_host {
            Some(path) => {
                let disk = open_disk(&path, drive.is_read_only.unwrap_or_default());
                let disk = disk.map_err(|why| refused(&format!("Block: {why}")))?;
                // The one that it had is closed.
                self.disks.insert(update.drive_id, disk);
                drive.path_on_host = Some(path);
            }
            None if update.rate_limiter.is_none() => {
                return Err(refused("Block: Running method expected different backend."));
            }
            None => {}
        }
        if let Some(limiter) = update.rate_limiter {
            drive.rate_limiter = Some(limiter);
        }
        Ok(())
    }
}

impl Devices {
    fn shown(&self) -> Shown<'_> {
        Shown {
            balloon: None,
            drives: &self.drives,
            boot_source: &self.boot_source,
            cpu_config: None,
            logger: None,
            machine_config: &self.machine,
            metrics: None,
            mmds_config: None,
            network_interfaces: &self.networks,
            vsock: self.vsock.as_ref(),
            entropy: self.entropy.as_ref(),
            pmem: [],
            memory_hotplug: None,
        }
    }
}

impl MachineConfig {
    fn updated(&self, update: &MachineConfigUpdate) -> Result<Self, &'static str> {
        let new = Self {
            vcpu_count: update.vcpu_count.unwrap_or(self.vcpu_count),
            mem_size_mib: update.mem_size_mib.unwrap_or(self.mem_size_mib),
            smt: update.smt.unwrap_or(self.smt),
            cpu_template: update.cpu_template.or(self.cpu_template),
            track_dirty_pages: update.track_dirty_pages.unwrap_or(self.track_dirty_pages),
            huge_pages: update.huge_pages.unwrap_or(self.huge_pages),
        };
        let odd = new.smt && new.vcpu_count > 1 && !new.vcpu_count.is_multiple_of(2);
        if new.vcpu_count == 0 || new.vcpu_count > MAX_VCPUS || odd {
            return Err("The number of vCPUs must be greater than 0, less than 32 and must be 1 or an even number if \
                        SMT is enabled.");
        }
        let pages = if new.huge_pages == HugePages::None { 1 } else { 2 };
        if new.mem_size_mib == 0 || !new.mem_size_mib.is_multiple_of(pages) {
            return Err("The memory size (MiB) is either 0, or not a multiple of the configured page size.");
        }
        Ok(new)
    }
}

fn machine_refused(why: &str) -> Refused {
    format!("Machine config error: {why}").into()
}

/// Opens a drive's file, with Firecracker's words where it cannot be.
pub(crate) fn open_disk(path: &str, read_only: bool) -> Result<File, String> {
    OpenOptions::new()
        .read(true)
        .write(!read_only)
        .open(path)
        .map_err(|error| format!("Virtio backend error: Error manipulating the backing file: {error} {path}"))
}
