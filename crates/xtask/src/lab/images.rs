//! What the lab's host is made of: a root file system, the guest's kernel package, the programs
//! under test, a kernel and an initramfs of its own.
//!
//! In: a directory that holds what earlier runs made, a kernel package, programs. Out: files. Each
//! stands beside the recipe that it was made by, and is made again when that changes.

use std::fs::{self, File};
use std::io::BufWriter;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use hearth_kernel::{Archive, GuestKernel};
use hearth_model::error::chain;

use crate::debian::{self, Debian};
use crate::lab::programs::Program;
use crate::process;

/// What stories need on a host, on top of `minbase`.
const PACKAGES: &str = "busybox-static,e2fsprogs,iproute2,nftables,procps,strace,xfsprogs";

/// What a host does not need of its Debian, and takes long to copy.
const DROPPED: [&str; 9] = [
    "dev",
    "run",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
];

/// What the host's kernel loads: its own disks and console, and what it offers to VMMs.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_blk",
    "virtio_console",
    "erofs",
    "overlay",
    "xfs",
    "loop",
    "kvm-amd",
    "tun",
    "vhost_net",
    "vhost_vsock",
    "veth",
    "bridge",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_masq",
    "nft_chain_nat",
    "nft_fib_inet",
    "nft_limit",
    "nft_reject_inet",
    "nft_reject_ipv4",
    "sch_tbf",
];

/// What is a module of its own in some kernels, and in others a part of one above.
const IN_PARTS: &[&str] = &["nft_objref"];

const INIT: &[u8] = include_bytes!("init.sh");
const START: &[u8] = include_bytes!("start.sh");

/// All of it.
#[derive(Debug)]
pub struct Images {
    /// The host's root file system.
    pub root: PathBuf,
    /// The kernel package that guests boot from.
    pub kernel: PathBuf,
    /// Programs under test.
    pub programs: PathBuf,
    /// The host's kernel.
    pub vmlinux: PathBuf,
    /// The host's initramfs.
    pub initrd: PathBuf,
}

impl Images {
    /// Makes what is not there yet.
    pub fn ensure(place: &Path, kernel_dir: &Path, programs: &[Program]) -> Result<Self> {
        let kernel = hearth_kernel::find(kernel_dir).map_err(|error| anyhow!(chain(&error)))?;
        let version = version(&kernel)?;
        let vmlinux = hearth_kernel::ensure_vmlinux(&kernel, place).map_err(|error| anyhow!(chain(&error)))?;
        let (root, busybox) = root(place)?;
        let initrd = place.join("initrd.cpio");
        let recipe =
            format!("{version}\n{MODULES:?}\n{IN_PARTS:?}\n{}\n{}", stamp(&busybox)?, String::from_utf8_lossy(INIT));
        cached(&initrd, &recipe, |draft| initramfs(&kernel, &busybox, draft))?;
        let package = place.join("kernel.erofs");
        cached(&package, &version, |draft| erofs(kernel_dir, draft))?;
        let image = place.join("programs.erofs");
        cached(&image, &programs_recipe(programs)?, |draft| programs_image(place, programs, draft))?;
        Ok(Self { root, kernel: package, programs: image, vmlinux, initrd })
    }
}

/// Makes `path` by `make`, which is given another name, unless it was made by the same recipe.
fn cached(path: &Path, recipe: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (stamp, draft) = (path.with_extension("recipe"), path.with_extension("new"));
    if path.exists() && fs::read_to_string(&stamp).is_ok_and(|known| known == recipe) {
        return Ok(());
    }
    println!("making {}", path.display());
    for old in [&draft, &stamp] {
        if old.exists() {
            fs::remove_file(old).with_context(|| format!("remove the old {}", old.display()))?;
        }
    }
    make(&draft)?;
    fs::rename(&draft, path).with_context(|| format!("name {}", path.display()))?;
    fs::write(&stamp, recipe).with_context(|| format!("write {}", stamp.display()))
}

/// Tells a file from what it was before, without reading it.
fn stamp(path: &Path) -> Result<String> {
    let about = fs::metadata(path).with_context(|| format!("look at {}", path.display()))?;
    Ok(format!("{} {} {}.{:09}", path.display(), about.len(), about.mtime(), about.mtime_nsec()))
}

fn version(kernel: &GuestKernel) -> Result<String> {
    Ok(format!("{}\n{}", kernel.version, stamp(&kernel.vmlinuz)?))
}

fn erofs(tree: &Path, image: &Path) -> Result<()> {
    process::run(Command::new("mkfs.erofs").arg("--quiet").arg(image).arg(tree))
}

/// The root file system, and the busybox out of it for the initramfs.
fn root(place: &Path) -> Result<(PathBuf, PathBuf)> {
    let debian = Debian::of_this_machine()?;
    let (image, busybox, tree) = (place.join("root.erofs"), place.join("busybox"), place.join("debian"));
    let recipe = format!("{} {PACKAGES}\nwithout {DROPPED:?}\n", debian.suite);
    cached(&image, &recipe, |draft| {
        debian::remove(&tree)?;
        let made = debian::debootstrap(&debian, PACKAGES, &tree).and_then(|_| {
            fs::copy(tree.join("bin/busybox"), &busybox).context("take busybox out of the tree")?;
            for dir in DROPPED.map(|dir| tree.join(dir)) {
                debian::remove(&dir)?;
                fs::create_dir(&dir).with_context(|| format!("make {} anew", dir.display()))?;
            }
            erofs(&tree, draft)
        });
        debian::remove(&tree)?;
        made
    })?;
    Ok((image, busybox))
}

fn initramfs(kernel: &GuestKernel, busybox: &Path, to: &Path) -> Result<()> {
    let wanted = [MODULES, IN_PARTS].concat();
    let plan = hearth_kernel::module_plan(kernel, &wanted).map_err(|error| anyhow!(chain(&error)))?;
    let missing: Vec<_> = plan.missing.iter().filter(|name| !IN_PARTS.contains(&name.as_str())).cloned().collect();
    if !missing.is_empty() {
        bail!("kernel {} lacks what the lab's host needs: {}", kernel.version, missing.join(", "));
    }
    let file = File::create(to).with_context(|| format!("make {}", to.display()))?;
    let busybox = fs::read(busybox).with_context(|| format!("read {}", busybox.display()))?;
    let list: String = plan.modules.iter().map(|module| format!("{}.ko\n", module.name)).collect();
    let written = || {
        let mut archive = Archive::new(BufWriter::new(file));
        for dir in ["bin", "dev", "lib", "lib/lab", "lib/lab/modules", "proc", "sys"] {
            archive.directory(dir, 0o755)?;
        }
        archive.char_device("dev/console", 0o600, (5, 1))?;
        archive.file("init", 0o755, INIT)?;
        archive.file("bin/busybox", 0o755, &busybox)?;
        archive.file("lib/lab/modules.list", 0o644, list.as_bytes())?;
        for module in &plan.modules {
            archive.file(&format!("lib/lab/modules/{}.ko", module.name), 0o644, &module.elf)?;
        }
        std::io::Write::flush(&mut archive.finish()?)
    };
    written().with_context(|| format!("write {}", to.display()))
}

fn programs_recipe(programs: &[Program]) -> Result<String> {
    let mut recipe = String::from_utf8_lossy(START).into_owned();
    for program in programs {
        recipe += &format!("{} {}\n", program.name, stamp(&program.path)?);
    }
    Ok(recipe)
}

fn programs_image(place: &Path, programs: &[Program], image: &Path) -> Result<()> {
    let tree = place.join("programs");
    debian::remove(&tree)?;
    fs::create_dir(&tree).with_context(|| format!("make {}", tree.display()))?;
    fs::write(tree.join("start.sh"), START).context("write start.sh")?;
    for program in programs {
        let to = tree.join(program.name);
        // Most of a program is what a debugger reads.
        process::run(Command::new("strip").arg("--strip-debug").arg("-o").arg(&to).arg(&program.path))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o755))
            .with_context(|| format!("make {} executable", to.display()))?;
    }
    let made = erofs(&tree, image);
    debian::remove(&tree)?;
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_made_is_kept_until_its_recipe_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("thing.image");
        let make = |recipe: &str, content: &str| {
            cached(&path, recipe, |draft| Ok(fs::write(draft, content)?)).expect("made");
            fs::read_to_string(&path).expect("there")
        };
        assert_eq!(make("one", "first"), "first");
        assert_eq!(make("one", "not made"), "first");
        assert_eq!(make("two", "second"), "second");
        cached(&path, "three", |_| bail!("broken")).expect_err("not made");
        assert_eq!(make("two", "again"), "again", "a failure leaves no recipe behind");
    }
}
