//! Builds `hearth-agent` for the guest (static, small) and hands its path to `include_bytes!`, so
//! that one `cargo build` leaves one complete `hearth`.
//!
//! The agent has a target directory of its own below `OUT_DIR`'s: a cargo inside cargo must not
//! wait for the lock that its parent holds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const TARGET: &str = "x86_64-unknown-linux-gnu";

fn main() {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let crates = manifest_dir.parent().expect("crates/daemon has a parent");
    for part in ["agent/src", "agent/Cargo.toml", "agent-proto/src", "agent-proto/Cargo.toml"] {
        watch(&crates.join(part));
    }
    println!("cargo::rerun-if-env-changed=HEARTH_AGENT");

    // A packager may bring an agent built elsewhere.
    let agent = env::var_os("HEARTH_AGENT").map_or_else(|| build(crates), PathBuf::from);
    println!("cargo::rustc-env=HEARTH_AGENT_PATH={}", agent.display());
}

fn build(crates: &Path) -> PathBuf {
    // OUT_DIR is target/<profile>/build/<package>-<hash>/out; one agent serves every profile.
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let target_dir = out.ancestors().nth(4).expect("OUT_DIR lies in a target directory").join("agent");
    let status = Command::new(env::var_os("CARGO").expect("cargo sets it"))
        .args(["build", "--locked", "--profile", "agent", "--package", "hearth-agent", "--target", TARGET])
        .arg("--target-dir")
        .arg(&target_dir)
        .current_dir(crates.parent().expect("crates has a parent"))
        // Flags meant for the host's build must not reach the guest's.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .status();
    match status {
        Ok(status) if status.success() => target_dir.join(TARGET).join("agent/hearth-agent"),
        Ok(status) => panic!("building hearth-agent ended with {status}: see the messages above"),
        Err(error) => panic!("cargo could not be started to build hearth-agent: {error}"),
    }
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}
