//! The end of the guest: everything killed, the disk clean, the machine off.

use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process_group, wait};
use rustix::system::{RebootCommand, reboot};

use crate::boot::Disks;

/// How long killed processes have to go.
const PATIENCE: Duration = Duration::from_millis(500);

/// Ends the guest. A restart, not a power-off: a machine without ACPI has only that, and the VMM
/// ends on it (QEMU's `-no-reboot`; Firecracker always).
pub fn off(disks: Option<Disks>) -> ! {
    kill_all();
    reap_all();
    rustix::fs::sync();
    if let Some(disks) = disks {
        // The overlay first: it holds the disk below it open for writing.
        for path in ["/".to_owned(), disks.overlay_path()] {
            let _ = mount_remount(&path, MountFlags::RDONLY, c"");
        }
    }
    // The kernel says that it restarts, loudly; the console is the program's.
    let _ = std::fs::write("/proc/sys/kernel/printk", "0");
    if let Err(error) = reboot(RebootCommand::Restart) {
        eprintln!("hearth-agent: cannot restart the machine: {error}");
    }
    // The kernel panics when its first process ends, and restarts (`panic=-1`): the last way.
    std::process::exit(1);
}

/// Kills every process but this one, which must be the first.
pub fn kill_all() {
    // The "group of process 1" is -1 to the kernel: every process that may be signalled but the
    // caller.
    let _ = kill_process_group(Pid::INIT, Signal::KILL);
}

/// Waits until the killed ones are gone, for a while.
fn reap_all() {
    let give_up = Instant::now() + PATIENCE;
    while Instant::now() < give_up {
        match wait(WaitOptions::NOHANG) {
            Ok(Some(_)) => {}
            // Living ones remain: they are being killed.
            Ok(None) => std::thread::sleep(Duration::from_millis(1)),
            Err(_) => return,
        }
    }
}
