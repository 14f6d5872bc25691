//! Saves the device state of a paused guest, without its RAM.
//!
//! `xen-save-devices-state` is in every build of QEMU, takes 1 ms and writes some 20 KiB. It has
//! no RAM section at all, so it serves a booted guest (whose RAM is in a file already) as well as
//! a loaded one (whose RAM is a private mapping, which `migrate` would write in full). `-incoming`
//! reads it, given `migration.send-configuration=off` on both sides (launch.rs).
//!
//! What is not saved either are the ROMs, which a fresh process of the same version has too, and
//! which nothing reads once the kernel runs.

use std::io;
use std::path::Path;

use serde_json::json;

use super::control::Qmp;
use crate::fault::ControlError;
use crate::process::Process;
use crate::spec::{RunState, StateFormat};

/// Saves to `vmstate`, an absolute path; overwrites what is there. The caller makes it durable.
pub(crate) async fn save(qmp: &mut Qmp, process: &Process, vmstate: &Path) -> Result<StateFormat, ControlError> {
    if qmp.run_state(process).await? == RunState::Running {
        return Err(ControlError::NotPaused { action: "save the device state" });
    }
    let filename = vmstate.to_str().ok_or_else(|| ControlError::Write {
        what: "device state",
        path: vmstate.to_owned(),
        source: io::Error::new(io::ErrorKind::InvalidInput, "the path is not UTF-8"),
    })?;
    // `live: false` keeps the disks active: the guest may go on here afterwards.
    qmp.run(process, "xen-save-devices-state", Some(json!({ "filename": filename, "live": false }))).await?;
    Ok(StateFormat::QemuDevices)
}
