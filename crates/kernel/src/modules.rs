//! Which modules the guest loads, and in what order.
//!
//! In: a kernel and the names of the modules that are wanted. Out: those and everything that they
//! need, unpacked, in load order. Dependencies come from the modules themselves (`modinfo`), so
//! there is no list of them to keep: Debian 12 and 13 differ in what is built in. Nothing is loaded
//! here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::decompress::Packing;
use crate::modinfo::{self, ModInfo};
use crate::{GuestKernel, KernelError};

/// What the initrd loads, as far as the kernel has it: the virtio devices of our machine types, the
/// file systems of images and overlays, the guest channel, the host's clock.
pub const WANTED_MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_console",
    "virtio_net",
    "virtio_rng",
    "overlay",
    "erofs",
    "ext4",
    "vmw_vsock_virtio_transport",
    "ptp_kvm",
];

/// No guest comes up without one of each group; all others of [`WANTED_MODULES`] are optional.
const ESSENTIAL: &[&[&str]] =
    &[&["virtio_mmio"], &["virtio_blk"], &["virtio_console"], &["overlay"], &["erofs", "ext4"]];

/// One module, unpacked.
#[derive(Clone, PartialEq, Eq)]
pub struct Module {
    /// As in `lsmod`, with underscores.
    pub name: String,
    /// Where it came from.
    pub path: PathBuf,
    /// Its ELF file.
    pub elf: Vec<u8>,
}

impl fmt::Debug for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, path, elf } = self;
        f.debug_struct("Module").field("name", name).field("path", path).field("bytes", &elf.len()).finish()
    }
}

/// The outcome of [`module_plan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModulePlan {
    /// In load order: what a module needs stands before it.
    pub modules: Vec<Module>,
    /// Wanted names that this kernel has neither as a module nor built in.
    pub missing: Vec<String>,
}

/// Plans the load of `wanted` and of all that these need; what is built in is left out.
///
/// # Errors
/// `corrupt` when a module cannot be unpacked, is no ELF file or needs one that is not there;
/// `host_failed` when a file cannot be read.
pub fn module_plan(kernel: &GuestKernel, wanted: &[&str]) -> Result<ModulePlan, KernelError> {
    let shelf = Shelf::read(&kernel.modules_dir)?;
    let mut planner = Planner { shelf: &shelf, order: Vec::new(), seen: BTreeSet::new(), by_alias: None };
    let mut missing = Vec::new();
    for name in wanted {
        match shelf.find(name) {
            Found::Module(name, path) => planner.add(name, path)?,
            Found::BuiltIn => {}
            Found::Nothing => missing.push((*name).to_owned()),
        }
    }
    Ok(ModulePlan { modules: planner.order, missing })
}

/// The plan for every guest: [`WANTED_MODULES`], of which the essential ones must be there.
pub(crate) fn guest_plan(kernel: &GuestKernel) -> Result<ModulePlan, KernelError> {
    let plan = module_plan(kernel, WANTED_MODULES)?;
    let lacks = |name: &&str| plan.missing.iter().any(|missing| missing == name);
    let unmet: Vec<&[&str]> = ESSENTIAL.iter().copied().filter(|group| group.iter().all(lacks)).collect();
    if unmet.is_empty() {
        if !plan.missing.is_empty() {
            tracing::info!(kernel = kernel.version, missing = ?plan.missing, "optional guest modules are not there");
        }
        return Ok(plan);
    }
    let optional = plan.missing.iter().filter(|name| !unmet.concat().contains(&name.as_str())).cloned().collect();
    let essential = unmet.iter().map(|group| group.join(" or ")).collect();
    Err(KernelError::Lacks { version: kernel.version.clone(), essential, optional })
}

/// Module names use `-` and `_` for the same thing.
fn normal(name: &str) -> String {
    name.replace('-', "_")
}

/// The module's name if this is the file of one, packed or not.
fn module_name(file: &str) -> Option<String> {
    let stem = ["", ".xz", ".zst", ".gz"].iter().find_map(|packing| file.strip_suffix(packing)?.strip_suffix(".ko"))?;
    Some(normal(stem))
}

/// What one `lib/modules/<version>` holds.
struct Shelf {
    root: PathBuf,
    files: BTreeMap<String, PathBuf>,
    built_in: BTreeSet<String>,
    /// Other names of built-in drivers.
    built_in_aliases: BTreeSet<String>,
}

enum Found<'a> {
    Module(&'a str, &'a Path),
    BuiltIn,
    Nothing,
}

impl Shelf {
    fn read(root: &Path) -> Result<Self, KernelError> {
        let mut files = BTreeMap::new();
        let mut dirs = vec![root.join("kernel")];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(&dir).map_err(KernelError::io("read directory", &dir))? {
                let entry = entry.map_err(KernelError::io("read directory", &dir))?;
                let kind = entry.file_type().map_err(KernelError::io("look at", &entry.path()))?;
                if kind.is_dir() {
                    dirs.push(entry.path());
                } else if let Some(name) = entry.file_name().to_str().and_then(module_name) {
                    files.insert(name, entry.path());
                }
            }
        }
        let list = read_if_there(&root.join("modules.builtin"))?;
        let built_in = String::from_utf8_lossy(&list)
            .lines()
            .filter_map(|line| module_name(line.rsplit('/').next().unwrap_or(line)))
            .collect();
        // `name.key=value`, NUL-terminated.
        let built_in_aliases = read_if_there(&root.join("modules.builtin.modinfo"))?
            .split(|byte| *byte == 0)
            .filter_map(|entry| std::str::from_utf8(entry).ok()?.split_once(".alias="))
            .map(|(_, alias)| alias.to_owned())
            .collect();
        Ok(Self { root: root.to_owned(), files, built_in, built_in_aliases })
    }

    fn find(&self, name: &str) -> Found<'_> {
        let name = normal(name);
        match self.files.get_key_value(&name) {
            Some((name, path)) => Found::Module(name, path),
            None if self.built_in.contains(&name) => Found::BuiltIn,
            None => Found::Nothing,
        }
    }
}

fn read_if_there(path: &Path) -> Result<Vec<u8>, KernelError> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(KernelError::io("read", path)),
    }
}

/// Walks dependencies depth first.
struct Planner<'a> {
    shelf: &'a Shelf,
    order: Vec<Module>,
    seen: BTreeSet<&'a str>,
    /// Filled at the first soft dependency that needs it.
    by_alias: Option<BTreeMap<String, &'a str>>,
}

impl<'a> Planner<'a> {
    /// The module at `path` after everything it needs; nothing if it is planned already.
    fn add(&mut self, name: &'a str, path: &'a Path) -> Result<(), KernelError> {
        if !self.seen.insert(name) {
            return Ok(());
        }
        let (elf, info) = open(path)?;
        for needed in &info.soft_before {
            if let Some((name, path)) = self.soft(needed)? {
                self.add(name, path)?;
            }
        }
        for needed in &info.depends {
            match self.shelf.find(needed) {
                Found::Module(name, path) => self.add(name, path)?,
                Found::BuiltIn => {}
                Found::Nothing => {
                    return Err(KernelError::damaged(path, format!("it needs module {needed}, which is not there")));
                }
            }
        }
        self.order.push(Module { name: name.to_owned(), path: path.to_owned(), elf });
        Ok(())
    }

    /// A soft dependency names a module or an alias, and may be absent. In the guest nobody answers
    /// when the kernel asks for a module by alias (libcrc32c asks for `crc32c`), so it must be
    /// loaded before.
    fn soft(&mut self, wanted: &str) -> Result<Option<(&'a str, &'a Path)>, KernelError> {
        match self.shelf.find(wanted) {
            Found::Module(name, path) => return Ok(Some((name, path))),
            Found::BuiltIn => return Ok(None),
            Found::Nothing if self.shelf.built_in_aliases.contains(wanted) => return Ok(None),
            Found::Nothing => {}
        }
        if self.by_alias.is_none() {
            self.by_alias = Some(crypto_aliases(self.shelf)?);
        }
        let name = self.by_alias.as_ref().and_then(|aliases| aliases.get(wanted));
        Ok(name
            .and_then(|name| self.shelf.files.get_key_value(*name))
            .map(|(name, path)| (name.as_str(), path.as_path())))
    }
}

/// Alias to module, of the crypto modules only: no other aliases are asked for by what we load, and
/// to open all of some four thousand packed modules would take seconds. The generic one of several
/// with the same alias: it runs on every CPU.
fn crypto_aliases(shelf: &Shelf) -> Result<BTreeMap<String, &str>, KernelError> {
    let crypto = shelf.root.join("kernel/crypto");
    let mut aliases = BTreeMap::new();
    for (name, path) in shelf.files.iter().filter(|(_, path)| path.starts_with(&crypto)) {
        for alias in open(path)?.1.aliases {
            let generic = name.ends_with("_generic");
            if generic || !aliases.contains_key(&alias) {
                aliases.insert(alias, name.as_str());
            }
        }
    }
    Ok(aliases)
}

fn open(path: &Path) -> Result<(Vec<u8>, ModInfo), KernelError> {
    let bytes = fs::read(path).map_err(KernelError::io("read", path))?;
    let elf = match Packing::of(&bytes) {
        Some(packing) => packing.unpack(&bytes).map_err(|error| KernelError::damaged(path, error.to_string()))?,
        None => bytes,
    };
    let info = modinfo::read(&elf).map_err(|reason| KernelError::damaged(path, reason))?;
    Ok((elf, info))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::decompress::tests::pack;
    use crate::modinfo::tests::module;
    use hearth_model::{ErrorKind, Kind};

    /// A made-up kernel tree; what Debian 12 and 13 look like, in small.
    pub(crate) struct Tree(tempfile::TempDir);

    impl Tree {
        pub(crate) fn new() -> Self {
            let tree = Self(tempfile::tempdir().expect("temp dir"));
            fs::create_dir_all(tree.kernel().modules_dir.join("kernel")).expect("kernel dir");
            tree
        }

        pub(crate) fn kernel(&self) -> GuestKernel {
            GuestKernel {
                version: "6.1.0-test".to_owned(),
                vmlinuz: self.0.path().join("boot/vmlinuz-6.1.0-test"),
                modules_dir: self.0.path().join("lib/modules/6.1.0-test"),
            }
        }

        pub(crate) fn file(self, path: &str, bytes: &[u8]) -> Self {
            let path = self.kernel().modules_dir.join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("dirs");
            fs::write(path, bytes).expect("file");
            self
        }

        pub(crate) fn module(self, path: &str, info: &[&str]) -> Self {
            self.file(&format!("kernel/{path}"), &module(info))
        }

        /// With everything that a guest needs.
        pub(crate) fn complete() -> Self {
            Self::new()
                .module("drivers/virtio/virtio.ko", &["depends=virtio_ring"])
                .module("drivers/virtio/virtio_ring.ko", &["depends="])
                .module("drivers/virtio/virtio_mmio.ko", &["depends=virtio,virtio_ring"])
                .module("drivers/block/virtio_blk.ko", &["depends=virtio,virtio_ring"])
                .module("drivers/char/hw_random/virtio-rng.ko", &["depends=virtio,virtio_ring"])
                .module("fs/overlayfs/overlay.ko", &["depends="])
                .file("modules.builtin", b"kernel/fs/ext4/ext4.ko\nkernel/drivers/char/virtio_console.ko\n")
        }
    }

    fn names(plan: &ModulePlan) -> Vec<&str> {
        plan.modules.iter().map(|module| module.name.as_str()).collect()
    }

    #[test]
    fn what_a_module_needs_is_loaded_before_it_and_only_once() {
        let plan =
            module_plan(&Tree::complete().kernel(), &["virtio_blk", "virtio_mmio", "virtio_rng", "ext4", "none"])
                .expect("a plan");
        assert_eq!(names(&plan), ["virtio_ring", "virtio", "virtio_blk", "virtio_mmio", "virtio_rng"]);
        assert_eq!(plan.missing, ["none"]);
    }

    #[test]
    fn packed_modules_are_unpacked() {
        let elf = module(&["depends=b"]);
        let tree = Tree::new()
            .file("kernel/a.ko.xz", &pack(Packing::Xz, &elf))
            .file("kernel/b.ko.zst", &pack(Packing::Zstd, &module(&["depends=c"])))
            .file("kernel/c.ko.gz", &pack(Packing::Gzip, &module(&[])));
        let plan = module_plan(&tree.kernel(), &["a"]).expect("a plan");
        assert_eq!(names(&plan), ["c", "b", "a"]);
        assert_eq!(plan.modules[2].elf, elf);
    }

    #[test]
    fn a_soft_dependency_is_found_by_its_alias() {
        let tree = Tree::new()
            .module("fs/erofs.ko", &["depends=libcrc32c"])
            .module("lib/libcrc32c.ko", &["softdep=pre: crc32c gone"])
            .module("crypto/crc32c_accelerated.ko", &["alias=crc32c"])
            .module("crypto/crc32c_generic.ko", &["alias=crc32c"])
            .module("crypto/crc32c_zz.ko", &["alias=crc32c"]);
        let plan = module_plan(&tree.kernel(), &["erofs"]).expect("a plan");
        assert_eq!(names(&plan), ["crc32c_generic", "libcrc32c", "erofs"]);

        let tree = tree.file("modules.builtin.modinfo", b"crc32c_generic.license=GPL\0crc32c_generic.alias=crc32c\0");
        let plan = module_plan(&tree.kernel(), &["erofs"]).expect("a plan");
        assert_eq!(names(&plan), ["libcrc32c", "erofs"]);
    }

    #[test]
    fn a_kernel_without_essential_modules_is_refused_by_name() {
        let tree = Tree::new()
            .module("virtio_blk.ko", &[])
            .module("overlay.ko", &[])
            .file("modules.builtin", b"kernel/virtio_mmio.ko\n");
        let error = guest_plan(&tree.kernel()).expect_err("lacks some");
        assert_eq!(
            error.to_string(),
            "kernel 6.1.0-test lacks what every guest needs: virtio_console, erofs or ext4 (missing too, but optional: \
             virtio_pci, virtio_net, virtio_rng, vmw_vsock_virtio_transport, ptp_kvm)"
        );
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint().is_some());
    }

    #[test]
    fn one_of_two_file_systems_is_enough() {
        let plan = guest_plan(&Tree::complete().kernel()).expect("only optional ones are missing");
        assert!(plan.missing.contains(&"erofs".to_owned()));
    }

    #[test]
    fn a_damaged_module_is_named() {
        let tree = Tree::complete().file("kernel/fs/erofs/erofs.ko.xz", b"\xfd7zXZ\0 and then nothing");
        let error = guest_plan(&tree.kernel()).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("erofs.ko.xz"), "{error}");

        let tree = Tree::new().module("a.ko", &["depends=b"]);
        let error = module_plan(&tree.kernel(), &["a"]).expect_err("incomplete");
        assert!(error.to_string().contains("it needs module b, which is not there"), "{error}");
    }
}
