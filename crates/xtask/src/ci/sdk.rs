//! Hypeman's official SDKs, unmodified, against a real daemon.
//!
//! In: the workspace, and the suites in `sdk-tests/`. Out: whether they pass. This
//! file only installs the SDKs where a suite can find them and calls it; each suite starts its own
//! daemon from `HEARTH_BIN`, with the guest kernel in `HEARTH_TEST_KERNEL_DIR`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::ci::skips::Skips;
use crate::ci::steps::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// The versions that we promise to serve.
const PYTHON_SDK: &str = "hypeman==0.28.0";
const NODE_SDK: &str = "@onkernel/hypeman@0.28.0";

/// The suite's directory, if there is one.
fn suite(workspace: &Workspace, name: &str) -> Result<PathBuf, Outcome> {
    let dir = workspace.root.join("sdk-tests").join(name);
    if dir.is_dir() { Ok(dir) } else { Err(Outcome::NotRun(format!("sdk-tests/{name} is not there"))) }
}

/// `pytest` on `sdk-tests/python`, in a virtual environment of its own.
pub fn python(workspace: &Workspace, with_kernel: impl Fn(Command) -> Command, skips: &mut Skips) -> Result<Outcome> {
    let dir = match suite(workspace, "python") {
        Ok(dir) => dir,
        Err(not_run) => return Ok(not_run),
    };
    let hearth = build::hearth(workspace, false)?;
    let venv = workspace.target.join("sdk-python");
    let python = venv.join("bin/python");
    if !process::works(Command::new(&python).args(["-m", "pip", "--version"])) {
        process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    }
    process::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", PYTHON_SDK, "pytest"]))?;
    let mut pytest = with_kernel(Command::new(&python));
    // -rs: name what was skipped.
    pytest.args(["-m", "pytest", "-rs", "."]).current_dir(&dir);
    pytest.env("HEARTH_BIN", hearth).env("PYTHONDONTWRITEBYTECODE", "1");
    process::run_and_look(&mut pytest, |line| skips.look("sdk-python", line))?;
    Ok(Outcome::Passed)
}

/// `npm test` in a copy of `sdk-tests/node`, so that the clone stays as it is.
pub fn node(workspace: &Workspace, with_kernel: impl Fn(Command) -> Command, skips: &mut Skips) -> Result<Outcome> {
    let dir = match suite(workspace, "node") {
        Ok(dir) => dir,
        Err(not_run) => return Ok(not_run),
    };
    let hearth = build::hearth(workspace, false)?;
    let work = workspace.target.join("sdk-node");
    fs::create_dir_all(&work).with_context(|| format!("create {}", work.display()))?;
    process::run(Command::new("cp").args(["-rT", "--"]).args([&dir, &work]))?;
    let npm = |arguments: &[&str]| {
        let mut command = Command::new("npm");
        command.args(arguments).current_dir(&work);
        command
    };
    if work.join("package-lock.json").exists() {
        process::run(&mut npm(&["ci", "--no-audit", "--no-fund"]))?;
    } else {
        process::run(&mut npm(&["install", "--no-audit", "--no-fund", "--no-save", NODE_SDK]))?;
    }
    let mut test = with_kernel(npm(&["test"]));
    test.env("HEARTH_BIN", hearth);
    process::run_and_look(&mut test, |line| skips.look("sdk-node", line))?;
    Ok(Outcome::Passed)
}
