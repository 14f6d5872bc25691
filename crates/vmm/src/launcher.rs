//! Where VMMs come from: boot, load, adopt, clean up. Real processes, or a test's fakes.

use std::path::Path;

#[cfg(feature = "fake")]
use crate::fake::FakeHost;
use crate::fault::{AdoptError, KillError, LaunchError};
use crate::qemu;
use crate::spec::{LaunchSpec, SavedState, Seat};
use crate::vmm::{Adopted, Loaded, Vmm};

/// Starts and finds VMMs.
#[derive(Debug, Clone, Default)]
pub enum Launcher {
    /// As processes of this host.
    #[default]
    Real,
    /// In memory.
    #[cfg(feature = "fake")]
    Fake(FakeHost),
}

impl Launcher {
    /// Boots a kernel: makes the file [`crate::MEMORY`], starts a VMM; vCPUs run when it returns.
    ///
    /// # Errors
    /// The program, kernel, initrd or a disk is missing; a file cannot be made; the VMM ends or
    /// refuses. No process and no socket is left then.
    pub async fn boot(&self, spec: &LaunchSpec) -> Result<Vmm, LaunchError> {
        match self {
            Self::Real => Ok(Vmm::Qemu(qemu::boot(spec).await?)),
            #[cfg(feature = "fake")]
            Self::Fake(host) => host.boot(spec).map(Vmm::Fake),
        }
    }

    /// Loads a saved guest into a fresh VMM. Its memory file is mapped and never written, so any
    /// number of VMMs can load the same one.
    ///
    /// # Errors
    /// As [`Self::boot`]; and the state was saved for another machine, or is damaged.
    pub async fn load(&self, spec: &LaunchSpec, from: &SavedState) -> Result<Loaded, LaunchError> {
        match self {
            Self::Real => Ok(Loaded::Paused(Vmm::Qemu(qemu::load(spec, from).await?))),
            #[cfg(feature = "fake")]
            Self::Fake(host) => host.load(spec, from).map(|fake| Loaded::Paused(Vmm::Fake(fake))),
        }
    }

    /// Finds a VMM again.
    ///
    /// # Errors
    /// It could not be looked for: neither alive nor gone is known.
    #[allow(clippy::unused_async, reason = "other backends have to ask their process")]
    pub async fn adopt(&self, seat: &Seat) -> Result<Adopted, AdoptError> {
        match self {
            Self::Real => Ok(qemu::adopt(seat)?.map_or(Adopted::Gone, |vmm| Adopted::Alive(Vmm::Qemu(vmm)))),
            #[cfg(feature = "fake")]
            Self::Fake(host) => {
                host.adopt(seat).map(|it| it.map_or(Adopted::Gone, |vmm| Adopted::Alive(Vmm::Fake(vmm))))
            }
        }
    }

    /// Ends whatever VMM sits there and removes its sockets; nothing there is success. Without a
    /// seat, for a launch that was cut off before its seat was recorded, the VMM is found by its
    /// working directory.
    ///
    /// # Errors
    /// As [`Vmm::kill`]; or it could not be looked for.
    pub async fn clean_up(&self, dir: &Path, seat: Option<&Seat>) -> Result<(), KillError> {
        let Some(seat) = seat else {
            return match self {
                Self::Real => qemu::kill_in(dir).await,
                #[cfg(feature = "fake")]
                Self::Fake(host) => host.kill_in(dir),
            };
        };
        match self.adopt(seat).await.map_err(KillError::Look)? {
            Adopted::Alive(vmm) => vmm.kill().await,
            Adopted::Gone => qemu::remove_sockets(dir),
        }
    }
}
