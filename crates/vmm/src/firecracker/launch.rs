//! Starts a Firecracker process, and configures a machine that boots.
//!
//! The guest's serial port is the process's standard output, which appends to [`SERIAL_LOG`]: so
//! the console goes on after a load. (`PUT /serial` opens its file at the beginning and would write
//! over what is there; it would also be one more request on the way of a restore.)

use std::fs::File;
use std::io;
use std::time::{Duration, Instant};

use hearth_model::network::inner;
use serde_json::json;

use super::control::Api;
use super::ready::{self, Watch};
use super::vsock::GUEST_CID;
use crate::cgroup::Cgroups;
use crate::ending::{give_up, remove_sockets};
use crate::fault::{ControlError, LaunchError};
use crate::file::open;
use crate::process::{self, Process, Program};
use crate::spec::{
    API_SOCKET, LaunchSpec, MEMORY_BASE, Nic, OVERLAY, ROOTFS, Ram, SERIAL_LOG, Seat, SocketWait, VMM_ERRORS, VMM_LOG,
    VSOCK_SOCKET, device_set,
};

/// A process whose socket may not be there yet.
#[derive(Debug)]
pub(crate) struct Started {
    spec: LaunchSpec,
    process: Process,
    boot_id: String,
    watch: io::Result<Watch>,
}

/// A process that takes requests.
#[derive(Debug)]
pub(crate) struct Ready {
    pub process: Process,
    pub wait: (SocketWait, Duration),
    pub api: Api,
    boot_id: String,
}

/// Starts the process. Nothing of a guest is needed for that: disks and memory may be put in place
/// while it comes up.
pub(crate) fn start(cgroups: &Cgroups, spec: &LaunchSpec) -> Result<Started, LaunchError> {
    let program =
        process::look_up(&spec.program).ok_or_else(|| LaunchError::NoProgram { program: spec.program.clone() })?;
    let make = |what, name: &str| {
        let path = spec.dir.join(name);
        move |source| LaunchError::Make { what, path, source }
    };
    remove_sockets(&spec.dir).map_err(|error| LaunchError::Make {
        what: "place for sockets",
        path: spec.dir.clone(),
        source: io::Error::other(error),
    })?;
    let append = |name| File::options().append(true).create(true).open(spec.dir.join(name));
    let stdout = append(SERIAL_LOG).map_err(make("log", SERIAL_LOG))?;
    let stderr = File::create(spec.dir.join(VMM_ERRORS)).map_err(make("log", VMM_ERRORS))?;
    File::create(spec.dir.join(VMM_LOG)).map_err(make("log", VMM_LOG))?;
    let watch = Watch::new(&spec.dir);
    let args = ["--api-sock", API_SOCKET, "--id", process::NAME, "--log-path", VMM_LOG, "--level", "Warn"];
    let started = process::boot_id().and_then(|boot_id| {
        let args = args.map(Into::into).into();
        let program = Program {
            path: program.clone(),
            args,
            dir: spec.dir.clone(),
            stdout,
            stderr,
            fds: Vec::new(),
            netns: spec.netns.clone(),
            cgroup: cgroups.make(&spec.dir),
        };
        Ok((process::start(program)?, boot_id))
    });
    let (process, boot_id) = started.map_err(|source| LaunchError::Spawn { program, source })?;
    Ok(Started { spec: spec.clone(), process, boot_id, watch })
}

impl Started {
    pub(crate) fn spec(&self) -> &LaunchSpec {
        &self.spec
    }

    /// Waits until it takes requests. When it fails, neither process nor socket is left.
    pub(crate) async fn ready(self) -> Result<Ready, LaunchError> {
        let Self { spec, process, boot_id, watch } = self;
        let began = Instant::now();
        let connected = match ready::socket(&spec.dir, &process, &watch).await {
            Ok((stream, wait)) => {
                let wait = (wait, began.elapsed());
                let unreachable = |source| ControlError::Unreachable { socket: spec.dir.join(API_SOCKET), source };
                Api::over(&spec.dir, stream).await.map(|api| (api, wait)).map_err(unreachable)
            }
            Err(error) => Err(error),
        };
        match connected {
            Ok((api, wait)) => Ok(Ready { process, wait, api, boot_id }),
            Err(error) => Err(give_up(&process, &spec.dir, why(error, &process).await.into()).await),
        }
    }
}

/// A socket that cannot be reached may be that of a process which is ending: then that is the reason.
async fn why(error: ControlError, process: &Process) -> ControlError {
    /// A process that has closed its sockets is gone in a moment.
    const ENDS_SOON: Duration = Duration::from_millis(500);
    if !matches!(error, ControlError::Unreachable { .. }) {
        return error;
    }
    match tokio::time::timeout(ENDS_SOON, process.exited()).await {
        Ok(exit) => ControlError::Gone { command: ready::COMMAND, exit: Box::new(exit) },
        Err(_) => error,
    }
}

impl Ready {
    /// How its socket came to answer, and after how long.
    pub(crate) fn waited(&self) -> (&SocketWait, Duration) {
        (&self.wait.0, self.wait.1)
    }

    pub(crate) fn seat(&self, spec: &LaunchSpec, ram: Ram, memory_inode: u64) -> Seat {
        Seat {
            pid: self.process.pid,
            start_ticks: self.process.start_ticks,
            boot_id: self.boot_id.clone(),
            dir: spec.dir.clone(),
            backend: spec.machine.backend,
            ram,
            memory_inode,
            memory: spec.machine.memory,
            device_set: Some(device_set(&spec.machine)),
        }
    }
}

/// What a boot reads is there.
pub(crate) fn check_boot_files(spec: &LaunchSpec) -> Result<(), LaunchError> {
    open("kernel", &spec.machine.kernel)?;
    if let Some(initrd) = &spec.machine.initrd {
        open("initrd", initrd)?;
    }
    check_disks(spec)
}

/// The machine's disks are there.
pub(crate) fn check_disks(spec: &LaunchSpec) -> Result<(), LaunchError> {
    for disk in hearth_model::spec::disks(spec.machine.foreign.as_ref()) {
        let what = match disk.path.as_str() {
            ROOTFS => "root file system",
            OVERLAY => "overlay",
            _ => "drive",
        };
        open(what, &spec.dir.join(disk.path))?;
    }
    Ok(())
}

/// Makes the machine and starts it.
pub(crate) async fn configure(ready: &mut Ready, spec: &LaunchSpec) -> Result<Seat, ControlError> {
    let (api, process, machine) = (&mut ready.api, &ready.process, &spec.machine);
    let ram = if host_swaps() { Ram::Tracked } else { Ram::Anonymous };
    if ram == Ram::Tracked {
        begin_tracking(spec)?;
    }
    let config = json!({
        "vcpu_count": machine.vcpus,
        "mem_size_mib": machine.memory.mib(),
        "track_dirty_pages": ram == Ram::Tracked,
    });
    api.put(process, "PUT /machine-config", "/machine-config", &config).await?;
    let mut boot = json!({ "kernel_image_path": machine.kernel, "boot_args": COMMAND_LINE });
    if let Some(initrd) = &machine.initrd {
        boot["initrd_path"] = json!(initrd);
    }
    api.put(process, "PUT /boot-source", "/boot-source", &boot).await?;
    for (id, path, read_only, cache) in [
        ("rootfs", ROOTFS, true, "Unsafe"),
        // What the guest has synced is on the host's disk.
        ("overlay", OVERLAY, false, "Writeback"),
    ] {
        let drive = json!({
            "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": read_only,
            "cache_type": cache,
        });
        api.put(process, "PUT /drives", &format!("/drives/{id}"), &drive).await?;
    }
    if machine.network != Nic::None {
        let card = json!({ "iface_id": "eth0", "host_dev_name": inner::TAP, "guest_mac": inner::MAC_TEXT });
        api.put(process, "PUT /network-interfaces", "/network-interfaces/eth0", &card).await?;
    }
    api.put(process, "PUT /vsock", "/vsock", &json!({ "guest_cid": GUEST_CID, "uds_path": VSOCK_SOCKET })).await?;
    api.put(process, "PUT /entropy", "/entropy", &json!({})).await?;
    api.put(process, "PUT /actions", "/actions", &json!({ "action_type": "InstanceStart" })).await?;
    Ok(ready.seat(spec, ram, 0))
}

/// Without tracking, Firecracker finds a guest's touched pages by `mincore(2)`, which takes a page
/// that was swapped out for one that was never touched: where there is swap, pages are tracked.
pub(crate) fn host_swaps() -> bool {
    let swaps = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    swaps.lines().count() > 1
}

/// A guest's memory begins as zeroes, and so does what its dirty pages are tracked from.
fn begin_tracking(spec: &LaunchSpec) -> Result<(), ControlError> {
    let path = spec.dir.join(MEMORY_BASE);
    let made = File::create(&path).and_then(|file| file.set_len(spec.machine.memory.size().bytes()));
    made.map_err(|source| ControlError::Write { what: "memory file", path, source })
}

/// The kernel's command line. Its own messages stay out of the serial log, panics excepted; a
/// reboot is what ends Firecracker, by the keyboard controller. Firecracker has no more of that
/// controller than it needs for this: the kernel is kept from probing the rest.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 cryptomgr.notests i8042.noaux \
     i8042.nomux i8042.dumbkbd 8250.nr_uarts=1";
