//! The kernel and C library calls that have no safe form: spawn in a new session, network namespace
//! and cgroup, scan a page map, copy another process's memory, ask KVM for its version, watch a
//! descriptor, read the CPU's time stamp counter, ask for short slices of it.
//!
//! Nothing is decided here.
#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};

use tokio::io::unix::AsyncFd;

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
    /// The network namespace to start in; the caller's where there is none.
    pub netns: Option<BorrowedFd<'a>>,
    /// The directory of the cgroup (version 2) to start in; the caller's where there is none.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// What [`spawn`] started.
#[derive(Debug)]
pub(crate) struct Spawned {
    /// The child's process id.
    pub pid: u32,
    /// Why it was not started in the cgroup that was asked for, but in the caller's: the kernel
    /// (before 5.7) or a filter of system calls lets nobody be, or this cgroup takes none.
    pub not_in_cgroup: Option<io::Error>,
    /// Its line in `/proc/PID/stat`, as it read it itself before it became the program; empty if it could
    /// not. Whoever asks while it does waits until that is done, and then for a CPU.
    pub stat: Vec<u8>,
}

/// Copies a descriptor to a number of at least `floor`, closed on exec.
pub(crate) fn above(fd: BorrowedFd<'_>, floor: i32) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, floor)?)
}

/// Starts a process in a session of its own, with default signals, and returns its id. It is a
/// child of the caller, who has to wait for it. When it fails, there is no child.
///
/// The child shares the parent's memory until exec, and the calling thread waits until then: its
/// time does not grow with the daemon. `posix_spawn` does the same, but knows neither namespaces
/// nor (before glibc 2.39) cgroups.
pub(crate) fn spawn(what: &Spawn<'_>) -> io::Result<Spawned> {
    let pointers =
        |list: &[CString]| -> Vec<*const c_char> { list.iter().map(|s| s.as_ptr()).chain([ptr::null()]).collect() };
    let (argv, env) = (pointers(&what.argv), pointers(&what.env));
    let child = Child {
        what,
        argv: &argv,
        env: &env,
        step: AtomicI32::new(0),
        errno: AtomicI32::new(0),
        stat: UnsafeCell::new([0; 1024]),
        stat_length: AtomicUsize::new(0),
    };
    // The child's own: it runs while this function's frame has to stay as it is.
    let mut stack = vec![MaybeUninit::<StackLine>::uninit(); STACK_BYTES / size_of::<StackLine>()];
    let blocked = BlockedSignals::all()?;
    let (pid, not_in_cgroup) = match what.cgroup.map(|cgroup| clone_into(cgroup, &child, &mut stack)) {
        Some(Ok(pid)) => (pid, None),
        // If it was for another reason, that is met again.
        Some(Err(refused)) => (clone(&child, &mut stack)?, Some(refused)),
        None => (clone(&child, &mut stack)?, None),
    };
    let errno = child.errno.load(Ordering::Relaxed);
    if errno != 0 {
        // SAFETY: our own child, which has ended without becoming the program; no status is wanted.
        unsafe { libc::waitpid(pid, ptr::null_mut(), 0) };
        let source = io::Error::from_raw_os_error(errno);
        let step = usize::try_from(child.step.load(Ordering::Relaxed)).ok().and_then(|step| STEPS.get(step));
        return Err(step.map_or_else(|| io::Error::from_raw_os_error(errno), |step| Step::failed(step, source)));
    }
    drop(blocked);
    let pid = u32::try_from(pid).map_err(|_| io::Error::other("clone returned no process id"))?;
    let length = child.stat_length.load(Ordering::Relaxed);
    let stat = child.stat.into_inner().get(..length).unwrap_or_default().to_vec();
    Ok(Spawned { pid, not_in_cgroup, stat })
}

/// What a child does before it is the program, in this order, as far as its failing says more than
/// the error's number does.
const STEPS: [&str; 4] =
    ["enter its network namespace", "begin its session", "place its descriptors", "enter its directory"];

/// Which step of a start failed.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
struct Step {
    step: &'static str,
    source: io::Error,
}

impl Step {
    fn failed(step: &'static str, source: io::Error) -> io::Error {
        io::Error::new(source.kind(), Self { step, source })
    }
}

/// The child needs some hundred bytes of it.
const STACK_BYTES: usize = 64 << 10;

/// A piece of a stack: as aligned as the ABI wants the whole.
type StackLine = u128;

/// What parent and child share: all that the child reads, and where it says why it failed.
#[derive(Debug)]
struct Child<'a> {
    what: &'a Spawn<'a>,
    argv: &'a [*const c_char],
    env: &'a [*const c_char],
    /// Which of [`STEPS`] is under way.
    step: AtomicI32,
    /// Why it failed; 0 until then.
    errno: AtomicI32,
    /// For [`Spawned::stat`]. The child writes it, and is the program by the time the parent reads it.
    stat: UnsafeCell<[u8; 1024]>,
    stat_length: AtomicUsize,
}

impl Child<'_> {
    /// Becomes the program, or leaves the reason.
    ///
    /// The memory, its locks included, is the parent's, whose other threads run on: no allocation,
    /// no panic, nothing but system calls.
    ///
    /// # Safety
    /// Called by a process that shares this memory with its suspended parent, and nothing else.
    unsafe fn exec(&self) {
        let done = |result: c_int| {
            if result == -1 {
                self.errno.store(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO), Ordering::Relaxed);
            } else {
                self.step.fetch_add(1, Ordering::Relaxed);
            }
            result != -1
        };
        // SAFETY: plain system calls, as far as it matters here without state in the C library: the
        // descriptors, strings and lists are those of `spawn`, which waits.
        unsafe {
            // First, for the descriptors below may take this one's number.
            let netns = self.what.netns.map_or(0, |netns| libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET));
            if !done(netns) || !done(libc::setsid()) {
                return;
            }
            for (number, fd) in (0..).zip(&self.what.fds) {
                if libc::dup2(fd.as_raw_fd(), number) == -1 {
                    done(-1);
                    return;
                }
            }
            if !done(0) || !done(libc::chdir(self.what.dir.as_ptr())) {
                return;
            }
            self.read_stat();
            let mut default = std::mem::zeroed::<libc::sigaction>();
            default.sa_sigaction = libc::SIG_DFL;
            // Those that the parent ignores too, which exec would leave ignored. Some may not be
            // set: they are as they should be.
            for signal in 1..=libc::SIGRTMAX() {
                libc::sigaction(signal, &raw const default, ptr::null_mut());
            }
            let mut none = std::mem::zeroed::<libc::sigset_t>();
            libc::sigemptyset(&raw mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &raw const none, ptr::null_mut());
            // The daemon's are for those who answer, not for those who compute.
            set_slice(0).ok();
            done(libc::execve(self.what.program.as_ptr(), self.argv.as_ptr(), self.env.as_ptr()));
        }
    }

    /// Keeps what the kernel says of this process; what cannot be read stays empty.
    ///
    /// # Safety
    /// As for [`Child::exec`].
    unsafe fn read_stat(&self) {
        // SAFETY: plain system calls; the kernel writes within the buffer, which nobody reads yet.
        unsafe {
            let file = libc::open(c"/proc/self/stat".as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC);
            if file == -1 {
                return;
            }
            let read = libc::read(file, self.stat.get().cast(), size_of_val(&self.stat));
            self.stat_length.store(usize::try_from(read).unwrap_or(0), Ordering::Relaxed);
            libc::close(file);
        }
    }
}

/// Has the calling thread, and those that it starts from now on, run in slices of so many nanoseconds: one
/// that is woken goes before those whose slices are longer, and gets no more of the CPU in all. 0 stands for
/// the kernel's own. Before Linux 6.12 it changes nothing. It does not allocate.
pub(crate) fn set_slice(ns: u64) -> io::Result<()> {
    let size = u32::try_from(size_of::<libc::sched_attr>()).unwrap_or(u32::MAX);
    // SAFETY: all zeroes is a valid value of this plain struct; the calls read and write it within its
    // size, and have no other effect than the documented one. Their 0 is the calling thread.
    unsafe {
        let mut attr = std::mem::zeroed::<libc::sched_attr>();
        if libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attr, size, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
        // A policy that somebody has chosen for us is better; there the same field has another meaning.
        if attr.sched_policy != 0 {
            return Ok(());
        }
        attr.sched_runtime = ns;
        if libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0) == -1 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Where a child begins.
extern "C" fn begin(child: *mut c_void) -> c_int {
    // SAFETY: `spawn` waits with its `Child`, which this points to, until we have become another
    // program or ended.
    unsafe {
        (*child.cast::<Child<'_>>()).exec();
        libc::_exit(127)
    }
}

/// A child that shares our memory, on this stack, as `vfork` makes it.
fn clone(child: &Child<'_>, stack: &mut [MaybeUninit<StackLine>]) -> io::Result<libc::pid_t> {
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: `begin` gets what it expects; the stack grows down from the end of a slice that
    // nobody else uses, and is aligned. The call returns when the child needs neither any more.
    let pid = unsafe {
        libc::clone(begin, stack.as_mut_ptr_range().end.cast(), flags, ptr::from_ref(child).cast_mut().cast())
    };
    if pid == -1 { Err(io::Error::last_os_error()) } else { Ok(pid) }
}

/// As [`clone`], and in that cgroup from its first moment: moving a process there later takes
/// milliseconds.
fn clone_into(
    cgroup: BorrowedFd<'_>,
    child: &Child<'_>,
    stack: &mut [MaybeUninit<StackLine>],
) -> io::Result<libc::pid_t> {
    /// Of linux/sched.h.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    /// `struct clone_args` of linux/sched.h, as of version 2.
    #[derive(Debug, Default)]
    #[repr(C, align(8))]
    struct CloneArgs {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    let args = CloneArgs {
        flags: CLONE_INTO_CGROUP | u64::from((libc::CLONE_VM | libc::CLONE_VFORK).unsigned_abs()),
        exit_signal: u64::from(libc::SIGCHLD.unsigned_abs()),
        stack: stack.as_mut_ptr().expose_provenance() as u64,
        stack_size: size_of_val(stack) as u64,
        cgroup: u64::from(cgroup.as_raw_fd().unsigned_abs()),
        ..CloneArgs::default()
    };
    let returned: i64;
    // SAFETY: `args` has the layout the kernel expects, and says how large it is. The parent comes
    // out of the system call when the child needs its memory no more, with all registers but those
    // listed as they were. The child comes out of it on its own stack, which is aligned and nobody
    // else's, calls `begin` with what that expects, and never returns.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => returned,
            in("rdi") &raw const args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") ptr::from_ref(child),
            in("r13") begin as extern "C" fn(*mut c_void) -> c_int,
            out("rcx") _,
            out("r11") _,
        );
    }
    match i32::try_from(returned) {
        Ok(pid) if pid > 0 => Ok(pid),
        Ok(errno) if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
        _ => Err(io::Error::other("clone3 returned no process id")),
    }
}

/// No signal reaches this thread while this lives: a handler of ours, run by a child, would run in
/// our memory.
#[derive(Debug)]
struct BlockedSignals {
    before: libc::sigset_t,
}

impl BlockedSignals {
    fn all() -> io::Result<Self> {
        // SAFETY: both sets are initialised by the calls that write them, or are all zeroes.
        let (code, before) = unsafe {
            let (mut all, mut before) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            (libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before), before)
        };
        if code == 0 { Ok(Self { before }) } else { Err(io::Error::from_raw_os_error(code)) }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set is the one that this thread had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.before, ptr::null_mut()) };
    }
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

    /// A network namespace of nobody's, for tests. It takes root.
    pub(crate) fn new_netns() -> io::Result<OwnedFd> {
        let made = std::thread::spawn(|| {
            // SAFETY: this thread gets a network namespace of its own, and ends.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } == -1 {
                return Err(io::Error::last_os_error());
            }
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        });
        made.join().map_err(|_| io::Error::other("the thread panicked"))?
    }

    /// The slice of a thread in nanoseconds; 0 where the kernel tells none.
    pub(crate) fn slice(of: u32) -> io::Result<u64> {
        // SAFETY: all zeroes is a valid value of this plain struct, which the call fills.
        unsafe {
            let mut attr = std::mem::zeroed::<libc::sched_attr>();
            let size = size_of::<libc::sched_attr>();
            match libc::syscall(libc::SYS_sched_getattr, of, &raw mut attr, size, 0) {
                0 => Ok(attr.sched_runtime),
                _ => Err(io::Error::last_os_error()),
            }
        }
    }

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
