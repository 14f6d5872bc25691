//! `cargo xtask build`: the one binary, with the guest agent in it.
//!
//! In: the profile. Out: `target/<profile>/hearth`. How the agent gets in is the business of the
//! daemon's build script.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::process;
use crate::workspace::Workspace;

/// What to build.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Optimised, as it is meant to be used.
    #[arg(long)]
    release: bool,
}

/// Builds and says where it is.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let hearth = hearth(workspace, arguments.release)?;
    let bytes = fs::metadata(&hearth).with_context(|| format!("look at {}", hearth.display()))?.len();
    println!("{} ({:.1} MiB, daemon, command line and guest agent)", hearth.display(), mib(bytes));
    Ok(())
}

/// Builds `hearth` and returns its path.
pub fn hearth(workspace: &Workspace, release: bool) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    command.args(["build", "--package", "hearth-cli", "--bin", "hearth"]);
    if release {
        command.arg("--release");
    }
    process::run(&mut command)?;
    Ok(workspace.target.join(if release { "release" } else { "debug" }).join("hearth"))
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
