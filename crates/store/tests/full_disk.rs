//! Records on a disk without a free block: what has begun is recorded to its end, and is there afterwards.

#[path = "support/sample.rs"]
mod sample;

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use hearth_model::{ErrorKind, Kind as _};
use hearth_store::{InstanceRecord, RecordError, SnapshotRecord, Store};

/// A file system of its own. Unmounted when dropped.
struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn of(mkfs: &[&str], mib: u64) -> Option<Self> {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (image, at) = (dir.path().join("disk.img"), dir.path().join("mnt"));
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("an image");
        fs::create_dir(&at).expect("a mount point");
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        for command in [
            Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).env("PATH", path),
            Command::new("mount").args(["-o", "loop"]).args([&image, &at]),
        ] {
            let done = command.output();
            if !done.as_ref().is_ok_and(|output| output.status.success()) {
                eprintln!("SKIPPED: a full disk: {command:?}: {done:?}");
                return None;
            }
        }
        Some(Self { dir })
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("mnt/data")
    }

    fn ballast(&self) -> PathBuf {
        self.dir.path().join("mnt/ballast")
    }

    /// To the last block.
    fn fill(&self) {
        let mut file = File::options().append(true).create(true).open(self.ballast()).expect("a ballast");
        for size in [1 << 20, 1 << 16, 512] {
            while file.write(&vec![0x55; size]).is_ok_and(|written| written > 0) {}
        }
        file.sync_all().expect("written");
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(self.dir.path().join("mnt")).status();
        assert!(status.is_ok_and(|status| status.success()), "umount");
    }
}

/// What is there of a store when its process is killed: nothing of it was closed.
fn killed(store: &Store, disk: &Disk) -> PathBuf {
    let left = disk.dir.path().join("left");
    fs::create_dir_all(&left).expect("a directory");
    // By another process: one that closes the database's file loses SQLite's locks on it.
    let log = store.path().with_file_name("state.db-wal");
    let copied = Command::new("cp").args([store.path(), &log, &left]).status();
    assert!(copied.is_ok_and(|status| status.success()), "copied");
    left
}

fn instances(data: &Path) -> Vec<InstanceRecord> {
    Store::open(data).expect("opened").instances().expect("listed")
}

fn on(mkfs: &[&str], mib: u64) {
    let Some(disk) = Disk::of(mkfs, mib) else { return };
    let store = Store::open(&disk.data()).expect("opened");
    let mut records: Vec<InstanceRecord> = (0..8).map(|nth| sample::instance(nth, &format!("web-{nth}"))).collect();
    records.iter().try_for_each(|record| store.insert_instance(record)).expect("recorded while there is room");
    disk.fill();
    fs::write(disk.dir.path().join("mnt/one-more"), [0; 4096]).expect_err("there is no block left");

    // Far more than one log can hold, so it is begun anew some times.
    for round in 1..=400 {
        for record in &mut records {
            record.generation = round;
            store.begin(record).unwrap_or_else(|error| panic!("begun in round {round}: {error:?}"));
            let timeline = sample::timeline(&record.id, i64::try_from(round).expect("few"));
            store.conclude(record, &timeline).unwrap_or_else(|error| panic!("ended in round {round}: {error:?}"));
        }
        // As operations come.
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(instances(&killed(&store, &disk)), records, "as the daemon that comes after a kill finds them");

    // A daemon that has ended, and one that was killed, is followed by another on the full disk.
    drop(store);
    disk.fill();
    let store = Store::open(&disk.data()).expect("opened on a full disk");
    assert_eq!(store.instances().expect("listed"), records);

    // In the end the database has no page left to grow by: nothing more is begun.
    let mut taken = 0..=u8::MAX;
    let refused = loop {
        let nth = taken.next().expect("it is never full");
        let large =
            SnapshotRecord { image_digest: "d".repeat(20_000), ..sample::snapshot(nth, &format!("warm-{nth}")) };
        store.insert_snapshot(&large).expect("what has begun is recorded");
        if let Err(error) = store.begin(&records[0]) {
            break error;
        }
        std::thread::sleep(Duration::from_millis(25));
    };
    assert!(matches!(refused, RecordError::Full { .. }), "before the log was full, too: {refused:?}");
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    assert!(refused.to_string().contains("state.db"), "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("free space")), "{refused:?}");
    // But what has begun ends, and what frees room is done.
    for record in &mut records {
        record.generation += 1;
        store.update_instance(record).expect("ended");
    }
    store.remove_instance(&records.remove(0).id).expect("removed");
    assert_eq!(instances(&killed(&store, &disk)), records);

    File::create(disk.ballast()).expect("the ballast is cut");
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = store.begin(&records[0]) {
        assert!(Instant::now() < until, "{error:?} though there is room again");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn on_ext4() {
    on(&["mkfs.ext4", "-q", "-m", "0"], 128);
}

#[test]
fn on_xfs() {
    on(&["mkfs.xfs", "-q", "-m", "reflink=1"], 400);
}
