//! Which devices a VMM was launched with, which a snapshot of its guest has to say.
//!
//! Not what this build would launch: the VMM may be an older build's, which lives on after the daemon
//! was replaced. Its seat says it; seats of builds that did not record it yet are asked for what the
//! VMM was started with.

use crate::fault::AdoptError;
use crate::process;
use crate::spec::{Machine, Nic, Seat};

use hearth_model::Backend;
use hearth_model::foreign::ForeignDevices;

/// The device set of a VMM that runs `machine`, as [`crate::device_set`] named it when the VMM was
/// launched.
///
/// # Errors
/// It is not recorded, and the VMM's arguments cannot be read.
pub fn launched_with(seat: &Seat, machine: &Machine) -> Result<String, AdoptError> {
    if let Some(recorded) = &seat.device_set {
        return Ok(recorded.clone());
    }
    let arguments = match seat.backend {
        Backend::Firecracker => Vec::new(),
        Backend::QemuMicrovm | Backend::Qemu => {
            process::arguments(seat.pid).map_err(|source| AdoptError::Look { pid: seat.pid, source })?
        }
    };
    Ok(unrecorded(machine, &arguments))
}

/// What builds launched that did not record it: Firecracker's first set, and QEMU's first two. That is
/// past, and stays as it is whatever becomes of [`crate::device_set`].
fn unrecorded(machine: &Machine, arguments: &[String]) -> String {
    let Machine { backend, accel, vcpus, memory, kernel: _, initrd: _, network, foreign } = machine;
    // There were no taps then.
    let network = *network != Nic::None;
    let net = if network { "+net" } else { "" };
    let (version, channel) = match backend {
        Backend::Firecracker => (1, "vsock"),
        // The second set differs from the first in what its network card announces.
        Backend::QemuMicrovm | Backend::Qemu
            if network && !arguments.iter().any(|argument| argument.contains("guest_announce=off")) =>
        {
            (1, "agent")
        }
        Backend::QemuMicrovm | Backend::Qemu => (2, "agent"),
    };
    let (accel, mib) = (accel.as_str(), memory.mib());
    if let Some(ForeignDevices { drives, vsock }) = foreign {
        let drive = |read_only| if read_only { "ro" } else { "rw" };
        let drives: Vec<String> = drives.iter().map(|d| format!("{}:{}", d.id, drive(d.read_only))).collect();
        let vsock = if *vsock { "+vsock" } else { "" };
        return format!("{backend}-foreign-1/{accel}/{vcpus}cpu/{mib}MiB/drives({}){vsock}{net}", drives.join(","));
    }
    format!("{backend}-{version}/{accel}/{vcpus}cpu/{mib}MiB/serial+rootfs+overlay+{channel}+rng{net}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{Accel, MemMib};

    use crate::spec::Ram;

    fn machine(backend: Backend, network: bool) -> Machine {
        let user = || Nic::User { ports: Vec::new(), closed: false };
        Machine {
            backend,
            accel: Accel::Tcg,
            vcpus: 1,
            memory: MemMib::new(256).expect("in range"),
            kernel: "/k".into(),
            initrd: None,
            network: network.then(user).unwrap_or_default(),
            foreign: None,
        }
    }

    #[test]
    fn what_was_not_recorded_is_told_by_what_the_vmm_was_started_with() {
        let old = ["-device", "virtio-net-device,netdev=net"].map(str::to_owned);
        let new = ["-device", "virtio-net-device,netdev=net,guest_announce=off"].map(str::to_owned);
        let with = |network, arguments| unrecorded(&machine(Backend::QemuMicrovm, network), arguments);
        assert_eq!(with(true, &old), "qemu-microvm-1/tcg/1cpu/256MiB/serial+rootfs+overlay+agent+rng+net");
        assert_eq!(with(true, &new), "qemu-microvm-2/tcg/1cpu/256MiB/serial+rootfs+overlay+agent+rng+net");
        assert_eq!(with(false, &[]), "qemu-microvm-2/tcg/1cpu/256MiB/serial+rootfs+overlay+agent+rng");
        let firecracker = unrecorded(&machine(Backend::Firecracker, false), &[]);
        assert_eq!(firecracker, "firecracker-1/tcg/1cpu/256MiB/serial+rootfs+overlay+vsock+rng");
    }

    #[test]
    fn a_seat_that_says_it_is_believed_and_one_from_before_is_read() {
        let old = serde_json::json!({
            "pid": std::process::id(), "start_ticks": 1, "boot_id": "b", "dir": "/d", "backend": "qemu",
            "ram": "shared", "memory_inode": 0, "memory": 256,
        });
        let mut seat: Seat = serde_json::from_value(old).expect("seats of older builds are read");
        assert_eq!((seat.ram, &seat.device_set), (Ram::Shared, &None));
        let machine = machine(Backend::Qemu, true);
        // This process was started with no network card at all, so with none that is quiet.
        assert!(launched_with(&seat, &machine).expect("its own arguments").starts_with("qemu-1/"));
        seat.device_set = Some("other".into());
        assert_eq!(launched_with(&seat, &machine).expect("recorded"), "other");
    }
}
