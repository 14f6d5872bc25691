//! What is known of a VMM on this host, and asking a program about itself.

use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_model::Backend;

/// What is known of one backend on this host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BackendProbe {
    /// Which backend.
    pub backend: Backend,
    /// Whether instances can be run on it.
    pub available: bool,
    /// The program's version.
    pub version: Option<String>,
    /// The program.
    pub path: Option<PathBuf>,
    /// Why it is available or not, to a person.
    pub why: String,
}

/// What the program prints, told to. An error names the command.
pub(crate) fn ask(program: &Path, args: &[&str]) -> Result<String, String> {
    let said = |error: &dyn std::fmt::Display| format!("{} {}: {error}", program.display(), args.join(" "));
    let output = Command::new(program).args(args).output().map_err(|error| said(&error))?;
    if !output.status.success() {
        return Err(said(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
