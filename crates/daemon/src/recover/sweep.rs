//! What earlier daemons left half made or half removed: looked for by name, and removed.
//!
//! In: the data directory and the records. Out: what was removed, and what was not. "Not there" and
//! "could not look" are two things: on the second nothing is removed, and the start goes on.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use hearth_model::SnapshotId;
use hearth_model::error::chain;
use hearth_store::SnapshotRecord;
use tracing::warn;

use super::report::{Swept, count};
use crate::error::OpError;
use crate::host::{Host, end_vmm};
use crate::ops::bundle::NOT_PUBLISHED;
use crate::paths::InstanceDir;
use crate::run::blocking;

/// All of it. Before any VMM is started: what one is about to use looks like what one has left.
///
/// # Errors
/// The records or the bundles cannot be looked at: without them nothing can be recovered.
pub(super) async fn sweep(host: &Arc<Host>) -> Result<Swept, OpError> {
    let mut swept = Swept::default();
    cgroups(host, &mut swept);
    bundles(host, &mut swept).await?;
    imports(host, &mut swept).await;
    Ok(swept)
}

fn cgroups(host: &Host, swept: &mut Swept) {
    match host.vmms.launcher.sweep_cgroups() {
        Ok(cgroups) => {
            swept.cgroups = count(cgroups.removed);
            for (path, error) in cgroups.failed {
                warn!(cgroup = %path.display(), %error, "could not be swept");
                swept.failed(path.display().to_string(), error.to_string());
            }
        }
        Err(error) => {
            warn!(%error, "cgroups of VMMs that have ended could not be swept");
            swept.failed("cgroups of VMMs", error.to_string());
        }
    }
}

/// Bundles, and the records of those that are not there.
async fn bundles(host: &Arc<Host>, swept: &mut Swept) -> Result<(), OpError> {
    let snapshots = host.data.snapshots();
    // Of a removal that was cut off the record goes before the files, which tell of it.
    let withdrawn = blocking({
        let snapshots = snapshots.clone();
        move || hearth_snapshot::withdrawn(&snapshots)
    })
    .await?;
    let records: Vec<SnapshotRecord> = host.store.snapshots()?;
    for id in records.iter().map(|record| &record.id).filter(|id| withdrawn.contains(id)) {
        host.store.remove_snapshot(id)?;
        swept.withdrawn_records += 1;
    }
    let known: BTreeSet<_> = host.store.snapshots()?.into_iter().map(|s| s.id).collect();
    let found = blocking(move || hearth_snapshot::sweep(&snapshots, &known)).await?;
    swept.bundles = count(found.removed.len());
    for error in &found.failed {
        warn!(error = %chain(error), "could not be swept");
        swept.failed(error.path.display().to_string(), chain(error));
    }
    for stray in &found.unknown {
        warn!(bundle = %stray.display(), "a bundle without a record: left as it is");
        swept.left(stray.display().to_string(), "a bundle without a record");
    }
    for id in &found.missing {
        forget_unpublished(host, id, swept)?;
    }
    Ok(())
}

/// A record without a bundle: made by an operation that was cut off before it published, or left
/// by somebody who removed the bundle's directory. Only the first is forgotten.
fn forget_unpublished(host: &Host, id: &SnapshotId, swept: &mut Swept) -> Result<(), OpError> {
    let Some(record) = host.store.snapshot(id)? else { return Ok(()) };
    if record.size_bytes == NOT_PUBLISHED {
        swept.unpublished_records += 1;
        return Ok(host.store.remove_snapshot(id)?);
    }
    warn!(snapshot = %id, instance = %record.source_name, "a snapshot's bundle is not there");
    swept.left(format!("snapshot {id}"), format!("a record without its bundle, of instance {}", record.source_name));
    Ok(())
}

/// Imports that were cut off: their VMMs, and the directories in which those looked.
async fn imports(host: &Arc<Host>, swept: &mut Swept) {
    let imports = host.data.imports();
    let list =
        || std::fs::read_dir(&imports)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>();
    let left = match list() {
        Ok(left) => left,
        Err(error) => {
            warn!(dir = %imports.display(), %error, "imports that were cut off could not be looked for");
            return swept.failed(imports.display().to_string(), error.to_string());
        }
    };
    for dir in left {
        let ended = end_vmm(Arc::clone(host), InstanceDir::at(dir.clone()), None).await;
        let removed = match ended {
            Ok(()) => {
                blocking({
                    let dir = dir.clone();
                    move || hearth_disk::remove(&dir)
                })
                .await
            }
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => swept.imports += 1,
            Err(error) => {
                warn!(%error, "an import that was cut off left something");
                swept.failed(dir.display().to_string(), error.chain());
            }
        }
    }
}
