//! What only the double has: a guest with an agent, and faults on request. What it shares with the
//! real Firecracker is in `tests/contract`.

mod agent;
mod faults;
#[path = "../contract/host.rs"]
#[allow(dead_code, reason = "the contract's stories need more of it")]
mod host;

use serde_json::json;

use crate::host::{Bundle, Lab, Vmm};

/// A lab whose kernel is some kernel: its guest has an agent.
fn lab() -> Lab {
    let mut lab = Lab::simulated();
    lab.kernel = lab.path("vmlinux");
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16 << 10, 7);
    std::fs::write(&lab.kernel, elf).expect("written");
    lab
}

/// A VMM whose guest has booted.
async fn boot(lab: &Lab, name: &str) -> Vmm {
    let mut vmm = lab.launch(name).await;
    vmm.configure(&lab.kernel, json!({})).await;
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
    vmm
}

/// A snapshot of a guest that has booted; its VMM is gone.
async fn bundle(lab: &Lab) -> Bundle {
    let mut vmm = boot(lab, "source").await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.kill().await;
    bundle
}

/// What a story of another crate starts.
#[test]
fn the_program_is_found_or_built() {
    let program = hearth_simulated::program().expect("built");
    let output = std::process::Command::new(&program).arg("--version").output().expect("it starts");
    assert!(String::from_utf8_lossy(&output.stdout).starts_with("Firecracker v1.16.1\n"));
    assert_eq!(hearth_simulated::program().expect("once"), program);
}
