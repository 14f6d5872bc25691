//! Stories of bundles: published whole or not at all, and a damaged file is named.

#[path = "support/sample.rs"]
mod sample;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use hearth_model::error::{ErrorKind, Kind, chain};
use hearth_snapshot::{
    BundleKind, MANIFEST, MEMORY, OVERLAY, OpenError, ROOTFS, SETTLED, VMSTATE, begin, check, discard, open, publish,
    remove, settle, sweep, verify, withdraw,
};

const FILES: [&str; 4] = [VMSTATE, MEMORY, ROOTFS, OVERLAY];

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).expect("lists");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn what_is_published_is_opened_and_verified() {
    let dir = tempfile::tempdir().expect("a directory");
    let published = sample::bundle(dir.path(), 1);
    let bundle = open(dir.path(), &sample::id(1)).expect("opens");
    assert_eq!(bundle.manifest(), published.manifest());
    assert_eq!(fs::metadata(bundle.memory()).expect("is there").len(), 4 << 20);
    let allocated = bundle.manifest().allocated_bytes();
    assert!((4096..1 << 20).contains(&allocated), "a sparse memory file counts what it takes: {allocated}");

    assert_eq!(verify(&bundle).expect_err("not settled").kind(), ErrorKind::WrongState);
    assert!(!bundle.is_settled());
    let before = fs::read(bundle.dir().join(MANIFEST)).expect("reads");
    settle(&bundle).expect("settles");
    settle(&bundle).expect("twice is once");
    assert!(bundle.is_settled());
    verify(&bundle).expect("is what it was");
    assert_eq!(fs::read(bundle.dir().join(MANIFEST)).expect("reads"), before, "the manifest never changes");
    assert_eq!(names(bundle.dir()), ["disks", MANIFEST, MEMORY, SETTLED, VMSTATE].map(String::from).into());
}

#[test]
fn what_cannot_be_looked_at_is_not_taken_for_absent() {
    let dir = tempfile::tempdir().expect("a directory");
    let unseen = dir.path().join("unseen");
    std::os::unix::fs::symlink(&unseen, &unseen).expect("a link that leads nowhere, for ever");
    let kinds = [
        withdraw(&unseen, &sample::id(1)).expect_err("it may be there").kind(),
        remove(&unseen, &sample::id(1)).expect_err("it may be there").kind(),
        begin(&unseen, &sample::id(1)).expect_err("it may be there").kind(),
        open(&unseen, &sample::id(1)).expect_err("it may be there").kind(),
        check(&unseen, &sample::id(1)).expect_err("it may be there").kind(),
    ];
    assert_eq!(kinds, [ErrorKind::HostFailed; 5]);
}

#[test]
fn guest_memory_is_for_its_owner_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    assert_eq!(fs::metadata(bundle.dir()).expect("is there").mode() & 0o077, 0);
}

#[test]
fn a_draft_is_no_bundle_until_it_is_published() {
    let dir = tempfile::tempdir().expect("a directory");
    let draft = sample::draft(dir.path(), 1);
    let absent = open(dir.path(), &sample::id(1)).expect_err("nothing is published");
    assert_eq!(absent.kind(), ErrorKind::NotFound);
    assert_eq!(begin(dir.path(), &sample::id(1)).expect_err("one draft per id").kind(), ErrorKind::AlreadyExists);

    // A file that was not written: named, and still nothing to see.
    fs::remove_file(draft.path(MEMORY)).expect("removes");
    let error = publish(draft, sample::manifest(1, BundleKind::Standby)).expect_err("memory was not written");
    assert!(error.to_string().contains("memory was not written"), "{error}");
    assert!(matches!(open(dir.path(), &sample::id(1)), Err(OpenError::Absent { .. })));

    discard(dir.path(), &sample::id(1)).expect("discards");
    discard(dir.path(), &sample::id(1)).expect("nothing to discard is success");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_stopped_instances_bundle_has_disks_alone() {
    let dir = tempfile::tempdir().expect("a directory");
    let draft = begin(dir.path(), &sample::id(1)).expect("begins");
    fs::write(draft.path(ROOTFS), "r").expect("writes");
    fs::write(draft.path(OVERLAY), "o").expect("writes");
    publish(draft, sample::manifest(1, BundleKind::Stopped)).expect("publishes");
    let bundle = open(dir.path(), &sample::id(1)).expect("opens");
    settle(&bundle).expect("settles");
    verify(&bundle).expect("verifies");
}

#[test]
fn a_bundle_is_never_published_over_another() {
    let dir = tempfile::tempdir().expect("a directory");
    let first = sample::bundle(dir.path(), 1);
    assert_eq!(begin(dir.path(), &sample::id(1)).expect_err("taken").kind(), ErrorKind::AlreadyExists);
    // Even if the draft was begun before the other was published.
    fs::rename(first.dir(), dir.path().join("aside")).expect("puts aside");
    let draft = sample::draft(dir.path(), 1);
    fs::rename(dir.path().join("aside"), first.dir()).expect("puts back");
    let error = publish(draft, sample::manifest(1, BundleKind::Standby)).expect_err("taken");
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "{error}");
    open(dir.path(), &sample::id(1)).expect("the first one is untouched");
}

#[test]
fn a_missing_or_truncated_file_is_named() {
    for file in FILES {
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = sample::bundle(dir.path(), 1);
        let path = bundle.dir().join(file);

        let length = fs::metadata(&path).expect("is there").len();
        fs::OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(length - 1)).expect("truncates");
        let error = open(dir.path(), &sample::id(1)).expect_err("truncated");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("{file} of snapshot")), "{error}");
        assert!(error.to_string().contains(&format!("{} bytes instead of {length}", length - 1)), "{error}");

        fs::remove_file(&path).expect("removes");
        let error = open(dir.path(), &sample::id(1)).expect_err("missing");
        assert!(error.to_string().contains(&format!("{file} of snapshot")), "{error}");
        assert!(error.to_string().contains("is missing"), "{error}");

        std::os::unix::fs::symlink("/etc/passwd", &path).expect("links");
        let error = open(dir.path(), &sample::id(1)).expect_err("a symbolic link");
        assert!(error.to_string().contains("is not a file"), "{error}");
    }
}

#[test]
fn files_of_two_bundles_swapped_are_named() {
    for file in FILES {
        let dir = tempfile::tempdir().expect("a directory");
        let (one, two) = (sample::bundle(dir.path(), 1), sample::bundle(dir.path(), 2));
        settle(&one).expect("settles");
        fs::copy(two.dir().join(file), one.dir().join(file)).expect("swaps");
        // The sizes are the same, so only the content tells.
        let bundle = open(dir.path(), &sample::id(1)).expect("looks whole");
        let error = verify(&bundle).expect_err("its content is another's");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(&format!("{file} of snapshot")), "{error}");
    }
    // And two files of one bundle, whose sizes differ.
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let aside = dir.path().join("aside");
    fs::rename(bundle.dir().join(VMSTATE), &aside).expect("moves");
    fs::rename(bundle.dir().join(MEMORY), bundle.dir().join(VMSTATE)).expect("moves");
    fs::rename(&aside, bundle.dir().join(MEMORY)).expect("moves");
    assert_eq!(open(dir.path(), &sample::id(1)).expect_err("swapped").kind(), ErrorKind::Corrupt);
}

#[test]
fn one_flipped_byte_of_memory_is_found_where_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    settle(&bundle).expect("settles");
    let memory = fs::OpenOptions::new().write(true).open(bundle.memory()).expect("opens");
    memory.write_all_at(&[77], 3 << 20).expect("writes into what was a hole");
    let error = verify(&bundle).expect_err("changed");
    assert!(error.to_string().contains(&format!("memory of snapshot {} has changed", sample::id(1))), "{error}");
    assert!(error.to_string().contains(&(3_u32 << 20).to_string()), "{error}");
}

#[test]
fn a_damaged_manifest_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let (one, two) = (sample::bundle(dir.path(), 1), sample::bundle(dir.path(), 2));
    // One that is not on the disk yet may be empty for another reason.
    settle(&one).expect("settles");
    let path = one.dir().join(MANIFEST);
    let whole = fs::read_to_string(&path).expect("reads");
    let foreign = fs::read_to_string(two.dir().join(MANIFEST)).expect("reads");
    let (half, unlisted) = (whole[..whole.len() / 2].to_owned(), whole.replace("\"memory\",", "\"../memory\","));
    for (content, says) in [
        ("", "manifest.json"),
        ("{}", "missing field `format`"),
        (half.as_str(), "EOF"),
        (foreign.as_str(), "is that of snapshot"),
        (unlisted.as_str(), "does not list memory"),
    ] {
        fs::write(&path, content).expect("writes");
        let error = open(dir.path(), &sample::id(1)).expect_err(says);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(chain(&error).contains("manifest.json") && chain(&error).contains(says), "{}", chain(&error));
        assert!(error.hint().is_some());
    }
    fs::remove_file(&path).expect("removes");
    let error = open(dir.path(), &sample::id(1)).expect_err("missing");
    assert!(error.to_string().contains("manifest.json") && error.to_string().contains("is missing"), "{error}");
}

#[test]
fn a_bundle_from_the_future_is_refused_whatever_else_it_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    fs::write(bundle.dir().join(MANIFEST), r#"{"format": 3, "shape": "new"}"#).expect("writes");
    let error = open(dir.path(), &sample::id(1)).expect_err("of a later version");
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert!(error.to_string().contains("has format 3, and this version reads up to 2"), "{error}");
}

#[test]
fn a_bundle_that_a_power_cut_came_before_is_not_trusted() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let path = bundle.dir().join(MANIFEST);
    let boot = &bundle.manifest().boot_id;
    assert!(!boot.is_empty());
    let manifest = fs::read_to_string(&path).expect("reads").replace(boot.as_str(), "another-boot");
    fs::write(&path, manifest).expect("writes");
    let error = open(dir.path(), &sample::id(1)).expect_err("published in another boot, and not settled");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("was not yet on disk when the host went down"), "{error}");

    fs::write(bundle.dir().join(SETTLED), "{\"files\":{}}").expect("writes");
    open(dir.path(), &sample::id(1)).expect("settled bundles outlive the host's boot");

    // Nor if its files are short, or the manifest itself.
    fs::remove_file(bundle.dir().join(SETTLED)).expect("removes");
    for short in ["memory", MANIFEST] {
        fs::write(bundle.dir().join(short), "").expect("writes");
        let error = open(dir.path(), &sample::id(1)).expect_err("it is not on the disk");
        assert!(error.to_string().contains("was not yet on disk when the host went down"), "{error}");
    }
}

#[test]
fn who_uses_a_bundle_keeps_its_files_when_it_is_removed() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let mine = dir.path().join("mine");
    fs::hard_link(bundle.memory(), &mine).expect("links");
    remove(dir.path(), &sample::id(1)).expect("removes");
    remove(dir.path(), &sample::id(1)).expect("none there is success");
    assert_eq!(fs::read(&mine).expect("still there")[2 << 20], 1);
    assert_eq!(open(dir.path(), &sample::id(1)).expect_err("gone").kind(), ErrorKind::NotFound);
    assert_eq!(names(dir.path()), ["mine".to_owned()].into());
}

#[test]
fn a_removal_that_was_cut_off_is_finished() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let trash = dir.path().join(format!(".trash-{}", sample::id(1)));
    fs::rename(bundle.dir(), &trash).expect("as far as it came");
    remove(dir.path(), &sample::id(1)).expect("removes the rest");
    assert!(names(dir.path()).is_empty());
}

#[test]
fn a_start_sweeps_what_was_half_done_and_touches_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    for number in [1, 2] {
        sample::bundle(dir.path(), number);
    }
    drop(sample::draft(dir.path(), 3));
    let trash = dir.path().join(format!(".trash-{}", sample::id(4)));
    fs::create_dir(&trash).expect("creates");
    fs::create_dir(dir.path().join("lost+found")).expect("creates");
    // Of an earlier boot of the host: one that is on the disk, one that is not, and of one next to nothing.
    for number in [5, 6, 7] {
        let bundle = sample::bundle(dir.path(), number);
        if number == 5 {
            settle(&bundle).expect("settles");
        }
        let manifest = bundle.dir().join("manifest.json");
        let json = fs::read_to_string(&manifest).expect("reads").replace(&bundle.manifest().boot_id, "another");
        fs::write(&manifest, if number == 7 { "" } else { &json }).expect("writes");
    }

    let keep = BTreeSet::from([sample::id(1), sample::id(9)]);
    let swept = sweep(dir.path(), &keep).expect("sweeps");
    assert_eq!(swept.removed.len(), 4);
    assert!(swept.failed.is_empty());
    assert_eq!(swept.missing, [sample::id(9)]);
    let unknown: BTreeSet<_> = swept.unknown.into_iter().collect();
    let of_nobody = [sample::id(2).to_string(), sample::id(5).to_string(), "lost+found".to_owned()];
    assert_eq!(unknown, of_nobody.clone().map(|name| dir.path().join(name)).into());
    let left = [of_nobody.as_slice(), &[sample::id(1).to_string()]].concat();
    assert_eq!(names(dir.path()), left.into_iter().collect());

    let nowhere = sweep(&dir.path().join("nowhere"), &BTreeSet::new()).expect("nothing to sweep");
    assert!(nowhere.removed.is_empty() && nowhere.unknown.is_empty());
}
