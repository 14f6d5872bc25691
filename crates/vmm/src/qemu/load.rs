//! Loads a saved guest into a fresh QEMU process, with its RAM mapped privately.
//!
//! The process ends by itself when the state does not fit; its log says what did not.

use std::path::PathBuf;

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::Qemu;
use super::control::Qmp;
use super::launch::{self, Begin, STATE_FD, Started};
use crate::cgroup::Cgroups;
use crate::ending::give_up;
use crate::fault::{ControlError, LaunchError};
use crate::file::open;
use crate::process::Process;
use crate::spec::{LaunchSpec, SavedState, StateFormat};

/// A process that waits for its guest.
#[derive(Debug)]
pub(crate) struct Loading {
    started: Started,
    stream: UnixStream,
    state: Vec<u8>,
    vmstate: PathBuf,
}

/// Starts a process over the saved memory; neither file is needed by name when it returns.
pub(crate) async fn prepare(cgroups: &Cgroups, spec: &LaunchSpec, from: &SavedState) -> Result<Loading, LaunchError> {
    let vmstate = spec.dir.join(&from.vmstate);
    if from.format != StateFormat::QemuDevices {
        return Err(LaunchError::WrongFormat { vmstate, format: from.format, backend: spec.machine.backend });
    }
    let path = spec.dir.join(&from.memory);
    let unreadable = |source| LaunchError::Open { what: "saved state", path: vmstate.clone(), source };
    let state = std::fs::read(&vmstate).map_err(unreadable)?;
    let memory = open("saved memory", &path)?;
    let wanted = spec.machine.memory.size().bytes();
    let found = memory
        .metadata()
        .map_err(|source| LaunchError::Open { what: "saved memory", path: path.clone(), source })?
        .len();
    // A shorter file would be a bus error in the guest's first touch of what is missing.
    if found != wanted {
        return Err(LaunchError::MemorySize { path, found, wanted });
    }
    // Through a socket, not as an open file: newer versions want streams behind "fd:".
    let (ours, theirs) = UnixStream::pair().map_err(unreadable)?;
    let theirs = theirs.into_std().and_then(|theirs| theirs.set_nonblocking(false).map(|()| theirs.into()));
    let begin = Begin::Load { state: theirs.map_err(unreadable)? };
    let started = launch::start(cgroups, spec, memory, begin).await?;
    Ok(Loading { started, stream: ours, state, vmstate })
}

impl Loading {
    /// Loads; the guest is paused when it returns.
    pub(crate) async fn load(self) -> Result<Qemu, LaunchError> {
        let Self { mut started, stream, state, vmstate } = self;
        match read_state(&mut started.qmp, &started.process, stream, state).await {
            Ok(()) => Ok(Qemu::new(started.process, started.seat, Some(started.qmp))),
            Err(error) => {
                let error = match error {
                    ControlError::Gone { exit, .. } => LaunchError::Unloadable { vmstate, exit },
                    other => LaunchError::Control(other),
                };
                Err(give_up(&started.process, &started.seat.dir, error).await)
            }
        }
    }
}

async fn read_state(
    qmp: &mut Qmp,
    process: &Process,
    mut stream: UnixStream,
    state: Vec<u8>,
) -> Result<(), ControlError> {
    // Ends by itself: when all is written, or when QEMU is gone, which is seen and told below.
    tokio::spawn(async move { stream.write_all(&state).await });
    let events = json!({ "capabilities": [{ "capability": "events", "state": true }] });
    qmp.run(process, "migrate-set-capabilities", Some(events)).await?;
    qmp.run(process, "migrate-incoming", Some(json!({ "uri": format!("fd:{STATE_FD}") }))).await?;
    // "failed" is followed by the end of the process, which says more.
    while qmp.event(process, "MIGRATION").await?["status"] != "completed" {}
    Ok(())
}
