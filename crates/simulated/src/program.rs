//! Where the simulated VMM's binary is, for tests of other crates.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The binary could not be built.
#[derive(Debug, Clone, thiserror::Error)]
#[error("build hearth-simulated-vmm: {0}")]
pub struct Unbuilt(String);

/// The path of `hearth-simulated-vmm`: what `HEARTH_SIMULATED_VMM` says, or built by cargo, once.
///
/// # Errors
/// Cargo is not there or fails.
pub fn program() -> Result<PathBuf, Unbuilt> {
    static BUILT: OnceLock<Result<PathBuf, Unbuilt>> = OnceLock::new();
    BUILT
        .get_or_init(|| match std::env::var_os("HEARTH_SIMULATED_VMM") {
            Some(path) => Ok(path.into()),
            None => build(),
        })
        .clone()
}

fn build() -> Result<PathBuf, Unbuilt> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--bin", "hearth-simulated-vmm", "--message-format", "json", "--manifest-path"])
        .arg(&manifest)
        .output()
        .map_err(|error| Unbuilt(format!("start cargo: {error}")))?;
    if !output.status.success() {
        return Err(Unbuilt(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|message| message["executable"].as_str().map(PathBuf::from))
        .next_back()
        .ok_or_else(|| Unbuilt("cargo names no executable".to_owned()))
}
