//! Saves a paused guest: device state and memory, by one request.
//!
//! What Firecracker writes depends on what it knows of the guest's pages:
//!
//! | memory | into | request | writes |
//! | --- | --- | --- | --- |
//! | [`Ram::Anonymous`] | a new file | `Diff` | every page ever touched |
//! | [`Ram::Tracked`] | a copy of the base | `Diff` | pages written since the base |
//! | [`Ram::Tracked`] | a new file | `Full` | every page, zeroes too |
//! | [`Ram::Private`] | a copy of the base | `Diff` | pages in memory, the base's too |
//!
//! A request that fails may have reset the tracking, so whoever calls takes the base away first and
//! puts a new one there after success.

use std::path::Path;

use serde_json::json;

use super::control::{self, Api};
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::{Ram, RunState, SaveMemory, Saved, Seat, StateFormat};

const COMMAND: &str = "PUT /snapshot/create";

/// Saves to `vmstate` and to the file that `memory` names.
pub(crate) async fn save(
    api: &mut Api,
    process: &Process,
    seat: &Seat,
    vmstate: &Path,
    memory: SaveMemory<'_>,
) -> Result<Saved, ControlError> {
    let (onto, whole) = match (seat.ram, memory) {
        (Ram::Tracked, SaveMemory::Into(path)) => (path, true),
        (Ram::Anonymous, SaveMemory::Into(path)) | (Ram::Tracked | Ram::Private, SaveMemory::Onto(path)) => {
            (path, false)
        }
        (ram, memory) => {
            let answer = format!("a guest whose memory is {ram:?} cannot be saved with {memory:?}");
            return Err(ControlError::Refused { command: COMMAND, answer });
        }
    };
    let body = json!({
        "snapshot_type": if whole { "Full" } else { "Diff" },
        "snapshot_path": seat.dir.join(vmstate),
        "mem_file_path": seat.dir.join(onto),
    });
    match api.put(process, COMMAND, "/snapshot/create", &body).await {
        Ok(()) => Ok(Saved { format: StateFormat::Firecracker, pages: None }),
        Err(error @ ControlError::Refused { .. }) => match control::run_state(api, process).await {
            Ok(RunState::Running) => Err(ControlError::NotPaused { action: "save the guest" }),
            Ok(RunState::Paused) | Err(_) => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Makes a guest that is paused, and was not saved since, reachable again before it is resumed.
///
/// Firecracker 1.16.0 and 1.16.1 hold back what is sent to a resumed guest's vsock until the guest
/// has acknowledged a reset of the device, which only a snapshot announces: after a bare pause and
/// resume, and after a resume of a guest that runs, every connection from the host hangs (fixed in
/// 1.16.2). So the reset is announced, by a
/// snapshot whose state is thrown away and whose memory has nowhere to go: it is refused after the
/// announcement, and before the guest's memory or the tracking of its pages is touched.
pub(crate) async fn wake_vsock(api: &mut Api, process: &Process, dir: &Path) -> Result<(), ControlError> {
    let version = api.get(process, "GET /version", "/version").await?;
    let version = version["firecracker_version"].as_str().unwrap_or_default();
    if super::probe::Version::parse(version).is_some_and(|version| version.wakes_vsock_after_a_bare_pause()) {
        return Ok(());
    }
    const ASIDE: &str = "vmstate.aside";
    let body = json!({ "snapshot_type": "Diff", "snapshot_path": ASIDE, "mem_file_path": "nowhere/memory" });
    let announced = api.put(process, COMMAND, "/snapshot/create", &body).await;
    let path = dir.join(ASIDE);
    socket::remove(&path).map_err(|source| ControlError::Write { what: "device state", path, source })?;
    match announced {
        // As intended.
        Ok(()) | Err(ControlError::Refused { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}
