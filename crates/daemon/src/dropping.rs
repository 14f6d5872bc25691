//! Removing snapshots: record and bundle, now or as soon as the host lets that be.

use std::sync::Arc;
use std::time::Duration;

use hearth_model::SnapshotId;
use tracing::{info, warn};

use crate::error::OpError;
use crate::host::Host;
use crate::run::blocking;

/// How long until a removal that nobody waits for is tried again: at first, and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_AT_MOST: Duration = Duration::from_secs(600);

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
        Ok(()) => delete(host, snapshot).await.is_ok(),
        Err(_) => false,
    };
    if !done {
        drop_snapshot_later(Arc::clone(host), snapshot.clone());
    }
    Ok(forgotten?)
}

async fn withdraw(host: &Host, snapshot: &SnapshotId) -> Result<(), OpError> {
    host.pins.free(snapshot).await;
    let (snapshots, id) = (host.data.snapshots(), snapshot.clone());
    blocking(move || hearth_snapshot::withdraw(&snapshots, &id)).await
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

/// Removes it in the background, until it is done.
pub(crate) fn drop_snapshot_later(host: Arc<Host>, snapshot: SnapshotId) {
    tokio::spawn(async move {
        let mut pause = AGAIN;
        while let Err(error) = drop_snapshot(&host, &snapshot).await {
            warn!(%snapshot, %error, "a snapshot could not be removed: trying again");
            tokio::time::sleep(pause).await;
            pause = (2 * pause).min(AGAIN_AT_MOST);
        }
        if pause > AGAIN {
            info!(%snapshot, "the snapshot is removed now");
        }
    });
}

/// Takes back what an operation has begun of a snapshot, however far it came. Nothing of its instance is in
/// it: so that it cannot be done at once is no reason to give the instance up.
pub(crate) async fn take_back(host: Arc<Host>, snapshot: SnapshotId) -> Result<(), OpError> {
    if let Err(error) = drop_snapshot(&host, &snapshot).await {
        warn!(%snapshot, %error, "a snapshot could not be removed: trying again");
        drop_snapshot_later(host, snapshot);
    }
    Ok(())
}
