//! Imports into a temporary store, and looks at the result through a read-only loop mount.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use hearth_image::{ImportError, Imported, Limits};
use hearth_model::error::chain;

pub struct Store {
    dir: tempfile::TempDir,
}

/// What one name of the mounted image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `file`, `dir`, `-> target`, `char 1:3`, `block 8:0`, `fifo`.
    pub what: String,
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub links: u64,
    pub ino: u64,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

impl Store {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn images(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        std::fs::write(self.path(name), bytes).expect("write");
        self.path(name)
    }

    pub fn import(&self, source: &Path) -> Result<Imported, ImportError> {
        self.import_with(source, &Limits::default())
    }

    pub fn import_with(&self, source: &Path, limits: &Limits) -> Result<Imported, ImportError> {
        let imported = hearth_image::import(source, &self.images(), limits, &|_| {});
        if imported.is_err() {
            assert_eq!(self.leftovers(), Vec::<String>::new(), "a failed import leaves nothing");
        }
        imported
    }

    /// Imports what cannot be imported; kind, whole message and hint.
    pub fn refused(&self, source: &Path) -> (hearth_model::ErrorKind, String) {
        let error = self.import(source).expect_err("refused");
        let hint = hearth_model::Kind::hint(&error);
        assert!(hint.is_some(), "{error:?} has no remedy");
        (hearth_model::Kind::kind(&error), chain(&error))
    }

    /// Everything in the store that is no image.
    pub fn leftovers(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.images()) else { return Vec::new() };
        entries.map(|entry| entry.expect("entry").file_name().into_string().expect("a name")).collect()
    }

    /// The tree of an image as the kernel sees it; `None`, loudly, where nothing can be mounted.
    pub fn tree(&self, image: &Imported) -> Option<BTreeMap<String, Seen>> {
        let stored = hearth_image::open(&self.images(), &image.digest).expect("stored");
        fsck(&stored.rootfs);
        let at = tempfile::tempdir().expect("a temporary directory");
        let mounted = Command::new("mount")
            .args(["-t", stored.filesystem.as_str(), "-o", "loop,ro"])
            .arg(&stored.rootfs)
            .arg(at.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => {}
            Ok(output) if rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists() => {
                panic!("mount: {}", String::from_utf8_lossy(&output.stderr));
            }
            _ => {
                eprintln!("SKIPPED: cannot mount a loop device, the image's content is not compared");
                return None;
            }
        }
        let _mount = Mount(at.path());
        let mut seen = BTreeMap::new();
        walk(at.path(), String::new(), &mut seen);
        Some(seen)
    }
}

struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.0).status();
        assert!(status.is_ok_and(|s| s.success()), "umount");
    }
}

/// A second opinion, where the tool is installed.
fn fsck(rootfs: &Path) {
    if let Ok(output) = Command::new("fsck.erofs").arg(rootfs).output() {
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "fsck.erofs: {said}");
    }
}

fn walk(path: &Path, name: String, seen: &mut BTreeMap<String, Seen>) {
    let meta = std::fs::symlink_metadata(path).expect("stat");
    let kind = meta.file_type();
    let device = || (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
    let what = if kind.is_dir() {
        "dir".to_owned()
    } else if kind.is_symlink() {
        format!("-> {}", std::fs::read_link(path).expect("link").display())
    } else if kind.is_char_device() {
        format!("char {}:{}", device().0, device().1)
    } else if kind.is_block_device() {
        format!("block {}:{}", device().0, device().1)
    } else if kind.is_fifo() {
        "fifo".to_owned()
    } else {
        "file".to_owned()
    };
    let xattrs = xattr::list(path).expect("xattrs").map(|name| {
        let value = xattr::get(path, &name).expect("xattr").expect("listed");
        (name.into_string().expect("a name"), value)
    });
    let xattrs = if kind.is_symlink() { BTreeMap::new() } else { xattrs.collect() };
    let content = if kind.is_file() { std::fs::read(path).expect("read") } else { Vec::new() };
    if kind.is_dir() {
        for entry in std::fs::read_dir(path).expect("list") {
            let entry = entry.expect("entry");
            let below = format!("{name}/{}", entry.file_name().to_string_lossy());
            walk(&entry.path(), below, seen);
        }
    }
    let entry = Seen {
        what,
        mode: meta.mode() & 0o7777,
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        links: meta.nlink(),
        ino: meta.ino(),
        content,
        xattrs,
    };
    seen.insert(if name.is_empty() { "/".into() } else { name }, entry);
}

pub fn names(tree: &BTreeMap<String, Seen>) -> Vec<&str> {
    tree.keys().map(String::as_str).collect()
}
