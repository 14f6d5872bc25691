//! From the kernel's first process in an initramfs to the image's own file system.
//!
//! In: an initramfs with this binary, kernel modules and their order; disks by their serials. Out:
//! `/` is the image with a writable layer over it, and the way to the host is open. Does not know
//! what will run.

mod disks;
mod modules;
mod uevents;

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hearth_agent_proto::{PORT_NAME, VSOCK_PORT};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::termios::{LocalModes, OptionalActions, OutputModes, tcgetattr, tcsetattr};

use crate::link::Link;
use crate::note::note;
use crate::{network, sys};
use uevents::Uevents;

/// How long a device may take to appear.
const PATIENCE: Duration = Duration::from_secs(5);

/// What failed on the way, with its cause.
#[derive(Debug)]
pub struct BootError(String);

impl fmt::Display for BootError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn failed<E: fmt::Display>(what: impl fmt::Display) -> impl FnOnce(E) -> BootError {
    move |error| BootError(format!("{what}: {error}"))
}

/// Holds on to the writable disk, whose mount lies hidden below the image's root.
#[derive(Debug)]
pub struct Disks {
    overlay: OwnedFd,
}

impl Disks {
    /// A path that leads to the hidden mount.
    pub fn overlay_path(&self) -> String {
        format!("/proc/self/fd/{}", self.overlay.as_raw_fd())
    }

    /// Where it is noted whose the writable disk is: beside the image's writable layer, which no
    /// program sees.
    pub fn owner_file(&self) -> PathBuf {
        format!("{}/owner", self.overlay_path()).into()
    }
}

/// Brings the machine up.
pub fn boot() -> Result<Disks, BootError> {
    kernel_file_systems()?;
    let uevents = Uevents::listen().map_err(failed("listen for devices"))?;
    let missing = modules::load();
    if let Err(error) = network::loopback() {
        note(format_args!("bring up lo: {error}"));
    }
    // Without its module a disk is not there, and that is what should be told.
    let found = disks::find(&uevents, Instant::now() + PATIENCE)
        .map_err(|BootError(error)| BootError([vec![error], missing].concat().join("; ")))?;
    let disks = mount_image(&found)?;
    switch_root()?;
    Ok(disks)
}

/// What every Linux program expects, and our way to talk: the console.
fn kernel_file_systems() -> Result<(), BootError> {
    let hidden = MountFlags::NOSUID | MountFlags::NOEXEC | MountFlags::NODEV;
    mount_new("proc", "/proc", hidden, "")?;
    mount_new("sysfs", "/sys", hidden, "")?;
    mount_new("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755")?;
    console().map_err(failed("open /dev/console"))
}

/// Makes the console our standard streams, without the translations for people: what a program
/// writes should arrive in the host's log as it was written.
fn console() -> io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let console = rustix::fs::open("/dev/console", flags, Mode::empty())?;
    let null = rustix::fs::open("/dev/null", OFlags::RDONLY, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    if let Ok(mut settings) = tcgetattr(&console) {
        settings.output_modes -= OutputModes::OPOST;
        settings.local_modes -= LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG;
        let _ = tcsetattr(&console, OptionalActions::Now, &settings);
    }
    // Above the standard three, neither is needed any more: both close here.
    Ok(())
}

/// Mounts the image with the writable layer over it, at `/hearth/root`.
fn mount_image(found: &disks::Found) -> Result<Disks, BootError> {
    let read_only = MountFlags::RDONLY | MountFlags::NODEV;
    mount_at(&found.rootfs.path, "/hearth/lower", found.rootfs.file_system, read_only, "")?;
    mount_at(&found.overlay.path, "/hearth/rw", found.overlay.file_system, MountFlags::NODEV, "")?;
    for dir in ["/hearth/rw/upper", "/hearth/rw/work"] {
        fs::create_dir_all(dir).map_err(failed(format!("make {dir} on the overlay disk")))?;
    }
    let layers = "lowerdir=/hearth/lower,upperdir=/hearth/rw/upper,workdir=/hearth/rw/work";
    mount_at("overlay", "/hearth/root", "overlay", MountFlags::empty(), layers)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let overlay = rustix::fs::open("/hearth/rw", flags, Mode::empty()).map_err(|e| BootError(e.to_string()))?;
    Ok(Disks { overlay })
}

/// Makes the image `/`, with what a program expects to be mounted there. The initramfs stays below,
/// with nothing in it but this binary.
fn switch_root() -> Result<(), BootError> {
    for dir in ["/proc", "/sys", "/dev"] {
        let target = format!("/hearth/root{dir}");
        fs::create_dir_all(&target).map_err(failed(format!("make {target}")))?;
        mount_move(dir, &target).map_err(failed(format!("move {dir}")))?;
    }
    std::env::set_current_dir("/hearth/root").map_err(failed("enter the image"))?;
    mount_move(".", "/").map_err(failed("move the image to /"))?;
    rustix::process::chroot(".").map_err(failed("change root"))?;
    std::env::set_current_dir("/").map_err(failed("enter the new root"))?;

    let plain = MountFlags::NOSUID | MountFlags::NODEV;
    mount_new("devpts", "/dev/pts", MountFlags::NOSUID | MountFlags::NOEXEC, "mode=0620,ptmxmode=0666,gid=5")?;
    mount_new("tmpfs", "/dev/shm", plain, "mode=1777")?;
    mount_new("tmpfs", "/run", plain, "mode=0755")?;
    for (target, link) in [
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ] {
        let _ = symlink(target, format!("/dev/{link}"));
    }
    // Not every kernel has these, and few programs miss them.
    for (kind, target) in [("cgroup2", "/sys/fs/cgroup"), ("mqueue", "/dev/mqueue")] {
        if let Err(error) = mount_new(kind, target, plain | MountFlags::NOEXEC, "") {
            note(error);
        }
    }
    let _ = fs::create_dir_all("/tmp");
    Ok(())
}

/// Opens the way to the host: the virtio-serial port, or vsock.
pub fn agent_link() -> io::Result<Link> {
    let uevents = Uevents::listen()?;
    let found =
        uevents.wait_for(Instant::now() + PATIENCE, || port_device().map(Some).or_else(|| has_vsock().then_some(None)));
    match found {
        Some(Some(device)) => {
            let port = File::options().read(true).write(true).open(format!("/dev/{device}"))?;
            rustix::io::ioctl_fionbio(port.as_fd(), true)?;
            Link::port(OwnedFd::from(port))
        }
        Some(None) => Link::listener(sys::listen_vsock(VSOCK_PORT)?),
        None => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("no virtio-serial port is named {PORT_NAME}, and there is no vsock device"),
        )),
    }
}

/// The port's device has no fixed name; its own name says which it is.
fn port_device() -> Option<String> {
    fs::read_dir("/sys/class/virtio-ports").ok()?.filter_map(Result::ok).find_map(|port| {
        let name = fs::read_to_string(port.path().join("name")).ok()?;
        let device = port.file_name().into_string().ok()?;
        let there = fs::exists(format!("/dev/{device}")).unwrap_or(false);
        (name.trim() == PORT_NAME && there).then_some(device)
    })
}

fn has_vsock() -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/drivers/vmw_vsock_virtio_transport");
    devices.is_ok_and(|mut entries| {
        entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("virtio")))
    })
}

fn mount_new(kind: &str, target: &str, flags: MountFlags, options: &str) -> Result<(), BootError> {
    mount_at(kind, target, kind, flags, options)
}

fn mount_at(source: &str, target: &str, kind: &str, flags: MountFlags, options: &str) -> Result<(), BootError> {
    fs::create_dir_all(target).map_err(failed(format!("make {target}")))?;
    let options = std::ffi::CString::new(options).map_err(failed("mount options"))?;
    mount(source, target, kind, flags, options.as_c_str())
        .map_err(|error| BootError(format!("mount {source} ({kind}) on {target}: {}", io::Error::from(error))))
}
