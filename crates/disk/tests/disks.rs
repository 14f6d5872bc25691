//! Clones, overlays and removal, on the file system of the tests and, as root, on XFS.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use hearth_disk::{
    CloneHow, Linked, MIN_OVERLAY, clone_file, create_overlay, free_space, link, reflink_supported, remove,
    spread_directories, sweep_templates, usage,
};
use hearth_model::error::chain;
use hearth_model::{ByteSize, ErrorKind, Kind};

const MIB: u64 = 1 << 20;

/// A mounted file system of its own; unmounted when dropped.
struct Mounted {
    dir: tempfile::TempDir,
}

impl Mounted {
    fn at(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    fn mount(arguments: &[&str], dir: tempfile::TempDir) -> Option<Self> {
        let at = dir.path().join("mnt");
        fs::create_dir(&at).expect("mkdir");
        let output = Command::new("mount").args(arguments).arg(at).output().ok()?;
        if output.status.success() {
            return Some(Self { dir });
        }
        eprintln!("SKIPPED: cannot mount {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        None
    }

    /// XFS of 400 MiB on a loop device.
    fn xfs() -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let image = dir.path().join("xfs.img");
        File::create(&image).and_then(|file| file.set_len(400 * MIB)).expect("image");
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let made = Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&image).env("PATH", path).output();
        if !made.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: mkfs.xfs is not installed or does not work");
            return None;
        }
        let image = image.to_str().expect("UTF-8").to_owned();
        Self::mount(&["-o", "loop", &image], dir)
    }

    fn tmpfs(size: &str) -> Option<Self> {
        Self::mount(&["-t", "tmpfs", "-o", size, "none"], tempfile::tempdir().expect("a temporary directory"))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let status = Command::new("umount").arg(self.at()).status();
        assert!(status.is_ok_and(|status| status.success()), "umount");
    }
}

fn temp() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// 64 MiB with three islands of data, one of them at no block's boundary, and a hole at the end.
fn islands(at: &Path) -> Vec<u8> {
    let file = File::create(at).expect("create");
    file.set_len(64 * MIB + 123).expect("length");
    for (offset, len) in [(0, 4096), (10 * MIB + 77, 100_000), (50 * MIB, 1 << 20)] {
        file.write_all_at(&vec![7; len], offset).expect("write");
    }
    fs::read(at).expect("read")
}

fn blocks(path: &Path) -> u64 {
    fs::metadata(path).expect("stat").blocks()
}

#[test]
fn a_clone_has_the_same_content_length_and_holes() {
    let dir = temp();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    let content = islands(&from);
    let how = clone_file(&from, &to).expect("cloned");
    assert!(fs::read(&to).expect("read") == content);
    assert_eq!(fs::metadata(&to).expect("stat").mode(), fs::metadata(&from).expect("stat").mode());
    match how {
        CloneHow::Sparse { bytes } => assert!(bytes < 2 * MIB, "{bytes} bytes copied of 1.1 MiB data"),
        CloneHow::Reflink => assert!(reflink_supported(dir.path()).expect("known")),
    }
    assert!(blocks(&to) * 512 < 2 * MIB, "holes stay holes");
}

#[test]
fn an_empty_file_and_one_that_is_all_hole_are_cloned() {
    let dir = temp();
    for (name, len) in [("empty", 0), ("hole", 3 * MIB + 5)] {
        let (from, to) = (dir.path().join(name), dir.path().join(format!("{name}-clone")));
        File::create(&from).and_then(|file| file.set_len(len)).expect("create");
        clone_file(&from, &to).expect("cloned");
        assert_eq!(fs::metadata(&to).expect("stat").len(), len);
        assert_eq!(blocks(&to), 0);
    }
}

fn neither_sees_what_the_other_writes(dir: &Path) {
    let (from, to) = (dir.join("source"), dir.join("its-clone"));
    let content = islands(&from);
    clone_file(&from, &to).expect("cloned");
    let write = |path: &Path, text: &[u8]| {
        let file = File::options().write(true).open(path).expect("open");
        file.write_all_at(text, 50 * MIB).expect("write");
    };
    let read = |path: &Path| fs::read(path).expect("read");
    write(&to, b"in the clone");
    assert!(read(&from) == content);
    write(&from, b"in the source");
    assert!(read(&to)[50 << 20..].starts_with(b"in the clone\x07"));
    assert!(read(&from)[50 << 20..].starts_with(b"in the source"));
}

#[test]
fn a_write_to_the_clone_does_not_reach_the_source_nor_the_reverse() {
    neither_sees_what_the_other_writes(temp().path());
    if let Some(xfs) = Mounted::xfs() {
        neither_sees_what_the_other_writes(&xfs.at());
    }
}

#[test]
fn xfs_shares_blocks() {
    let Some(xfs) = Mounted::xfs() else { return };
    assert!(reflink_supported(&xfs.at()).expect("known"));
    assert_eq!(fs::read_dir(xfs.at()).expect("list").count(), 0, "the trial leaves nothing");
    let from = xfs.at().join("from");
    fs::write(&from, vec![9; 100 << 20]).expect("write");
    let before = free_space(&xfs.at()).expect("space").free;
    for n in 0..10 {
        let how = clone_file(&from, &xfs.at().join(n.to_string())).expect("cloned");
        assert_eq!(how, CloneHow::Reflink);
    }
    let used = before.saturating_sub(free_space(&xfs.at()).expect("space").free);
    assert!(used < 10 * MIB, "ten clones of 100 MiB used {used} bytes");
    // From elsewhere nothing can be shared, but it can be copied.
    let outside = temp();
    fs::write(outside.path().join("far"), "far away").expect("write");
    let how = clone_file(&outside.path().join("far"), &xfs.at().join("near")).expect("cloned");
    assert!(matches!(how, CloneHow::Sparse { .. }), "{how:?}");
    assert_eq!(fs::read(xfs.at().join("near")).expect("read"), b"far away");
    assert_eq!(
        link(&outside.path().join("far"), &xfs.at().join("linked")).expect("linked"),
        Linked::Cloned(CloneHow::Sparse { bytes: 8 })
    );
}

#[test]
fn a_link_is_the_same_file_where_that_is_possible() {
    let dir = temp();
    fs::write(dir.path().join("a"), "x").expect("write");
    assert_eq!(link(&dir.path().join("a"), &dir.path().join("b")).expect("linked"), Linked::Hard);
    assert_eq!(fs::metadata(dir.path().join("b")).expect("stat").nlink(), 2);
    let error = link(&dir.path().join("a"), &dir.path().join("b")).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(link(&dir.path().join("gone"), &dir.path().join("c")).expect_err("gone").kind(), ErrorKind::NotFound);
}

#[test]
fn a_target_that_exists_is_left_alone() {
    let dir = temp();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::write(&from, "new").expect("write");
    fs::write(&to, "old").expect("write");
    let error = clone_file(&from, &to).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert!(error.to_string().ends_with("to: the target exists"), "{error}");
    assert_eq!(fs::read(&to).expect("read"), b"old");

    let error = clone_file(&dir.path().join("gone"), &dir.path().join("x")).expect_err("no source");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(clone_file(dir.path(), &dir.path().join("x")).expect_err("a directory").kind(), ErrorKind::Invalid);
    let error = clone_file(&from, &dir.path().join("no/such/dir")).expect_err("no directory");
    assert!(chain(&error).contains("No such file or directory"), "{}", chain(&error));
    assert!(!dir.path().join("x").exists());
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    let Some(small) = Mounted::tmpfs("size=2m") else { return };
    let dir = temp();
    fs::write(dir.path().join("big"), vec![1; 4 << 20]).expect("write");
    let error = clone_file(&dir.path().join("big"), &small.at().join("clone")).expect_err("2 MiB do not hold 4");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
    assert!(chain(&error).contains("No space left on device"), "{}", chain(&error));
    assert!(error.hint().expect("a remedy").contains("free space"));
    // The journal and the tables of this one need more than there is.
    let to = small.at().join("overlay");
    fs::write(small.at().join("filler"), vec![1; 2032 << 10]).expect("write");
    let error = create_overlay(&small.at().join("templates"), ByteSize::gib(10), &to).expect_err("full");
    assert_eq!(error.kind(), ErrorKind::Exhausted, "{}", chain(&error));
    assert!(!to.exists() && !small.at().join("clone").exists());
    remove(&small.at().join("filler")).expect("removed");
    assert_eq!(usage(&small.at()).expect("measured"), 0, "nothing is left");
}

fn e2fs(program: &str, arguments: &[&str], image: &Path) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(arguments).arg(image).env("PATH", path).output().expect(program);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}");
    said
}

#[test]
fn an_overlay_is_an_empty_ext4_that_costs_next_to_nothing() {
    let dir = temp();
    let templates = dir.path().join("templates");
    for size in [ByteSize::mib(16), ByteSize::mib(512), ByteSize::gib(10)] {
        let overlay = dir.path().join(format!("{}.img", size.bytes()));
        create_overlay(&templates, size, &overlay).expect("made");
        assert_eq!(fs::metadata(&overlay).expect("stat").len(), size.bytes());
        let used = usage(&overlay).expect("measured");
        assert!(used < 2 * MIB, "an empty overlay of {size} uses {used} bytes");
        e2fs("e2fsck", &["-f", "-n"], &overlay);
        let said = e2fs("dumpe2fs", &[], &overlay);
        assert!(said.contains("hearth-overlay") && said.contains("has_journal"), "{said}");
        let groups = said.matches(": (Blocks ").count();
        assert_eq!(said.matches("ITABLE_ZEROED").count(), groups, "the guest has no tables to zero");
    }
}

#[test]
fn an_overlay_mounts_and_takes_files() {
    let dir = temp();
    let overlay = dir.path().join("overlay");
    create_overlay(&dir.path().join("templates"), ByteSize::mib(64), &overlay).expect("made");
    let image = overlay.to_str().expect("UTF-8").to_owned();
    let Some(mounted) = Mounted::mount(&["-o", "loop", &image], temp()) else { return };
    fs::write(mounted.at().join("file"), vec![1; 8 << 20]).expect("write");
    drop(mounted);
    e2fs("e2fsck", &["-f", "-n"], &overlay);
}

#[test]
fn the_second_overlay_of_a_size_comes_from_the_template() {
    let dir = temp();
    let templates = dir.path().join("templates");
    create_overlay(&templates, ByteSize::mib(32), &dir.path().join("one")).expect("made");
    let made: Vec<_> = fs::read_dir(&templates).expect("list").collect();
    assert_eq!(made.len(), 1, "one template and nothing else");
    let template = made[0].as_ref().expect("entry").path();
    // A mark in a block that no file uses shows where the next one comes from.
    let mark = File::options().write(true).open(&template).expect("open");
    mark.write_all_at(b"from the template", 30 * MIB).expect("write");
    create_overlay(&templates, ByteSize::mib(32), &dir.path().join("two")).expect("made");
    assert!(fs::read(dir.path().join("two")).expect("read")[30 << 20..].starts_with(b"from the template"));
    create_overlay(&templates, ByteSize::mib(33), &dir.path().join("three")).expect("made");
    assert_eq!(fs::read_dir(&templates).expect("list").count(), 2);
}

#[test]
fn what_a_killed_process_left_of_a_template_is_swept_and_nothing_else() {
    let dir = temp();
    create_overlay(dir.path(), MIN_OVERLAY, &dir.path().join("a")).expect("an overlay");
    let half = dir.path().join(".overlay-Ab12Cd");
    fs::write(&half, "half").expect("write");
    let before = fs::read_dir(dir.path()).expect("listed").count();
    let swept = sweep_templates(dir.path()).expect("swept");
    assert_eq!((swept.removed, swept.failed.len()), (vec![half], 0));
    assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), before - 1);
    assert!(sweep_templates(&dir.path().join("nowhere")).expect("nothing to sweep").removed.is_empty());
}

#[test]
fn bad_sizes_and_taken_names_are_refused() {
    let dir = temp();
    let templates = dir.path().join("templates");
    let to = dir.path().join("overlay");
    let error = create_overlay(&templates, ByteSize::mib(1), &to).expect_err("too small");
    assert_eq!(
        (error.kind(), error.to_string().as_str()),
        (ErrorKind::Invalid, "an overlay of 1 MB is too small: at least 16 MB are needed")
    );
    assert!(!templates.exists() && !to.exists());
    fs::write(&to, "mine").expect("write");
    let error = create_overlay(&templates, ByteSize::mib(16), &to).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::read(&to).expect("read"), b"mine");
    let beyond = create_overlay(&templates, ByteSize(1 << 60), &dir.path().join("x")).expect_err("too large");
    assert!(!dir.path().join("x").exists());
    assert_eq!(fs::read_dir(&templates).expect("list").count(), 1, "{}", chain(&beyond));
}

#[test]
fn removal_takes_files_links_and_trees_and_never_follows() {
    let dir = temp();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir_all(at("tree/deep")).expect("mkdir");
    fs::write(at("tree/deep/file"), vec![1; 10_000]).expect("write");
    fs::write(at("kept"), "kept").expect("write");
    std::os::unix::fs::symlink(at("kept"), at("tree/link")).expect("symlink");
    std::os::unix::fs::symlink(at("tree"), at("link-to-tree")).expect("symlink");
    assert!((10_000..100_000).contains(&usage(&at("tree")).expect("measured")));
    remove(&at("link-to-tree")).expect("removed");
    assert!(at("tree/deep/file").exists());
    for _ in 0..2 {
        remove(&at("tree")).expect("removed, or not there");
    }
    assert!(!at("tree").exists() && at("kept").exists());
    assert_eq!(usage(&at("tree")).expect_err("gone").kind(), ErrorKind::NotFound);
    let space = free_space(dir.path()).expect("space");
    assert!(space.free > 0 && space.free <= space.total);
}

/// Figures for the design, and a bound that only a broken implementation misses.
#[test]
fn cloning_a_dirty_overlay_is_fast() {
    let measure = |dir: &Path, what: &str| {
        let overlay = dir.join("overlay");
        create_overlay(&dir.join("templates"), ByteSize::gib(1), &overlay).expect("made");
        let file = File::options().write(true).open(&overlay).expect("open");
        // 64 MiB in 256 pieces, as a guest leaves them.
        for n in 0..256 {
            file.write_all_at(&vec![3; 256 << 10], 100 * MIB + n * 3 * MIB).expect("write");
        }
        let mut times: Vec<_> = (0..5)
            .map(|n| {
                let to = dir.join(format!("clone-{n}"));
                let start = Instant::now();
                let how = clone_file(&overlay, &to).expect("cloned");
                let took = start.elapsed();
                remove(&to).expect("removed");
                (took, how)
            })
            .collect();
        times.sort_by_key(|(took, _)| *took);
        eprintln!("clone of 64 MiB dirty in a 1 GiB overlay on {what}: {:?} (median), {:?}", times[2].0, times[2].1);
        assert!(times[2].0.as_secs() < 5);
    };
    measure(temp().path(), "the tests' file system");
    if let Some(xfs) = Mounted::xfs() {
        measure(&xfs.at(), "XFS");
    }
}

#[test]
fn an_ext4_is_asked_to_spread_directories_and_others_are_left_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let flags = || rustix::fs::ioctl_getflags(fs::File::open(dir.path()).expect("open"));
    let is_ext4 = rustix::fs::statfs(dir.path()).expect("its file system").f_type == 0xef53;
    for _ in 0..2 {
        assert_eq!(spread_directories(dir.path()).expect("asked"), is_ext4);
    }
    if is_ext4 {
        assert!(flags().expect("its flags").contains(rustix::fs::IFlags::TOPDIR));
    }
    fs::create_dir(dir.path().join("one")).expect("made");
    assert!(spread_directories(&dir.path().join("none")).is_err(), "what is not there cannot be asked");
}
