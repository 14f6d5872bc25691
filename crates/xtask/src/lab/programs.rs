//! What is tested in the lab, built here: `hearth` with its agent, and the tests' own programs.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::build;
use crate::process;
use crate::workspace::Workspace;

/// A program, and its name in the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub name: &'static str,
    pub path: PathBuf,
}

/// Builds them all, and takes the Firecracker as it is.
pub fn build(workspace: &Workspace, firecracker: &Path) -> Result<Vec<Program>> {
    let hearth = build::hearth(workspace, false)?;
    let stories = test_program(workspace, "hearth-e2e", "stories")?;
    // The daemon's build has just made it: see crates/daemon/build.rs.
    let agent = workspace.target.join("agent/x86_64-unknown-linux-gnu/agent/hearth-agent");
    let agent_tests = test_program(workspace, "hearth-agent", "firecracker")?;
    let programs = [
        ("hearth", hearth),
        ("stories", stories),
        ("hearth-agent", agent),
        ("agent-tests", agent_tests),
        ("firecracker", firecracker.to_owned()),
    ];
    Ok(programs.map(|(name, path)| Program { name, path }).to_vec())
}

/// One line of what `cargo --message-format json` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Message {
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
struct Target {
    name: String,
}

/// Builds a test of a package; where its program is.
fn test_program(workspace: &Workspace, package: &str, test: &str) -> Result<PathBuf> {
    let mut command = workspace.cargo();
    command.args(["test", "--no-run", "--package", package, "--test", test, "--message-format", "json"]);
    println!("$ {}", process::line(&command));
    let printed = process::stdout_of(&mut command)?;
    let found = printed.lines().filter_map(|line| serde_json::from_str(line).ok()).find_map(|message: Message| {
        message.executable.filter(|_| message.target.is_some_and(|target| target.name == test))
    });
    found.with_context(|| format!("cargo does not say where the test {test} of {package} is"))
}
