//! Making and opening bundles: what standby, snapshot and fork share.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::Arc;

use hearth_model::foreign::{ForeignState, NamedDrive};
use hearth_model::{ErrorKind, InstanceId, InstanceName, InstanceSpec, SnapshotId};
use hearth_snapshot::{Bundle, BundleKind, Draft, Manifest};
use hearth_store::{SnapshotKind, SnapshotRecord};
use hearth_vmm::{ControlError, Ram, SaveMemory, StateFormat, Vmm};

use super::{Born, Live, Subject, files, slot};
use crate::agents;
use crate::clock::now_ms;
use crate::dropping::take_back;
use crate::error::OpError;
use crate::host::Host;
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
    // A small file and a look at each of the others: handing that to another thread and back would take longer.
    let bundle = hearth_snapshot::open(&host.data.snapshots(), id)
        .map_err(|error| OpError::from_kind(&error).about("snapshot", id.as_str()))?;
    let manifest = bundle.manifest();
    let devices = hearth_vmm::device_set(&host.machine_of(&manifest.spec));
    let fits = hearth_snapshot::compatible(manifest, &host.facts(manifest.backend), &[devices]);
    fits.map_err(|error| OpError::from_kind(&error).about("snapshot", id.as_str()))?;
    Ok(bundle)
}

/// The same, to run what is in it: also what a state names that was saved elsewhere has to be
/// there. The VMM opens it before it can be replaced.
pub(super) async fn open_to_run(host: &Arc<Host>, id: &SnapshotId) -> Result<Bundle, OpError> {
    let bundle = open(host, id).await?;
    if let Some(foreign) = bundle.manifest().foreign.clone() {
        blocking(move || foreign.drives.iter().filter(|drive| drive.path.starts_with('/')).try_for_each(original))
            .await
            .map_err(|error| error.about("snapshot", id.as_str()))?;
    }
    Ok(bundle)
}

/// Opens the file that a state names, as the VMM will.
fn original(drive: &NamedDrive) -> Result<(), OpError> {
    let opened = File::options().read(true).write(!drive.read_only).open(&drive.path);
    opened.map(drop).map_err(|error| {
        OpError::new(
            ErrorKind::Incompatible,
            format!("its state names drive {} as {}, which cannot be opened: {error}", drive.id, drive.path),
        )
        .hinted(format!(
            "put any file there, an empty one will do (`touch {}`): the VMM only opens it, and the guest gets its own",
            drive.path
        ))
    })
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
    would_load_here(host, subject, &vmm)?;
    let dir = subject.dir.clone();
    let draft = begin(host, run).await?;
    let memory = draft.path(hearth_snapshot::MEMORY);

    // Copied before the pause: a base never changes, and of what a booted guest changes meanwhile
    // the difference is written in the pause. A booted guest that ends gives its file away.
    let copied = match (vmm.ram(), then) {
        (Ram::Private, _) => Some(dir.memory_base()),
        (Ram::Tracked, _) => files::if_there(dir.memory_base())?,
        (Ram::Shared, Then::GoOn) => Some(dir.memory()),
        (Ram::Shared, Then::End) | (Ram::Anonymous, _) => None,
    };
    if let Some(from) = copied.clone() {
        let to = memory.clone();
        let how = run.step("clone memory", blocking(move || hearth_disk::clone_file(&from, &to))).await?;
        run.note(format!("{how:?}"));
    }

    slot::shut(host, subject, run).await?;
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
        slot::open(host, subject, run).await?;
    }
    let record = publish(host, Source::of(subject), draft, purpose, Some(saved.format), run).await?;
    Ok(SavedLive { record, reached_anew })
}

/// A guest whose VMM an older build launched may have other devices than it would be loaded with: its
/// memory is better kept where it is than in a snapshot that nobody here can restore.
fn would_load_here(host: &Host, subject: &Subject, vmm: &Vmm) -> Result<(), OpError> {
    let machine = host.machine_of(&subject.record.spec);
    let (has, would_have) = (hearth_vmm::launched_with(vmm.seat(), &machine)?, hearth_vmm::device_set(&machine));
    if has == would_have {
        return Ok(());
    }
    let name = &subject.record.spec.name;
    Err(OpError::new(
        ErrorKind::Incompatible,
        format!(
            "instance {name} runs with the devices of another version of hearth, or of another network.mode \
             ({has}): what is saved of it now could not be restored here ({would_have})"
        ),
    )
    .hinted(format!("`hearth stop {name} && hearth start {name}` boots it with the present ones"))
    .about("instance", name.as_str()))
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
    publish(host, Source::of(subject), draft, purpose, None, run).await
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
    let disks = bundle.manifest().disks();
    let mut links: Vec<_> = disks.iter().map(|disk| (bundle.dir().join(&disk.path), draft.path(&disk.path))).collect();
    let format = match bundle.manifest().kind {
        BundleKind::Standby => {
            links.push((bundle.memory(), draft.path(hearth_snapshot::MEMORY)));
            links.push((bundle.vmstate(), draft.path(hearth_snapshot::VMSTATE)));
            Some(state_format(bundle)?)
        }
        BundleKind::Stopped => None,
    };
    run.step("link bundle", files::replace_links(links)).await?;
    let source = Source { foreign: bundle.manifest().foreign.clone(), ..Source::of(subject) };
    publish(host, source, draft, purpose, format, run).await
}

pub(super) async fn begin(host: &Arc<Host>, run: &mut Run) -> Result<Draft, OpError> {
    let id = SnapshotId::from_entropy(random()?);
    let snapshots = host.data.snapshots();
    run.undo("snapshot", take_back(Arc::clone(host), id.clone()));
    run.step("begin bundle", blocking(move || hearth_snapshot::begin(&snapshots, &id))).await
}

async fn disks(subject: &Subject, draft: &Draft, then: Then, run: &mut Run) -> Result<(), OpError> {
    let dir = &subject.dir;
    let mut links = Vec::new();
    for disk in subject.record.spec.disks() {
        let (own, saved) = (dir.disk(&disk.path), draft.path(&disk.path));
        if disk.read_only || then == Then::End {
            links.push((own, saved));
            continue;
        }
        let how = run.step("clone overlay", blocking(move || hearth_disk::clone_file(&own, &saved))).await?;
        run.note(format!("{how:?}"));
    }
    run.step("link disks", files::replace_links(links)).await
}

/// Whose snapshot is published.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) instance: InstanceId,
    pub(super) name: InstanceName,
    pub(super) spec: InstanceSpec,
    pub(super) image_digest: String,
    pub(super) base: Option<SnapshotId>,
    /// What the state names, if it was saved elsewhere.
    pub(super) foreign: Option<ForeignState>,
}

impl Source {
    /// An instance whose state was saved here: all that it names is its own.
    fn of(subject: &Subject) -> Self {
        let record = &subject.record;
        Self {
            instance: record.id.clone(),
            name: record.spec.name.clone(),
            spec: record.spec.clone(),
            image_digest: record.image_digest.clone(),
            base: record.ram_base.clone(),
            foreign: None,
        }
    }
}

pub(super) async fn publish(
    host: &Arc<Host>,
    source: Source,
    draft: Draft,
    purpose: Use,
    format: Option<StateFormat>,
    run: &mut Run,
) -> Result<SnapshotRecord, OpError> {
    let Source { instance, name, spec, image_digest, base, foreign } = source;
    let id = draft.id().clone();
    let created_at_ms = now_ms();
    let facts = host.facts(spec.backend);
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
        source_instance: instance.clone(),
        backend: spec.backend,
        accel: facts.accel,
        vmm_version: facts.vmm_version.unwrap_or_default(),
        device_set: vec![hearth_vmm::device_set(&host.machine_of(&spec))],
        state_format: format.map(format_name).unwrap_or_default(),
        memory: spec.memory,
        vcpus: spec.vcpus,
        cpu: facts.cpu,
        host_kernel: host.kernel_release().to_owned(),
        image_digest: image_digest.clone(),
        spec: spec.clone(),
        foreign,
        base,
    };

    // What undoes all of this was said when the draft was begun. The record comes first: a bundle that nobody knows of would stay for ever if the daemon died
    // between the two, a record without a bundle is forgotten at the next start.
    let mut saved = SnapshotRecord {
        id: id.clone(),
        name: purpose.name,
        kind: purpose.kind,
        internal: purpose.internal,
        source_instance: instance,
        source_name: name,
        backend: spec.backend,
        created_at_ms,
        size_bytes: NOT_PUBLISHED,
        tags: purpose.tags,
        memory: (purpose.kind == SnapshotKind::Standby).then_some(spec.memory),
        spec,
        image_digest,
    };
    run.step("record snapshot", async { host.store.insert_snapshot(&saved) }).await?;

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
        resumed = vmm.resume() => match resumed {
            Err(ControlError::Gone { .. }) => Ok(()),
            resumed => resumed.map_err(OpError::from),
        },
        _ = vmm.exited() => Ok(()),
    }
}
