//! A VMM, whatever it is: one handle for all backends, each of which keeps its own secrets.

use std::path::Path;
use std::pin::Pin;

use tokio::net::UnixStream;

#[cfg(feature = "fake")]
use crate::fake::Fake;
use crate::fault::{ControlError, KillError};
use crate::process::Exit;
use crate::qemu::Qemu;
use crate::spec::{PageCount, Ram, RunState, Seat, StateFormat};

/// A handle on a VMM. A clone is another handle on the same one; dropping them all does not end it.
///
/// Commands of one handle and its clones follow one another. Each has a deadline of its own; a
/// future that is dropped before its end may have taken effect.
#[derive(Debug, Clone)]
pub enum Vmm {
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

    /// Writes the device state of the paused guest to `vmstate` (absolute, or relative to its
    /// directory), over what is there. Together with its memory this is a [`crate::SavedState`]:
    /// the file [`crate::MEMORY`] while the guest is paused when [`Self::ram`] is shared, or what
    /// [`Self::update_memory`] makes.
    ///
    /// # Errors
    /// The guest runs; the file cannot be written; as [`Self::resume`].
    pub async fn save_state(&self, vmstate: &Path) -> Result<StateFormat, ControlError> {
        each!(self, vmm => vmm.save_state(vmstate).await)
    }

    /// Makes `onto` (absolute, or relative to its directory) what the paused guest's memory is, by
    /// writing the pages that differ. `onto` is a copy, made by the caller, of the file that its
    /// memory is mapped from: with shared memory of [`crate::MEMORY`], at any moment, while the
    /// guest ran; with private memory of what it was loaded from.
    ///
    /// # Errors
    /// The guest runs; `onto` cannot be written or has another length; the kernel denies reading
    /// the VMM's memory.
    pub async fn update_memory(&self, onto: &Path) -> Result<PageCount, ControlError> {
        each!(self, vmm => vmm.update_memory(onto).await)
    }

    /// Connects to the guest's agent. One connection at a time: a second one waits in silence until
    /// the first is closed. The connection succeeds whether or not the guest listens yet.
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
