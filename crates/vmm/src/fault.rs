//! What can go wrong with a VMM, one type per group of operations.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use hearth_model::error::io_kind;
use hearth_model::{Backend, ErrorKind, Kind};

use crate::process::{Exit, FREE_SPACE, tells_of_a_full_disk};
use crate::spec::StateFormat;

/// A VMM could not be launched; nothing of it is left but log files (and `memory`, after a boot).
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The VMM's program is not on this host.
    #[error("find the program {}", program.display())]
    NoProgram { program: PathBuf },
    /// A file that the launch needs cannot be opened.
    #[error("open the {what} {}", path.display())]
    Open {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The memory file is not as long as the machine's memory.
    #[error("map the memory {}: it has {found} bytes, the machine {wanted}", path.display())]
    MemorySize { path: PathBuf, found: u64, wanted: u64 },
    /// Something that the launch makes could not be made.
    #[error("make the {what} {}", path.display())]
    Make {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The process could not be started.
    #[error("start {}", program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The VMM ended before it was ready.
    #[error("set up the VMM: it ended by itself ({exit})")]
    Died { exit: Box<Exit> },
    /// The VMM ended while it read the saved state.
    #[error("load {}: the VMM does not take it ({exit})", vmstate.display())]
    Unloadable { vmstate: PathBuf, exit: Box<Exit> },
    /// The VMM refused the saved state; it may have ended then.
    #[error("load {}: the VMM answers {answer:?}", vmstate.display())]
    Refused { vmstate: PathBuf, answer: String, exit: Option<Box<Exit>> },
    /// The saved state is another VMM's.
    #[error("load {}: it is of format {format:?}, which {backend} does not read", vmstate.display())]
    WrongFormat { vmstate: PathBuf, format: StateFormat, backend: Backend },
    /// The VMM refused a command, or did not answer.
    #[error("set up the VMM")]
    Control(#[source] ControlError),
    /// The VMM that was asked what a state names could not be ended.
    #[error("end the VMM that read the saved state")]
    Lingers(#[source] KillError),
    /// Made to fail by a test's fake.
    #[cfg(feature = "fake")]
    #[error("launch, as a test demanded")]
    Demanded,
}

impl Kind for LaunchError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::NoProgram { .. } => ErrorKind::Unsupported,
            Self::Open { source, .. } if source.kind() == io::ErrorKind::NotFound => ErrorKind::NotFound,
            // What clone(2) says when no process more is allowed.
            Self::Spawn { source, .. } if source.kind() == io::ErrorKind::WouldBlock => ErrorKind::Exhausted,
            Self::Open { source, .. } | Self::Make { source, .. } | Self::Spawn { source, .. } => io_kind(source),
            // Whatever was to be loaded, there was no room for what that makes.
            Self::Unloadable { exit, .. } | Self::Died { exit } if exit.disk_full => ErrorKind::Exhausted,
            Self::Refused { answer, .. } if tells_of_a_full_disk(answer) => ErrorKind::Exhausted,
            Self::MemorySize { .. } | Self::Unloadable { .. } | Self::Refused { .. } | Self::WrongFormat { .. } => {
                ErrorKind::Incompatible
            }
            Self::Died { .. } => ErrorKind::VmmFailed,
            Self::Control(source) => source.kind(),
            Self::Lingers(source) => source.kind(),
            #[cfg(feature = "fake")]
            Self::Demanded => ErrorKind::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::NoProgram { program } if program.to_string_lossy().contains("firecracker") => {
                Some("install a release of Firecracker and put it on PATH, or configure firecracker.path".into())
            }
            Self::NoProgram { .. } => {
                Some("install QEMU (Debian: apt install qemu-system-x86), or configure its path".into())
            }
            Self::Open { what: "kernel" | "initrd", .. } => {
                Some("`hearth doctor` says which kernel is used and how to get one".into())
            }
            Self::Unloadable { exit, .. } if exit.disk_full => exit.hint(),
            Self::Refused { answer, .. } if tells_of_a_full_disk(answer) => Some(FREE_SPACE.into()),
            Self::Unloadable { exit, .. } => Some(format!(
                "it was saved by another version or for another machine, or is damaged; the VMM says: {}",
                exit.log_tail
            )),
            Self::Died { exit } | Self::Refused { exit: Some(exit), .. } => exit.hint(),
            Self::Control(source) => source.hint(),
            _ => None,
        }
    }
}

impl From<ControlError> for LaunchError {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Gone { exit, .. } => Self::Died { exit },
            other => Self::Control(other),
        }
    }
}

/// A command to a VMM did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Its socket cannot be reached.
    #[error("reach the VMM at {}", socket.display())]
    Unreachable {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It answered no.
    #[error("{command}: the VMM answers {answer:?}")]
    Refused { command: &'static str, answer: String },
    /// It speaks something else than expected.
    #[error("{command}: the VMM's answer cannot be read: {line:?}")]
    Garbled { command: &'static str, line: String },
    /// It has ended.
    #[error("{command}: the VMM has ended ({exit})")]
    Gone { command: &'static str, exit: Box<Exit> },
    /// It did not answer in time.
    #[error("{command}: the VMM did not answer within {} s", after.as_secs())]
    Silent { command: &'static str, after: Duration },
    /// Only possible while the guest is paused.
    #[error("{action}: the guest runs")]
    NotPaused { action: &'static str },
    /// The guest's pages could not be found or copied.
    #[error("{action}")]
    Pages {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    /// A file for what is saved cannot be written.
    #[error("write the {what} {}", path.display())]
    Write {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Made to fail by a test's fake.
    #[cfg(feature = "fake")]
    #[error("control, as a test demanded")]
    Demanded,
}

impl Kind for ControlError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { answer, .. } if tells_of_a_full_disk(answer) => ErrorKind::Exhausted,
            Self::Gone { exit, .. } if exit.disk_full => ErrorKind::Exhausted,
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::Garbled { .. }
            | Self::Gone { .. }
            | Self::Silent { .. } => ErrorKind::VmmFailed,
            Self::NotPaused { .. } => ErrorKind::WrongState,
            Self::Pages { source, .. } | Self::Write { source, .. } => io_kind(source),
            #[cfg(feature = "fake")]
            Self::Demanded => ErrorKind::VmmFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Gone { exit, .. } => exit.hint(),
            Self::Refused { answer, .. } if tells_of_a_full_disk(answer) => Some(FREE_SPACE.into()),
            Self::Pages { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("reading a guest's pages needs root, or the VMM's user with kernel.yama.ptrace_scope=0".into())
            }
            Self::NotPaused { .. } => Some("pause it first".into()),
            Self::Silent { .. } => Some(
                "`hearth doctor` says which program is the VMM and whether it works; a host without a free CPU makes it slow".into(),
            ),
            _ => None,
        }
    }
}

/// It could not be found out whether a VMM is there: neither "alive" nor "gone" is known.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The process table did not answer.
    #[error("look for the VMM with process id {pid}")]
    Look {
        pid: u32,
        #[source]
        source: io::Error,
    },
    /// Made to fail by a test's fake.
    #[cfg(feature = "fake")]
    #[error("adopt, as a test demanded")]
    Demanded,
}

impl Kind for AdoptError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Look { source, .. } => io_kind(source),
            #[cfg(feature = "fake")]
            Self::Demanded => ErrorKind::HostFailed,
        }
    }
}

/// A VMM may still be there, or some of its sockets, or its cgroup.
#[derive(Debug, thiserror::Error)]
pub enum KillError {
    /// It was not found out whether it is there.
    #[error("find the VMM to kill")]
    Look(#[source] AdoptError),
    /// The signal was refused.
    #[error("kill the VMM with process id {pid}")]
    Signal {
        pid: u32,
        #[source]
        source: io::Error,
    },
    /// A killed process that does not go (stuck in the kernel).
    #[error("wait for the end of the VMM with process id {pid}: still there after {} s", after.as_secs())]
    Lingers { pid: u32, after: Duration },
    /// A socket could not be removed.
    #[error("remove the socket {}", path.display())]
    Socket {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Its cgroup could not be removed.
    #[error("remove the cgroup {}", path.display())]
    Cgroup {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// Made to fail by a test's fake.
    #[cfg(feature = "fake")]
    #[error("kill, as a test demanded")]
    Demanded,
}

impl Kind for KillError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Look(source) => source.kind(),
            Self::Signal { source, .. } | Self::Socket { source, .. } | Self::Cgroup { source, .. } => io_kind(source),
            Self::Lingers { .. } => ErrorKind::HostFailed,
            #[cfg(feature = "fake")]
            Self::Demanded => ErrorKind::HostFailed,
        }
    }
}

/// What a VMM uses could not be read.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// There is no such process any more.
    #[error("read what the VMM with process id {pid} uses: it has ended")]
    Gone { pid: u32 },
    /// The process table did not answer.
    #[error("read what the VMM with process id {pid} uses")]
    Read {
        pid: u32,
        #[source]
        source: io::Error,
    },
}

impl Kind for UsageError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Gone { .. } => ErrorKind::WrongState,
            Self::Read { source, .. } => io_kind(source),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Ended;

    /// No saved state is to blame for a disk without room.
    #[test]
    fn what_found_no_room_is_exhausted_and_says_what_to_do() {
        let exit = |disk_full| Box::new(Exit { ended: Ended::Code(1), disk_full, ..Exit::unknown() });
        let answer = |full| match full {
            true => "Error binding to the host-side Unix socket: No space left on device (os error 28)".to_owned(),
            false => "CRC64 validation failed".to_owned(),
        };
        let vmstate = || PathBuf::from("vmstate");
        let loads = |full| {
            [
                LaunchError::Unloadable { vmstate: vmstate(), exit: exit(full) },
                LaunchError::Refused { vmstate: vmstate(), answer: answer(full), exit: None },
                LaunchError::Refused { vmstate: vmstate(), answer: answer(full), exit: Some(exit(full)) },
            ]
        };
        let others = |full| {
            [
                LaunchError::Died { exit: exit(full) },
                LaunchError::Control(ControlError::Refused { command: "PUT /vsock", answer: answer(full) }),
                LaunchError::from(ControlError::Gone { command: "PUT /vsock", exit: exit(full) }),
            ]
        };
        for error in loads(true).into_iter().chain(others(true)) {
            assert_eq!(error.kind(), ErrorKind::Exhausted, "{error}");
            assert!(error.hint().is_some_and(|hint| hint.contains(FREE_SPACE)), "{error}: {:?}", error.hint());
        }
        assert!(loads(false).iter().all(|error| error.kind() == ErrorKind::Incompatible));
        assert!(others(false).iter().all(|error| error.kind() == ErrorKind::VmmFailed));
    }
}
