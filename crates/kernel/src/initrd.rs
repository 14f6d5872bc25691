//! Builds the guest's initrd: the agent as `/init`, and the modules that it loads.
//!
//! In: a kernel and the agent's bytes. Out: an uncompressed cpio file: unpacking a compressed one
//! would be done by the guest, at every boot, for a few MiB that the host has in its page cache
//! anyway. The same input gives the same bytes. The agent reads `/lib/hearth/modules.list`, one
//! file name a line in load order, and finds the files in `/lib/hearth/modules`.

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::modules::{ModulePlan, WANTED_MODULES, guest_plan};
use crate::{GuestKernel, KernelError};

/// Changes whenever the same kernel and agent would give another initrd.
const LAYOUT_VERSION: u32 = 1;

/// How the name of a file begins that is being written.
const UNFINISHED: &str = ".new-";

/// Mount points and homes that the agent may count on, with their modes.
const DIRECTORIES: [(&str, u32); 9] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("lib", 0o755),
    ("lib/hearth", 0o755),
    ("lib/hearth/modules", 0o755),
    ("mnt", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
];

/// An initrd on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Initrd {
    /// Where it is.
    pub path: PathBuf,
    /// Of its bytes, in hex.
    pub sha256: String,
    /// Names of the modules in it, in load order.
    pub modules: Vec<String>,
    /// Wanted modules that this kernel does not have; guests do without.
    pub missing: Vec<String>,
}

/// Builds the initrd and puts it at `out`, whole or not at all; what was there is replaced.
///
/// # Errors
/// `unsupported` when the kernel lacks something essential, `corrupt` for a damaged module,
/// `exhausted` or `host_failed` when a file cannot be read or written.
pub fn build_initrd(kernel: &GuestKernel, agent: &[u8], out: &Path) -> Result<Initrd, KernelError> {
    let plan = guest_plan(kernel)?;
    let mut sha256 = String::new();
    write_whole(out, |file| {
        let hashing = Hashing { file: BufWriter::new(file), hash: Sha256::new() };
        let mut hashing = write_archive(hashing, &plan, agent)?;
        hashing.flush()?;
        sha256 = hex(&hashing.hash.finalize());
        Ok(())
    })?;
    let modules = plan.modules.into_iter().map(|module| module.name).collect();
    Ok(Initrd { path: out.to_owned(), sha256, modules, missing: plan.missing })
}

/// The initrd for this kernel and this agent from `cache_dir`, built if it is not there yet.
///
/// Older ones stay: a bundle's VMM may have been started with one, and starts with it again.
///
/// # Errors
/// As [`build_initrd`].
pub fn ensure_initrd(kernel: &GuestKernel, agent: &[u8], cache_dir: &Path) -> Result<PathBuf, KernelError> {
    let path = cache_dir.join(format!("initrd-{}.cpio", &cache_key(kernel, agent)?[..16]));
    if path.try_exists().map_err(KernelError::io("look for", &path))? {
        return Ok(path);
    }
    fs::create_dir_all(cache_dir).map_err(KernelError::io("create directory", cache_dir))?;
    let initrd = build_initrd(kernel, agent, &path)?;
    tracing::info!(path = %path.display(), kernel = kernel.version, modules = initrd.modules.len(), "initrd built");
    Ok(path)
}

fn cache_key(kernel: &GuestKernel, agent: &[u8]) -> Result<String, KernelError> {
    let mut hash = Sha256::new();
    hash.update(format!("{LAYOUT_VERSION} {WANTED_MODULES:?} {}\n", kernel.build_id()?));
    hash.update(agent);
    Ok(hex(&hash.finalize()))
}

fn write_archive<W: Write>(out: W, plan: &ModulePlan, agent: &[u8]) -> io::Result<W> {
    let mut archive = Archive::new(out);
    for (name, mode) in DIRECTORIES {
        archive.directory(name, mode)?;
    }
    archive.directory("tmp", 0o1777)?;
    // The kernel opens /dev/console for /init before anything is mounted.
    archive.char_device("dev/console", 0o600, (5, 1))?;
    archive.char_device("dev/null", 0o666, (1, 3))?;
    archive.file("init", 0o755, agent)?;
    let mut list = String::new();
    for module in &plan.modules {
        list.push_str(&module.name);
        list.push_str(".ko\n");
    }
    archive.file("lib/hearth/modules.list", 0o644, list.as_bytes())?;
    for module in &plan.modules {
        archive.file(&format!("lib/hearth/modules/{}.ko", module.name), 0o644, &module.elf)?;
    }
    archive.finish()
}

/// What [`sweep_cache`] did.
#[derive(Debug, Default)]
pub struct SweptCache {
    /// Files that were never finished, which it removed.
    pub removed: Vec<PathBuf>,
    /// Those that it could not remove.
    pub failed: Vec<KernelError>,
}

/// Removes what was left of initrds and kernels by a process that was killed while it built them. Only
/// while none is being built.
///
/// # Errors
/// The directory cannot be listed; one that is not there holds nothing.
pub fn sweep_cache(cache_dir: &Path) -> Result<SweptCache, KernelError> {
    let mut swept = SweptCache::default();
    let entries = match fs::read_dir(cache_dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
        entries => entries.map_err(KernelError::io("read directory", cache_dir))?,
    };
    for entry in entries {
        let entry = entry.map_err(KernelError::io("read directory", cache_dir))?;
        if !entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            continue;
        }
        let path = entry.path();
        match fs::remove_file(&path) {
            Ok(()) => swept.removed.push(path),
            Err(error) => swept.failed.push(KernelError::io("remove", &path)(error)),
        }
    }
    Ok(swept)
}

/// Lets `write` fill a new file and gives it the name `path` only when that went well.
pub(crate) fn write_whole(path: &Path, write: impl FnOnce(&mut fs::File) -> io::Result<()>) -> Result<(), KernelError> {
    let in_dir = || -> io::Result<()> {
        let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(dir)?;
        write(file.as_file_mut())?;
        // VMMs need not run as the user who builds.
        file.as_file().set_permissions(Permissions::from_mode(0o644))?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    in_dir().map_err(KernelError::io("write", path))
}

/// Hashes what goes into the file.
struct Hashing<W> {
    file: W,
    hash: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::tests::Tree;
    use hearth_model::{ErrorKind, Kind};

    fn with_image(tree: &Tree, content: &str) -> GuestKernel {
        let kernel = tree.kernel();
        fs::create_dir_all(kernel.vmlinuz.parent().expect("boot")).expect("boot");
        fs::write(&kernel.vmlinuz, content).expect("image");
        kernel
    }

    fn files_in(dir: &Path) -> usize {
        fs::read_dir(dir).expect("a directory").count()
    }

    #[test]
    fn an_initrd_holds_the_agent_and_its_modules_and_is_the_same_each_time() {
        let (tree, dir) = (Tree::complete(), tempfile::tempdir().expect("temp dir"));
        let one = build_initrd(&tree.kernel(), b"the agent", &dir.path().join("one")).expect("built");
        let two = build_initrd(&tree.kernel(), b"the agent", &dir.path().join("two")).expect("built");
        assert_eq!(one.modules, ["virtio_ring", "virtio", "virtio_mmio", "virtio_blk", "virtio_rng", "overlay"]);
        let bytes = fs::read(&one.path).expect("readable");
        assert_eq!(bytes, fs::read(&two.path).expect("readable"));
        assert_eq!((&one.sha256, hex(&Sha256::digest(&bytes))), (&two.sha256, one.sha256.clone()));
        let text = String::from_utf8_lossy(&bytes);
        assert!(text.contains("init\0\0the agent"));
        assert!(text.contains("virtio_ring.ko\nvirtio.ko\nvirtio_mmio.ko\nvirtio_blk.ko\nvirtio_rng.ko\noverlay.ko\n"));
        assert!(text.contains("lib/hearth/modules/virtio_rng.ko\0"));
    }

    #[test]
    fn the_cache_builds_again_only_for_another_agent_or_kernel() {
        let (tree, dir) = (Tree::complete(), tempfile::tempdir().expect("temp dir"));
        let cache = dir.path().join("new/cache");
        let kernel = with_image(&tree, "one");
        let first = ensure_initrd(&kernel, b"agent", &cache).expect("built");
        fs::write(&first, "marked").expect("writable");
        assert_eq!(ensure_initrd(&kernel, b"agent", &cache).expect("kept"), first);
        assert_eq!(fs::read(&first).expect("readable"), b"marked");

        let other_agent = ensure_initrd(&kernel, b"Agent", &cache).expect("built");
        let other_kernel = ensure_initrd(&with_image(&tree, "three"), b"agent", &cache).expect("built");
        assert!(first != other_agent && first != other_kernel && other_agent != other_kernel);
        assert_eq!(files_in(&cache), 3);
    }

    #[test]
    fn what_a_killed_build_left_is_swept_and_nothing_else() {
        let (tree, dir) = (Tree::complete(), tempfile::tempdir().expect("temp dir"));
        let built = ensure_initrd(&with_image(&tree, "one"), b"agent", dir.path()).expect("built");
        let half = dir.path().join(".new-Ab12Cd");
        fs::write(&half, "half").expect("writable");
        // What is no file is none of ours.
        let stuck = dir.path().join(".new-directory");
        fs::create_dir(&stuck).expect("made");
        let swept = sweep_cache(dir.path()).expect("swept");
        assert_eq!((swept.removed, swept.failed.len()), (vec![half], 1));
        assert!(swept.failed[0].to_string().contains(&stuck.display().to_string()), "{}", swept.failed[0]);
        assert!(built.exists() && files_in(dir.path()) == 2);
        assert!(sweep_cache(&dir.path().join("nowhere")).expect("nothing to sweep").removed.is_empty());
    }

    #[test]
    fn a_failed_build_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("temp dir");
        let bare = Tree::new();
        let error = ensure_initrd(&with_image(&bare, "image"), b"agent", dir.path());
        assert_eq!(error.expect_err("lacks everything").kind(), ErrorKind::Unsupported);
        assert_eq!(files_in(dir.path()), 0);

        let nowhere = dir.path().join("not/there");
        let error = build_initrd(&Tree::complete().kernel(), b"agent", &nowhere).expect_err("no directory");
        assert_eq!(error.to_string(), format!("write {}", nowhere.display()));
        let interrupted = write_whole(&dir.path().join("out"), |file| {
            file.write_all(b"half")?;
            Err(io::ErrorKind::StorageFull.into())
        });
        assert_eq!(interrupted.expect_err("full").kind(), ErrorKind::Exhausted);
        assert_eq!(files_in(dir.path()), 0);
    }
}
