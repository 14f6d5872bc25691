//! What happens at the daemon's start: every record against what the host shows.
//!
//! The decisions are `hearth_model::recovery`'s; here they are carried out. A VMM that runs is
//! taken over and never ended; what an operation that was cut off may have made is removed by
//! name; where one could not look, nothing is touched, and the instance's driver looks again. What
//! belongs to no instance is `sweep`'s; what was done is told by `report`.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, stream};
use hearth_agent_client::EventReceiver;
use hearth_model::error::io_kind;
use hearth_model::recovery::{Observed, Outcome, Recovery, being_removed, recover};
use hearth_model::{ErrorKind, InstanceId, InstanceState, Op, Phase, RestartStatus, SnapshotId};
use hearth_store::InstanceRecord;
use hearth_vmm::Vmm;
use tracing::{info, warn};

use crate::clock::now_ms;
use crate::error::OpError;
use crate::host::{Host, end_vmm, recorded_seat};
use crate::ops::Live;
use crate::ops::files::{aside_of, put_back};
use crate::registry::Registry;
use crate::run::blocking;
use crate::{agents, fresh, restart};

mod report;
mod sweep;

pub(crate) use report::{Entry, Report, Swept, Told};

/// So many instances are recovered at a time: what takes long is a guest that does not answer.
const AT_ONCE: usize = 64;

/// Brings every recorded instance under a driver.
pub(crate) async fn recover_all(host: &Arc<Host>, registry: &Registry) -> Result<(), OpError> {
    let began = Instant::now();
    host.recovery.begin(now_ms());
    host.room.begin_anew();
    let swept = sweep::sweep(host).await?;
    host.recovery.swept(swept);
    // Guests that do not answer are waited for side by side.
    let recovered = stream::iter(host.store.instances()?).map(|record| async move {
        let id = record.id.clone();
        (id, recover_or_fail(host, registry, record).await)
    });
    let unseen: BTreeSet<_> = recovered
        .buffer_unordered(AT_ONCE)
        .filter_map(|(id, outcome)| async move { (outcome == Outcome::Held).then_some(id) })
        .collect()
        .await;
    let orphans = orphans(host)?;
    for snapshot in host.store.snapshots()? {
        if !orphans.contains(&snapshot.id) {
            host.settler.later(&snapshot.id);
        } else if !unseen.contains(&snapshot.source_instance) {
            // Of one that could not be seen they may hold all that it has.
            registry.drop_snapshot_later(snapshot.id);
        }
    }
    let took = began.elapsed();
    host.recovery.end(took);
    host.metrics.recovered_all(took);
    info!(ms = took.as_secs_f64() * 1e3, outcomes = %in_words(&host.recovery.told().outcomes), "recovered");
    Ok(())
}

/// `adopted 3, undone 1`.
fn in_words(outcomes: &BTreeMap<Outcome, u32>) -> String {
    let words: Vec<_> = outcomes.iter().map(|(outcome, count)| format!("{} {count}", outcome.as_str())).collect();
    words.join(", ")
}

/// What became of an instance, for the report and the metrics.
pub(crate) fn note(host: &Host, entry: Entry) {
    host.metrics.recovered(entry.outcome);
    host.recovery.note(entry);
}

/// Nobody loses an instance: one that cannot be brought back is shown, with the reason, and can be
/// removed.
async fn recover_or_fail(host: &Arc<Host>, registry: &Registry, record: InstanceRecord) -> Outcome {
    let (id, name) = (record.id.clone(), record.spec.name.clone());
    let error = match recover_one(host, registry, &record).await {
        Ok(outcome) => return outcome,
        Err((_, error)) => error,
    };
    warn!(%id, %name, %error, "the instance could not be brought back under control: trying once more");
    // Its VMM may have ended meanwhile: then something else is decided.
    let (observed, error) = match recover_one(host, registry, &record).await {
        Ok(outcome) => return outcome,
        Err(failed) => failed,
    };
    // What the host would not let be done, it may soon: nothing is given up for that.
    if matches!(error.kind, ErrorKind::HostFailed | ErrorKind::Exhausted) {
        warn!(%id, %name, %error, "the instance could not be brought back under control: looking again");
        note(host, Entry::of(&record, observed, Outcome::Held).because(&error.chain()));
        registry.adopt_unseen(record, &error.chain());
        return Outcome::Held;
    }
    warn!(%id, %name, %error, "the instance could not be brought back under control");
    let state = InstanceState::Failed { reason: format!("after a restart of the daemon: {}", error.chain()) };
    note(host, Entry::of(&record, observed, Outcome::Failed).rests(state.clone()).because(&error.chain()));
    if let Err(error) = rest(host, registry, record, state) {
        warn!(%id, %name, %error, "that could not be recorded");
    }
    Outcome::Failed
}

/// What was seen of an instance's VMM.
#[derive(Debug)]
pub(crate) struct Sight {
    pub(crate) observed: Observed,
    vmm: Option<Vmm>,
}

/// What became of a recorded instance.
#[derive(Debug)]
pub(crate) enum Found {
    /// It runs.
    Running(Box<InstanceRecord>, Live, Option<EventReceiver>),
    /// It has no VMM, and rests there.
    Rests(Box<InstanceRecord>, InstanceState),
    /// Nothing of it is left; its record goes next.
    Nothing,
    /// That could not be seen: nothing was touched.
    Unseen(&'static str),
}

/// One try; with what was seen where it fails.
async fn recover_one(
    host: &Arc<Host>,
    registry: &Registry,
    record: &InstanceRecord,
) -> Result<Outcome, (Observed, OpError)> {
    let sight = look(host, record).await;
    let observed = sight.observed;
    let recovered = async {
        let (outcome, found) = act(host, record.clone(), sight).await?;
        let entry = Entry::of(record, observed, outcome);
        match found {
            Found::Running(record, live, events) => {
                host.store.update_instance(&record)?;
                registry.adopt(*record, Some((live, events)));
                note(host, entry.rests(InstanceState::Running));
            }
            Found::Rests(record, state) => {
                rest(host, registry, *record, state.clone())?;
                note(host, entry.rests(state));
            }
            Found::Nothing => {
                host.store.remove_instance(&record.id)?;
                fresh::forget_later(host, &host.data.instance(&record.id));
                host.networks.give_back(record);
                note(host, entry);
            }
            Found::Unseen(why) => {
                // First: its driver says what becomes of it.
                note(host, entry.because(why));
                registry.adopt_unseen(record.clone(), why);
            }
        }
        Ok(outcome)
    };
    recovered.await.map_err(|error| (observed, error))
}

/// Looks for the VMM of a recorded instance; touches nothing.
pub(crate) async fn look(host: &Host, record: &InstanceRecord) -> Sight {
    let Some(seat) = recorded_seat(record) else { return Sight { observed: Observed::Gone, vmm: None } };
    match host.adopt(&seat).await {
        Ok(Some(vmm)) => Sight { observed: Observed::Alive, vmm: Some(vmm) },
        Ok(None) => Sight { observed: Observed::Gone, vmm: None },
        Err(error) => {
            warn!(id = %record.id, %error, "could not look for the VMM");
            Sight { observed: Observed::Unknown, vmm: None }
        }
    }
}

/// Decides from what was seen, and does to the host what was decided. Record and driver are left to
/// the caller.
pub(crate) async fn act(
    host: &Arc<Host>,
    mut record: InstanceRecord,
    Sight { observed, vmm }: Sight,
) -> Result<(Outcome, Found), OpError> {
    let saved = saved_by_standby(host, &record)?;
    if fresh::was_being_removed(&host.data.instance(&record.id)) {
        record.phase = being_removed(&record.phase);
    }
    let decision = recover(&record.phase, observed, saved);
    info!(id = %record.id, name = %record.spec.name, phase = ?record.phase, ?observed, ?decision, "recovering");
    let outcome = decision.outcome();
    let found = match decision {
        Recovery::Adopt => {
            let Some(vmm) = vmm else {
                return Ok((Outcome::Held, Found::Unseen("its VMM was there, and could not be taken over")));
            };
            let (live, events) = take_over(host, &record, vmm).await?;
            record.phase = Phase::Resting(InstanceState::Running);
            Found::Running(Box::new(record), live, events)
        }
        Recovery::Rest(state) => Found::Rests(Box::new(record), state),
        Recovery::NoteExit => {
            record.exit.get_or_insert_with(restart::unseen_exit);
            clean(host, &record).await?;
            record.stopped_at_ms = Some(now_ms());
            match record.phase {
                // Somebody wanted it to end.
                Phase::Busy { op: Op::Stop | Op::Standby, .. } => {
                    record.restart = RestartStatus::stopped_by_hand(&record.spec.restart);
                }
                Phase::Busy { .. } | Phase::Resting(_) => restart::after_end(&mut record, now_ms()),
            }
            (record.seat, record.slot) = (None, None);
            Found::Rests(Box::new(record), InstanceState::Stopped)
        }
        Recovery::Undo(state) => {
            clean(host, &record).await?;
            // A start that was cut off while an attempt was due was that attempt.
            if matches!(record.phase, Phase::Busy { op: Op::Start, .. }) && record.restart.next_attempt_at_ms.is_some()
            {
                record.restart = record.restart.after_failed_attempt(&record.spec.restart, now_ms());
            }
            (record.seat, record.slot) = (None, None);
            Found::Rests(Box::new(record), state)
        }
        Recovery::Remove | Recovery::FinishDelete => {
            clean(host, &record).await?;
            let whole = host.data.instance(&record.id);
            blocking(move || fresh::remove(&whole)).await?;
            Found::Nothing
        }
        Recovery::Hold(why) => Found::Unseen(why),
    };
    Ok((outcome, found))
}

/// The bundle that a standby of this instance recorded before it was cut off. Only a standby links
/// the instance's own overlay into its bundle: by that it is told from one made for a fork.
fn saved_by_standby(host: &Arc<Host>, record: &InstanceRecord) -> Result<Option<SnapshotId>, OpError> {
    if !matches!(record.phase, Phase::Busy { op: Op::Standby, .. }) {
        return Ok(None);
    }
    let dir = host.data.instance(&record.id);
    let Some(disk) = record.spec.disks().into_iter().find(|disk| !disk.read_only) else { return Ok(None) };
    let Some(own) = inode(&dir.disk(&disk.path))? else { return Ok(None) };
    for snapshot in host.store.snapshots()? {
        let bundle = host.data.snapshots().join(snapshot.id.as_str());
        let may_be = snapshot.internal && snapshot.source_instance == record.id;
        if may_be && inode(&bundle.join(&disk.path))? == Some(own) {
            return Ok(Some(snapshot.id));
        }
    }
    Ok(None)
}

/// Which file has that name; `None` if none has. That it could not be looked at is an error.
fn inode(path: &Path) -> Result<Option<u64>, OpError> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta.ino())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(OpError::new(io_kind(&error), format!("look at {}: {error}", path.display()))),
    }
}

/// Ends what VMM there may be, and removes what only it used.
async fn clean(host: &Arc<Host>, record: &InstanceRecord) -> Result<(), OpError> {
    let dir = host.data.instance(&record.id);
    end_vmm(Arc::clone(host), dir.clone(), recorded_seat(record)).await?;
    host.networks.clear(record).await?;
    let disks = record.spec.disks();
    let aside: Vec<_> = disks.iter().map(|disk| (dir.disk_before(&disk.path), dir.disk(&disk.path))).collect();
    let files = [dir.memory(), dir.memory_base(), dir.vmstate()];
    // What was about to take the place of one of them.
    let places = disks.iter().map(|disk| dir.disk(&disk.path)).chain(files.clone());
    let halves: Vec<_> = places.map(|place| aside_of(&place)).collect();
    blocking(move || {
        // A revert that was cut off has put the overlay aside.
        aside.iter().try_for_each(|(before, disk)| put_back(before, disk))?;
        files.iter().chain(&halves).try_for_each(|file| hearth_disk::remove(file).map_err(OpError::from))
    })
    .await
}

async fn take_over(
    host: &Arc<Host>,
    record: &InstanceRecord,
    vmm: Vmm,
) -> Result<(Live, Option<EventReceiver>), OpError> {
    // An operation that was cut off may have left it paused; one that runs stays as it is.
    if matches!(record.phase, Phase::Busy { .. }) {
        vmm.resume().await?;
    }
    let vmm = Arc::new(vmm);
    let (mut agent, mut events): (_, Option<EventReceiver>) = (None, None);
    if record.spec.agent {
        match agents::meet(&vmm, host.config.timeouts.agent()).await {
            Ok((met, heard)) => (agent, events) = (Some(met), Some(heard)),
            Err(error) => warn!(id = %record.id, %error, "the VMM runs, its agent does not answer"),
        }
    }
    // An operation that was cut off may have closed its gate.
    let placed = match host.networks.adopt(record).await {
        Ok(()) if record.slot.is_some() => host.networks.unlock(&record.id).await,
        adopted => adopted,
    };
    if let Err(error) = placed {
        warn!(id = %record.id, %error, "the instance runs on without its network");
    }
    Ok((Live { vmm, agent }, events))
}

fn rest(
    host: &Arc<Host>,
    registry: &Registry,
    mut record: InstanceRecord,
    state: InstanceState,
) -> Result<(), OpError> {
    record.phases.enter(state.name(), now_ms());
    if matches!(state, InstanceState::Failed { .. }) {
        record.restart.next_attempt_at_ms = None;
    }
    record.phase = Phase::Resting(state);
    host.store.update_instance(&record)?;
    registry.adopt(record, None);
    Ok(())
}

/// Internal snapshots that no instance's standby points to: made by something that was cut off.
fn orphans(host: &Arc<Host>) -> Result<BTreeSet<SnapshotId>, OpError> {
    let held: BTreeSet<_> = host
        .store
        .instances()?
        .into_iter()
        .filter_map(|record| match record.phase.state() {
            InstanceState::Standby { snapshot } => Some(snapshot.clone()),
            InstanceState::Stopped | InstanceState::Running | InstanceState::Failed { .. } => None,
        })
        .collect();
    let all = host.store.snapshots()?.into_iter().filter(|snapshot| snapshot.internal).map(|snapshot| snapshot.id);
    Ok(all.filter(|id| !held.contains(id)).collect())
}

/// Removes those of one instance, of which it is known at last where it rests.
pub(crate) fn drop_orphans_of(host: &Arc<Host>, registry: &Registry, instance: &InstanceId) -> Result<(), OpError> {
    let orphans = orphans(host)?;
    let snapshots = host.store.snapshots()?.into_iter();
    snapshots
        .filter(|snapshot| snapshot.source_instance == *instance && orphans.contains(&snapshot.id))
        .for_each(|snapshot| registry.drop_snapshot_later(snapshot.id));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use hearth_model::{Backend, ErrorKind};
    use hearth_net::fake::When;
    use hearth_store::SnapshotRecord;

    use super::*;
    use crate::ops::bundle::NOT_PUBLISHED;
    use crate::world::World;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn guests_that_do_not_answer_are_waited_for_side_by_side() {
        const GUESTS: usize = 6;
        let mut world = World::configured(Backend::QemuMicrovm, |config| config.timeouts.agent_s = 1).await;
        for nth in 0..GUESTS {
            world.create(&format!("web-{nth}")).await.expect("created");
        }
        world.mute.store(true, Ordering::Relaxed);
        let began = Instant::now();
        world.reborn().await;
        let took = began.elapsed();
        assert!(took >= Duration::from_secs(1), "none of them has answered: {took:?}");
        assert!(took < Duration::from_secs(3), "one after another: {took:?}");
        assert_eq!(world.registry.list().len(), GUESTS);
        assert!(world.registry.list().iter().all(|view| *view.state() == InstanceState::Running));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_instance_whose_vmm_is_not_reached_at_first_is_not_lost() {
        let mut world = World::on(Backend::Firecracker, hearth_model::load::ResumeOnLoad::On).await;
        let web = world.create("web").await.expect("created");
        let id = web.id().clone();
        let mut failed = 0;
        // The first call looks whether it is there; nothing is decided without that.
        for nth in 1..4 {
            // A standby was cut off: the VMM has to be resumed.
            let mut record = world.host.store.instance(&id).expect("readable").expect("recorded");
            record.phase = Phase::Busy { op: Op::Standby, from: InstanceState::Running };
            world.host.store.update_instance(&record).expect("stored");
            let before = world.fake().calls();
            world.fake().fail(Some((nth, hearth_vmm::fake::When::Before)));
            world.reborn().await;
            world.fake().fail(None);
            failed += u32::from(world.fake().calls() - before > nth);
            assert_eq!(world.registry.list().len(), 1, "call {nth} failed, and the instance is lost");
            assert_eq!(*world.get("web").view().state(), InstanceState::Running, "call {nth} failed");
        }
        assert!(failed > 0, "no call was made that could fail");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_slot_that_is_not_found_again_is_not_in_the_way_of_the_next() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        web.stop().await.expect("stopped");
        for (nth, when) in [(0, When::Before), (0, When::After), (1, When::Before), (1, When::After)] {
            // A start was cut off that had its slot.
            let mut record = world.host.store.instance(web.id()).expect("readable").expect("recorded");
            record.phase = Phase::Busy { op: Op::Start, from: InstanceState::Stopped };
            world.host.networks.take(&mut record).await.expect("taken");
            world.host.store.update_instance(&record).expect("stored");
            world.network.fail(Some((nth, when)));
            world.reborn().await;
            world.network.fail(None);
            assert_eq!(*world.get("web").view().state(), InstanceState::Stopped, "call {nth} failed {when:?}");
            assert_eq!(world.network.taken(), [], "call {nth} failed {when:?}");
        }
        world.get("web").start().await.expect("nothing is in its way");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_whose_removal_was_cut_off_is_removed_to_the_end() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        let before = world.at_rest().await;
        let plan = |name: &str| crate::ops::SnapshotPlan {
            name: Some(name.parse().expect("a name")),
            tags: std::collections::BTreeMap::new(),
            kind: hearth_store::SnapshotKind::Standby,
            internal: false,
        };
        let saved = web.snapshot(plan("warm")).await.expect("saved");
        hearth_snapshot::withdraw(&world.host.data.snapshots(), &saved.id).expect("withdrawn");
        world.reborn().await;
        assert_eq!(world.host.store.snapshot(&saved.id).expect("readable"), None);
        assert_eq!(world.at_rest().await, before, "neither record nor bundle is left");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_snapshot_that_was_cut_off_before_its_size_was_recorded_has_one() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        let plan = crate::ops::SnapshotPlan {
            name: Some("warm".parse().expect("a name")),
            tags: std::collections::BTreeMap::new(),
            kind: hearth_store::SnapshotKind::Standby,
            internal: false,
        };
        let saved = web.snapshot(plan).await.expect("saved");
        let cut = SnapshotRecord { size_bytes: NOT_PUBLISHED, ..saved.clone() };
        world.host.store.update_snapshot(&cut).expect("stored");
        world.reborn().await;
        assert_eq!(world.host.store.snapshot(&saved.id).expect("readable"), Some(saved));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_was_about_to_take_a_disks_place_goes() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        web.standby().await.expect("standby");
        let before = world.at_rest().await;
        let dir = world.host.data.instance(web.id());
        std::fs::write(dir.disks().join("overlay.img.new"), "half of it").expect("written");
        assert_ne!(world.at_rest().await, before, "it is seen");
        let mut record = world.host.store.instance(web.id()).expect("readable").expect("recorded");
        record.phase = Phase::Busy { op: Op::Restore, from: record.phase.state().clone() };
        world.host.store.update_instance(&record).expect("stored");
        world.reborn().await;
        assert_eq!(world.at_rest().await, before);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_guest_with_the_devices_of_another_build_is_not_saved_and_runs_on() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        // As if this build launched other devices than the one that booted it.
        let mut record = world.host.store.instance(web.id()).expect("readable").expect("recorded");
        record.spec.vcpus += 1;
        world.host.store.update_instance(&record).expect("stored");
        world.reborn().await;
        let before = world.at_rest().await;
        let refused = world.get("web").standby().await.expect_err("it could not be restored");
        assert_eq!(refused.kind, ErrorKind::Incompatible);
        for word in ["1cpu", "2cpu", "could not be restored"] {
            assert!(refused.to_string().contains(word), "{refused}");
        }
        assert!(refused.hint.expect("what to do").contains("hearth stop web"));
        assert_eq!(world.at_rest().await, before);
        assert_eq!(*world.get("web").view().state(), InstanceState::Running);
    }

    /// A standby was cut off after its bundle was published, and its VMM cannot be looked for.
    async fn cut_off_and_unseen(looks: u32) -> (World, InstanceRecord, SnapshotId) {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        let seat = world.host.store.instance(web.id()).expect("readable").expect("recorded").seat;
        let InstanceState::Standby { snapshot } = web.standby().await.expect("standby").state().clone() else {
            panic!("it is in standby");
        };
        let mut record = world.host.store.instance(web.id()).expect("readable").expect("recorded");
        record.phase = Phase::Busy { op: Op::Standby, from: InstanceState::Running };
        record.seat = seat;
        world.host.store.update_instance(&record).expect("stored");
        world.fake().blind(looks);
        world.reborn().await;
        (world, record, snapshot)
    }

    /// A standby was cut off after its bundle was published, its VMM has ended, and the bundle's disk cannot be
    /// looked at.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn memory_is_not_dropped_because_its_bundle_could_not_be_looked_at() {
        let mut world = World::new().await;
        let web = world.create("web").await.expect("created");
        let InstanceState::Standby { snapshot } = web.standby().await.expect("standby").state().clone() else {
            panic!("it is in standby");
        };
        let mut record = world.host.store.instance(web.id()).expect("readable").expect("recorded");
        record.phase = Phase::Busy { op: Op::Standby, from: InstanceState::Running };
        world.host.store.update_instance(&record).expect("stored");
        let disks = world.host.data.snapshots().join(snapshot.as_str()).join(hearth_snapshot::DISKS);
        let aside = disks.with_extension("aside");
        std::fs::rename(&disks, &aside).expect("put aside");
        std::os::unix::fs::symlink(&disks, &disks).expect("a link that leads nowhere, for ever");
        world.reborn().await;
        let web = world.get("web");
        // Looked for in vain as often as it is.
        until(&web, |state| matches!(state, InstanceState::Failed { reason } if !reason.contains("again"))).await;
        assert!(world.host.store.snapshot(&snapshot).expect("readable").is_some(), "its memory is there");
        assert!(aside.exists(), "its bundle too");

        std::fs::remove_file(&disks).expect("removed");
        std::fs::rename(&aside, &disks).expect("put back");
        world.host.store.update_instance(&record).expect("as it was left");
        world.reborn().await;
        let web = world.get("web");
        assert_eq!(*web.view().state(), InstanceState::Standby { snapshot });
        web.restore().await.expect("nothing was lost");
    }

    async fn until(web: &crate::handle::InstanceHandle, is_so: impl Fn(&InstanceState) -> bool) -> InstanceState {
        let mut watch = web.watch();
        let found = tokio::time::timeout(Duration::from_secs(10), watch.wait_for(|view| is_so(view.state()))).await;
        found.expect("in time").expect("it has a driver").state().clone()
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_could_not_be_looked_for_is_looked_for_again_and_keeps_all_that_it_has() {
        let (world, record, snapshot) = cut_off_and_unseen(3).await;
        let web = world.get("web");
        if let InstanceState::Failed { reason } = web.view().state() {
            assert!(reason.contains("could not look for its VMM; looking again"), "{reason}");
            let stored = world.host.store.instance(&record.id).expect("readable").expect("recorded");
            assert_eq!(stored, record, "the record stays as it was left");
            assert!(world.host.store.snapshot(&snapshot).expect("readable").is_some(), "so does its memory");
            assert_eq!(web.start().await.expect_err("it is not known").kind, ErrorKind::WrongState);
        }
        let state = until(&web, |state| !matches!(state, InstanceState::Failed { .. })).await;
        assert_eq!(state, InstanceState::Standby { snapshot });
        assert_eq!(world.host.room.holders(), (0, 0), "it does not run");
        web.restore().await.expect("nothing was lost");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_runs_on_unseen_is_taken_over_when_it_is_seen() {
        let mut world = World::new().await;
        world.create("web").await.expect("created");
        world.fake().blind(2);
        world.reborn().await;
        let web = world.get("web");
        assert_eq!(world.host.room.holders(), (1, 0), "it may run, and has what it had");
        until(&web, |state| *state == InstanceState::Running).await;
        assert_eq!((world.fake().alive().len(), world.host.room.holders()), (1, (1, 0)));
        web.standby().await.expect("it obeys again");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_is_never_seen_has_failed_in_the_end_and_can_be_deleted() {
        let (mut world, record, snapshot) = cut_off_and_unseen(u32::MAX).await;
        let web = world.get("web");
        let last =
            |state: &InstanceState| matches!(state, InstanceState::Failed { reason } if !reason.contains("again"));
        until(&web, last).await;
        let stored = world.host.store.instance(&record.id).expect("readable").expect("recorded");
        assert!(matches!(stored.phase, Phase::Resting(InstanceState::Failed { .. })));
        assert!(world.host.store.snapshot(&snapshot).expect("readable").is_some(), "nothing was deleted meanwhile");
        world.fake().blind(0);
        web.delete(false).await.expect("deleted");
        world.reborn().await;
        let left = world.at_rest().await;
        assert_eq!((world.registry.list().len(), world.host.room.holders()), (0, (0, 0)), "{left:?}");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn one_that_is_unseen_can_be_deleted_at_once() {
        let mut world = World::new().await;
        world.create("web").await.expect("created");
        world.fake().blind(1);
        world.reborn().await;
        world.get("web").delete(false).await.expect("deleted");
        assert_eq!((world.registry.list().len(), world.fake().alive().len()), (0, 0));
        assert_eq!(world.host.room.holders(), (0, 0));
    }
}
