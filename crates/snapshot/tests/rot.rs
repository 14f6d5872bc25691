//! Rot: every file of a bundle, damaged in every way. What can be told without reading a file is
//! told when the bundle is opened, the rest when it is verified; nothing damaged passes both.

#[path = "support/sample.rs"]
mod sample;

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use hearth_model::error::{ErrorKind, Kind, chain};
use hearth_snapshot::{
    Bundle, DAMAGED, MANIFEST, MEMORY, OVERLAY, OpenError, ROOTFS, SETTLED, VMSTATE, check, damage, due, open, settle,
};

const FILES: [&str; 5] = [MANIFEST, VMSTATE, MEMORY, ROOTFS, OVERLAY];
const MEMORY_WRITTEN: u64 = 2 << 20;

/// Who finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    AtLoad,
    ByVerify,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rot {
    Truncated,
    Flipped,
    Swapped,
    Missing,
    Empty,
    Directory,
}

impl Rot {
    const ALL: [Self; 6] = [Self::Truncated, Self::Flipped, Self::Swapped, Self::Missing, Self::Empty, Self::Directory];

    fn befall(self, file: &Path, other: &Path) {
        let length = fs::metadata(file).expect("is there").len();
        let write = || OpenOptions::new().write(true).read(true).open(file).expect("opens");
        match self {
            // A manifest ends in a line feed, which nobody would miss.
            Self::Truncated => write().set_len(length - 2).expect("truncates"),
            Self::Empty => write().set_len(0).expect("empties"),
            Self::Flipped => {
                // Where the sample's memory has data; in its manifest, a digit of the memory's size.
                let at = match file.file_name().and_then(|name| name.to_str()) {
                    Some(MEMORY) => MEMORY_WRITTEN + 17,
                    Some(MANIFEST) => {
                        let text = fs::read_to_string(file).expect("reads");
                        text.find("\"vcpus\": 2").expect("says so") as u64 + 9
                    }
                    _ => length / 2,
                };
                let mut byte = [0];
                write().read_exact_at(&mut byte, at).expect("reads");
                write().write_all_at(&[byte[0] ^ 1], at).expect("flips");
            }
            Self::Swapped => {
                assert_eq!(fs::metadata(other).expect("is there").len(), length, "as long as the other's");
                fs::remove_file(file).and_then(|()| fs::copy(other, file)).expect("swaps");
            }
            Self::Missing => fs::remove_file(file).expect("removes"),
            Self::Directory => fs::remove_file(file).and_then(|()| fs::create_dir(file)).expect("a directory"),
        }
    }

    fn found(self, file: &str) -> Found {
        match self {
            Self::Flipped => Found::ByVerify,
            // A manifest says whose it is.
            Self::Swapped if file != MANIFEST => Found::ByVerify,
            _ => Found::AtLoad,
        }
    }
}

/// Two settled bundles, with other content and the same lengths.
fn two(snapshots: &Path) -> (Bundle, Bundle) {
    let pair = (sample::bundle(snapshots, 1), sample::bundle(snapshots, 2));
    settle(&pair.0).expect("settles");
    settle(&pair.1).expect("settles");
    pair
}

/// The error says which snapshot, which file, and what to do.
#[track_caller]
fn names(error: &dyn Kind, file: &str, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error}");
    let (said, id) = (error.to_string(), sample::id(1));
    assert!(said.contains(&format!("{file} of snapshot {id}")), "{what}: {said}");
    let hint = error.hint().unwrap_or_default();
    let remedy = format!("put {file} back from a backup and run `hearth snapshot verify {id}`");
    assert!(hint.starts_with(&remedy), "{what}: {hint}");
}

#[test]
fn every_damage_to_every_file_is_found_and_named() {
    for file in FILES {
        for rot in Rot::ALL {
            let what = format!("{file} {rot:?}");
            let dir = tempfile::tempdir().expect("a directory");
            let (bundle, other) = two(dir.path());
            let (path, aside) = (bundle.dir().join(file), dir.path().join("aside"));
            fs::copy(&path, &aside).expect("a backup");
            rot.befall(&path, &other.dir().join(file));

            match (open(dir.path(), &sample::id(1)), rot.found(file)) {
                (Err(error), Found::AtLoad) => names(&error, file, &what),
                (Ok(_), Found::ByVerify) => {}
                (opened, found) => panic!("{what} is to be found {found:?}: {opened:?}"),
            }
            let error = check(dir.path(), &sample::id(1)).expect_err(&what);
            names(&error, file, &what);

            // From now on it is refused, though nobody reads it, and though the file is put back.
            names(&open(dir.path(), &sample::id(1)).expect_err(&what), file, &what);
            let mark = damage(dir.path(), &sample::id(1)).expect("readable").expect("marked");
            assert_eq!(mark.file, file, "{what}");
            if path.is_dir() {
                fs::remove_dir(&path).expect("removes");
            }
            fs::rename(&aside, &path).expect("puts back");
            let error = open(dir.path(), &sample::id(1)).expect_err("nobody has verified it");
            assert!(matches!(error, OpenError::Marked { .. }), "{what}: {error}");
            names(&error, file, &what);

            check(dir.path(), &sample::id(1)).unwrap_or_else(|error| panic!("{what} and back: {}", chain(&error)));
            open(dir.path(), &sample::id(1)).expect("is well again");
            assert!(!bundle.dir().join(DAMAGED).exists(), "{what}");
            open(dir.path(), &sample::id(2)).expect("the other one always was");
        }
    }
}

#[test]
fn a_flipped_bit_anywhere_in_the_manifest_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bundle, _) = two(dir.path());
    let path = bundle.dir().join(MANIFEST);
    let whole = fs::read(&path).expect("reads");
    for at in (0..whole.len()).step_by(3) {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).expect("writes");
        // Also where it says of another file, or of the format, what is not so.
        let error = check(dir.path(), &sample::id(1)).expect_err("found");
        names(&error, MANIFEST, &format!("byte {at}"));
    }
    fs::write(&path, &whole).expect("writes");
    check(dir.path(), &sample::id(1)).expect("is well again");
}

#[test]
fn rot_in_the_checksums_is_not_taken_for_health() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bundle, _) = two(dir.path());
    let path = bundle.dir().join(SETTLED);
    let whole = fs::read(&path).expect("reads");
    for at in 0..whole.len() - 1 {
        let mut flipped = whole.clone();
        flipped[at] ^= 1 << (at % 8);
        fs::write(&path, &flipped).expect("writes");
        match check(dir.path(), &sample::id(1)) {
            Err(error) => assert_eq!(error.kind(), ErrorKind::Corrupt, "byte {at}: {error}"),
            // A letter in another case, or a space, means the same.
            Ok(_) => {
                let read = |text: &[u8]| serde_json::from_slice::<serde_json::Value>(text).expect("JSON");
                assert_eq!(read(&flipped), read(&whole), "byte {at}");
            }
        }
    }
}

#[test]
fn a_mark_that_is_damaged_itself_is_a_mark() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bundle, _) = two(dir.path());
    fs::write(bundle.dir().join(DAMAGED), "{\"fi").expect("writes");
    let error = open(dir.path(), &sample::id(1)).expect_err("marked");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    check(dir.path(), &sample::id(1)).expect("nothing is wrong with it");
    open(dir.path(), &sample::id(1)).expect("the mark is gone");
}

#[test]
fn a_bundle_is_due_when_nobody_has_looked_for_long() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let (hour, id) = (Duration::from_secs(3600), sample::id(1));
    assert_eq!(due(dir.path(), &id, hour), None, "there is nothing to compare it with");
    settle(&bundle).expect("settles");
    let long = due(dir.path(), &id, hour).expect("has sums");
    assert!(long > hour / 2, "it was read just now: {long:?}");

    let age = |by: Duration| {
        let file = OpenOptions::new().append(true).open(bundle.dir().join(SETTLED)).expect("opens");
        file.set_modified(SystemTime::now() - by).expect("ages");
    };
    age(2 * hour);
    assert_eq!(due(dir.path(), &id, hour), Some(Duration::ZERO));
    check(dir.path(), &id).expect("is well");
    assert!(due(dir.path(), &id, hour).expect("has sums") > hour / 2, "it was looked at");
    age(2 * hour);
    Rot::Flipped.befall(&bundle.memory(), &bundle.memory());
    check(dir.path(), &id).expect_err("is damaged");
    assert!(due(dir.path(), &id, hour).expect("has sums") > hour / 2, "what is damaged is looked at no more often");
}

#[test]
fn what_was_removed_meanwhile_is_absent_and_not_marked() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bundle, _) = two(dir.path());
    hearth_snapshot::remove(dir.path(), &sample::id(1)).expect("removes");
    let error = check(dir.path(), &sample::id(1)).expect_err("is not there");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!bundle.dir().exists(), "no directory was made for the mark");
}

#[test]
fn verifying_writes_to_no_file_of_the_bundle() {
    let dir = tempfile::tempdir().expect("a directory");
    let (bundle, _) = two(dir.path());
    let times = || FILES.map(|file| fs::metadata(bundle.dir().join(file)).expect("is there").mtime_nsec());
    let before = times();
    let bytes = check(dir.path(), &sample::id(1)).expect("is well");
    assert_eq!(times(), before);
    let length = |file| fs::metadata(bundle.dir().join(file)).expect("is there").len();
    assert_eq!(bytes, FILES.map(length).iter().sum::<u64>());
}
