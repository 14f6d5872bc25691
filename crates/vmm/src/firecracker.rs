//! The Firecracker backend: a process in the instance's directory, driven over its API socket.
//!
//! Every path that goes into VMM state is relative to that directory, which is the process's
//! working directory: Firecracker keeps paths as they were given and opens them anew on load, so a
//! bundle loads anywhere, and the guest may be resumed inside the load.
//!
//! ```text
//!   launch ─► ready (its socket) ─► configure, InstanceStart      a boot
//!                                └► PUT /snapshot/load ─► [PATCH drives ─► resume]
//! ```

mod control;
pub(crate) mod inspect;
pub(crate) mod launch;
mod load;
pub(crate) mod probe;
pub(crate) mod ready;
mod snapshot;
#[cfg(any(test, feature = "stranger"))]
pub mod stranger;
mod vsock;

use std::path::Path;
use std::sync::{Arc, PoisonError};

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::cgroup::Cgroups;
use crate::ending::{self, end, remove_sockets};
use crate::fault::{AdoptError, ControlError, KillError, LaunchError};
use crate::process::{self, Exit, Process};
use crate::spec::{LaunchSpec, RunState, SaveMemory, Saved, Seat};
use control::Api;
pub(crate) use launch::{Ready, Started};
pub(crate) use load::{Loaded, Loading, prepare};

/// A handle on one Firecracker process. A clone is another handle on the same one.
#[derive(Debug, Clone)]
pub struct Firecracker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Process,
    seat: Seat,
    /// Held while a request is under way.
    api: Mutex<Api>,
    /// Locked after `api`, and only for a moment.
    vcpus: std::sync::Mutex<Vcpus>,
}

/// What is known of the vCPUs. A resume that is not needed, or follows a pause without a snapshot,
/// cuts the guest off: see [`snapshot::wake_vsock`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vcpus {
    Running,
    /// Loaded, or saved since they were paused: a resume is all that they need.
    AtRest,
    /// Paused and not saved since, or a request was cut off, or somebody else's.
    Unknown,
}

/// Starts a process that is to boot, and waits until it takes requests.
pub(crate) async fn ready_to_boot(cgroups: &Cgroups, spec: &LaunchSpec) -> Result<Ready, LaunchError> {
    launch::check_boot_files(spec)?;
    launch::start(cgroups, spec)?.ready().await
}

/// Boots; vCPUs run when it returns.
pub(crate) async fn boot(mut ready: Ready, spec: &LaunchSpec) -> Result<Firecracker, LaunchError> {
    match launch::configure(&mut ready, spec).await {
        Ok(seat) => Ok(Firecracker::new(ready.process, seat, ready.api, Vcpus::Running)),
        Err(error) => Err(ending::give_up(&ready.process, &spec.dir, error.into()).await),
    }
}

/// `None`: looked, and it is not there.
pub(crate) fn adopt(cgroups: &Cgroups, seat: &Seat) -> Result<Option<Firecracker>, AdoptError> {
    let found = process::find(seat.pid, seat.start_ticks, &seat.boot_id, &seat.dir, cgroups.path(&seat.dir))
        .map_err(|source| AdoptError::Look { pid: seat.pid, source })?;
    Ok(found.map(|process| Firecracker::new(process, seat.clone(), Api::new(&seat.dir), Vcpus::Unknown)))
}

impl Firecracker {
    fn new(process: Process, seat: Seat, api: Api, vcpus: Vcpus) -> Self {
        Self(Arc::new(Inner { process, seat, api: Mutex::new(api), vcpus: std::sync::Mutex::new(vcpus) }))
    }

    fn vcpus(&self) -> Vcpus {
        *self.0.vcpus.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn are(&self, vcpus: Vcpus) {
        *self.0.vcpus.lock().unwrap_or_else(PoisonError::into_inner) = vcpus;
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.0.seat
    }

    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        let mut api = self.0.api.lock().await;
        let process = &self.0.process;
        match self.vcpus() {
            Vcpus::Running => return Ok(()),
            Vcpus::AtRest => {}
            Vcpus::Unknown => match control::run_state(&mut api, process).await? {
                RunState::Running => {
                    self.are(Vcpus::Running);
                    return Ok(());
                }
                RunState::Paused => snapshot::wake_vsock(&mut api, process, &self.0.seat.dir).await?,
            },
        }
        self.are(Vcpus::Unknown);
        control::resume(&mut api, process).await?;
        self.are(Vcpus::Running);
        Ok(())
    }

    pub(crate) async fn pause(&self) -> Result<(), ControlError> {
        let mut api = self.0.api.lock().await;
        if self.vcpus() == Vcpus::AtRest {
            return Ok(());
        }
        // Said first: a pause that fails may have taken effect.
        self.are(Vcpus::Unknown);
        api.patch(&self.0.process, "PATCH /vm", "/vm", &json!({ "state": "Paused" })).await
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, ControlError> {
        control::run_state(&mut *self.0.api.lock().await, &self.0.process).await
    }

    pub(crate) async fn save(&self, vmstate: &Path, memory: SaveMemory<'_>) -> Result<Saved, ControlError> {
        let mut api = self.0.api.lock().await;
        let saved = snapshot::save(&mut api, &self.0.process, &self.0.seat, vmstate, memory).await?;
        self.are(Vcpus::AtRest);
        Ok(saved)
    }

    pub(crate) async fn dial_guest(&self) -> Result<UnixStream, ControlError> {
        vsock::dial(&self.0.seat.dir, &self.0.process).await
    }

    pub(crate) fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        self.0.process.exited()
    }

    pub(crate) async fn kill(&self) -> Result<(), KillError> {
        end(&self.0.process).await?;
        remove_sockets(&self.0.seat.dir)
    }
}
