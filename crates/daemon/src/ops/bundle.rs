//! Making and opening bundles: what standby, snapshot and fork share.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_model::{ErrorKind, InstanceName, SnapshotId};
use hearth_snapshot::{Bundle, BundleKind, Draft, Manifest};
use hearth_store::{SnapshotKind, SnapshotRecord};
use hearth_vmm::{Ram, SaveMemory, StateFormat, Vmm};

use super::{Born, Live, Subject, files};
use crate::agents;
use crate::clock::now_ms;
use crate::error::OpError;
use crate::host::{BootFiles, Host};
use crate::registry::random;
use crate::run::{Run, blocking};

/// What a bundle is for.
#[derive(Debug, Clone)]
pub(super) struct Use {
    pub(super) kind: SnapshotKind,
    pub(super) name: Option<InstanceName>,
    pub(super) tags: BTreeMap<String, String>,
    pub(super) internal: bool,
}

impl Use {
    /// For ourselves: an instance's standby memory, or the moment a fork is taken of.
    pub(super) fn internal(kind: SnapshotKind) -> Self {
        Self { kind, name: None, tags: BTreeMap::new(), internal: true }
    }
}

/// What becomes of the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It goes on, so its files are copied.
    GoOn,
    /// It ends, so its files are linked.
    End,
}

/// Opens a bundle and sees that it fits this host.
pub(super) async fn open(host: &Arc<Host>, id: &SnapshotId) -> Result<Bundle, OpError> {
    let (snapshots, wanted) = (host.data.snapshots(), id.clone());
    let bundle = blocking(move || hearth_snapshot::open(&snapshots, &wanted))
        .await
        .map_err(|error| error.about("snapshot", id.as_str()))?;
    let manifest = bundle.manifest();
    let devices = hearth_vmm::device_set(&host.machine(&manifest.spec, BootFiles::default()));
    let fits = hearth_snapshot::compatible(manifest, &host.facts(manifest.backend), &[devices]);
    fits.map_err(|error| OpError::from_kind(&error).about("snapshot", id.as_str()))?;
    Ok(bundle)
}

/// The format of a bundle's device state.
pub(super) fn state_format(bundle: &Bundle) -> Result<StateFormat, OpError> {
    let manifest = bundle.manifest();
    let text = manifest.state_format.as_str();
    serde_json::from_value(text.into()).map_err(|_| {
        OpError::new(ErrorKind::Incompatible, format!("snapshot {} has device state of format {text:?}", manifest.id))
            .hinted("it was made by another version of hearth")
            .about("snapshot", manifest.id.as_str())
    })
}

/// Its name in a manifest.
fn format_name(format: StateFormat) -> String {
    match serde_json::to_value(format) {
        Ok(serde_json::Value::String(name)) => name,
        // A format is a unit variant: serde writes nothing else.
        Ok(_) | Err(_) => String::new(),
    }
}

/// A running instance, saved.
#[derive(Debug)]
pub(super) struct SavedLive {
    pub(super) record: SnapshotRecord,
    /// The way to the guest of a VMM that cut the old one off, where it goes on.
    pub(super) reached_anew: Option<Born>,
}

/// Saves a running instance.
pub(super) async fn save(
    host: &Arc<Host>,
    subject: &mut Subject,
    purpose: Use,
    then: Then,
    run: &mut Run,
) -> Result<SavedLive, OpError> {
    let live = subject.live()?;
    let vmm = live.vmm;
    let dir = subject.dir.clone();
    let draft = begin(host, run).await?;
    let memory = draft.path(hearth_snapshot::MEMORY);

    // Copied before the pause: a base never changes, and of what a booted guest changes meanwhile
    // the difference is written in the pause. A booted guest that ends gives its file away.
    let copied = match (vmm.ram(), then) {
        (Ram::Private, _) => Some(dir.memory_base()),
        (Ram::Tracked, _) => Some(dir.memory_base()).filter(|base| base.exists()),
        (Ram::Shared, Then::GoOn) => Some(dir.memory()),
        (Ram::Shared, Then::End) | (Ram::Anonymous, _) => None,
    };
    if let Some(from) = copied.clone() {
        let to = memory.clone();
        let how = run.step("clone memory", blocking(move || hearth_disk::clone_file(&from, &to))).await?;
        run.note(format!("{how:?}"));
    }

    run.undo("resume", resume_if_there(Arc::clone(&vmm)));
    run.step("pause", async { vmm.pause().await.map_err(OpError::from) }).await?;
    if vmm.ram() == Ram::Tracked {
        // A save that fails may have reset what is tracked. Without a base, the next one saves all.
        let base = dir.memory_base();
        run.step("forget base", blocking(move || hearth_disk::remove(&base))).await?;
    }
    let vmstate = draft.path(hearth_snapshot::VMSTATE);
    let how = match (&copied, vmm.ram()) {
        (Some(_), _) => SaveMemory::Onto(&memory),
        (None, Ram::Shared) => SaveMemory::Leave,
        (None, Ram::Private | Ram::Anonymous | Ram::Tracked) => SaveMemory::Into(&memory),
    };
    let saved = run.step("save guest", async { vmm.save(&vmstate, how).await.map_err(OpError::from) }).await?;
    if let Some(pages) = saved.pages {
        run.note(format!("{pages:?}"));
    }
    match vmm.ram() {
        Ram::Shared if copied.is_none() => {
            run.step("link memory", files::replace_links(vec![(dir.memory(), memory)])).await?;
        }
        // From here on it is tracked what differs from this.
        Ram::Tracked => run.step("link base", files::replace_links(vec![(memory, dir.memory_base())])).await?,
        Ram::Shared | Ram::Private | Ram::Anonymous => {}
    }
    disks(subject, &draft, then, run).await?;
    let mut reached_anew = None;
    if then == Then::GoOn {
        run.step("resume", async { vmm.resume().await.map_err(OpError::from) }).await?;
        if let Some(agent) = live.agent {
            let within = host.config.timeouts.agent();
            let agent = if vmm.save_cuts_off_the_guest() {
                let (agent, events) = run.step("reach agent", agents::meet(&vmm, within)).await?;
                let live = Live { vmm: Arc::clone(&vmm), agent: Some(agent.clone()) };
                reached_anew = Some(Born { live, events: Some(events) });
                agent
            } else {
                agent
            };
            // The guest's clock stood still.
            let identity = agents::identity(&subject.record);
            let refreshed = run.step("set clock", agents::refresh(&agent, &identity, within)).await;
            refreshed.inspect_err(|_| host.metrics.refresh_failed(subject.record.spec.backend))?;
        }
    }
    let record = publish(host, subject, draft, purpose, Some(saved.format), run).await?;
    Ok(SavedLive { record, reached_anew })
}

/// Saves a stopped instance's disks.
pub(super) async fn save_disks(
    host: &Arc<Host>,
    subject: &mut Subject,
    purpose: Use,
    run: &mut Run,
) -> Result<SnapshotRecord, OpError> {
    let draft = begin(host, run).await?;
    disks(subject, &draft, Then::GoOn, run).await?;
    publish(host, subject, draft, purpose, None, run).await
}

/// A bundle of the subject's own that holds what `bundle` holds, by links: both are immutable.
pub(super) async fn copy(
    host: &Arc<Host>,
    subject: &mut Subject,
    bundle: &Bundle,
    purpose: Use,
    run: &mut Run,
) -> Result<SnapshotRecord, OpError> {
    let draft = begin(host, run).await?;
    let mut links = vec![
        (bundle.rootfs(), draft.path(hearth_snapshot::ROOTFS)),
        (bundle.overlay(), draft.path(hearth_snapshot::OVERLAY)),
    ];
    let format = match bundle.manifest().kind {
        BundleKind::Standby => {
            links.push((bundle.memory(), draft.path(hearth_snapshot::MEMORY)));
            links.push((bundle.vmstate(), draft.path(hearth_snapshot::VMSTATE)));
            Some(state_format(bundle)?)
        }
        BundleKind::Stopped => None,
    };
    run.step("link bundle", files::replace_links(links)).await?;
    publish(host, subject, draft, purpose, format, run).await
}

async fn begin(host: &Arc<Host>, run: &mut Run) -> Result<Draft, OpError> {
    let id = SnapshotId::from_entropy(random()?);
    let snapshots = host.data.snapshots();
    run.undo("snapshot draft", {
        let (snapshots, id) = (snapshots.clone(), id.clone());
        blocking(move || hearth_snapshot::discard(&snapshots, &id))
    });
    run.step("begin bundle", blocking(move || hearth_snapshot::begin(&snapshots, &id))).await
}

async fn disks(subject: &Subject, draft: &Draft, then: Then, run: &mut Run) -> Result<(), OpError> {
    let dir = &subject.dir;
    let (overlay, saved) = (dir.overlay(), draft.path(hearth_snapshot::OVERLAY));
    let mut links = vec![(dir.rootfs(), draft.path(hearth_snapshot::ROOTFS))];
    match then {
        Then::End => links.push((overlay, saved)),
        Then::GoOn => {
            let how = run.step("clone overlay", blocking(move || hearth_disk::clone_file(&overlay, &saved))).await?;
            run.note(format!("{how:?}"));
        }
    }
    run.step("link disks", files::replace_links(links)).await
}

async fn publish(
    host: &Arc<Host>,
    subject: &Subject,
    draft: Draft,
    purpose: Use,
    format: Option<StateFormat>,
    run: &mut Run,
) -> Result<SnapshotRecord, OpError> {
    let record = &subject.record;
    let id = draft.id().clone();
    let created_at_ms = now_ms();
    let facts = host.facts(record.spec.backend);
    let manifest = Manifest {
        // Set by `publish`, from what it finds.
        format: hearth_snapshot::FORMAT,
        boot_id: String::new(),
        files: Vec::new(),
        id: id.clone(),
        kind: match purpose.kind {
            SnapshotKind::Standby => BundleKind::Standby,
            SnapshotKind::Stopped => BundleKind::Stopped,
        },
        created_at_ms,
        source_instance: record.id.clone(),
        backend: record.spec.backend,
        accel: facts.accel,
        vmm_version: facts.vmm_version.unwrap_or_default(),
        device_set: vec![hearth_vmm::device_set(&host.machine(&record.spec, BootFiles::default()))],
        state_format: format.map(format_name).unwrap_or_default(),
        memory: record.spec.memory,
        vcpus: record.spec.vcpus,
        cpu: facts.cpu,
        host_kernel: host.kernel_release().to_owned(),
        image_digest: record.image_digest.clone(),
        spec: record.spec.clone(),
        base: record.ram_base.clone(),
    };

    // The record comes first: a bundle that nobody knows of would stay for ever if the daemon died
    // between the two, a record without a bundle is forgotten at the next start.
    let mut saved = SnapshotRecord {
        id: id.clone(),
        name: purpose.name,
        kind: purpose.kind,
        internal: purpose.internal,
        source_instance: record.id.clone(),
        source_name: record.spec.name.clone(),
        backend: record.spec.backend,
        created_at_ms,
        size_bytes: NOT_PUBLISHED,
        tags: purpose.tags,
        spec: record.spec.clone(),
        image_digest: record.image_digest.clone(),
        memory: (purpose.kind == SnapshotKind::Standby).then_some(record.spec.memory),
    };
    run.undo("snapshot record", {
        let (host, id) = (Arc::clone(host), id.clone());
        async move { host.store.remove_snapshot(&id) }
    });
    run.step("record snapshot", async { host.store.insert_snapshot(&saved) }).await?;

    run.undo("snapshot", {
        let snapshots = host.data.snapshots();
        blocking(move || hearth_snapshot::remove(&snapshots, &id))
    });
    let bundle = run.step("publish bundle", blocking(move || hearth_snapshot::publish(draft, manifest))).await?;
    saved.size_bytes = bundle.manifest().allocated_bytes();
    run.step("record size", async { host.store.update_snapshot(&saved) }).await?;
    Ok(saved)
}

/// The size of a snapshot whose bundle was never seen: every bundle has a manifest, so none is empty.
pub(crate) const NOT_PUBLISHED: u64 = 0;

/// Lets a paused VMM go on; one that has ended meanwhile has nothing to go on with.
async fn resume_if_there(vmm: Arc<Vmm>) -> Result<(), OpError> {
    tokio::select! {
        biased;
        resumed = vmm.resume() => resumed.map_err(OpError::from),
        _ = vmm.exited() => Ok(()),
    }
}
