//! Where the `hearth` binary is: given by `HEARTH_BIN`, or built here, once for all stories of a
//! run.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result, bail};

/// The binary, of this very source.
pub(crate) fn hearth() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
    built.clone().map_err(anyhow::Error::msg)
}

/// The directory that cargo builds this profile in: `target/debug`.
pub(crate) fn profile_dir() -> Result<PathBuf> {
    let test = std::env::current_exe().context("find this test's own file")?;
    // target/<profile>/deps/<test>
    let dir = test.ancestors().nth(2).context("this test does not lie in a target directory")?;
    Ok(dir.to_owned())
}

fn find_or_build() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("HEARTH_BIN") {
        let given = PathBuf::from(given);
        // Daemons are started in other directories than this one.
        return std::path::absolute(&given).with_context(|| format!("HEARTH_BIN {}", given.display()));
    }
    let dir = profile_dir()?;
    let binary = dir.join("hearth");
    // nextest runs each story in a process of its own: the first one builds for all.
    let stamp = dir.join("hearth-e2e.run");
    let lock = File::create(dir.join("hearth-e2e.lock")).context("make the build's lock file")?;
    lock.lock().context("lock the build")?;
    let run = std::env::var("NEXTEST_RUN_ID").ok();
    if run.is_some() && std::fs::read_to_string(&stamp).ok() == run {
        return Ok(binary);
    }
    build(&dir)?;
    if let Some(run) = run {
        std::fs::write(&stamp, run).context("note that it is built")?;
    }
    Ok(binary)
}

fn build(dir: &Path) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(["build", "--quiet", "--package", "hearth-cli", "--bin", "hearth"]);
    command.current_dir(env!("CARGO_MANIFEST_DIR"));
    if dir.ends_with("release") {
        command.arg("--release");
    }
    let status = command.status().context("start cargo")?;
    if !status.success() {
        bail!("building hearth ended with {status}");
    }
    Ok(())
}
