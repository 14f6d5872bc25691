//! What a story needs of the host, looked for before anything is started.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::backend::Backend;
use crate::smalldisk::FileSystem;

/// Looks for all of it, and returns the unpacked kernel package.
///
/// # Errors
/// What is missing, and how to get it.
pub(crate) fn find() -> Result<PathBuf, String> {
    root()?;
    vmm(&Backend::asked_for()?)?;
    busybox()?;
    std::env::var_os("HEARTH_TEST_KERNEL_DIR")
        .map(PathBuf::from)
        .ok_or_else(|| "HEARTH_TEST_KERNEL_DIR names no unpacked kernel package: `cargo xtask ci` sets it".into())
}

/// What the network of every guest needs.
pub(crate) fn root() -> Result<(), String> {
    if rustix::process::geteuid().is_root() { Ok(()) } else { Err("stories need root".into()) }
}

/// What guests without a kernel need.
pub(crate) fn kvm() -> Result<(), String> {
    let opened = std::fs::File::options().read(true).write(true).open("/dev/kvm");
    opened.map(drop).map_err(|error| format!("/dev/kvm cannot be opened: {error}"))
}

fn vmm(backend: &Backend) -> Result<(), String> {
    match backend {
        Backend::Qemu if !works(Command::new("qemu-system-x86_64").arg("--version")) => {
            Err("there is no qemu-system-x86_64: install the package qemu-system-x86".into())
        }
        Backend::Firecracker(program) if !works(Command::new(program).arg("--version")) => {
            Err(format!("there is no {}: put it on PATH or name it in HEARTH_FIRECRACKER", program.display()))
        }
        Backend::Firecracker(_) if !Path::new("/dev/kvm").exists() => {
            Err("there is no /dev/kvm, which Firecracker needs: see `cargo xtask lab`".into())
        }
        Backend::Qemu | Backend::Firecracker(_) => Ok(()),
    }
}

/// A busybox: only a static one runs in an image that holds nothing else.
pub(crate) fn busybox() -> Result<PathBuf, String> {
    let path = PathBuf::from("/bin/busybox");
    if is_static(&path) {
        return Ok(path);
    }
    Err("there is no statically linked /bin/busybox: install the package busybox-static".into())
}

/// What a disk in a file takes.
pub(crate) fn small_disk(kind: FileSystem) -> Result<(), String> {
    if !Path::new("/dev/loop-control").exists() {
        return Err("there are no loop devices: a small disk cannot be mounted".into());
    }
    let (mkfs, package) = match kind {
        FileSystem::Ext4 => ("mkfs.ext4", "e2fsprogs"),
        FileSystem::Xfs => ("mkfs.xfs", "xfsprogs"),
        FileSystem::Ext4ThatLosesPower => {
            small_disk(FileSystem::Ext4)?;
            return small_disk(FileSystem::Xfs);
        }
    };
    if works(Command::new(mkfs).arg("-V")) {
        return Ok(());
    }
    Err(format!("there is no {mkfs}: install the package {package}"))
}

/// An ELF file that names no interpreter.
fn is_static(path: &Path) -> bool {
    const INTERPRETER: &[u8] = b"/lib64/ld-linux";
    std::fs::read(path).is_ok_and(|bytes| {
        bytes.starts_with(b"\x7fELF")
            && !bytes[..bytes.len().min(4096)].windows(INTERPRETER.len()).any(|w| w == INTERPRETER)
    })
}

fn works(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}
