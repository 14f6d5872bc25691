//! A VMM, whatever it is: one handle for all backends, each of which keeps its own secrets.

use std::path::Path;
use std::pin::Pin;

use tokio::net::UnixStream;

#[cfg(feature = "fake")]
use crate::fake::Fake;
use crate::fault::{ControlError, KillError};
use crate::firecracker::Firecracker;
use crate::process::Exit;
use crate::qemu::Qemu;
use crate::spec::{Ram, RunState, SaveMemory, Saved, Seat};

/// A handle on a VMM. A clone is another handle on the same one; dropping them all does not end it.
///
/// Commands of one handle and its clones follow one another. Each has a deadline of its own; a
/// future that is dropped before its end may have taken effect.
#[derive(Debug, Clone)]
pub enum Vmm {
    /// A Firecracker process.
    Firecracker(Firecracker),
    /// A QEMU process.
    Qemu(Qemu),
    /// A test's double.
    #[cfg(feature = "fake")]
    Fake(Fake),
}

/// The result of a load: whether the guest runs already. Only [`Loaded::Paused`] is followed by a
/// resume.
#[derive(Debug)]
pub enum Loaded {
    /// It runs.
    Resumed(Vmm),
    /// It waits for [`Vmm::resume`].
    Paused(Vmm),
}

/// What was found in a seat.
#[derive(Debug)]
pub enum Adopted {
    /// The same VMM. Whether its guest runs, [`Vmm::run_state`] tells.
    Alive(Vmm),
    /// Looked, and it is not there.
    Gone,
}

macro_rules! each {
    ($self:expr, $vmm:ident => $call:expr) => {
        match $self {
            Vmm::Firecracker($vmm) => $call,
            Vmm::Qemu($vmm) => $call,
            #[cfg(feature = "fake")]
            Vmm::Fake($vmm) => $call,
        }
    };
}

impl Vmm {
    /// Where it sits.
    #[must_use]
    pub fn seat(&self) -> &Seat {
        each!(self, vmm => vmm.seat())
    }

    /// Where its guest's memory is.
    #[must_use]
    pub fn ram(&self) -> Ram {
        self.seat().ram
    }

    /// Lets the vCPUs run; of a running guest nothing changes.
    ///
    /// # Errors
    /// The VMM refuses, is silent for 30 s, or has ended.
    pub async fn resume(&self) -> Result<(), ControlError> {
        each!(self, vmm => vmm.resume().await)
    }

    /// Halts the vCPUs and completes their disk I/O; of a paused guest nothing changes.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub async fn pause(&self) -> Result<(), ControlError> {
        each!(self, vmm => vmm.pause().await)
    }

    /// Whether the vCPUs run.
    ///
    /// # Errors
    /// As [`Self::resume`].
    pub async fn run_state(&self) -> Result<RunState, ControlError> {
        each!(self, vmm => vmm.run_state().await)
    }

    /// Saves the paused guest: its device state to `vmstate`, over what is there, and its memory as
    /// `memory` says. Paths are absolute, or relative to its directory. Together they are a
    /// [`crate::SavedState`]; which memory file belongs to it, [`Ram`] says.
    ///
    /// # Errors
    /// The guest runs; a file cannot be written or has another length; the kernel denies reading
    /// the VMM's memory; `memory` is not for a guest with such [`Ram`]; as [`Self::resume`].
    pub async fn save(&self, vmstate: &Path, memory: SaveMemory<'_>) -> Result<Saved, ControlError> {
        each!(self, vmm => vmm.save(vmstate, memory).await)
    }

    /// Whether connections to the guest end when it is saved: Firecracker resets the vsock device,
    /// so that what is loaded begins without any.
    #[must_use]
    pub fn save_cuts_off_the_guest(&self) -> bool {
        self.seat().backend == hearth_model::Backend::Firecracker
    }

    /// Connects to the guest's agent. Under QEMU there is one connection at a time: a second one waits
    /// in silence until the first is closed, and it succeeds whether or not the guest listens yet.
    /// Under Firecracker it waits until the guest listens.
    ///
    /// # Errors
    /// The VMM has ended, or its socket is gone.
    pub async fn dial_guest(&self) -> Result<UnixStream, ControlError> {
        each!(self, vmm => vmm.dial_guest().await)
    }

    /// Its end, at once when it comes; already there when it has ended. It may be waited for by
    /// any number of tasks, in the runtime in which the handle was made.
    pub fn exited(&self) -> Pin<Box<dyn Future<Output = Exit> + Send + 'static>> {
        each!(self, vmm => Box::pin(vmm.exited()))
    }

    /// Ends it at once, waits until it is gone and removes its sockets. Already gone is success.
    ///
    /// # Errors
    /// It cannot be signalled, does not go within 10 s, or a socket cannot be removed.
    pub async fn kill(&self) -> Result<(), KillError> {
        each!(self, vmm => vmm.kill().await)
    }
}
