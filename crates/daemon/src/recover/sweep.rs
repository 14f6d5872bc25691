//! What earlier daemons left half made or half removed: looked for by name, and removed.
//!
//! In: the data directory and the records. Out: what was removed, and what was not. "Not there" and
//! "could not look" are two things: on the second nothing is removed, and the start goes on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_model::SnapshotId;
use hearth_model::error::chain;
use hearth_model::recovery::{Mark, Stray, recover_stray};
use hearth_net::SweptSlots;
use hearth_store::SnapshotRecord;
use tracing::{info, warn};

use super::report::{Swept, count};
use crate::error::OpError;
use crate::fresh;
use crate::host::{Host, end_vmm};
use crate::ops::bundle::NOT_PUBLISHED;
use crate::paths::{InstanceDir, UNFINISHED};
use crate::run::blocking;

/// All of it. Before any VMM is started: what one is about to use looks like what one has left.
///
/// # Errors
/// The records or the bundles cannot be looked at: without them nothing can be recovered.
pub(super) async fn sweep(host: &Arc<Host>) -> Result<Swept, OpError> {
    let mut swept = Swept::default();
    slots(host, &mut swept);
    cgroups(host, &mut swept);
    bundles(host, &mut swept).await?;
    imports(host, &mut swept).await;
    images(host, &mut swept).await?;
    drafts(host, &mut swept).await;
    strays(host, &mut swept).await?;
    removed(host, &mut swept)?;
    Ok(swept)
}

/// The network has done it when it was opened, and has said what it could not.
fn slots(host: &Host, swept: &mut Swept) {
    let SweptSlots { removed, failed } = host.networks.swept();
    swept.slots = count(removed);
    failed.into_iter().for_each(|(what, why)| swept.failed(what, why));
}

fn cgroups(host: &Host, swept: &mut Swept) {
    match host.vmms.launcher.sweep_cgroups() {
        Ok(cgroups) => {
            swept.cgroups = count(cgroups.removed);
            cgroups.failed.iter().for_each(|(path, error)| stays(path, error, swept));
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
    found.failed.iter().for_each(|error| stays(&error.path, error, swept));
    for stray in &found.unknown {
        warn!(bundle = %stray.display(), "a bundle without a record: left as it is");
        swept.left(stray.display().to_string(), "a bundle without a record");
    }
    let orphans = super::orphans(host)?;
    for id in &found.missing {
        forget_unpublished(host, id, &orphans, swept)?;
    }
    for record in host.store.snapshots()?.into_iter().filter(|record| record.size_bytes == NOT_PUBLISHED) {
        record_size(host, record, swept).await?;
    }
    Ok(())
}

/// A bundle that was published by an operation which was cut off before it had recorded its size.
async fn record_size(host: &Host, mut record: SnapshotRecord, swept: &mut Swept) -> Result<(), OpError> {
    let (snapshots, id) = (host.data.snapshots(), record.id.clone());
    match blocking(move || hearth_snapshot::open(&snapshots, &id)).await {
        Ok(bundle) => {
            record.size_bytes = bundle.manifest().allocated_bytes();
            host.store.update_snapshot(&record)?;
        }
        // Whoever loads it is told the same.
        Err(error) => {
            warn!(snapshot = %record.id, %error, "a snapshot's size could not be told");
            swept.failed(format!("size of snapshot {}", record.id), chain(&error));
        }
    }
    Ok(())
}

/// A record without a bundle: made by an operation that was cut off before it published, or left
/// by somebody who removed the bundle's directory. Only the first is forgotten. Of one that nobody's
/// standby memory is in, the rest is removed like any such.
fn forget_unpublished(
    host: &Host,
    id: &SnapshotId,
    orphans: &BTreeSet<SnapshotId>,
    swept: &mut Swept,
) -> Result<(), OpError> {
    let Some(record) = host.store.snapshot(id)? else { return Ok(()) };
    if record.size_bytes == NOT_PUBLISHED {
        swept.unpublished_records += 1;
        return Ok(host.store.remove_snapshot(id)?);
    }
    if orphans.contains(id) {
        return Ok(());
    }
    warn!(snapshot = %id, instance = %record.source_name, "a snapshot's bundle is not there");
    swept.left(format!("snapshot {id}"), format!("a record without its bundle, of instance {}", record.source_name));
    Ok(())
}

/// Imports that were cut off: their VMMs, and the directories in which those looked.
async fn imports(host: &Arc<Host>, swept: &mut Swept) {
    let imports = host.data.imports();
    let left = match list(&imports) {
        Ok(left) => left,
        Err(error) => return could_not_look(imports, &error, swept),
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

/// Images whose import or removal was cut off.
async fn images(host: &Host, swept: &mut Swept) -> Result<(), OpError> {
    let (images, records) = (host.data.images(), host.store.images()?);
    let named: BTreeSet<String> = records.iter().map(|record| record.digest.clone()).collect();
    let found = match blocking(move || hearth_image::sweep(&images, &named)).await {
        Ok(found) => found,
        Err(error) => {
            could_not_look(host.data.images(), &error, swept);
            return Ok(());
        }
    };
    swept.images = count(found.removed.len());
    let images = host.data.images();
    found.failed.iter().for_each(|error| stays(&images, error, swept));
    for stray in &found.unknown {
        warn!(image = %stray.display(), "an image without a record: left as it is");
        swept.left(stray.display().to_string(), "an image without a record");
    }
    for record in records.iter().filter(|record| found.missing.contains(&record.digest)) {
        warn!(image = %record.name, digest = record.digest, "an image's content is not there");
        swept.left(format!("image {}", record.name), format!("a record without its content, {}", record.digest));
    }
    Ok(())
}

/// Templates of overlays, and kernels and initrds, that somebody died over.
async fn drafts(host: &Host, swept: &mut Swept) {
    let (templates, initrds) = (host.data.templates(), host.data.initrds());
    let made = blocking({
        let templates = templates.clone();
        move || hearth_disk::sweep_templates(&templates)
    });
    match made.await {
        Ok(found) => {
            swept.drafts += count(found.removed.len());
            found.failed.iter().for_each(|error| stays(&error.path, error, swept));
        }
        Err(error) => could_not_look(templates, &error, swept),
    }
    let built = blocking({
        let initrds = initrds.clone();
        move || hearth_kernel::sweep_cache(&initrds)
    });
    match built.await {
        Ok(found) => {
            swept.drafts += count(found.removed.len());
            found.failed.iter().for_each(|error| stays(&initrds, error, swept));
        }
        Err(error) => could_not_look(initrds, &error, swept),
    }
}

/// Directories of instances that no record knows of. They may hold somebody's disks, who has put back an
/// older database: only those go that were half made, or whose record went with the power.
async fn strays(host: &Arc<Host>, swept: &mut Swept) -> Result<(), OpError> {
    let known: BTreeSet<String> = host.store.instances()?.iter().map(|record| record.id.to_string()).collect();
    let dir = host.data.instances();
    let found = match list(&dir) {
        Ok(found) => found,
        Err(error) => {
            could_not_look(dir, &error, swept);
            return Ok(());
        }
    };
    for path in found {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mark = fresh::mark(&path);
        if known.contains(&name) {
            if mark != Mark::Absent {
                fresh::unmark_later(host, InstanceDir::at(path));
            }
            continue;
        }
        let stray = if name.starts_with(UNFINISHED) { Stray::Remove } else { recover_stray(mark) };
        match stray {
            Stray::Remove => {
                info!(dir = %path.display(), "an instance's directory whose record had not come, or had gone: removed");
                let removed = blocking({
                    let path = path.clone();
                    move || hearth_disk::remove(&path)
                });
                match removed.await {
                    Ok(()) => swept.directories += 1,
                    Err(error) => {
                        warn!(%error, "an instance's directory could not be removed");
                        swept.failed(path.display().to_string(), error.chain());
                    }
                }
            }
            Stray::Leave(why) => {
                warn!(dir = %path.display(), why, "left as it is");
                swept.left(path.display().to_string(), why);
            }
        }
    }
    Ok(())
}

/// What tells of instances that were removed, until it is on the disk that they have no record. One that has
/// one is recovered, by going on with it.
fn removed(host: &Arc<Host>, swept: &mut Swept) -> Result<(), OpError> {
    let dir = host.data.removed();
    let found = match list(&dir) {
        Ok(found) => found,
        Err(error) => {
            could_not_look(dir, &error, swept);
            return Ok(());
        }
    };
    let known: BTreeSet<String> = host.store.instances()?.iter().map(|record| record.id.to_string()).collect();
    for name in found.iter().filter_map(|path| path.file_name()?.to_str()).filter(|name| !known.contains(*name)) {
        fresh::forget_later(host, &InstanceDir::at(host.data.instances().join(name)));
    }
    Ok(())
}

/// Paths of what is in a directory: all of them, or none.
fn list(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    std::fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect()
}

fn stays(path: &Path, error: &(dyn std::error::Error + 'static), swept: &mut Swept) {
    warn!(error = %chain(error), "could not be swept");
    swept.failed(path.display().to_string(), chain(error));
}

/// Then nothing of it is removed.
fn could_not_look(dir: PathBuf, error: &(dyn std::error::Error + 'static), swept: &mut Swept) {
    warn!(dir = %dir.display(), %error, "could not be looked at");
    swept.failed(dir.display().to_string(), chain(error));
}
