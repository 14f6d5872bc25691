//! Where VMMs come from: boot, load, adopt, clean up. Real processes, or a test's fakes.
//!
//! A load has three parts, because a restore has something to do between them and wants each of
//! them timed:
//!
//! ```text
//!   start ─► [disks and memory are put in place] ─► ready ─► load ─► Resumed | Paused
//! ```

use std::path::Path;
use std::time::Duration;

use hearth_model::foreign::Described;
use hearth_model::{Backend, LoadPlan};

use crate::cgroup::{Cgroups, SweptCgroups};
use crate::ending::{kill_in, remove_traces};
#[cfg(feature = "fake")]
use crate::fake::FakeHost;
use crate::fault::{AdoptError, KillError, LaunchError};
use crate::spec::{LaunchSpec, SavedState, Seat, SocketWait};
use crate::vmm::{Adopted, Loaded, Vmm};
use crate::{firecracker, qemu};

/// Starts and finds VMMs.
#[derive(Debug, Clone)]
pub enum Launcher {
    /// As processes of this host, each in a cgroup of its own where it can be.
    Real(Cgroups),
    /// In memory.
    #[cfg(feature = "fake")]
    Fake(FakeHost),
}

/// A VMM that is going to boot.
#[derive(Debug)]
pub struct ReadyToBoot(Bootable);

#[derive(Debug)]
enum Bootable {
    Firecracker(Box<firecracker::Ready>, LaunchSpec),
    /// QEMU is told what to boot when it starts.
    Qemu(Cgroups, LaunchSpec),
    #[cfg(feature = "fake")]
    Fake(FakeHost, LaunchSpec),
}

/// A VMM that is going to load, as far as it can be started before it knows what.
#[derive(Debug)]
pub struct Started(Begun);

#[derive(Debug)]
enum Begun {
    Firecracker(firecracker::Started),
    /// QEMU is told its files when it starts.
    Qemu(Cgroups, LaunchSpec),
    #[cfg(feature = "fake")]
    Fake(FakeHost, LaunchSpec),
}

/// A VMM that takes a saved guest.
#[derive(Debug)]
pub struct Ready(Waiting);

#[derive(Debug)]
enum Waiting {
    Firecracker(Box<firecracker::Loading>),
    Qemu(Box<qemu::Loading>),
    #[cfg(feature = "fake")]
    Fake(FakeHost, Box<LaunchSpec>, SavedState),
}

impl Launcher {
    /// Boots a kernel: makes the file [`crate::MEMORY`] where the VMM has one, starts a VMM; vCPUs
    /// run when it returns.
    ///
    /// # Errors
    /// The program, kernel, initrd or a disk is missing; a file cannot be made; the VMM ends or
    /// refuses. No process and no socket is left then.
    pub async fn boot(&self, spec: &LaunchSpec) -> Result<Vmm, LaunchError> {
        self.ready_to_boot(spec).await?.boot().await
    }

    /// The first part of [`Self::boot`]: starts a VMM and waits until it takes what is to be booted.
    /// What it started ends with [`ReadyToBoot::boot`] or [`Self::clean_up`].
    ///
    /// # Errors
    /// As [`Self::boot`].
    pub async fn ready_to_boot(&self, spec: &LaunchSpec) -> Result<ReadyToBoot, LaunchError> {
        let spec = spec.clone();
        Ok(ReadyToBoot(match self {
            Self::Real(cgroups) => match spec.machine.backend {
                Backend::Firecracker => {
                    let ready = Box::pin(firecracker::ready_to_boot(cgroups, &spec)).await?;
                    Bootable::Firecracker(Box::new(ready), spec)
                }
                Backend::QemuMicrovm | Backend::Qemu => Bootable::Qemu(cgroups.clone(), spec),
            },
            #[cfg(feature = "fake")]
            Self::Fake(host) => Bootable::Fake(host.clone(), spec),
        }))
    }

    /// Starts a VMM that is to load a saved guest: as much of it as needs neither disks nor memory.
    /// What it started ends with [`Started::ready`] or [`Self::clean_up`].
    ///
    /// # Errors
    /// The program is missing or cannot be started. Nothing is left then.
    #[allow(clippy::unused_async, reason = "a process of a pool will have to be waited for")]
    pub async fn start(&self, spec: &LaunchSpec) -> Result<Started, LaunchError> {
        match self {
            Self::Real(cgroups) => match spec.machine.backend {
                Backend::Firecracker => Ok(Started(Begun::Firecracker(firecracker::launch::start(cgroups, spec)?))),
                Backend::QemuMicrovm | Backend::Qemu => Ok(Started(Begun::Qemu(cgroups.clone(), spec.clone()))),
            },
            #[cfg(feature = "fake")]
            Self::Fake(host) => Ok(Started(Begun::Fake(host.clone(), spec.clone()))),
        }
    }

    /// [`Self::start`], [`Started::ready`] and [`Ready::load`] in one.
    ///
    /// # Errors
    /// As those.
    pub async fn load(&self, spec: &LaunchSpec, from: &SavedState, plan: &LoadPlan) -> Result<Loaded, LaunchError> {
        self.start(spec).await?.ready(from).await?.load(plan).await
    }

    /// What a state names that was saved elsewhere: asked of a VMM that has loaded it and is ended
    /// again. The guest never runs. Of `spec`, the directory and the program count, not the machine.
    ///
    /// # Errors
    /// As [`Self::load`]; the backend cannot tell. No process and no socket is left then.
    pub async fn inspect(&self, spec: &LaunchSpec, from: &SavedState) -> Result<Described, LaunchError> {
        match self {
            Self::Real(cgroups) => match spec.machine.backend {
                Backend::Firecracker => Box::pin(firecracker::inspect::inspect(cgroups, spec, from)).await,
                backend @ (Backend::QemuMicrovm | Backend::Qemu) => {
                    Err(LaunchError::WrongFormat { vmstate: from.vmstate.clone(), format: from.format, backend })
                }
            },
            #[cfg(feature = "fake")]
            Self::Fake(host) => host.inspect(spec, from),
        }
    }

    /// Finds a VMM again.
    ///
    /// # Errors
    /// It could not be looked for: neither alive nor gone is known.
    #[allow(clippy::unused_async, reason = "other backends have to ask their process")]
    pub async fn adopt(&self, seat: &Seat) -> Result<Adopted, AdoptError> {
        let found = match self {
            Self::Real(cgroups) => match seat.backend {
                Backend::Firecracker => firecracker::adopt(cgroups, seat)?.map(Vmm::Firecracker),
                Backend::QemuMicrovm | Backend::Qemu => qemu::adopt(cgroups, seat)?.map(Vmm::Qemu),
            },
            #[cfg(feature = "fake")]
            Self::Fake(host) => host.adopt(seat)?.map(Vmm::Fake),
        };
        Ok(found.map_or(Adopted::Gone, Adopted::Alive))
    }

    /// Ends whatever VMM sits there and removes its sockets and its cgroup; nothing there is success. Without a
    /// seat, for a launch that was cut off before its seat was recorded, the VMM is found by its
    /// working directory.
    ///
    /// # Errors
    /// As [`Vmm::kill`]; or it could not be looked for.
    pub async fn clean_up(&self, dir: &Path, seat: Option<&Seat>) -> Result<(), KillError> {
        let Some(seat) = seat else {
            return match self {
                Self::Real(cgroups) => kill_in(cgroups, dir).await,
                #[cfg(feature = "fake")]
                Self::Fake(host) => host.kill_in(dir),
            };
        };
        match self.adopt(seat).await.map_err(KillError::Look)? {
            Adopted::Alive(vmm) => vmm.kill().await,
            Adopted::Gone => match self {
                Self::Real(cgroups) => remove_traces(cgroups, dir).await,
                #[cfg(feature = "fake")]
                Self::Fake(host) => host.remove_traces(dir),
            },
        }
    }

    /// The directory in which each VMM gets a cgroup of its own, or why it gets none.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn cgroups(&self) -> Result<&Path, &str> {
        match self {
            Self::Real(cgroups) => cgroups.parent(),
            #[cfg(feature = "fake")]
            Self::Fake(_) => Err("its VMMs are no processes"),
        }
    }

    /// The daemon ends, and starts no more: what it has for VMMs, and none of them is in, goes.
    pub fn close(&self) {
        match self {
            Self::Real(cgroups) => cgroups.close(),
            #[cfg(feature = "fake")]
            Self::Fake(_) => {}
        }
    }

    /// Removes the cgroups of VMMs that ended while no daemon ran. To be called while none is being
    /// started.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn sweep_cgroups(&self) -> std::io::Result<SweptCgroups> {
        match self {
            Self::Real(cgroups) => cgroups.sweep(),
            #[cfg(feature = "fake")]
            Self::Fake(host) => Ok(SweptCgroups { removed: host.sweep(), failed: Vec::new() }),
        }
    }
}

impl ReadyToBoot {
    /// How its control socket came to answer, and after how long; `None` where it was there before
    /// the process.
    #[must_use]
    pub fn socket_wait(&self) -> Option<(&SocketWait, Duration)> {
        match &self.0 {
            Bootable::Firecracker(ready, _) => Some(ready.waited()),
            Bootable::Qemu(..) => None,
            #[cfg(feature = "fake")]
            Bootable::Fake(..) => None,
        }
    }

    /// Boots; vCPUs run when it returns.
    ///
    /// # Errors
    /// As [`Launcher::boot`].
    pub async fn boot(self) -> Result<Vmm, LaunchError> {
        match self.0 {
            Bootable::Firecracker(ready, spec) => {
                Ok(Vmm::Firecracker(Box::pin(firecracker::boot(*ready, &spec)).await?))
            }
            Bootable::Qemu(cgroups, spec) => Ok(Vmm::Qemu(Box::pin(qemu::boot(&cgroups, &spec)).await?)),
            #[cfg(feature = "fake")]
            Bootable::Fake(host, spec) => host.boot(&spec).map(Vmm::Fake),
        }
    }
}

impl Started {
    /// Waits until the VMM takes what is in `from`. Disks and saved files are in place by now.
    ///
    /// # Errors
    /// A file is missing, or is not as long as it must be; the VMM ends. No process and no socket
    /// is left then.
    pub async fn ready(self, from: &SavedState) -> Result<Ready, LaunchError> {
        match self.0 {
            Begun::Firecracker(started) => {
                Ok(Ready(Waiting::Firecracker(Box::new(Box::pin(firecracker::prepare(started, from)).await?))))
            }
            Begun::Qemu(cgroups, spec) => {
                Ok(Ready(Waiting::Qemu(Box::new(Box::pin(qemu::prepare(&cgroups, &spec, from)).await?))))
            }
            #[cfg(feature = "fake")]
            Begun::Fake(host, spec) => Ok(Ready(Waiting::Fake(host, Box::new(spec), from.clone()))),
        }
    }
}

impl Ready {
    /// How its control socket came to answer, and after how long; `None` where it was there before
    /// the process.
    #[must_use]
    pub fn socket_wait(&self) -> Option<(&SocketWait, Duration)> {
        match &self.0 {
            Waiting::Firecracker(loading) => Some(loading.wait()),
            Waiting::Qemu(_) => None,
            #[cfg(feature = "fake")]
            Waiting::Fake(..) => None,
        }
    }

    /// Loads the saved guest as planned. Its memory file is mapped and never written, so any number
    /// of VMMs can load the same one. A VMM that cannot resume inside a load answers
    /// [`Loaded::Paused`] to [`LoadPlan::ResumeOnLoad`] too.
    ///
    /// # Errors
    /// The state was saved for another machine, or is damaged; the VMM ends or refuses. No process
    /// and no socket is left then.
    pub async fn load(self, plan: &LoadPlan) -> Result<Loaded, LaunchError> {
        match self.0 {
            Waiting::Firecracker(loading) => Ok(match Box::pin(loading.load(plan)).await? {
                firecracker::Loaded::Resumed(vmm) => Loaded::Resumed(Vmm::Firecracker(vmm)),
                firecracker::Loaded::Paused(vmm) => Loaded::Paused(Vmm::Firecracker(vmm)),
            }),
            Waiting::Qemu(loading) => Ok(Loaded::Paused(Vmm::Qemu(loading.load().await?))),
            #[cfg(feature = "fake")]
            Waiting::Fake(host, spec, from) => host.load(&spec, &from, plan),
        }
    }
}
