//! The API against its own document, by schemathesis: requests that it makes up, valid and not.
//!
//! In: the workspace, and `sdk-tests/schemathesis`. Out: whether every answer was one that the document
//! tells, and none a 5xx. This file only installs schemathesis and calls `run.py`, which starts a
//! daemon of its own with simulated VMMs. Where it cannot be installed, the step says so and is
//! skipped.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::ci::skips::Skips;
use crate::ci::steps::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// The version whose requests we know: another makes up others.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// `sdk-tests/schemathesis/run.py`, in a virtual environment of its own.
pub fn run(workspace: &Workspace, skips: &mut Skips) -> Result<Outcome> {
    let dir = workspace.root.join("sdk-tests/schemathesis");
    let venv = workspace.target.join("schemathesis");
    let python = venv.join("bin/python");
    let installed = || -> Result<()> {
        if !process::works(Command::new(&python).args(["-m", "pip", "--version"])) {
            process::run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
        }
        process::run(Command::new(&python).args(["-m", "pip", "install", "--quiet", SCHEMATHESIS]))
    };
    if let Err(error) = installed() {
        let reason = format!("{SCHEMATHESIS} cannot be installed: {error:#}");
        skips.add("schemathesis", &reason);
        return Ok(Outcome::NotRun(reason));
    }
    let hearth = build::hearth(workspace, false)?;
    process::run(workspace.cargo().args(["build", "--package", "hearth-simulated"]))?;
    let mut tests = Command::new(&python);
    tests.arg(dir.join("run.py")).env("PYTHONDONTWRITEBYTECODE", "1");
    tests.env("HEARTH_BIN", hearth).env("HEARTH_SIMULATED", workspace.target.join("debug/hearth-simulated-vmm"));
    process::run(&mut tests)?;
    Ok(Outcome::Passed)
}
