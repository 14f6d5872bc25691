//! `hearth-simulated-vmm`: see the crate.

use std::process::ExitCode;

fn main() -> ExitCode {
    hearth_simulated::run()
}
