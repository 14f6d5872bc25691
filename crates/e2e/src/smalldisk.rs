//! A small file system of its own to fill up or to measure, mounted where a data directory shall
//! be.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What is made on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileSystem {
    /// Clones are copies.
    Ext4,
    /// Clones share their blocks.
    Xfs,
}

/// A file system in a file. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    mounted: PathBuf,
}

impl SmallDisk {
    /// Makes one of `mib` MiB and mounts it at `at`.
    pub(crate) fn mount(image: &Path, at: &Path, kind: FileSystem, mib: u64) -> Result<Self> {
        let file = std::fs::File::create(image).context("make a file for a small disk")?;
        file.set_len(mib << 20).context("size a small disk")?;
        std::fs::create_dir_all(at).context("make a mount point")?;
        let mut mkfs = match kind {
            // No space is kept for root: the stories are root, and must see the end.
            FileSystem::Ext4 => command("mkfs.ext4", &["-q", "-m", "0"]),
            FileSystem::Xfs => command("mkfs.xfs", &["-q", "-m", "reflink=1"]),
        };
        run(mkfs.arg(image))?;
        run(command("mount", &["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { mounted: at.to_owned() })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if let Err(error) = run(command("umount", &["--lazy"]).arg(&self.mounted)) {
            eprintln!("a small disk stays mounted: {error:#}");
        }
    }
}

fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
