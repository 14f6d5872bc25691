//! Waiting for Firecracker's API socket: the file system tells when it is there.
//!
//! ```text
//!   watch the directory ─► start the process ─► try ─► [event] ─► try …
//! ```
//! The watch is older than the process, so a socket cannot come unseen. Where no watch can be had
//! (a limit of the kernel's is reached), the socket is tried again and again instead, and the reason
//! is told.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::net::UnixStream;
use tokio::net::unix::pipe::Receiver;

use crate::answer::DEADLINE;
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::{API_SOCKET, SocketWait};

/// What it is called in an error.
pub(crate) const COMMAND: &str = "await the API socket";
/// Between two tries where nothing tells.
const POLL: Duration = Duration::from_millis(1);
/// Between the socket's file being there and its being listened on there is one system call.
const LISTENS_SOON: Duration = Duration::from_millis(2);
/// Meanwhile, between two tries. The kernel makes some 50 µs more of it.
const NAP: Duration = Duration::from_micros(5);

/// Tells when something appears in a directory.
#[derive(Debug)]
pub(crate) struct Watch {
    /// An inotify descriptor: like a pipe it is only ever read. Always there until it is dropped.
    inotify: Option<Receiver>,
}

impl Watch {
    /// Of the directory, from now on.
    pub(crate) fn new(dir: &Path) -> io::Result<Self> {
        let inotify = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
        let appears = WatchFlags::CREATE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(&inotify, dir, appears)?;
        Ok(Self { inotify: Some(Receiver::from_owned_fd_unchecked(inotify)?) })
    }

    /// Resolves when something has appeared since the last call. What it was does not matter: the
    /// caller looks for itself.
    async fn appeared(&self) -> io::Result<()> {
        let inotify = self.inotify.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        loop {
            inotify.readable().await?;
            let mut events = [0; 4096];
            match inotify.try_read(&mut events) {
                Ok(_) => return Ok(()),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Watch {
    /// Closing an inotify descriptor waits until the kernel has let go of what was watched: several
    /// milliseconds, which a guest that is being restored shall not wait for.
    fn drop(&mut self) {
        let inotify = self.inotify.take();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn_blocking(move || drop(inotify));
        }
    }
}

/// Connects to the API socket as soon as it can be; `watch` was made before the process started.
pub(crate) async fn socket(
    dir: &Path,
    process: &Process,
    watch: &io::Result<Watch>,
) -> Result<(UnixStream, SocketWait), ControlError> {
    let connected = async {
        match watch {
            Ok(watch) => told(dir, watch).await,
            Err(why) => polled(dir, why).await,
        }
    };
    tokio::select! {
        biased;
        connected = connected => connected
            .map_err(|source| ControlError::Unreachable { socket: dir.join(API_SOCKET), source }),
        exit = process.exited() => Err(ControlError::Gone { command: COMMAND, exit: Box::new(exit) }),
        () = tokio::time::sleep(DEADLINE) => Err(ControlError::Silent { command: COMMAND, after: DEADLINE }),
    }
}

async fn told(dir: &Path, watch: &Watch) -> io::Result<(UnixStream, SocketWait)> {
    let mut wait = SocketWait::Immediate;
    loop {
        match attempt(dir).await? {
            Attempt::Connected(stream) => return Ok((stream, wait)),
            Attempt::NotThere => watch.appeared().await?,
            // Nothing tells of `listen`: it follows at once.
            Attempt::NotListening => return Ok((listens_soon(dir).await?, SocketWait::Inotify)),
        }
        wait = SocketWait::Inotify;
    }
}

async fn polled(dir: &Path, why: &io::Error) -> io::Result<(UnixStream, SocketWait)> {
    loop {
        if let Attempt::Connected(stream) = attempt(dir).await? {
            return Ok((stream, SocketWait::Polling(format!("no inotify: {why}"))));
        }
        tokio::time::sleep(POLL).await;
    }
}

async fn listens_soon(dir: &Path) -> io::Result<UnixStream> {
    let begin = Instant::now();
    loop {
        if let Attempt::Connected(stream) = attempt(dir).await? {
            return Ok(stream);
        }
        // Being told of the socket may have taken the CPU from whoever made it: it is given back. To yield
        // would not do, for this thread's short slices come before that one's.
        if begin.elapsed() < LISTENS_SOON {
            std::thread::sleep(NAP);
        } else {
            tokio::time::sleep(POLL).await;
        }
    }
}

enum Attempt {
    Connected(UnixStream),
    NotThere,
    NotListening,
}

async fn attempt(dir: &Path) -> io::Result<Attempt> {
    match socket::connect(dir, API_SOCKET).await {
        Ok(stream) => Ok(Attempt::Connected(stream)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Attempt::NotThere),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Attempt::NotListening),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsString;
    use std::fs::{self, File};

    use crate::process::{self, Program};

    /// A process that makes no socket: the tests do.
    fn sleeper(dir: &Path, script: &str) -> Process {
        let open = |name| File::create(dir.join(name)).expect("made");
        let program = Program {
            path: "/bin/sh".into(),
            args: ["-c", script].map(OsString::from).into(),
            dir: dir.to_owned(),
            stdout: open("out"),
            stderr: open(crate::spec::VMM_LOG),
            fds: Vec::new(),
            netns: None,
            cgroup: None,
        };
        process::start(program).expect("a shell starts")
    }

    fn dir() -> tempfile::TempDir {
        tempfile::tempdir().expect("a directory")
    }

    #[tokio::test]
    async fn a_socket_that_is_there_is_taken_at_once() {
        let dir = dir();
        let process = sleeper(dir.path(), "exec sleep 60");
        let watch = Watch::new(dir.path());
        let _socket = socket::listen(dir.path(), API_SOCKET).expect("bound");
        let (_, wait) = socket(dir.path(), &process, &watch).await.expect("connected");
        assert_eq!(wait, SocketWait::Immediate);
        process.kill().await.expect("ends");
    }

    #[tokio::test]
    async fn a_socket_that_comes_is_told_at_once_also_between_other_files() {
        let dir = dir();
        let process = sleeper(dir.path(), "exec sleep 60");
        let watch = Watch::new(dir.path());
        let path = dir.path().to_owned();
        let maker = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(60));
            fs::write(path.join("other"), "").expect("written");
            std::thread::sleep(Duration::from_millis(60));
            let socket = socket::listen(&path, API_SOCKET).expect("bound");
            (socket, Instant::now())
        });
        let (_, wait) = socket(dir.path(), &process, &watch).await.expect("connected");
        let connected = Instant::now();
        let (_socket, bound) = maker.await.expect("made");
        assert_eq!(wait, SocketWait::Inotify);
        let late = connected.saturating_duration_since(bound);
        assert!(late < Duration::from_millis(20), "{late:?}: as late as polling would be");
        process.kill().await.expect("ends");
    }

    /// In the middle of many: a host that is busy delays some, polling would delay most.
    #[tokio::test]
    async fn a_socket_is_reached_within_a_third_of_a_millisecond_of_its_listening() {
        const MOST: Duration = Duration::from_micros(300);
        const SOCKETS: usize = 41;
        const BATCHES: usize = 5;
        let mut medians = Vec::new();
        for _ in 0..BATCHES {
            let mut late = Vec::new();
            for nth in 0..SOCKETS {
                let dir = dir();
                let process = sleeper(dir.path(), "exec sleep 60");
                let watch = Watch::new(dir.path());
                let path = dir.path().to_owned();
                // At no fixed distance from the wait's begin, with which a poll could be in step.
                let pause = Duration::from_micros(1000 + 137 * nth as u64);
                let maker = std::thread::spawn(move || {
                    std::thread::sleep(pause);
                    let socket = socket::listen(&path, API_SOCKET).expect("bound");
                    (Instant::now(), socket)
                });
                let (_, wait) = socket(dir.path(), &process, &watch).await.expect("connected");
                let connected = Instant::now();
                let (listens, _socket) = maker.join().expect("made");
                assert_eq!(wait, SocketWait::Inotify);
                late.push(connected.saturating_duration_since(listens));
                process.kill().await.expect("ends");
            }
            late.sort();
            medians.push(late[SOCKETS / 2]);
            if late[SOCKETS / 2] <= MOST {
                break;
            }
        }
        println!("from listening to connected, the median of {SOCKETS}: {medians:?}");
        assert!(medians.last().is_some_and(|median| *median <= MOST), "{medians:?}");
    }

    /// Bound, and listened on only later: a connection is refused in between.
    #[tokio::test]
    async fn a_socket_that_nobody_listens_on_yet_is_waited_for() {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, bind, listen, socket as new};
        let dir = dir();
        let process = sleeper(dir.path(), "exec sleep 60");
        let watch = Watch::new(dir.path());
        let address = SocketAddrUnix::new(dir.path().join(API_SOCKET)).expect("short");
        let maker = tokio::task::spawn_blocking(move || {
            let socket = new(AddressFamily::UNIX, SocketType::STREAM, None).expect("made");
            bind(&socket, &address).expect("bound");
            std::thread::sleep(Duration::from_millis(20));
            listen(&socket, 8).expect("listens");
            socket
        });
        let (_, wait) = socket(dir.path(), &process, &watch).await.expect("connected");
        assert_eq!(wait, SocketWait::Inotify);
        let _socket = maker.await.expect("made");
        process.kill().await.expect("ends");
    }

    #[tokio::test]
    async fn without_a_watch_it_is_polled_and_the_reason_is_told() {
        let dir = dir();
        let process = sleeper(dir.path(), "exec sleep 60");
        let path = dir.path().to_owned();
        let maker = tokio::task::spawn_blocking(move || {
            std::thread::sleep(Duration::from_millis(20));
            socket::listen(&path, API_SOCKET).expect("bound")
        });
        let none = Err(io::Error::from_raw_os_error(libc::EMFILE));
        let (_, wait) = socket(dir.path(), &process, &none).await.expect("connected");
        let SocketWait::Polling(why) = wait else { panic!("{wait:?}") };
        assert!(why.contains("open files"), "{why}");
        let _socket = maker.await.expect("made");
        process.kill().await.expect("ends");
    }

    #[tokio::test]
    async fn a_process_that_dies_instead_is_an_error_at_once_with_its_last_words() {
        let dir = dir();
        for watched in [true, false] {
            let process = sleeper(dir.path(), "echo bad option >&2; exit 7");
            let watch = if watched { Watch::new(dir.path()) } else { Err(io::Error::other("none")) };
            let begin = Instant::now();
            let error = socket(dir.path(), &process, &watch).await.expect_err("it died");
            assert!(begin.elapsed() < Duration::from_secs(5));
            let ControlError::Gone { exit, .. } = error else { panic!("{error:?}") };
            assert_eq!((exit.ended, exit.log_tail.as_str()), (crate::Ended::Code(7), "bad option"));
        }
    }
}
