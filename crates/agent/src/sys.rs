//! The kernel calls that have no safe wrapper: starting processes, signals as a descriptor,
//! entropy, network settings, vsock. Nothing here decides anything.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use libc::c_int;

/// A process to be started, with everything allocated that it needs between fork and exec.
pub struct Launch {
    /// What to execute: tried one after another.
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub cwd: CString,
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    /// Whether its stdin becomes its controlling terminal.
    pub terminal: bool,
    /// Whether it may change user: not when the agent itself is an ordinary process.
    pub change_user: bool,
}

/// Where between fork and exec it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Fork = 0,
    Directory = 1,
    User = 2,
    Exec = 3,
}

/// Starts a process in its own session with the three descriptors as its standard ones, and waits
/// until it runs its program or could not.
pub fn launch(launch: &Launch, stdio: [BorrowedFd<'_>; 3]) -> Result<u32, (Stage, io::Error)> {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(&launch.argv), pointers(&launch.env));
    let fail = |error| (Stage::Fork, error);
    let (report_read, report_write) = pipe().map_err(fail)?;
    let stdio = stdio.map(|fd| fd.as_raw_fd());
    // SAFETY: the agent has one thread, and the child only makes async-signal-safe calls on memory
    // that was prepared above.
    let pid = unsafe { libc::fork() };
    if pid < 0 {
        return Err(fail(io::Error::last_os_error()));
    }
    if pid == 0 {
        // SAFETY: this is the child of the fork above; all pointers live until it executes.
        unsafe {
            let stage = child(launch, stdio, &argv, &env);
            let word = [stage as u8, u8::try_from(errno()).unwrap_or(u8::MAX)];
            libc::write(report_write.as_raw_fd(), word.as_ptr().cast(), word.len());
            libc::_exit(127);
        }
    }
    drop(report_write);
    let mut word = [0; 2];
    // The child's end closes itself at exec: nothing to read is success.
    let read = loop {
        match rustix::io::read(&report_read, &mut word) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other,
        }
    };
    if read == Ok(2) {
        let stage = [Stage::Fork, Stage::Directory, Stage::User, Stage::Exec][usize::from(word[0] & 3)];
        // SAFETY: reaps the child that has just said that it ends.
        unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
        return Err((stage, io::Error::from_raw_os_error(i32::from(word[1]))));
    }
    Ok(u32::try_from(pid).expect("a positive process id"))
}

fn errno() -> c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// The child's way from fork to exec; returns only if that failed, with errno set.
///
/// # Safety
/// Only in the child of a fork, with null-terminated pointer lists.
unsafe fn child(
    launch: &Launch,
    stdio: [RawFd; 3],
    argv: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Stage {
    // SAFETY: async-signal-safe calls with valid arguments only, as the caller promises.
    unsafe {
        libc::setsid();
        for (target, fd) in (0..).zip(stdio) {
            if libc::dup2(fd, target) < 0 {
                return Stage::Fork;
            }
        }
        if launch.terminal {
            libc::ioctl(0, libc::TIOCSCTTY, 0);
        }
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        if launch.change_user
            && (libc::setgroups(launch.groups.len(), launch.groups.as_ptr()) < 0
                || libc::setgid(launch.gid) < 0
                || libc::setuid(launch.uid) < 0)
        {
            return Stage::User;
        }
        if libc::chdir(launch.cwd.as_ptr()) < 0 {
            return Stage::Directory;
        }
        let mut reason = libc::ENOENT;
        for path in &launch.candidates {
            libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr());
            // A file that may not be run says more than the places where there is none.
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                other if reason == libc::ENOENT => reason = other,
                _ => {}
            }
        }
        *libc::__errno_location() = reason;
        Stage::Exec
    }
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// SIGCHLD, and in a guest what the kernel tells PID 1 to end with, as a descriptor to poll.
pub fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is initialised before use, and the descriptor is owned by nobody else.
    unsafe {
        let mut set = mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()))?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Credits 64 bytes to the kernel's random number generator and makes it start anew from them.
pub fn reseed(random: impl AsFd, entropy: &[u8; 64]) -> io::Result<()> {
    #[repr(C)]
    struct PoolInfo {
        entropy_bits: c_int,
        bytes: c_int,
        buffer: [u8; 64],
    }
    const RNDADDENTROPY: libc::Ioctl = 0x4008_5203;
    const RNDRESEEDCRNG: libc::Ioctl = 0x5207;
    let random = random.as_fd().as_raw_fd();
    let info = PoolInfo { entropy_bits: 512, bytes: 64, buffer: *entropy };
    // SAFETY: the kernel reads the struct, whose layout is `struct rand_pool_info`.
    check(unsafe { libc::ioctl(random, RNDADDENTROPY, &raw const info) })?;
    // SAFETY: takes no argument.
    check(unsafe { libc::ioctl(random, RNDRESEEDCRNG) })?;
    Ok(())
}

/// The start of a file, shared with whoever reads it.
#[derive(Debug)]
pub struct Shared {
    start: *mut libc::c_void,
    len: usize,
}

impl Shared {
    /// Maps `len` bytes of a file that has them, all present at once.
    pub fn map(file: impl AsFd, len: usize) -> io::Result<Self> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), len, access, flags, file.as_fd().as_raw_fd(), 0) };
        if start == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Self { start, len }) }
    }

    /// Copies bytes to its start, as many as fit.
    pub fn write(&mut self, bytes: &[u8]) {
        let len = bytes.len().min(self.len);
        // SAFETY: the mapping is that long and lives as long as self; nobody here reads it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.cast(), len) };
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: made by `map`, and used by nobody any more.
        unsafe { libc::munmap(self.start, self.len) };
    }
}

/// Keeps all of this process in memory, and what it allocates later, so that nothing has to be
/// paged in when it counts.
pub fn stay_resident() -> io::Result<()> {
    // SAFETY: changes no memory's contents.
    check(unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) })?;
    Ok(())
}

/// Page faults of this process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Faults {
    pub minor: u32,
    pub major: u32,
}

impl Faults {
    /// Since it began.
    pub fn so_far() -> Self {
        // SAFETY: all zeroes is a valid `rusage`, which the kernel writes.
        let usage = unsafe {
            let mut usage: libc::rusage = mem::zeroed();
            libc::getrusage(libc::RUSAGE_SELF, &raw mut usage);
            usage
        };
        let count = |faults| u32::try_from(faults).unwrap_or(u32::MAX);
        Self { minor: count(usage.ru_minflt), major: count(usage.ru_majflt) }
    }

    /// Since then.
    pub fn since(self) -> Self {
        let now = Self::so_far();
        Self { minor: now.minor.saturating_sub(self.minor), major: now.major.saturating_sub(self.major) }
    }
}

/// Settings of network devices go through any socket.
pub struct NetDevices(OwnedFd);

impl NetDevices {
    pub fn open() -> io::Result<Self> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        Ok(Self(socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?))
    }

    pub fn set_address(&self, name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0);
        let mut request = ifreq(name)?;
        request.ifr_ifru.ifru_addr = sockaddr(address);
        self.ioctl(libc::SIOCSIFADDR, &mut request)?;
        request.ifr_ifru.ifru_netmask = sockaddr(Ipv4Addr::from_bits(mask));
        self.ioctl(libc::SIOCSIFNETMASK, &mut request)
    }

    pub fn set_mtu(&self, name: &str, mtu: u16) -> io::Result<()> {
        let mut request = ifreq(name)?;
        request.ifr_ifru.ifru_mtu = c_int::from(mtu);
        self.ioctl(libc::SIOCSIFMTU, &mut request)
    }

    pub fn set_up(&self, name: &str) -> io::Result<()> {
        let mut request = ifreq(name)?;
        self.ioctl(libc::SIOCGIFFLAGS, &mut request)?;
        // SAFETY: the kernel has just written the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags | libc::IFF_UP).map_err(io::Error::other)?;
        self.ioctl(libc::SIOCSIFFLAGS, &mut request)
    }

    pub fn add_default_route(&self, gateway: Ipv4Addr) -> io::Result<()> {
        // SAFETY: all zeroes is a valid `rtentry`.
        let mut route: libc::rtentry = unsafe { mem::zeroed() };
        route.rt_dst = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = sockaddr(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = sockaddr(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the kernel reads an `rtentry` for this request.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::SIOCADDRT, &raw const route) })?;
        Ok(())
    }

    fn ioctl(&self, request: libc::c_ulong, argument: &mut libc::ifreq) -> io::Result<()> {
        // SAFETY: the kernel reads and writes an `ifreq` for each request used here.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), request, std::ptr::from_mut(argument)) })?;
        Ok(())
    }
}

fn ifreq(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

fn sockaddr(address: Ipv4Addr) -> libc::sockaddr {
    let inet = libc::sockaddr_in {
        sin_family: libc::sa_family_t::try_from(libc::AF_INET).expect("a small number"),
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.octets()) },
        sin_zero: [0; 8],
    };
    // SAFETY: both are plain data of 16 bytes; the kernel reads the first as the second.
    unsafe { mem::transmute::<libc::sockaddr_in, libc::sockaddr>(inet) }
}

/// Listens on a vsock port of this guest.
pub fn listen_vsock(port: u32) -> io::Result<OwnedFd> {
    // SAFETY: plain socket calls with a fully initialised address; the descriptor is owned here.
    unsafe {
        let flags = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        let socket = OwnedFd::from_raw_fd(check(libc::socket(libc::AF_VSOCK, flags, 0))?);
        let mut address: libc::sockaddr_vm = mem::zeroed();
        address.svm_family = libc::sa_family_t::try_from(libc::AF_VSOCK).expect("a small number");
        address.svm_port = port;
        address.svm_cid = libc::VMADDR_CID_ANY;
        let len = libc::socklen_t::try_from(mem::size_of_val(&address)).expect("a small number");
        check(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len))?;
        check(libc::listen(socket.as_raw_fd(), 4))?;
        Ok(socket)
    }
}

/// Takes the next connection of a listening socket, of any family; `None` when there is none.
pub fn accept(listener: impl AsFd) -> Option<OwnedFd> {
    let (fd, none) = (listener.as_fd().as_raw_fd(), std::ptr::null_mut());
    // SAFETY: the address may be null; the new descriptor is owned by nobody else.
    unsafe {
        let fd = libc::accept4(fd, none, none.cast(), libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK);
        (fd >= 0).then(|| OwnedFd::from_raw_fd(fd))
    }
}
