//! The kernel and C library calls that have no safe form: spawn in a new session, scan a page map,
//! copy another process's memory, ask KVM for its version, watch a descriptor, read the CPU's time stamp
//! counter.
//!
//! Nothing is decided here.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char, c_int};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

use tokio::io::unix::AsyncFd;

unsafe extern "C" {
    /// In glibc since 2.29 and in musl; the libc crate does not declare it everywhere.
    fn posix_spawn_file_actions_addchdir_np(
        actions: *mut libc::posix_spawn_file_actions_t,
        path: *const c_char,
    ) -> c_int;
}

/// What [`spawn`] starts.
#[derive(Debug)]
pub(crate) struct Spawn<'a> {
    /// Absolute path of the program.
    pub program: CString,
    /// All of argv, the program's name first.
    pub argv: Vec<CString>,
    /// All of the environment.
    pub env: Vec<CString>,
    /// Working directory.
    pub dir: CString,
    /// Descriptor `0`, `1`, … of the child. None of them may itself have a number below the
    /// length of this list: use [`above`].
    pub fds: Vec<BorrowedFd<'a>>,
}

/// Copies a descriptor to a number of at least `floor`, closed on exec.
pub(crate) fn above(fd: BorrowedFd<'_>, floor: i32) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, floor)?)
}

/// Starts a process in a session of its own, with default signals, and returns its id. It is a
/// child of the caller, who has to wait for it.
///
/// `posix_spawn` shares the parent's memory until exec: its time does not grow with the daemon.
pub(crate) fn spawn(what: &Spawn<'_>) -> io::Result<u32> {
    let check = |code: c_int| if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
    let pointers = |list: &[CString]| -> Vec<*mut c_char> {
        list.iter().map(|s| s.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
    };
    let (argv, env) = (pointers(&what.argv), pointers(&what.env));
    let mut pid: libc::pid_t = 0;
    // SAFETY: every object is initialised before use and destroyed after it; the strings and
    // pointer lists live in `what`, `argv` and `env` until after the call.
    unsafe {
        let mut actions = MaybeUninit::<libc::posix_spawn_file_actions_t>::uninit();
        check(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        let mut actions = actions.assume_init();
        let mut attributes = MaybeUninit::<libc::posix_spawnattr_t>::uninit();
        if let Err(error) = check(libc::posix_spawnattr_init(attributes.as_mut_ptr())) {
            libc::posix_spawn_file_actions_destroy(&mut actions);
            return Err(error);
        }
        let mut attributes = attributes.assume_init();
        let result = (|| {
            for (number, fd) in (0..).zip(&what.fds) {
                check(libc::posix_spawn_file_actions_adddup2(&mut actions, fd.as_raw_fd(), number))?;
            }
            check(posix_spawn_file_actions_addchdir_np(&mut actions, what.dir.as_ptr()))?;
            let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigmask(&mut attributes, signals.as_ptr()))?;
            libc::sigfillset(signals.as_mut_ptr());
            check(libc::posix_spawnattr_setsigdefault(&mut attributes, signals.as_ptr()))?;
            #[allow(clippy::useless_conversion, reason = "c_int or c_short, depending on the C library")]
            let flags = i32::from(libc::POSIX_SPAWN_SETSID)
                | i32::from(libc::POSIX_SPAWN_SETSIGMASK)
                | i32::from(libc::POSIX_SPAWN_SETSIGDEF);
            let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
            check(libc::posix_spawnattr_setflags(&mut attributes, flags))?;
            check(libc::posix_spawn(
                &mut pid,
                what.program.as_ptr(),
                &actions,
                &attributes,
                argv.as_ptr(),
                env.as_ptr(),
            ))
        })();
        libc::posix_spawn_file_actions_destroy(&mut actions);
        libc::posix_spawnattr_destroy(&mut attributes);
        result?;
    }
    u32::try_from(pid).map_err(|_| io::Error::other("posix_spawn returned no process id"))
}

const PAGE_IS_FILE: u64 = 1 << 2;
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
/// `_IOWR('f', 16, struct pm_scan_arg)`
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// `struct page_region`: addresses of a run of pages.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The runs of pages in `range` that belong to the process alone, in memory or swapped out: of a
/// private file mapping those that were written. Linux 6.7 and later; `ENOTTY` before.
pub(crate) fn scan_private_pages(pagemap: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut found = Vec::new();
    let mut regions = vec![PageRegion::default(); 512];
    let mut from = range.start;
    while from < range.end {
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: from,
            end: range.end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: regions.len() as u64,
            category_inverted: PAGE_IS_FILE,
            category_mask: PAGE_IS_FILE,
            category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            return_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
            ..ScanArg::default()
        };
        // SAFETY: `arg` has the layout the kernel expects and says so in `size`; `vec` points to
        // `vec_len` regions that live across the call.
        let filled = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
        if filled < 0 {
            return Err(io::Error::last_os_error());
        }
        for region in &regions[..usize::try_from(filled).unwrap_or(0).min(regions.len())] {
            found.push(region.start..region.end);
        }
        if arg.walk_end <= from {
            return Err(io::Error::other("the page map scan does not advance"));
        }
        from = arg.walk_end;
    }
    Ok(found)
}

/// Copies the pieces of another process's memory one after the other into `into`, which is as long
/// as all of them.
pub(crate) fn read_process(pid: u32, pieces: &[Range<u64>], into: &mut [u8]) -> io::Result<()> {
    let remote: Vec<libc::iovec> = pieces
        .iter()
        .map(|p| libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut(usize::try_from(p.start).unwrap_or(usize::MAX)),
            iov_len: usize::try_from(p.end - p.start).unwrap_or(usize::MAX),
        })
        .collect();
    let wanted: usize = remote.iter().map(|v| v.iov_len).sum();
    if wanted != into.len() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: into.len() };
    let pid = libc::pid_t::try_from(pid).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the kernel writes at most `into.len()` bytes to `local`, which is `into`; the remote
    // addresses are only ever read, in the other process, and checked by the kernel.
    let copied = unsafe { libc::process_vm_readv(pid, &raw const local, 1, remote.as_ptr(), remote.len() as _, 0) };
    match usize::try_from(copied) {
        Err(_) => Err(io::Error::last_os_error()),
        Ok(copied) if copied == wanted => Ok(()),
        Ok(_) => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
    }
}

/// `KVM_GET_API_VERSION` of an open `/dev/kvm`.
pub(crate) fn kvm_api_version(kvm: BorrowedFd<'_>) -> io::Result<i32> {
    const KVM_GET_API_VERSION: libc::c_ulong = 0xae00;
    // SAFETY: the call takes no argument and touches no memory of ours.
    match unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_GET_API_VERSION, 0) } {
        version if version >= 0 => Ok(version),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Watches a descriptor with the runtime the caller is in.
pub(crate) fn watched(fd: Arc<OwnedFd>) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the descriptor is owned by the `Arc`, which the result holds: it stays open, and the
    // same, as long as it is registered.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// The CPU's time stamp counter now.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 CPU has the instruction, and Linux leaves it on for user space.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A private, writable mapping of a file, for tests.
    pub(crate) struct MappedPrivately(*mut u8, usize);

    impl MappedPrivately {
        pub(crate) fn new(file: &File, bytes: usize) -> Self {
            // SAFETY: a new mapping at an address of the kernel's choice; the file is as long.
            let at = unsafe {
                libc::mmap(
                    ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE,
                    file.as_raw_fd(),
                    0,
                )
            };
            assert_ne!(at, libc::MAP_FAILED);
            Self(at.cast(), bytes)
        }

        pub(crate) fn address(&self) -> u64 {
            self.0.expose_provenance() as u64
        }

        pub(crate) fn read(&self, at: usize) -> u8 {
            assert!(at < self.1);
            // SAFETY: inside the mapping, which lives as long as `self`.
            unsafe { self.0.add(at).read_volatile() }
        }

        pub(crate) fn write(&self, at: usize, byte: u8) {
            assert!(at < self.1);
            // SAFETY: inside the mapping, which is writable and lives as long as `self`.
            unsafe { self.0.add(at).write_volatile(byte) }
        }
    }

    impl Drop for MappedPrivately {
        fn drop(&mut self) {
            // SAFETY: made by `new`, and nothing refers to it any more.
            unsafe { libc::munmap(self.0.cast(), self.1) };
        }
    }
}
