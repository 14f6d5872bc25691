//! The kernel calls that have no safe form: load a filter that holds system calls up, take one of them,
//! let it go.
//!
//! Nothing is decided here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};

use libc::{c_long, seccomp_notif, seccomp_notif_resp, sock_filter, sock_fprog};

/// `linux/bpf_common.h`: load a word from there, jump if it equals, return.
const LOAD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;
/// `SECCOMP_USER_NOTIF_FLAG_CONTINUE` of `linux/seccomp.h`.
const GO_ON: u32 = 1;
/// Where `struct seccomp_data` has the call's number, and the lower half of its second argument.
const NUMBER: u32 = 0;
const SECOND: u32 = 24;

/// Loads a filter for this thread and for all that it starts from now on. Their calls of these numbers, and
/// their `ioctl`s of those, are held up until they are [let go](answer).
///
/// # Errors
/// The kernel's: without privilege, before Linux 5.5, or below another filter of this kind.
pub(super) fn hold_up(calls: &[c_long], ioctls: &[u32]) -> io::Result<OwnedFd> {
    let mut filter = filter(calls, ioctls);
    let len = u16::try_from(filter.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len, filter: filter.as_mut_ptr() };
    // SAFETY: `program` and the filter that it points to live until the call returns; the kernel copies them.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
            &raw const program,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Waits for a call that is held up.
///
/// # Errors
/// The kernel's; `NotFound` if who has called is gone.
pub(super) fn take(held: &OwnedFd) -> io::Result<seccomp_notif> {
    // SAFETY: it is made of integers; the kernel wants zeros.
    let mut call: seccomp_notif = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes one of these there, and keeps nothing.
    let taken = unsafe { libc::ioctl(held.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call) };
    if taken < 0 { Err(io::Error::last_os_error()) } else { Ok(call) }
}

/// Lets a call go its way, or fail with that error number.
///
/// # Errors
/// The kernel's; `NotFound` if who has called is gone.
pub(super) fn answer(held: &OwnedFd, id: u64, errno: Option<i32>) -> io::Result<()> {
    let (error, flags) = errno.map_or((0, GO_ON), |errno| (-errno, 0));
    let answer = seccomp_notif_resp { id, val: 0, error, flags };
    // SAFETY: the kernel reads one of these there, and keeps nothing.
    let sent = unsafe { libc::ioctl(held.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw const answer) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn filter(calls: &[c_long], ioctls: &[u32]) -> Vec<sock_filter> {
    let line = |code, jt, jf, k| sock_filter { code, jt, jf, k };
    let allow = line(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW);
    // Holds up what equals that; the rest goes on behind it.
    let hold = |k| [line(JUMP_IF_EQUAL, 0, 1, k), line(RETURN, 0, 0, libc::SECCOMP_RET_USER_NOTIF)];
    let number = |call: c_long| u32::try_from(call).unwrap_or(u32::MAX);
    let mut filter = vec![line(LOAD, 0, 0, NUMBER)];
    filter.extend(calls.iter().flat_map(|call| hold(number(*call))));
    filter.extend([line(JUMP_IF_EQUAL, 1, 0, number(libc::SYS_ioctl)), allow, line(LOAD, 0, 0, SECOND)]);
    filter.extend(ioctls.iter().flat_map(|ioctl| hold(*ioctl)));
    filter.push(allow);
    filter
}
