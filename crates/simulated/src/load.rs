//! `PUT /snapshot/load`: from two files to a paused machine.
//!
//! In Firecracker's order, which decides what is named and what is left behind when several things
//! are wrong: state, overrides, memory, clock, serial output, drives, vsock.

use std::fs::File;
use std::sync::Arc;

use crate::faults::Faults;
use crate::machine::{Devices, Disks, Setup, Vm, open_disk};
use crate::memory::Memory;
use crate::request::{LoadSnapshot, MemBackendType};
use crate::running::{Guest, Shared};
use crate::serial::Serial;
use crate::vmstate::VmState;
use crate::vsock::{self, Door, Past};

/// Loads; the error is what follows "Load snapshot error".
pub(crate) fn load(params: &LoadSnapshot, setup: &mut Setup, faults: &Arc<Faults>) -> Result<Vm, String> {
    restore(params, setup, faults).map_err(|why| format!("Failed to restore from snapshot: {why}"))
}

fn restore(params: &LoadSnapshot, setup: &mut Setup, faults: &Arc<Faults>) -> Result<Vm, String> {
    let mut state = VmState::load(&params.snapshot_path).map_err(of_state)?;
    overrides(params, &mut state.devices).map_err(|why| of_state(why.to_owned()))?;
    state.devices.machine.track_dirty_pages = params.track_dirty_pages;

    let memory = Shared::new(memory(params, &state.devices)?);
    if params.clock_realtime && !state.realtime {
        let why = "clock_realtime requested but not present in the snapshot state";
        return Err(of_build(&format!("Failed to restore microVM state: {why}")));
    }
    let serial = Serial::open(setup.serial.as_deref()).map_err(|error| {
        of_build(&format!("Failed to restore devices: Error creating DeviceManager: Error with EventFd: {error}"))
    })?;
    let of_devices = |why: String| of_build(&format!("Failed to restore devices: Error restoring MMIO devices: {why}"));
    let mut disks = Disks::new();
    for drive in &state.devices.drives {
        let path = drive.path_on_host.as_deref().unwrap_or_default();
        let disk = open_disk(path, drive.is_read_only.unwrap_or_default());
        disks.insert(drive.drive_id.clone(), disk.map_err(|why| of_devices(format!("Block: {why}")))?);
    }
    let guest = Guest::restore(&state.vcpu, &memory).map_err(|error| of_devices(error.to_string()))?;
    let mut door = None;
    if let Some(config) = &state.devices.vsock {
        let past = Past::Loaded { next_port: state.next_port };
        let opened = vsock::bind(&config.uds_path)
            .and_then(|bound| Door::open(bound, guest.listener(), past, Arc::clone(faults)))
            .map_err(|error| {
                of_devices(format!("VsockUnixBackend: Error binding to the host-side Unix socket: {error}"))
            })?;
        door = Some(opened);
    }
    let realtime = faults.plan().map_err(|error| of_build(&error.to_string()))?.stable_tsc;
    // Whoever saved it left a reset for the guest to find.
    Ok(Vm { devices: state.devices, guest, memory, serial, door, disks, running: None, reset: true, realtime })
}

fn overrides(params: &LoadSnapshot, devices: &mut Devices) -> Result<(), &'static str> {
    for change in &params.network_overrides {
        let network = devices.networks.iter_mut().find(|network| network.iface_id == change.iface_id);
        network.ok_or("Unknown Network Device.")?.host_dev_name.clone_from(&change.host_dev_name);
    }
    if let Some(change) = &params.vsock_override {
        devices.vsock.as_mut().ok_or("Unknown Vsock Device.")?.uds_path.clone_from(&change.uds_path);
    }
    Ok(())
}

fn memory(params: &LoadSnapshot, devices: &Devices) -> Result<Memory, String> {
    let path = &params.memory.backend_path;
    if params.memory.backend_type == MemBackendType::Uffd {
        // Page faults cannot be had without a mapping.
        return Err(
            "Failed to load guest memory: Error creating guest memory from uffd: it is not simulated".to_owned()
        );
    }
    let of_file = |why: String| format!("Failed to load guest memory: Error creating guest memory from file: {why}");
    let of_open = |error: std::io::Error| of_file(format!("Failed to load guest memory: {error}"));
    let file = File::open(path).map_err(of_open)?;
    Memory::over(file, devices.machine.mem_size_mib, params.track_dirty_pages).map_err(of_open)?.ok_or_else(|| {
        let why = "Total sum of memory regions exceeds largest possible file offset";
        of_file(format!("Failed to restore guest memory: {why}"))
    })
}

fn of_state(why: String) -> String {
    format!("Failed to get snapshot state from file: {why}")
}

fn of_build(why: &str) -> String {
    format!("Failed to build microVM from snapshot: {why}")
}
