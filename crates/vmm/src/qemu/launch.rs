//! Starts a QEMU process: its arguments, the files and sockets it is given, and its first words.
//!
//! Both sockets are made and listened on here and passed as descriptors. So a connection succeeds
//! before QEMU is up, readiness is its greeting on that connection, and a socket left by an
//! earlier VMM is in nobody's way. Guest RAM is passed as a descriptor too:
//! no path of ours is in QEMU's arguments where a comma would end it.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use hearth_model::network::{PortMapping, inner};
use hearth_model::{Accel, Backend};

use super::control::Qmp;
use crate::cgroup::Cgroups;
use crate::ending::{give_up, remove_sockets};
use crate::fault::LaunchError;
use crate::file::open;
use crate::process::{self, Process, Program};
use crate::spec::{
    AGENT_SOCKET, LaunchSpec, MEMORY, Machine, Nic, OVERLAY, QMP_SOCKET, ROOTFS, Ram, SERIAL_LOG, Seat, VMM_LOG,
    device_set,
};
use crate::{socket, sys};

const QMP_FD: u32 = 3;
const AGENT_FD: u32 = 4;
const MEMORY_FD: u32 = 5;
/// Of a load: a stream of the saved device state.
pub(crate) const STATE_FD: u32 = 6;

/// A process that has answered.
#[derive(Debug)]
pub(crate) struct Started {
    pub process: Process,
    pub seat: Seat,
    pub qmp: Qmp,
}

/// What a launch begins with.
#[derive(Debug)]
pub(crate) enum Begin {
    /// Reset, then the kernel.
    Boot { tsc_khz: Option<u64> },
    /// Halted, waiting for a device state; RAM is mapped privately.
    Load { state: OwnedFd },
}

/// Boots: vCPUs run when it returns.
pub(crate) async fn boot(cgroups: &Cgroups, spec: &LaunchSpec) -> Result<Started, LaunchError> {
    open("kernel", &spec.machine.kernel)?;
    if let Some(initrd) = &spec.machine.initrd {
        open("initrd", initrd)?;
    }
    let tsc_khz = match spec.machine.accel {
        Accel::Kvm => None,
        Accel::Tcg => tokio::task::spawn_blocking(tsc_khz).await.ok(),
    };
    let path = spec.dir.join(MEMORY);
    let memory = new_memory(&path, spec.machine.memory.size().bytes()).map_err(|source| LaunchError::Make {
        what: "memory file",
        path,
        source,
    })?;
    start(cgroups, spec, memory, Begin::Boot { tsc_khz }).await
}

/// Never into an old file: it may have become a snapshot's by a link.
fn new_memory(path: &Path, bytes: u64) -> io::Result<File> {
    socket::remove(path)?;
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(bytes)?;
    Ok(file)
}

/// Starts QEMU and waits for its greeting. When it fails, neither process nor socket is left.
pub(crate) async fn start(
    cgroups: &Cgroups,
    spec: &LaunchSpec,
    memory: File,
    begin: Begin,
) -> Result<Started, LaunchError> {
    let program =
        process::look_up(&spec.program).ok_or_else(|| LaunchError::NoProgram { program: spec.program.clone() })?;
    for (what, name) in [("root file system", ROOTFS), ("overlay", OVERLAY)] {
        open(what, &spec.dir.join(name))?;
    }
    let make = |what, name| {
        let path = spec.dir.join(name);
        move |source| LaunchError::Make { what, path, source }
    };
    let stdout = File::create(spec.dir.join(VMM_LOG)).map_err(make("log", VMM_LOG))?;
    let stderr = stdout.try_clone().map_err(make("log", VMM_LOG))?;
    let memory_inode = memory.metadata().map_err(make("memory file", MEMORY))?.ino();
    let args = arguments(&spec.machine, &begin);
    let qmp = socket::listen(&spec.dir, QMP_SOCKET).map_err(make("socket", QMP_SOCKET))?;
    let agent = socket::listen(&spec.dir, AGENT_SOCKET)
        .inspect_err(|_| drop(remove_sockets(&spec.dir)))
        .map_err(make("socket", AGENT_SOCKET))?;
    let mut fds: Vec<OwnedFd> = vec![qmp.into(), agent.into(), memory.into()];
    let ram = match begin {
        Begin::Boot { .. } => Ram::Shared,
        Begin::Load { state } => {
            fds.push(state);
            Ram::Private
        }
    };
    let boot_id = process::boot_id();
    let started = boot_id.and_then(|boot_id| {
        let process = process::start(Program {
            path: program.clone(),
            args,
            dir: spec.dir.clone(),
            stdout,
            stderr,
            fds,
            netns: spec.netns.clone(),
            cgroup: cgroups.make(&spec.dir),
        })?;
        let seat = Seat {
            pid: process.pid,
            start_ticks: process.start_ticks,
            boot_id,
            dir: spec.dir.clone(),
            backend: spec.machine.backend,
            ram,
            memory_inode,
            memory: spec.machine.memory,
            device_set: Some(device_set(&spec.machine)),
        };
        Ok((process, seat))
    });
    let (process, seat) = match started {
        Ok(started) => started,
        Err(source) => {
            drop(remove_sockets(&spec.dir));
            return Err(LaunchError::Spawn { program, source });
        }
    };
    match Qmp::connect(&spec.dir, &process).await {
        Ok(qmp) => Ok(Started { process, seat, qmp }),
        Err(error) => Err(give_up(&process, &spec.dir, LaunchError::from(error)).await),
    }
}

/// QEMU's arguments: pure, and the same devices for a boot and for a load.
pub(crate) fn arguments(machine: &Machine, begin: &Begin) -> Vec<OsString> {
    let Machine { backend, accel, vcpus, memory, kernel, initrd, network, foreign: _ } = machine;
    let mib = memory.mib();
    let mut args: Vec<OsString> = Vec::new();
    let mut put = |option: &str, value: String| {
        args.push(option.into());
        args.push(value.into());
    };
    put("-name", process::NAME.into());
    let common = "memory-backend=ram,mem-merge=off,dump-guest-core=off,suppress-vmdesc=on";
    let microvm = *backend == Backend::QemuMicrovm;
    if microvm {
        // qboot starts kernels by itself, bzImage or ELF: no option ROMs.
        put("-machine", format!("microvm,x-option-roms=off,{common}"));
        put("-bios", "qboot.rom".into());
        put("-global", "virtio-mmio.force-legacy=false".into());
    } else {
        put("-machine", format!("q35,hpet=off,sata=off,vmport=off,usb=off,{common}"));
    }
    // With this and suppress-vmdesc, what is loaded has the form that is saved: see snapshot.rs.
    put("-global", "migration.send-configuration=off".into());
    put("-accel", accel.as_str().into());
    put("-cpu", if *accel == Accel::Kvm { "host" } else { "max" }.into());
    put("-smp", vcpus.to_string());
    put("-m", format!("{mib}M"));
    let share = if matches!(begin, Begin::Boot { .. }) { "on" } else { "off" };
    put("-object", format!("memory-backend-file,id=ram,share={share},size={mib}M,mem-path=/proc/self/fd/{MEMORY_FD}"));
    put("-chardev", format!("file,id=serial,path={SERIAL_LOG},append=on"));
    put("-serial", "chardev:serial".into());
    put("-chardev", format!("socket,id=qmp,fd={QMP_FD},server=on,wait=off"));
    put("-mon", "chardev=qmp,mode=control".into());

    let (bus, pci) = if microvm { ("device", "") } else { ("pci", ",disable-legacy=on") };
    // Any number of VMMs read this file and nobody writes it: a lock would say nothing.
    put("-drive", format!("if=none,id=rootfs,file={ROOTFS},format=raw,readonly=on,file.locking=off"));
    put("-device", format!("virtio-blk-{bus}{pci},drive=rootfs,serial=rootfs"));
    put("-drive", format!("if=none,id=overlay,file={OVERLAY},format=raw,discard=unmap,detect-zeroes=unmap"));
    put("-device", format!("virtio-blk-{bus}{pci},drive=overlay,serial=overlay"));
    put("-device", format!("virtio-serial-{bus}{pci}"));
    put("-chardev", format!("socket,id=agent,fd={AGENT_FD},server=on,wait=off"));
    put("-device", "virtserialport,chardev=agent,name=hearth.agent".into());
    put("-device", format!("virtio-rng-{bus}{pci}"));
    if !microvm {
        // Another generation at each launch, of which a loaded guest is told. The board microvm has no
        // table to name it in.
        put("-device", "vmgenid,guid=auto".into());
    }
    if let Some(netdev) = netdev(network) {
        let rom = if microvm { "" } else { ",romfile=" };
        put("-netdev", netdev);
        // The announcements of a guest that has moved are for a network that could not know, and cost
        // a restore milliseconds.
        let mac = inner::MAC_TEXT;
        put("-device", format!("virtio-net-{bus}{pci},netdev=net,mac={mac},guest_announce=off{rom}"));
    }
    match begin {
        Begin::Boot { tsc_khz } => {
            put("-append", command_line(*tsc_khz));
            args.extend(["-kernel".into(), kernel.into()]);
            if let Some(initrd) = initrd {
                args.extend(["-initrd".into(), initrd.into()]);
            }
        }
        // The kernel is in the guest's memory.
        Begin::Load { .. } => args.extend(["-S", "-incoming", "defer"].map(OsString::from)),
    }
    args.extend(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"].map(OsString::from));
    args
}

/// Where the network card leads to.
fn netdev(nic: &Nic) -> Option<String> {
    match nic {
        Nic::None => None,
        Nic::Tap => Some(format!("tap,id=net,ifname={},script=no,downscript=no", inner::TAP)),
        Nic::User { ports, closed } => {
            // IPv6 would start a timer for router advertisements.
            let mut netdev = "user,id=net,ipv6=off".to_owned();
            if *closed {
                netdev.push_str(",restrict=on");
            }
            for PortMapping { host, guest, protocol } in ports {
                netdev.push_str(&format!(",hostfwd={}::{host}-:{guest}", protocol.as_str()));
            }
            Some(netdev)
        }
    }
}

/// The kernel's command line. Its own messages stay out of the serial log, panics excepted; a
/// reboot is a triple fault, which ends QEMU.
fn command_line(tsc_khz: Option<u64>) -> String {
    // The crypto API's self tests take 0.2 s when translated, and test nothing of this host.
    let mut line = "console=ttyS0 quiet loglevel=1 reboot=t panic=-1 cryptomgr.notests".to_owned();
    if let Some(khz) = tsc_khz {
        // Calibrating against emulated timers hangs one boot in three under load. The counter is the
        // host's own: nothing is found by watching whether it drifts from those timers.
        line.push_str(&format!(" tsc_early_khz={khz} tsc=reliable no_timer_check"));
    }
    line
}

/// The rate of the host's time stamp counter, which a translated guest sees as its own. Measured
/// once: `/proc/cpuinfo` shows the clock rate of the moment, and CPUID knows it on some CPUs only.
fn tsc_khz() -> u64 {
    static KHZ: OnceLock<u64> = OnceLock::new();
    *KHZ.get_or_init(|| {
        let (from, from_ticks) = tsc_and_time();
        std::thread::sleep(Duration::from_millis(10));
        let (to, to_ticks) = tsc_and_time();
        let micros = to.duration_since(from).as_micros().max(1);
        u64::try_from(u128::from(to_ticks.saturating_sub(from_ticks)) * 1000 / micros).unwrap_or(u64::MAX)
    })
}

/// One moment on both clocks: of some readings the one that was least disturbed.
fn tsc_and_time() -> (Instant, u64) {
    let readings = (0..50).map(|_| {
        let before = Instant::now();
        let ticks = sys::tsc();
        (before.elapsed(), before, ticks)
    });
    let (_, at, ticks) = readings.min_by_key(|(took, ..)| *took).expect("there are fifty");
    (at, ticks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::MemMib;

    fn machine(backend: Backend, accel: Accel) -> Machine {
        Machine {
            backend,
            accel,
            vcpus: 2,
            memory: MemMib::new(256).expect("in range"),
            kernel: "/a,b/vmlinuz".into(),
            initrd: Some("/a,b/initrd".into()),
            network: Nic::Tap,
            foreign: None,
        }
    }

    fn text(machine: &Machine, begin: &Begin) -> Vec<String> {
        arguments(machine, begin).into_iter().map(|a| a.into_string().expect("UTF-8")).collect()
    }

    fn load() -> Begin {
        Begin::Load { state: File::open("/dev/null").expect("it is there").into() }
    }

    #[test]
    fn a_load_has_the_devices_of_the_boot() {
        for backend in [Backend::QemuMicrovm, Backend::Qemu] {
            for accel in [Accel::Kvm, Accel::Tcg] {
                let machine = machine(backend, accel);
                let devices = |begin: &Begin| {
                    let args = text(&machine, begin);
                    let pairs =
                        args.windows(2).filter(|p| ["-device", "-machine", "-cpu", "-smp", "-m"].contains(&&*p[0]));
                    pairs.map(<[String]>::to_vec).collect::<Vec<_>>()
                };
                assert_eq!(devices(&Begin::Boot { tsc_khz: None }), devices(&load()));
            }
        }
    }

    #[test]
    fn a_guest_s_card_leads_to_its_tap_or_to_qemu_s_own_network() {
        assert_eq!(netdev(&Nic::None), None);
        assert_eq!(netdev(&Nic::Tap).as_deref(), Some("tap,id=net,ifname=hearth0,script=no,downscript=no"));
        let ports = vec!["8080:80".parse().expect("ports"), "53/udp".parse().expect("ports")];
        let user = netdev(&Nic::User { ports, closed: true }).expect("a network");
        assert_eq!(user, "user,id=net,ipv6=off,restrict=on,hostfwd=tcp::8080-:80,hostfwd=udp::53-:53");
    }

    #[test]
    fn only_a_boot_shares_its_memory_and_only_a_boot_needs_a_kernel() {
        let machine = machine(Backend::QemuMicrovm, Accel::Tcg);
        let boot = text(&machine, &Begin::Boot { tsc_khz: Some(2_600_000) });
        let load = text(&machine, &load());
        assert!(boot.iter().any(|a| a.contains("share=on")) && boot.iter().any(|a| a == "/a,b/vmlinuz"));
        assert!(boot.iter().any(|a| a.contains("tsc_early_khz=2600000 tsc=reliable")));
        assert!(load.iter().any(|a| a.contains("share=off")) && !load.iter().any(|a| a.contains("vmlinuz")));
    }

    #[test]
    fn the_time_stamp_counter_s_rate_is_believable_and_stays() {
        let khz = tsc_khz();
        assert!((500_000..10_000_000).contains(&khz), "{khz}");
        assert_eq!(khz, tsc_khz());
    }
}
