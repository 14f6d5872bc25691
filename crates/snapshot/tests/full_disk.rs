//! A full disk: said as such, and nothing half-made to be seen. Needs root for a tiny file system.

#[path = "support/sample.rs"]
mod sample;

use std::fs;
use std::path::Path;

use hearth_model::error::{ErrorKind, Kind};
use hearth_snapshot::{BundleKind, OVERLAY, ROOTFS, begin, discard, open, publish, remove, settle};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// A file system of 64 KiB, unmounted when dropped.
struct Tiny(tempfile::TempDir);

impl Tiny {
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a directory");
        match mount("tmpfs", dir.path(), "tmpfs", MountFlags::NODEV, c"size=64k,mode=700") {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                eprintln!("SKIPPED: cannot mount a small file system here: {error}");
                None
            }
        }
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes all room but `pages` pages.
    fn fill_but(&self, pages: usize) {
        let filler = self.path().join("filler");
        let room = rustix::fs::statvfs(self.path()).expect("asks").f_bavail;
        let take = usize::try_from(room).expect("small").saturating_sub(pages) * 4096;
        fs::write(filler, vec![1; take]).expect("fits");
    }
}

impl Drop for Tiny {
    fn drop(&mut self) {
        unmount(self.path(), UnmountFlags::DETACH).expect("unmounts");
    }
}

#[test]
fn a_bundle_that_does_not_fit_is_not_published() {
    let Some(tiny) = Tiny::mount() else { return };
    let draft = begin(tiny.path(), &sample::id(1)).expect("begins");
    fs::write(draft.path(ROOTFS), "r").expect("writes");
    fs::write(draft.path(OVERLAY), "o").expect("writes");
    tiny.fill_but(0);
    let error = publish(draft, sample::manifest(1, BundleKind::Stopped)).expect_err("no room for the manifest");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert!(error.to_string().contains("manifest.json"), "{error}");
    assert!(error.hint().expect("a hint").contains("free space"));
    assert_eq!(open(tiny.path(), &sample::id(1)).expect_err("not published").kind(), ErrorKind::NotFound);
    discard(tiny.path(), &sample::id(1)).expect("discarding needs no room");
}

#[test]
fn a_bundle_whose_checksums_do_not_fit_stays_usable() {
    let Some(tiny) = Tiny::mount() else { return };
    let draft = begin(tiny.path(), &sample::id(1)).expect("begins");
    fs::write(draft.path(ROOTFS), "r").expect("writes");
    fs::write(draft.path(OVERLAY), "o").expect("writes");
    publish(draft, sample::manifest(1, BundleKind::Stopped)).expect("publishes");
    tiny.fill_but(0);
    let bundle = open(tiny.path(), &sample::id(1)).expect("opens");
    let error = settle(&bundle).expect_err("no room for the checksums");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
    assert!(!bundle.is_settled());
    open(tiny.path(), &sample::id(1)).expect("opens as before");

    fs::remove_file(tiny.path().join("filler")).expect("frees room");
    settle(&bundle).expect("settles, with what the first try left in the way");
    tiny.fill_but(0);
    remove(tiny.path(), &sample::id(1)).expect("removing needs no room");
}
