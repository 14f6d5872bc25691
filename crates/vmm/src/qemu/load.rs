//! Loads a saved guest into a fresh QEMU process, with its RAM mapped privately.
//!
//! The process ends by itself when the state does not fit; its log says what did not.

use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use super::control::Qmp;
use super::launch::{self, Begin, STATE_FD, Started};
use crate::fault::{ControlError, LaunchError};
use crate::process::Process;
use crate::spec::{LaunchSpec, SavedState, StateFormat};

/// Loads; the guest is paused when it returns, and neither file is needed by name any more.
pub(crate) async fn load(spec: &LaunchSpec, from: &SavedState) -> Result<Started, LaunchError> {
    let StateFormat::QemuDevices = from.format;
    let vmstate = spec.dir.join(&from.vmstate);
    let path = spec.dir.join(&from.memory);
    let unreadable = |source| LaunchError::Open { what: "saved state", path: vmstate.clone(), source };
    let state = std::fs::read(&vmstate).map_err(unreadable)?;
    let memory = launch::open("saved memory", &path)?;
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
    let mut started = launch::start(spec, memory, begin).await?;
    match read_state(&mut started.qmp, &started.process, ours, state).await {
        Ok(()) => Ok(started),
        Err(error) => {
            let error = match error {
                ControlError::Gone { exit, .. } => LaunchError::Unloadable { vmstate, exit },
                other => LaunchError::Control(other),
            };
            Err(launch::give_up(&started.process, &spec.dir, error).await)
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
