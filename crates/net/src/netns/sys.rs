//! The kernel calls about namespaces and tap devices that have no safe form.
//!
//! Nothing is decided here.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use rustix::thread::UnshareFlags;

/// Moves the calling thread into a new network namespace.
pub(super) fn unshare_network() -> io::Result<()> {
    // SAFETY: what may not be unshared behind the standard library's back is the descriptor table;
    // only the network namespace is.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

/// `struct ifreq` of linux/if.h, as far as tap devices use it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Attaches an open `/dev/net/tun` to the tap of that name, which is made if there is none.
pub(super) fn attach_tap(tun: &File, name: &str) -> io::Result<()> {
    let too_long = || io::Error::new(io::ErrorKind::InvalidInput, "a device's name has at most 15 bytes");
    let flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).map_err(io::Error::other)?;
    let mut request = InterfaceRequest { name: [0; libc::IFNAMSIZ], flags, rest: [0; 22] };
    // The last byte stays zero.
    let room = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len()).ok_or_else(too_long)?;
    room.copy_from_slice(name.as_bytes());
    // SAFETY: the request is as long as the kernel's and lives across the call.
    match unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Lets a tap stay when its descriptor is closed.
pub(super) fn persist(tap: &File) -> io::Result<()> {
    // SAFETY: the request takes a number and no pointer.
    match unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
