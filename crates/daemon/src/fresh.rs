//! The directory of a new instance: made, marked, and removed.
//!
//! A power cut in the seconds after an instance was made may take its record and leave its directory. So
//! there is a mark in that from its first moment, until the record is on the disk. The next daemon removes
//! a directory with a mark and without a record; one without either may be somebody's, and is left.
//!
//! The other way round, it may leave the record of an instance that was just removed. So that can be seen
//! until it is on the disk that there is no record: the next daemon carries it on.
//!
//! File systems keep the order in which names were made, not what is in files: so all that is known is in
//! names. The directory gets its own last, and loses it first.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_disk::FileError;
use hearth_model::recovery::Mark;
use hearth_snapshot::boot_id;
use tracing::{Instrument as _, debug};

use crate::host::Host;
use crate::paths::InstanceDir;
use crate::run::blocking;

/// How the name of the mark begins; then comes the boot in which it was made.
const MARK: &str = "unrecorded-";
/// A directory below the one that tells of its removal.
const INSIDE: &str = "dir";

/// What is younger may well be gone again soon. A record takes longer to the disk.
const QUIET: Duration = Duration::from_secs(4);

/// Whether this is the name of a file that is a mark.
pub(crate) fn is_mark(name: &str) -> bool {
    name.starts_with(MARK)
}

/// Makes the directory of a new instance, with the mark.
///
/// # Errors
/// The host's.
pub(crate) fn make(dir: &InstanceDir) -> Result<(), FileError> {
    let aside = dir.aside();
    let disks = aside.disks();
    fs::create_dir_all(&disks).map_err(failed("make directory", &disks))?;
    let mark = aside.path().join(format!("{MARK}{}", boot_id()));
    File::create(&mark).map_err(failed("write", &mark))?;
    fs::rename(aside.path(), dir.path()).map_err(failed("put in place", dir.path()))
}

/// Removes the directory of an instance, however much of it there is. That it was removed can be seen
/// until [`forget_later`].
///
/// # Errors
/// The host's.
pub(crate) fn remove(dir: &InstanceDir) -> Result<(), FileError> {
    hearth_disk::remove(dir.aside().path())?;
    let removed = dir.removed();
    let inside = removed.join(INSIDE);
    hearth_disk::remove(&inside)?;
    let moved = fs::create_dir_all(&removed).and_then(|()| fs::rename(dir.path(), &inside));
    match moved {
        Ok(()) => hearth_disk::remove(&inside),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // A full disk may have no room for another name.
        Err(_) => hearth_disk::remove(dir.path()),
    }
}

/// Whether somebody was removing the instance.
pub(crate) fn was_being_removed(dir: &InstanceDir) -> bool {
    dir.removed().is_dir()
}

/// What the directory at `path` says of itself.
pub(crate) fn mark(path: &Path) -> Mark {
    let Ok(marks) = marks(path) else { return Mark::Unknown };
    let this = format!("{MARK}{}", boot_id());
    match &marks[..] {
        [] => Mark::Absent,
        marks if boot_id().is_empty() || marks.iter().any(|mark| mark.ends_with(&this)) => Mark::OfThisBoot,
        _ => Mark::OfAnEarlierBoot,
    }
}

/// Takes the mark away once what is recorded by now is on the disk, off every hot path. What its disks began with
/// is brought there meanwhile: they are clones, which nobody but a guest that syncs would bring there for long.
pub(crate) fn unmark_later(host: &Arc<Host>, dir: InstanceDir) {
    let marked = dir.clone();
    tokio::spawn(
        async move {
            tokio::time::sleep(QUIET).await;
            if let Err(error) = blocking(move || sync_disks(&marked)).await {
                // Deleted meanwhile, for one.
                debug!(%error, "the disks of a new instance could not be brought to the disk");
            }
        }
        .in_current_span(),
    );
    later(host, move || unmark(dir.path()));
}

/// The same, of what tells that an instance was removed, after its record has gone.
pub(crate) fn forget_later(host: &Arc<Host>, dir: &InstanceDir) {
    let removed = dir.removed();
    later(host, move || hearth_disk::remove(&removed));
}

fn sync_disks(dir: &InstanceDir) -> Result<(), FileError> {
    let disks = dir.disks();
    for disk in fs::read_dir(&disks).map_err(failed("list", &disks))?.flatten() {
        let path = disk.path();
        File::open(&path).and_then(|file| file.sync_data()).map_err(failed("bring to the disk", &path))?;
    }
    Ok(())
}

fn later(host: &Arc<Host>, work: impl FnOnce() -> Result<(), FileError> + Send + 'static) {
    let (recorded, mut on_disk) = (Instant::now(), host.store.on_disk());
    host.store.sync_soon();
    let done = async move {
        // A daemon that has ended leaves it to the next one.
        if on_disk.wait_for(|disk| disk.has(recorded)).await.is_err() {
            return;
        }
        if let Err(error) = blocking(work).await {
            // Deleted meanwhile, for one. The next start tries again.
            debug!(%error, "what tells of an instance until it is recorded could not be taken away");
        }
    };
    tokio::spawn(done.in_current_span());
}

/// Does all of that now: a daemon that ends in peace leaves nothing to do. What is recorded is on the disk.
pub(crate) async fn settle_all(host: &Host) {
    let (instances, removed) = (host.data.instances(), host.data.removed());
    let known: Result<BTreeSet<String>, _> =
        host.store.instances().map(|records| records.iter().map(|record| record.id.to_string()).collect());
    let Ok(known) = known else { return };
    let settled = blocking(move || {
        let list = |dir: &Path| fs::read_dir(dir).map(Iterator::flatten).map_err(failed("list", dir));
        list(&instances)?.try_for_each(|dir| unmark(&dir.path()))?;
        let mut gone = list(&removed)?.filter(|dir| !known.contains(&*dir.file_name().to_string_lossy()));
        gone.try_for_each(|dir| hearth_disk::remove(&dir.path()))
    });
    if let Err(error) = settled.await {
        debug!(%error, "what tells of new instances and of removed ones could not be taken away");
    }
}

fn unmark(dir: &Path) -> Result<(), FileError> {
    let marks = marks(dir).map_err(failed("list", dir))?;
    marks.iter().try_for_each(|mark| hearth_disk::remove(mark))
}

fn marks(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut marks = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(is_mark) {
            marks.push(entry.path());
        }
    }
    Ok(marks)
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FileError {
    let path = path.to_owned();
    move |source| FileError { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths::DataDir;
    use crate::world::World;

    #[test]
    fn it_is_marked_from_its_first_moment_and_removed_with_all_that_was_begun() {
        let root = tempfile::tempdir().expect("a directory");
        let data = DataDir::new(root.path().to_owned());
        let dir = data.instance(&hearth_model::InstanceId::from_entropy([3; 16]));
        let names = || fs::read_dir(data.instances()).map_or(0, Iterator::count);
        remove(&dir).expect("nothing of it is there");
        fs::remove_dir(dir.removed()).expect("it tells of that all the same");
        for _ in 0..2 {
            make(&dir).expect("made");
            assert!(dir.disks().is_dir());
            assert_eq!((mark(dir.path()), names()), (Mark::OfThisBoot, 1));
            // One that was being made again when somebody died.
            fs::create_dir_all(dir.aside().disks()).expect("made");
            assert!(!was_being_removed(&dir));
            remove(&dir).expect("removed");
            assert_eq!(names(), 0);
            assert!(was_being_removed(&dir));
            fs::remove_dir(dir.removed()).expect("nothing is in it");
        }
        make(&dir).expect("made");
        let found = marks(dir.path()).expect("listed").remove(0);
        fs::rename(&found, dir.path().join("unrecorded-00000000-0000-4000-8000-000000000001")).expect("renamed");
        assert_eq!(mark(dir.path()), Mark::OfAnEarlierBoot);
        assert_eq!(mark(&dir.disks()), Mark::Absent);
        assert_eq!(mark(&found), Mark::Unknown, "it is no directory");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_mark_goes_when_the_record_is_on_the_disk() {
        let world = World::syncing_after(Duration::from_secs(2)).await;
        let before = Instant::now();
        let web = world.create("web").await.expect("created");
        let dir = web.dir();
        assert_eq!(mark(dir.path()), Mark::OfThisBoot);
        while mark(dir.path()) != Mark::Absent {
            assert!(before.elapsed() < Duration::from_secs(60), "it is marked for ever");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(world.host.store.on_disk().borrow().has(before));

        // Nobody waits for that at the end.
        let db = world.create("db").await.expect("created").dir();
        assert_eq!(mark(db.path()), Mark::OfThisBoot);
        world.get("web").delete(false).await.expect("deleted");
        assert!(was_being_removed(&dir));
        assert!(world.host.records_are_on_disk().await);
        settle_all(&world.host).await;
        assert_eq!(mark(db.path()), Mark::Absent);
        assert!(!was_being_removed(&dir));
    }
}
