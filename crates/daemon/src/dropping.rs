//! Removing snapshots: record and bundle, now or as soon as the host lets that be.
//!
//! A power cut may bring back what was recorded until some seconds before, and file systems keep no order
//! between what is in a file and the names of others. So a bundle that an instance's record pointed to goes
//! when it is on the disk that none does; and what tells that a snapshot was withdrawn, when it is that it
//! has no record.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hearth_model::SnapshotId;
use tracing::{Instrument as _, debug, info, warn};

use crate::error::OpError;
use crate::host::Host;
use crate::run::blocking;

/// How long until a removal that nobody waits for is tried again: at first, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(600);

/// Snapshots that are about to be removed: nobody needs to bring them to the disk any more.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doomed(Arc<Mutex<BTreeSet<SnapshotId>>>);

impl Doomed {
    /// Whether it is about to be removed.
    pub(crate) fn has(&self, snapshot: &SnapshotId) -> bool {
        self.all().contains(snapshot)
    }

    /// False if it was before.
    fn add(&self, snapshot: &SnapshotId) -> bool {
        self.all().insert(snapshot.clone())
    }

    /// Whose removal it is now. False if somebody else has taken it.
    fn take(&self, snapshot: &SnapshotId) -> bool {
        self.all().remove(snapshot)
    }

    fn all(&self) -> std::sync::MutexGuard<'_, BTreeSet<SnapshotId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes a snapshot's record, and its bundle when nobody pins it any more; what was begun of one, too. None
/// there is success.
async fn drop_snapshot(host: &Host, snapshot: &SnapshotId) -> Result<(), OpError> {
    // Whoever dies between two of these: a bundle that was withdrawn loses its record at the next
    // start, and then its files.
    withdraw(host, snapshot).await?;
    host.store.remove_snapshot(snapshot)?;
    delete(host, snapshot).await
}

/// The same for somebody who has asked for it: once the bundle is withdrawn, it is done to the end, whatever
/// is answered.
///
/// # Errors
/// The bundle could not be withdrawn: all is as it was. Or the record could not be removed, yet.
pub(crate) async fn drop_asked_for(host: &Arc<Host>, snapshot: &SnapshotId) -> Result<(), OpError> {
    withdraw(host, snapshot).await?;
    let forgotten = host.store.remove_snapshot(snapshot);
    let done = match &forgotten {
        Ok(()) => {
            if !host.records_are_on_disk().await {
                // A full disk: the room is wanted more than what tells of it after a power cut.
                debug!(%snapshot, "its files are removed before that is on the disk");
            }
            delete(host, snapshot).await.is_ok()
        }
        Err(_) => false,
    };
    if !done {
        drop_snapshot_later(host, snapshot.clone());
    }
    Ok(forgotten?)
}

async fn withdraw(host: &Host, snapshot: &SnapshotId) -> Result<(), OpError> {
    host.pins.free(snapshot).await;
    let (snapshots, id) = (host.data.snapshots(), snapshot.clone());
    blocking(move || {
        hearth_snapshot::withdraw(&snapshots, &id)?;
        // A record that goes before the name does would leave a bundle that nobody knows of.
        if let Err(error) = std::fs::File::open(&snapshots).and_then(|dir| dir.sync_all()) {
            debug!(%error, "the names of snapshots could not be brought to the disk");
        }
        Ok::<_, hearth_snapshot::RemoveError>(())
    })
    .await
}

/// Deletes the files of what was withdrawn, and of a draft.
async fn delete(host: &Host, snapshot: &SnapshotId) -> Result<(), OpError> {
    let (snapshots, id) = (host.data.snapshots(), snapshot.clone());
    blocking({
        let (snapshots, id) = (snapshots.clone(), id.clone());
        move || hearth_snapshot::remove(&snapshots, &id)
    })
    .await?;
    blocking(move || hearth_snapshot::discard(&snapshots, &id)).await?;
    host.scrubber.forget(snapshot);
    Ok(())
}

/// Removes it in the background, until it is done: once all that is recorded by now is on the disk.
pub(crate) fn drop_snapshot_later(host: &Arc<Host>, snapshot: SnapshotId) {
    if !host.doomed.add(&snapshot) {
        return;
    }
    let (recorded, mut on_disk) = (Instant::now(), host.store.on_disk());
    host.store.sync_soon();
    let weak = Arc::downgrade(host);
    let removed = async move {
        // A full disk wants the room back, and takes no record.
        let ended = on_disk.wait_for(|disk| disk.has(recorded) || disk.is_full()).await.is_err();
        // A daemon that has ended leaves it to the next one.
        let Some(host) = weak.upgrade().filter(|_| !ended) else { return };
        if host.doomed.take(&snapshot) {
            drop_until_done(host, snapshot).await;
        }
    };
    tokio::spawn(removed.in_current_span());
}

/// Does all of that now: a daemon that ends in peace leaves nothing to do. What is recorded is on the disk.
pub(crate) async fn drop_all(host: &Host) {
    let all = std::mem::take(&mut *host.doomed.all());
    for snapshot in all {
        if let Err(error) = drop_snapshot(host, &snapshot).await {
            warn!(%snapshot, %error, "a snapshot could not be removed: the next start tries again");
        }
    }
}

async fn drop_until_done(host: Arc<Host>, snapshot: SnapshotId) {
    let mut pause = AGAIN;
    while let Err(error) = drop_snapshot(&host, &snapshot).await {
        warn!(%snapshot, %error, "a snapshot could not be removed: trying again");
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(AGAIN_AT_MOST);
    }
    if pause > AGAIN {
        info!(%snapshot, "the snapshot is removed now");
    }
}

/// Takes back what an operation has begun of a snapshot, however far it came. Nothing of its instance is in
/// it: so that it cannot be done at once is no reason to give the instance up.
pub(crate) async fn take_back(host: Arc<Host>, snapshot: SnapshotId) -> Result<(), OpError> {
    if let Err(error) = drop_snapshot(&host, &snapshot).await {
        warn!(%snapshot, %error, "a snapshot could not be removed: trying again");
        drop_snapshot_later(&host, snapshot);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::World;

    /// Bundles that are there, by name or withdrawn.
    fn bundles(world: &World) -> usize {
        std::fs::read_dir(world.host.data.snapshots()).expect("listed").count()
    }

    async fn no_bundle(world: &World) {
        let until = Instant::now() + Duration::from_secs(10);
        while bundles(world) > 0 || !world.host.store.snapshots().expect("listed").is_empty() {
            assert!(Instant::now() < until, "it is kept");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// A power cut may bring back the record of the instance as it was in standby.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_is_removed_when_no_record_on_the_disk_points_to_it() {
        let world = World::syncing_after(Duration::from_secs(3600)).await;
        let web = world.create("web").await.expect("created");
        let standby = async || {
            web.standby().await.expect("brought to standby");
            web.restore().await.expect("restored");
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(bundles(&world), 1, "its record may still point to it");
        };
        standby().await;
        assert!(world.host.records_are_on_disk().await);
        no_bundle(&world).await;
        // A daemon that ends does not wait.
        standby().await;
        drop_all(&world.host).await;
        no_bundle(&world).await;
        // Nor does whoever wants the room back.
        standby().await;
        web.delete(false).await.expect("deleted");
        no_bundle(&world).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_s_removal_is_on_the_disk_before_what_tells_of_it_goes() {
        let world = World::syncing_after(Duration::from_secs(3600)).await;
        let web = world.create("web").await.expect("created");
        let plan = crate::ops::SnapshotPlan {
            name: None,
            tags: std::collections::BTreeMap::new(),
            kind: hearth_store::SnapshotKind::Standby,
            internal: false,
        };
        let saved = web.snapshot(plan).await.expect("saved");
        let before = Instant::now();
        drop_asked_for(&world.host, &saved.id).await.expect("removed");
        assert_eq!(bundles(&world), 0);
        assert!(world.host.store.on_disk().borrow().has(before));
    }
}
