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
pub(crate) mod launch;
mod load;
pub(crate) mod probe;
pub(crate) mod ready;
mod snapshot;
mod vsock;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;
use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::ending::{self, end, remove_sockets};
use crate::fault::{AdoptError, ControlError, KillError, LaunchError};
use crate::process::{self, Exit, Process};
use crate::spec::{LaunchSpec, RunState, SaveMemory, Saved, Seat};
use control::Api;
pub(crate) use launch::Started;
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
    /// The guest was paused and not saved since: see [`snapshot::wake_vsock`].
    paused_bare: AtomicBool,
}

/// Boots; vCPUs run when it returns.
pub(crate) async fn boot(spec: &LaunchSpec) -> Result<Firecracker, LaunchError> {
    launch::check_boot_files(spec)?;
    let mut ready = launch::start(spec)?.ready().await?;
    match launch::configure(&mut ready, spec).await {
        Ok(seat) => Ok(Firecracker::new(ready.process, seat, ready.api, false)),
        Err(error) => Err(ending::give_up(&ready.process, &spec.dir, error.into()).await),
    }
}

/// `None`: looked, and it is not there.
pub(crate) fn adopt(seat: &Seat) -> Result<Option<Firecracker>, AdoptError> {
    let found = process::find(seat.pid, seat.start_ticks, &seat.boot_id, &seat.dir)
        .map_err(|source| AdoptError::Look { pid: seat.pid, source })?;
    // How it came to be paused, if it is, nobody knows.
    Ok(found.map(|process| Firecracker::new(process, seat.clone(), Api::new(&seat.dir), true)))
}

impl Firecracker {
    fn new(process: Process, seat: Seat, api: Api, paused_bare: bool) -> Self {
        let paused_bare = AtomicBool::new(paused_bare);
        Self(Arc::new(Inner { process, seat, api: Mutex::new(api), paused_bare }))
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.0.seat
    }

    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        let mut api = self.0.api.lock().await;
        if self.0.paused_bare.load(Ordering::Acquire) {
            snapshot::wake_vsock(&mut api, &self.0.process, &self.0.seat.dir).await?;
        }
        control::resume(&mut api, &self.0.process).await?;
        self.0.paused_bare.store(false, Ordering::Release);
        Ok(())
    }

    pub(crate) async fn pause(&self) -> Result<(), ControlError> {
        let mut api = self.0.api.lock().await;
        // Said first: a pause that fails may have taken effect.
        self.0.paused_bare.store(true, Ordering::Release);
        api.patch(&self.0.process, "PATCH /vm", "/vm", &json!({ "state": "Paused" })).await
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, ControlError> {
        control::run_state(&mut *self.0.api.lock().await, &self.0.process).await
    }

    pub(crate) async fn save(&self, vmstate: &Path, memory: SaveMemory<'_>) -> Result<Saved, ControlError> {
        let mut api = self.0.api.lock().await;
        let saved = snapshot::save(&mut api, &self.0.process, &self.0.seat, vmstate, memory).await?;
        self.0.paused_bare.store(false, Ordering::Release);
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
