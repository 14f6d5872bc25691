//! Network namespaces with a name, and what has to be done inside one.
//!
//! A namespace is held by a file below `/run/netns`, as `ip netns` does it, so that people can look
//! into it with their tools. A thread that entered a namespace is not used for anything else.

mod sys;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::LinkNameSpaceType;

/// Where named namespaces are, for every tool on Linux.
const NAMED: &str = "/run/netns";
const THIS: &str = "/proc/thread-self/ns/net";
pub(crate) const TUN: &str = "/dev/net/tun";

pub(crate) fn path(name: &str) -> PathBuf {
    Path::new(NAMED).join(name)
}

/// The calling thread's namespace.
pub(crate) fn current() -> io::Result<OwnedFd> {
    Ok(File::open(THIS)?.into())
}

/// Runs something in a thread of its own, which may enter namespaces.
pub(crate) fn in_thread<T: Send + 'static>(name: &str, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let thread = thread::Builder::new().name(name.to_owned()).spawn(work)?;
    thread.join().map_err(|_| io::Error::other("the thread that entered the network namespace panicked"))
}

/// Makes the directory of the names a mount of its own, as `ip netns add` does when it is not one: done later,
/// that would lie over what holds our namespaces, and they could not be taken away any more. What is held
/// there already is left as it is, for the same reason.
pub(crate) fn prepare() -> io::Result<()> {
    fs::create_dir_all(NAMED)?;
    let dir = File::open(NAMED)?;
    // Two at once would mount it twice.
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    let share = || rustix::mount::mount_change(NAMED, MountPropagationFlags::SHARED | MountPropagationFlags::REC);
    match share() {
        Err(Errno::INVAL) if fs::read_dir(NAMED)?.next().is_none() => {
            rustix::mount::mount_bind_recursive(NAMED, NAMED)?;
            Ok(share()?)
        }
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Makes the file that is going to hold a namespace.
pub(crate) fn name(name: &str) -> io::Result<()> {
    fs::create_dir_all(NAMED)?;
    OpenOptions::new().write(true).create_new(true).open(path(name)).map(drop)
}

/// Moves the calling thread into a new namespace, which is nobody else's.
pub(crate) fn leave_for_a_new_one() -> io::Result<()> {
    sys::unshare_network()
}

/// Lets the file of that name hold the calling thread's namespace.
pub(crate) fn keep(name: &str) -> io::Result<()> {
    Ok(rustix::mount::mount_bind(THIS, path(name))?)
}

/// Moves the calling thread.
pub(crate) fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::thread::move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// The namespace of that name, if there is one.
pub(crate) fn find(name: &str) -> io::Result<Option<OwnedFd>> {
    match File::open(path(name)) {
        Ok(file) => {
            // A file that holds none was left by somebody who died before it did.
            let held = rustix::fs::fstatfs(file.as_fd())?.f_type == NSFS;
            Ok(held.then(|| file.into()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS: rustix::fs::FsWord = 0x6e73_6673;

/// Takes the name away; the namespace goes when nobody is in it. One that is not there is fine.
pub(crate) fn forget(name: &str) -> io::Result<()> {
    let path = path(name);
    match rustix::mount::unmount(&path, UnmountFlags::DETACH) {
        // Nothing is mounted there, or there is no such file.
        Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    fs::remove_file(&path).or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })
}

/// The names that begin so.
pub(crate) fn names(prefix: &str) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(NAMED) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let names: io::Result<Vec<String>> = names.collect();
    Ok(names?.into_iter().filter(|name| name.starts_with(prefix)).collect())
}

/// Makes a tap device in the calling thread's namespace that stays when nobody has it open.
pub(crate) fn add_tap(name: &str) -> io::Result<()> {
    sys::persist(&open_tap(name)?)
}

/// Opens a tap device of the calling thread's namespace, or makes one that lives as long as it is
/// open. What is read and written are Ethernet frames.
pub(crate) fn open_tap(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(TUN)?;
    sys::attach_tap(&file, name)?;
    Ok(file)
}

/// Sets a kernel parameter of the calling thread's namespace. One of IPv6 may be missing: there is
/// no IPv6 then.
pub(crate) fn set_parameter(path: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys").join(path), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.starts_with("net/ipv6/") => Ok(()),
        result => result,
    }
}
