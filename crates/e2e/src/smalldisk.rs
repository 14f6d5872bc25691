//! A small file system of its own to fill up, to measure or to cut off, mounted where a data
//! directory shall be.

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
    /// Clones are copies. What a disk has been given of it, and no more, can be had at any moment:
    /// what is in the kernel's memory only is lost with the power.
    Ext4ThatLosesPower,
}

/// Where the other disk lies.
const OUTER_MIB: u64 = 16 << 10;

/// A file system in a file. Dropping it unmounts it.
#[derive(Debug)]
pub(crate) struct SmallDisk {
    mounted: PathBuf,
    image: PathBuf,
    kind: FileSystem,
    /// That the file lies on, which clones it in a moment.
    _outer: Option<Box<SmallDisk>>,
}

impl SmallDisk {
    /// Makes one of `mib` MiB and mounts it at `at`.
    pub(crate) fn mount(image: &Path, at: &Path, kind: FileSystem, mib: u64) -> Result<Self> {
        let (outer, image) = match kind {
            FileSystem::Ext4 | FileSystem::Xfs => (None, image.to_owned()),
            FileSystem::Ext4ThatLosesPower => {
                let (file, dir) = (image.with_extension("outer"), image.with_extension("dir"));
                let outer = Self::mount(&file, &dir, FileSystem::Xfs, OUTER_MIB)?;
                (Some(Box::new(outer)), dir.join("disk.img"))
            }
        };
        let file = std::fs::File::create(&image).context("make a file for a small disk")?;
        file.set_len(mib << 20).context("size a small disk")?;
        std::fs::create_dir_all(at).context("make a mount point")?;
        let mut mkfs = match kind {
            // No space is kept for root: the stories are root, and must see the end.
            FileSystem::Ext4 | FileSystem::Ext4ThatLosesPower => command("mkfs.ext4", &["-q", "-m", "0"]),
            FileSystem::Xfs => command("mkfs.xfs", &["-q", "-m", "reflink=1"]),
        };
        run(mkfs.arg(&image))?;
        mount(&image, at, kind)?;
        Ok(Self { mounted: at.to_owned(), image, kind, _outer: outer })
    }

    /// What would be on the disk if the power went now, in a file of its own.
    pub(crate) fn cut(&self, name: &str) -> Result<PathBuf> {
        let cut = self.image.with_file_name(name);
        // In one moment: the kernel lets nobody write while it clones.
        run(command("cp", &["--reflink=always"]).args([&self.image, &cut])).context("clone a small disk")?;
        Ok(cut)
    }

    /// The power comes back after that cut. Nothing may have a file open there.
    pub(crate) fn come_back(&self, cut: &Path) -> Result<()> {
        run(command("umount", &[]).arg(&self.mounted))?;
        run(command("cp", &["--reflink=always", "--remove-destination"]).args([cut, &self.image]))?;
        mount(&self.image, &self.mounted, self.kind)
    }
}

fn mount(image: &Path, at: &Path, kind: FileSystem) -> Result<()> {
    let options = match kind {
        FileSystem::Ext4 | FileSystem::Xfs => "loop",
        // Nothing gets to the disk because time has passed, or by kindness to who does not sync.
        FileSystem::Ext4ThatLosesPower => "loop,commit=600,noauto_da_alloc",
    };
    run(command("mount", &["-o", options]).args([image, at]))
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
