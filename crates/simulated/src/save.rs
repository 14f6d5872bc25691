//! `PUT /snapshot/create`: from a paused machine to two files.
//!
//! The state is written first, over what is there; then the memory, into a new file or merged into
//! one of the same length. A failure leaves what was written until then, and the machine paused.

use crate::machine::Vm;
use crate::request::CreateSnapshot;
use crate::vmstate::{VERSION, VmState};
use crate::vsock::{Door, FIRST_PORT};

/// Saves; the error is what follows "Create snapshot error".
pub(crate) fn save(vm: &mut Vm, params: &CreateSnapshot) -> Result<(), String> {
    if vm.running.is_some() {
        return Err(of_state("Operation not allowed: save/restore unavailable while running"));
    }
    // Told to the guest before anything can fail.
    vm.reset = true;
    let vcpu = vm.guest.save(&vm.memory).map_err(|why| of_state(&why))?;
    let state = VmState {
        version: VERSION.to_owned(),
        realtime: vm.realtime,
        next_port: vm.door.as_ref().map_or(FIRST_PORT, Door::next_port),
        devices: vm.devices.clone(),
        vcpu,
    };
    state.save(&params.snapshot_path)?;
    vm.memory.lock().save(&params.mem_file_path, params.snapshot_type)
}

fn of_state(why: &str) -> String {
    format!("Cannot save the microVM state: {why}")
}
