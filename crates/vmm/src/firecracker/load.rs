//! Loads a saved guest into a Firecracker process that waits for it.
//!
//! Whether the guest runs when `PUT /snapshot/load` returns is the plan's decision, and what came
//! of it is a value: only a guest that is paused is resumed by whoever called.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use hearth_model::LoadPlan;
use serde_json::json;

use super::launch::{Ready, Started, check_disks, host_swaps};
use super::{Firecracker, Vcpus};
use crate::answer::DYING;
use crate::ending::give_up;
use crate::fault::{ControlError, LaunchError};
use crate::file::open;
use crate::spec::{LaunchSpec, Ram, SavedState, Seat, SocketWait, StateFormat, VSOCK_SOCKET};

pub(super) const COMMAND: &str = "PUT /snapshot/load";

/// A process that takes requests, and what it is to load.
#[derive(Debug)]
pub(crate) struct Loading {
    spec: LaunchSpec,
    ready: Ready,
    from: SavedState,
    memory: File,
}

/// Whether the guest runs.
#[derive(Debug)]
pub(crate) enum Loaded {
    Resumed(Firecracker),
    Paused(Firecracker),
}

/// Looks at what is to be loaded while the process comes up.
pub(crate) async fn prepare(started: Started, from: &SavedState) -> Result<Loading, LaunchError> {
    let spec = started.spec().clone();
    let memory = check(&spec, from);
    // Awaited in any case: a failure leaves no process.
    let ready = started.ready().await?;
    match memory {
        Ok(memory) => Ok(Loading { spec, ready, from: from.clone(), memory }),
        Err(error) => Err(give_up(&ready.process, &spec.dir, error).await),
    }
}

/// What is missing or too short is named before Firecracker, which would name less, is asked.
fn check(spec: &LaunchSpec, from: &SavedState) -> Result<File, LaunchError> {
    let vmstate = spec.dir.join(&from.vmstate);
    if from.format != StateFormat::Firecracker {
        return Err(LaunchError::WrongFormat { vmstate, format: from.format, backend: spec.machine.backend });
    }
    open("saved state", &vmstate)?;
    check_disks(spec)?;
    let path = spec.dir.join(&from.memory);
    let memory = open("saved memory", &path)?;
    let wanted = spec.machine.memory.size().bytes();
    let found = memory
        .metadata()
        .map_err(|source| LaunchError::Open { what: "saved memory", path: path.clone(), source })?
        .len();
    if found == wanted { Ok(memory) } else { Err(LaunchError::MemorySize { path, found, wanted }) }
}

impl Loading {
    pub(crate) fn wait(&self) -> (&SocketWait, Duration) {
        self.ready.waited()
    }

    /// Loads. When it fails, neither process nor socket is left.
    pub(crate) async fn load(self, plan: &LoadPlan) -> Result<Loaded, LaunchError> {
        let Self { spec, mut ready, from, memory } = self;
        let ram = if spec.track_dirty_pages || host_swaps() { Ram::Tracked } else { Ram::Private };
        let inode = memory.metadata().map_or(0, |file| file.ino());
        let seat = ready.seat(&spec, ram, inode);
        match request(&mut ready, &seat, &from, plan).await {
            Ok(()) => {
                let loaded = |vcpus| Firecracker::new(ready.process, seat, ready.api, vcpus);
                Ok(match plan {
                    LoadPlan::ResumeOnLoad => Loaded::Resumed(loaded(Vcpus::Running)),
                    LoadPlan::LoadResume | LoadPlan::LoadPatchResume(_) => Loaded::Paused(loaded(Vcpus::AtRest)),
                })
            }
            Err(error) => {
                let vmstate = spec.dir.join(&from.vmstate);
                let error = explain(&ready, error, vmstate).await;
                Err(give_up(&ready.process, &spec.dir, error).await)
            }
        }
    }
}

async fn request(ready: &mut Ready, seat: &Seat, from: &SavedState, plan: &LoadPlan) -> Result<(), ControlError> {
    let mut body = json!({
        "snapshot_path": from.vmstate,
        "mem_backend": { "backend_type": "File", "backend_path": from.memory },
        "resume_vm": *plan == LoadPlan::ResumeOnLoad,
        "track_dirty_pages": seat.ram == Ram::Tracked,
    });
    if let LoadPlan::LoadPatchResume(foreign) = plan
        && foreign.vsock()
    {
        // Somebody else's state names somebody else's socket.
        body["vsock_override"] = json!({ "uds_path": VSOCK_SOCKET });
    }
    ready.api.put(&ready.process, COMMAND, "/snapshot/load", &body).await?;
    if let LoadPlan::LoadPatchResume(foreign) = plan {
        for patch in foreign.drives() {
            let drive = json!({ "drive_id": patch.id, "path_on_host": patch.path });
            ready.api.patch(&ready.process, "PATCH /drives", &format!("/drives/{}", patch.id), &drive).await?;
        }
    }
    Ok(())
}

/// A load that is refused is followed by the end of the process, whose log may say more.
pub(super) async fn explain(ready: &Ready, error: ControlError, vmstate: std::path::PathBuf) -> LaunchError {
    match error {
        ControlError::Refused { command: COMMAND, answer } => {
            let ended: Option<crate::Exit> = wait_a_little(DYING, ready.process.exited()).await;
            LaunchError::Refused { vmstate, answer, exit: ended.map(Box::new) }
        }
        ControlError::Gone { exit, .. } => LaunchError::Unloadable { vmstate, exit },
        other => LaunchError::Control(other),
    }
}

async fn wait_a_little<T>(most: Duration, what: impl Future<Output = T>) -> Option<T> {
    // Cancel-safe: only a receiver is dropped.
    tokio::time::timeout(most, what).await.ok()
}
