//! Stored images: found by digest, made once, removed whole.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::process::Command;

use hearth_image::{ImageError, Limits, claim, disown, list, open, remove, sweep};
use hearth_model::error::chain;
use hearth_model::{ErrorKind, Kind};

use crate::build::{Layout, Tar, file, noise};
use crate::look::Store;

fn layout() -> Layout {
    Layout::oci(&[Tar::of(vec![file("a", &[1; 9000])])])
}

#[test]
fn an_image_is_stored_once_and_found_by_its_digest() {
    let store = Store::new();
    let source = layout().write_dir(&store.path("oci"));
    let first = store.import(&source).expect("imported");
    let stored = open(&store.images(), &first.digest).expect("stored");
    assert_eq!(stored.image, first);
    let inode = |path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).expect("stat"));
    let before = inode(&stored.rootfs);
    assert_eq!(store.import(&source).expect("imported"), first);
    assert_eq!(inode(&stored.rootfs), before, "not written again");
    assert_eq!(store.leftovers(), [first.digest.strip_prefix("sha256:").expect("sha256")]);

    remove(&store.images(), &first.digest).expect("removed");
    remove(&store.images(), &first.digest).expect("removing what is not there is success");
    assert!(store.leftovers().is_empty());
    let error = open(&store.images(), &first.digest).expect_err("gone");
    assert_eq!(
        (error.kind(), error.to_string()),
        (ErrorKind::NotFound, format!("image {} is not stored", first.digest))
    );
}

#[test]
fn the_same_source_makes_the_same_bytes() {
    let (one, two) = (Store::new(), Store::new());
    let bytes = |store: &Store| {
        let image = store.import(&layout().write_dir(&store.path("oci"))).expect("imported");
        std::fs::read(open(&store.images(), &image.digest).expect("stored").rootfs).expect("read")
    };
    assert!(bytes(&one) == bytes(&two));
}

#[test]
fn a_damaged_image_is_named_and_replaced_by_the_next_import() {
    let store = Store::new();
    let source = layout().write_dir(&store.path("oci"));
    let image = store.import(&source).expect("imported");
    let rootfs = open(&store.images(), &image.digest).expect("stored").rootfs;
    std::fs::remove_file(&rootfs).expect("damage");
    let error = open(&store.images(), &image.digest).expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().ends_with("is stored, but rootfs.erofs is missing"), "{error}");
    std::os::unix::fs::symlink(&rootfs, &rootfs).expect("a link that leads nowhere, for ever");
    let error = open(&store.images(), &image.digest).expect_err("it cannot be looked at");
    assert_eq!(error.kind(), ErrorKind::HostFailed, "it may be whole: {error}");
    std::fs::remove_file(&rootfs).expect("removed");
    store.import(&source).expect("imported again");
    open(&store.images(), &image.digest).expect("whole again");
    std::fs::write(rootfs.with_file_name("image.json"), "{").expect("damage");
    let error = open(&store.images(), &image.digest).expect_err("damaged");
    assert!(error.to_string().contains("image.json cannot be read"), "{error}");
}

#[test]
fn only_a_digest_names_an_image() {
    let store = Store::new();
    for bad in ["", "alpine", "sha256:../../etc", "sha256:12", &format!("sha256:{}", "G".repeat(64))] {
        assert!(matches!(open(&store.images(), bad), Err(ImageError::BadDigest(_))), "{bad}");
        assert!(matches!(remove(&store.images(), bad), Err(ImageError::BadDigest(_))), "{bad}");
    }
}

#[test]
fn what_a_killed_import_left_is_swept() {
    let store = Store::new();
    let image = store.import(&layout().write_dir(&store.path("oci"))).expect("imported");
    let half = store.images().join(".import-abc");
    std::fs::create_dir(&half).expect("mkdir");
    std::fs::write(half.join("rootfs.erofs"), "half").expect("write");
    let swept = sweep(&store.images(), &[image.digest.clone()].into()).expect("swept");
    assert_eq!((swept.removed, swept.failed.len(), swept.unknown.len(), swept.missing.len()), (vec![half], 0, 0, 0));
    assert_eq!(list(&store.images()).expect("listed"), std::slice::from_ref(&image.digest));
    assert_eq!(store.leftovers().len(), 1);
    let nowhere = store.path("no such directory");
    assert!(list(&nowhere).expect("none").is_empty());
    assert!(sweep(&nowhere, &BTreeSet::new()).expect("nothing to sweep").removed.is_empty());
}

#[test]
fn an_image_is_swept_if_it_was_never_named_or_was_about_to_go_and_otherwise_told_of() {
    let store = Store::new();
    let images = store.images();
    let import = |name: &str| {
        let source = Layout::oci(&[Tar::of(vec![file(name, b"content")])]).write_dir(&store.path(name));
        store.import(&source).expect("imported").digest
    };
    let place = |digest: &str| images.join(digest.strip_prefix("sha256:").expect("sha256"));
    let (never, late, gone, stays, stray) = (import("a"), import("b"), import("c"), import("d"), import("e"));
    // Killed before a record named it, and just after; before the last record went, and just after.
    for digest in [&gone, &stays, &stray] {
        claim(&images, digest).expect("claimed");
    }
    for digest in [&gone, &stays] {
        disown(&images, digest).expect("disowned");
    }
    let nowhere = format!("sha256:{}", "0".repeat(64));
    claim(&images, &nowhere).expect("nothing to claim");
    disown(&images, &nowhere).expect("nothing to disown");
    let named: BTreeSet<String> = [late.clone(), stays.clone(), nowhere.clone()].into();

    let swept = sweep(&images, &named).expect("swept");
    assert_eq!(BTreeSet::from_iter(swept.removed), [place(&never), place(&gone)].into());
    assert_eq!((swept.unknown, swept.missing), (vec![place(&stray)], vec![nowhere]));
    assert!(swept.failed.is_empty(), "{:?}", swept.failed);
    for digest in [&late, &stays, &stray] {
        open(&images, digest).expect("it is there");
    }
    // What was named in time is not removed when its record is lost: that is another matter.
    let swept = sweep(&images, &BTreeSet::new()).expect("swept");
    assert_eq!((swept.removed.len(), swept.unknown.len()), (0, 3));
}

#[test]
fn what_cannot_be_swept_keeps_nothing_else() {
    let store = Store::new();
    let images = store.images();
    for name in [".import-a", ".import-b", ".import-c"] {
        std::fs::create_dir_all(images.join(name)).expect("mkdir");
    }
    let stuck = images.join(".import-b");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "none"]).arg(&stuck).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: cannot mount a tmpfs");
        return;
    }
    let swept = sweep(&images, &BTreeSet::new());
    let status = Command::new("umount").arg(&stuck).status();
    assert!(status.is_ok_and(|status| status.success()), "umount");
    let swept = swept.expect("listed");
    assert_eq!((swept.removed.len(), swept.failed.len()), (2, 1), "{swept:?}");
    assert!(chain(&swept.failed[0]).contains(".import-b"), "{}", chain(&swept.failed[0]));
    assert_eq!(sweep(&images, &BTreeSet::new()).expect("swept").removed, [stuck]);
}

#[test]
fn progress_names_every_stage_and_ends_at_its_total() {
    let store = Store::new();
    let layers = [Tar::of(vec![file("a", &vec![1; 9 << 20])]), Tar::of(vec![file("b", b"b")])];
    let source = store.write("image.tar", &Layout::oci(&layers).tar());
    let seen = RefCell::new(Vec::new());
    hearth_image::import(&source, &store.images(), &Limits::default(), &|progress| {
        seen.borrow_mut().push((progress.stage.to_owned(), progress.done, progress.total));
    })
    .expect("imported");
    let seen = seen.into_inner();
    let mut stages: Vec<&str> = seen.iter().map(|(stage, ..)| stage.as_str()).collect();
    stages.dedup();
    assert_eq!(
        stages,
        ["looking at the source", "reading layer 1 of 2", "reading layer 2 of 2", "writing the file system"]
    );
    assert!(seen.iter().all(|(_, done, total)| total.is_none_or(|total| *done <= total)), "{seen:?}");
    assert!(seen.iter().filter(|(stage, ..)| stage.contains("1 of 2")).count() >= 3, "{seen:?}");
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let store = Store::new();
    let small = store.images();
    std::fs::create_dir_all(&small).expect("mkdir");
    let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "none"]).arg(&small).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("SKIPPED: cannot mount a small tmpfs");
        return;
    }
    let noise = noise(4_000_000);
    let plain = Layout::oci(&[Tar::of(vec![file("big", &noise)])]).tar();
    let source = store.write("image.tar", &plain);
    let packed = store.write("image.tar.zst", &crate::build::zstd(&plain));
    let error = hearth_image::import(&source, &small, &Limits::default(), &|_| {});
    let unpacking = hearth_image::import(&packed, &small, &Limits::default(), &|_| {});
    let left = store.leftovers();
    let status = Command::new("umount").arg(&small).status();
    assert!(status.is_ok_and(|status| status.success()), "umount");
    for error in [error, unpacking] {
        let error = error.expect_err("2 MiB do not hold 4 MB");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
        assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
        assert!(error.hint().expect("a remedy").contains("hearth image rm"));
    }
    assert!(left.is_empty(), "{left:?}");
}
