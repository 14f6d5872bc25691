//! The QEMU backend: boards `microvm` and `q35`, run by KVM or translated (TCG).
//!
//! What a fork costs is decided here: guest RAM is one file. A booted guest shares it, so that a
//! paused guest's memory is already in a file; a loaded guest maps it privately, so that any
//! number of them start from one file without a copy, and what one of them changed is exactly the
//! private pages of its mapping. The device state is saved without RAM (`snapshot.rs`).

mod changes;
mod control;
mod launch;
mod load;
mod pages;
pub(crate) mod probe;
mod snapshot;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::UnixStream;
use tokio::sync::Mutex;

use crate::cgroup::Cgroups;
use crate::ending::{end, remove_sockets};
use crate::fault::{AdoptError, ControlError, KillError, LaunchError};
use crate::process::{self, Exit, Process};
use crate::socket;
use crate::spec::{AGENT_SOCKET, LaunchSpec, PageCount, Ram, RunState, SaveMemory, Saved, Seat};
use control::Qmp;
pub(crate) use load::{Loading, prepare};

/// A handle on one QEMU process. A clone is another handle on the same one.
#[derive(Debug, Clone)]
pub struct Qemu(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    process: Process,
    seat: Seat,
    /// Held while a command is under way. QEMU serves one connection at a time, so none is kept
    /// between commands: only a load leaves its own here, for the resume that follows.
    control: Mutex<Option<Qmp>>,
}

pub(crate) async fn boot(cgroups: &Cgroups, spec: &LaunchSpec) -> Result<Qemu, LaunchError> {
    let started = launch::boot(cgroups, spec).await?;
    Ok(Qemu::new(started.process, started.seat, None))
}

/// `None`: looked, and it is not there.
pub(crate) fn adopt(cgroups: &Cgroups, seat: &Seat) -> Result<Option<Qemu>, AdoptError> {
    let found = process::find(seat.pid, seat.start_ticks, &seat.boot_id, &seat.dir, cgroups.path(&seat.dir))
        .map_err(|source| AdoptError::Look { pid: seat.pid, source })?;
    Ok(found.map(|process| Qemu::new(process, seat.clone(), None)))
}

impl Qemu {
    fn new(process: Process, seat: Seat, control: Option<Qmp>) -> Self {
        Self(Arc::new(Inner { process, seat, control: Mutex::new(control) }))
    }

    pub(crate) fn seat(&self) -> &Seat {
        &self.0.seat
    }

    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        self.run("cont").await
    }

    pub(crate) async fn pause(&self) -> Result<(), ControlError> {
        self.run("stop").await
    }

    async fn run(&self, command: &'static str) -> Result<(), ControlError> {
        let mut held = self.0.control.lock().await;
        let mut qmp = self.qmp(held.take()).await?;
        qmp.run(&self.0.process, command, None).await?;
        Ok(())
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, ControlError> {
        let mut held = self.0.control.lock().await;
        self.qmp(held.take()).await?.run_state(&self.0.process).await
    }

    pub(crate) async fn save(&self, vmstate: &Path, memory: SaveMemory<'_>) -> Result<Saved, ControlError> {
        // Held until the pages are written: no resume by another handle's clone in between.
        let mut held = self.0.control.lock().await;
        let mut qmp = self.qmp(held.take()).await?;
        let format = snapshot::save(&mut qmp, &self.0.process, &self.absolute(vmstate)).await?;
        let pages = match memory {
            SaveMemory::Leave => None,
            SaveMemory::Onto(onto) => Some(self.write_pages(onto).await?),
            SaveMemory::Into(path) => {
                let answer =
                    format!("a guest whose memory is {:?} is saved onto a copy, not into {path:?}", self.0.seat.ram);
                return Err(ControlError::Refused { command: "save the guest", answer });
            }
        };
        Ok(Saved { format, pages })
    }

    async fn write_pages(&self, onto: &Path) -> Result<PageCount, ControlError> {
        let (seat, onto) = (self.0.seat.clone(), self.absolute(onto));
        let write = move || match seat.ram {
            Ram::Shared => changes::write_onto(&seat, &onto),
            Ram::Private | Ram::Anonymous | Ram::Tracked => pages::write_onto(&seat, &onto),
        };
        match tokio::task::spawn_blocking(write).await {
            Ok(written) => written,
            Err(stopped) => Err(ControlError::Pages { action: "copy the guest's pages", source: stopped.into() }),
        }
    }

    pub(crate) async fn dial_guest(&self) -> Result<UnixStream, ControlError> {
        let dir = &self.0.seat.dir;
        socket::connect(dir, AGENT_SOCKET)
            .await
            .map_err(|source| ControlError::Unreachable { socket: dir.join(AGENT_SOCKET), source })
    }

    pub(crate) fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        self.0.process.exited()
    }

    pub(crate) async fn kill(&self) -> Result<(), KillError> {
        end(&self.0.process).await?;
        remove_sockets(&self.0.seat.dir)
    }

    async fn qmp(&self, kept: Option<Qmp>) -> Result<Qmp, ControlError> {
        match kept {
            Some(qmp) => Ok(qmp),
            None => Qmp::connect(&self.0.seat.dir, &self.0.process).await,
        }
    }

    fn absolute(&self, path: &Path) -> PathBuf {
        self.0.seat.dir.join(path)
    }
}
