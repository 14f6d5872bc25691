//! The registry: which instances there are, and how new ones come to be.
//!
//! Names and ids are taken here, in the store, before the host is touched; everything else is
//! done by each instance's driver.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use futures_util::{StreamExt as _, stream};
use hearth_agent_client::EventReceiver;
use hearth_model::capacity::Amounts;
use hearth_model::network::inner;
use hearth_model::{
    ErrorKind, InstanceId, InstanceName, InstanceSpec, InstanceState, Op, Phase, RestartStatus, SnapshotId,
};
use hearth_store::lookup::{Called, resolve};
use hearth_store::{InstanceRecord, Lookup, Origin, PhaseClock, RecordError, SnapshotKind, SnapshotRecord};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::clock::now_ms;
use crate::driver::Driver;
use crate::dropping;
use crate::error::OpError;
use crate::handle::{InstanceHandle, InstanceView, Request};
use crate::host::Host;
use crate::ops::{ForkPlan, Live, RevertPlan, SnapshotPlan, Target};
use crate::pins::Pin;
use crate::reservations::{Taken, of_boot, writes};
use crate::resources::machine;

/// All instances.
#[derive(Debug, Clone)]
pub(crate) struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    host: Arc<Host>,
    instances: RwLock<HashMap<InstanceId, InstanceHandle>>,
    draining: CancellationToken,
}

/// What a fork is made of.
#[derive(Debug, Clone)]
pub(crate) enum ForkSource {
    Instance(InstanceHandle),
    Snapshot(SnapshotId),
}

/// What a fork shall be.
#[derive(Debug, Clone)]
pub(crate) struct ForkRequest {
    pub(crate) name: InstanceName,
    /// How many; more than one are called `name-1`, `name-2`, ….
    pub(crate) count: usize,
    /// A running source may be paused for a moment.
    pub(crate) from_running: bool,
    /// Where the forks shall rest; `None` is where the source rests.
    pub(crate) target: Option<Target>,
    /// Variables over the source's.
    pub(crate) env: BTreeMap<String, String>,
    /// Instead of the source's.
    pub(crate) tags: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
impl ForkRequest {
    /// One that is as its source is.
    pub(crate) fn one(name: InstanceName) -> Self {
        Self { name, count: 1, from_running: false, target: None, env: BTreeMap::new(), tags: None }
    }
}

/// One fork of several: its name, and what became of it.
pub(crate) type Forked = (InstanceName, Result<InstanceHandle, OpError>);

impl Registry {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self { inner: Arc::new(Inner { host, instances: RwLock::default(), draining: CancellationToken::new() }) }
    }

    /// The instance that a text means: id, name, or a prefix of one id only.
    pub(crate) fn resolve(&self, text: &str) -> Result<InstanceHandle, OpError> {
        let instances = self.read();
        let called: Vec<Called> =
            instances.values().map(|h| Called { id: h.id().to_string(), name: Some(h.name().to_string()) }).collect();
        match resolve(text, &called) {
            Lookup::Found(id) => instances
                .iter()
                .find(|(known, _)| known.as_str() == id)
                .map(|(_, handle)| handle.clone())
                .ok_or_else(|| OpError::not_found("instance", text, &[])),
            Lookup::NotFound { similar } => Err(OpError::not_found("instance", text, &similar)),
            Lookup::Ambiguous { candidates } => Err(ambiguous("instance", text, &candidates)),
        }
    }

    /// Every instance, the oldest first.
    pub(crate) fn list(&self) -> Vec<InstanceView> {
        let mut views: Vec<InstanceView> = self.read().values().map(InstanceHandle::view).collect();
        views.sort_by(|a, b| (a.record.created_at_ms, &a.record.id).cmp(&(b.record.created_at_ms, &b.record.id)));
        views
    }

    /// Takes the name of a new instance of an image; [`Request::Create`] boots it.
    pub(crate) fn begin(&self, spec: InstanceSpec, image_digest: String) -> Result<InstanceHandle, OpError> {
        self.inner.host.check_backend(spec.backend)?;
        let wants = Amounts { disk: writes(of_boot(&spec)).disk, ..machine(&spec) };
        let room = self.room(Op::Create, &spec.name, wants)?;
        let record = self.reserve(Op::Create, spec, image_digest, None, room.id().clone())?;
        room.keep();
        Ok(self.spawn(record, None, None))
    }

    /// Makes one instance of a snapshot, or of an instance as it is now.
    pub(crate) async fn fork(&self, source: ForkSource, request: ForkRequest) -> Result<InstanceHandle, OpError> {
        let mut forks = self.fork_many(source, ForkRequest { count: 1, ..request }).await?;
        match forks.pop() {
            Some((_, result)) => result,
            None => Err(OpError::new(ErrorKind::Internal, "a fork of one made none")),
        }
    }

    /// Makes `count` instances side by side of one snapshot. Those that fail are named with their
    /// errors; the others stay.
    pub(crate) async fn fork_many(&self, source: ForkSource, request: ForkRequest) -> Result<Vec<Forked>, OpError> {
        let names: Vec<InstanceName> = match request.count {
            0 => return Err(OpError::new(ErrorKind::Invalid, "count of forks must be at least 1")),
            1 => vec![request.name.clone()],
            count => (1..=count).map(|number| request.name.numbered(number)).collect(),
        };
        // Room for all of them before anything is done: a source that runs is paused for a snapshot.
        let given = match source {
            ForkSource::Snapshot(_) => Some(self.fork_from(&source, &request).await?),
            ForkSource::Instance(_) => None,
        };
        let (target, wants) = self.plan_fork(&source, given.as_ref().map(|(_, record, ..)| record), &request);
        let rooms: Vec<_> = names.into_iter().map(|name| (self.room(Op::Fork, &name, wants), name)).collect();
        if rooms.iter().all(|(room, _)| room.is_err()) {
            return Ok(rooms.into_iter().filter_map(|(room, name)| room.err().map(|full| (name, Err(full)))).collect());
        }
        let (pin, record, origin, made_for_it) = match given {
            Some(given) => given,
            None => self.fork_from(&source, &request).await?,
        };
        if !record.spec.agent && !request.env.is_empty() {
            return Err(OpError::new(ErrorKind::Unsupported, "env: the guest has no agent to take variables")
                .hinted("leave out \"env\"")
                .about("snapshot", record.id.as_str()));
        }

        let forks = rooms.into_iter().map(|(room, name)| {
            let (this, record, origin) = (self.clone(), record.clone(), origin.clone());
            let spec = record.spec.clone().forked(name.clone(), request.env.clone(), request.tags.clone());
            let pin = this.inner.host.pins.pin(&record.id);
            tokio::spawn(async move {
                let forked = match room {
                    Ok(room) => this.fork_one(spec, &record, origin, (pin, target), room).await,
                    Err(full) => Err(full),
                };
                (name, forked)
            })
        });
        let mut done = Vec::new();
        for fork in forks.collect::<Vec<_>>() {
            done.push(fork.await.map_err(|e| OpError::new(ErrorKind::Internal, format!("a fork ended early: {e}")))?);
        }
        drop(pin);
        if made_for_it {
            self.drop_snapshot_later(record.id);
        }
        Ok(done)
    }

    /// Puts a snapshot in an instance's place.
    pub(crate) async fn revert(
        &self,
        handle: &InstanceHandle,
        snapshot: &SnapshotRecord,
        target: Option<Target>,
    ) -> Result<InstanceView, OpError> {
        if snapshot.source_instance != *handle.id() {
            return Err(OpError::new(
                ErrorKind::Invalid,
                format!("snapshot {} is not one of instance {}", snapshot.id, handle.name()),
            )
            .hinted("fork it to a new instance instead")
            .about("snapshot", snapshot.id.as_str()));
        }
        let target = match (snapshot.kind, target) {
            (SnapshotKind::Standby, None) => Target::Running,
            (SnapshotKind::Stopped, None) => Target::Stopped,
            (SnapshotKind::Standby, Some(target)) => target,
            (SnapshotKind::Stopped, Some(target)) => only_stopped(target)?,
        };
        let source = self.inner.host.pins.pin(&snapshot.id);
        handle.revert(RevertPlan { source, target }).await
    }

    /// Removes a bundle and its record when nobody pins it any more; in the background.
    pub(crate) fn drop_snapshot_later(&self, snapshot: SnapshotId) {
        dropping::drop_snapshot_later(&self.inner.host, snapshot);
    }

    /// Removes a snapshot's record, and its bundle when nobody pins it any more.
    pub(crate) async fn drop_snapshot(&self, snapshot: &SnapshotId) -> Result<(), OpError> {
        dropping::drop_asked_for(&self.inner.host, snapshot).await
    }

    /// Puts an instance that is there already under a driver: at the daemon's start.
    pub(crate) fn adopt(&self, record: InstanceRecord, born: Option<(Live, Option<EventReceiver>)>) -> InstanceHandle {
        // One that has failed may have a VMM still, if it ever had one.
        let may_have = matches!(record.phase.state(), InstanceState::Failed { .. }) && record.seat.is_some();
        if born.is_some() || may_have {
            self.inner.host.room.hold(&record.id, machine(&record.spec));
        }
        self.spawn(record, born, None)
    }

    /// Puts one under a driver of which it could not be seen whether it runs: it is shown as failed
    /// meanwhile, and its record stays as it was left.
    pub(crate) fn adopt_unseen(&self, record: InstanceRecord, why: &str) -> InstanceHandle {
        // It may run, and then has what it had.
        self.inner.host.room.hold(&record.id, machine(&record.spec));
        let reason = format!("after a restart of the daemon: {why}; looking again");
        let mut shown = record.clone();
        shown.phase = Phase::Resting(InstanceState::Failed { reason });
        shown.restart.next_attempt_at_ms = None;
        self.spawn(shown, None, Some(record))
    }

    /// Cancelled when the daemon drains: streams without an end of their own must end, and nothing
    /// begins by itself any more.
    pub(crate) fn draining(&self) -> &CancellationToken {
        &self.inner.draining
    }

    /// Resolves when no operation runs on any instance.
    pub(crate) async fn drained(&self) {
        let watches: Vec<_> = self.read().values().map(InstanceHandle::watch).collect();
        for mut watch in watches {
            // An instance whose driver is gone has nothing under way.
            watch.wait_for(|view| view.busy_since_ms.is_none()).await.ok();
        }
    }

    /// Stops every instance that runs or waits to be booted again, so many at a time. Standby
    /// instances stay: they hold what they would lose.
    pub(crate) async fn stop_all(&self) {
        const AT_ONCE: usize = 16;
        let handles: Vec<_> = self.read().values().cloned().collect();
        stream::iter(handles)
            .for_each_concurrent(AT_ONCE, |handle| async move {
                let view = handle.view();
                let waits = view.record.restart.next_attempt_at_ms.is_some();
                if *view.state() != InstanceState::Running && !waits {
                    return;
                }
                if let Err(error) = handle.stop().await {
                    warn!(instance = %handle.name(), %error, "it could not be stopped");
                }
            })
            .await;
    }

    /// The instance is no more.
    pub(crate) fn forget(&self, id: &InstanceId) {
        self.write().remove(id);
        // What memory it had in snapshots that nobody sees goes with it.
        match self.inner.host.store.snapshots() {
            Ok(all) => {
                let its = all.into_iter().filter(|snapshot| snapshot.internal && snapshot.source_instance == *id);
                for snapshot in its {
                    self.drop_snapshot_later(snapshot.id);
                    // The room is wanted back.
                    self.inner.host.store.sync_now();
                }
            }
            Err(error) => warn!(%error, "snapshots could not be listed"),
        }
    }

    /// The snapshot to fork from: a given one, the source's standby memory, or one taken now.
    async fn fork_from(
        &self,
        source: &ForkSource,
        request: &ForkRequest,
    ) -> Result<(Pin, SnapshotRecord, Origin, bool), OpError> {
        let host = &self.inner.host;
        let (record, origin, made_for_it) = match source {
            ForkSource::Snapshot(id) => (self.snapshot(id)?, Origin::Snapshot(id.clone()), false),
            ForkSource::Instance(handle) => {
                let origin = Origin::Instance(handle.id().clone());
                let kind = match handle.view().state() {
                    InstanceState::Standby { snapshot } => {
                        let pin = host.pins.pin(snapshot);
                        return Ok((pin, self.snapshot(snapshot)?, origin, false));
                    }
                    InstanceState::Running if !request.from_running => {
                        return Err(OpError::new(
                            ErrorKind::WrongState,
                            format!("instance {} is running", handle.name()),
                        )
                        .hinted("set from_running to fork it while it runs, or bring it to standby first")
                        .about("instance", handle.name().as_str()));
                    }
                    InstanceState::Running => SnapshotKind::Standby,
                    InstanceState::Stopped => SnapshotKind::Stopped,
                    InstanceState::Failed { reason } => {
                        return Err(OpError::new(
                            ErrorKind::WrongState,
                            format!("instance {} has failed: {reason}", handle.name()),
                        )
                        .about("instance", handle.name().as_str()));
                    }
                };
                let plan = SnapshotPlan { name: None, tags: BTreeMap::new(), kind, internal: true };
                (handle.snapshot(plan).await?, origin, true)
            }
        };
        if let (SnapshotKind::Stopped, Some(target)) = (record.kind, request.target) {
            only_stopped(target)?;
        }
        let pin = host.pins.pin(&record.id);
        Ok((pin, record, origin, made_for_it))
    }

    /// Where forks shall rest, and what the host needs for each of them. `given`: the snapshot, where
    /// the source is one.
    fn plan_fork(
        &self,
        source: &ForkSource,
        given: Option<&SnapshotRecord>,
        request: &ForkRequest,
    ) -> (Target, Amounts) {
        let host = &self.inner.host;
        let bundle = |id: &SnapshotId| host.data.snapshots().join(id.as_str());
        let (spec, disks, rests) = match (source, given) {
            (ForkSource::Snapshot(id), Some(record)) => {
                let rests = match record.kind {
                    SnapshotKind::Standby => Target::Running,
                    SnapshotKind::Stopped => Target::Stopped,
                };
                (record.spec.clone(), bundle(id), rests)
            }
            (ForkSource::Instance(handle), _) => {
                let view = handle.view();
                let (disks, rests) = match view.state() {
                    InstanceState::Standby { snapshot } => (bundle(snapshot), Target::Standby),
                    InstanceState::Running => (handle.dir().path().to_owned(), Target::Running),
                    InstanceState::Stopped | InstanceState::Failed { .. } => {
                        (handle.dir().path().to_owned(), Target::Stopped)
                    }
                };
                (view.record.spec.clone(), disks, rests)
            }
            // Nothing is known of a snapshot that is not there, and nothing is made of it.
            (ForkSource::Snapshot(_), None) => return (Target::Stopped, Amounts::NOTHING),
        };
        let target = request.target.unwrap_or(rests);
        let clones = match target {
            Target::Running | Target::Stopped => {
                let writable = spec.disks().into_iter().filter(|disk| !disk.read_only);
                host.room.of_clones(writable.map(|disk| disks.join(disk.path)))
            }
            Target::Standby => 0,
        };
        let wants = match target {
            Target::Running => Amounts { disk: writes(clones).disk, ..machine(&spec) },
            Target::Standby | Target::Stopped => writes(clones),
        };
        (target, wants)
    }

    /// Room for a new instance whose name is free, and its id; held before anything is done for it.
    fn room(&self, op: Op, name: &InstanceName, wants: Amounts) -> Result<Taken, OpError> {
        let id = InstanceId::from_entropy(random()?);
        // Also before a source that runs is paused. Two at once are told apart by the store.
        if let Some(holder) = self.read().values().find(|handle| handle.name() == *name) {
            let (name, holder) = (name.to_string(), Some(holder.id().to_string()));
            return Err(RecordError::Taken { resource: "instance", name, holder }.into());
        }
        self.inner.host.room.take_new(id, wants).map_err(|full| {
            info!(%op, %name, %full, "refused: the host has no room");
            OpError::full(op, name.as_str(), &full)
        })
    }

    async fn fork_one(
        &self,
        spec: InstanceSpec,
        from: &SnapshotRecord,
        origin: Origin,
        (source, target): (Pin, Target),
        room: Taken,
    ) -> Result<InstanceHandle, OpError> {
        let record = self.reserve(Op::Fork, spec, from.image_digest.clone(), Some(origin), room.id().clone())?;
        room.keep();
        let handle = self.spawn(record, None, None);
        handle.submit(Request::Fork(ForkPlan { source, target })).await?;
        Ok(handle)
    }

    fn snapshot(&self, id: &SnapshotId) -> Result<SnapshotRecord, OpError> {
        self.inner.host.store.snapshot(id)?.ok_or_else(|| OpError::not_found("snapshot", id.as_str(), &[]))
    }

    /// Takes a name and an id in the store.
    fn reserve(
        &self,
        op: Op,
        spec: InstanceSpec,
        image_digest: String,
        source: Option<Origin>,
        id: InstanceId,
    ) -> Result<InstanceRecord, OpError> {
        let (host, now) = (&self.inner.host, now_ms());
        let record = InstanceRecord {
            mac: spec.network.as_ref().map(|_| inner::MAC_TEXT.to_owned()),
            address: host.networks.lease(&spec)?,
            slot: None,
            id,
            spec,
            phase: Phase::Busy { op, from: InstanceState::Stopped },
            created_at_ms: now,
            started_at_ms: None,
            stopped_at_ms: None,
            generation: 0,
            source,
            image_digest,
            seat: None,
            ram_base: None,
            exit: None,
            restart: RestartStatus::default(),
            phases: PhaseClock::start("initializing", now),
        };
        host.store.insert_instance(&record).inspect_err(|_| host.networks.give_back(&record))?;
        Ok(record)
    }

    fn spawn(
        &self,
        record: InstanceRecord,
        born: Option<(Live, Option<EventReceiver>)>,
        unseen: Option<InstanceRecord>,
    ) -> InstanceHandle {
        let host = Arc::clone(&self.inner.host);
        let (handle, told) = InstanceHandle::new(Arc::clone(&host), record.clone());
        self.write().insert(record.id.clone(), handle.clone());
        Driver::spawn(host, self.clone(), handle.clone(), record, born, unseen, told);
        handle
    }

    fn read(&self) -> RwLockReadGuard<'_, HashMap<InstanceId, InstanceHandle>> {
        self.inner.instances.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashMap<InstanceId, InstanceHandle>> {
        self.inner.instances.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn only_stopped(target: Target) -> Result<Target, OpError> {
    match target {
        Target::Stopped => Ok(target),
        Target::Running | Target::Standby => Err(OpError::new(
            ErrorKind::Invalid,
            "a Stopped snapshot has no memory: its target state can only be Stopped",
        )
        .hinted("omit target_state, and start the instance afterwards")),
    }
}

/// Several things have that prefix.
pub(crate) fn ambiguous(resource: &'static str, text: &str, candidates: &[String]) -> OpError {
    OpError::new(ErrorKind::Invalid, format!("{text:?} could be any of several {resource}s: {}", candidates.join(", ")))
        .hinted("give more of the id, or the name")
        .about(resource, text)
}

/// 128 random bits.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], OpError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|e| OpError::new(ErrorKind::HostFailed, format!("the host's random numbers: {e}")))?;
    Ok(bytes)
}
