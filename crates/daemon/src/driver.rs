//! The driver: one task that owns one instance and is the only writer of its record.
//!
//! ```text
//!   request ──► [job] ─► record busy ─► operation (its own task) ─► record, timeline ─► view
//!   VMM exited ─────────────────────────────────────────────────────► record stopped ─► view
//!   agent says "program exited" ────────────────────────────────────► record         ─► view
//!   back-off of its restart policy is over ─► boots, as if somebody had asked for it
//! ```
//! A bug in an operation fails that instance; the driver lives on.

use std::io::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use hearth_agent_client::{Event, EventReceiver};
use hearth_model::restart::{By, Led};
use hearth_model::{ErrorKind, InstanceState, Op, Phase, RestartStatus};
use hearth_store::{Ending, InstanceRecord, RecordError, SnapshotRecord, TimelineRecord};
use hearth_vmm::Exit;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{Instrument, error, info, info_span, warn};

use crate::clock::now_ms;
use crate::error::OpError;
use crate::handle::{Done, InstanceHandle, Job, Request, Told};
use crate::host::{Host, end_vmm, recorded_seat};
use crate::ops::{self, Born, Live, Outcome, Subject};
use crate::registry::Registry;
use crate::run::{Run, blocking};
use crate::{agents, console, fresh, restart};

#[cfg(test)]
mod ended;
#[cfg(test)]
mod held;
mod reach;
mod room;
mod unseen;
#[cfg(test)]
mod unstored;

use reach::Unreached;
use unseen::Unseen;

/// How long until a record that could not be stored, or removed, is tried again.
const STORE_AGAIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Driver {
    host: Arc<Host>,
    registry: Registry,
    handle: InstanceHandle,
    /// The record as it is stored, unless that failed.
    record: InstanceRecord,
    /// What is stored is older than the record: there was no room, for one.
    unstored: bool,
    running: Option<Running>,
    /// Set while it is not known whether it runs.
    unseen: Option<Unseen>,
}

/// What a driver watches of a running instance.
#[derive(Debug)]
struct Running {
    live: Live,
    events: Option<EventReceiver>,
    exited: watch::Receiver<Option<Arc<Exit>>>,
    /// Set while its agent should be reached, and is not.
    unreached: Option<Unreached>,
}

enum Happened {
    Told(Option<Told>),
    LookIsDue,
    AttemptIsDue(RestartStatus),
    VmmExited(Arc<Exit>),
    Agent(Option<Event>),
    ReachIsDue,
    StoreAgain,
}

impl Driver {
    /// Starts a driver; `born` is the VMM of an instance that runs already. `unseen` is the record of
    /// one of which that is not known; then `record` is what is shown meanwhile.
    pub(crate) fn spawn(
        host: Arc<Host>,
        registry: Registry,
        handle: InstanceHandle,
        record: InstanceRecord,
        born: Option<(Live, Option<EventReceiver>)>,
        unseen: Option<InstanceRecord>,
        told: mpsc::UnboundedReceiver<Told>,
    ) {
        let span = info_span!("instance", id = %record.id, name = %record.spec.name);
        let unseen = unseen.map(Unseen::new);
        let mut driver = Self { host, registry, handle, record, unstored: false, running: None, unseen };
        if let Some((live, events)) = born {
            driver.watch(live, events);
        }
        tokio::spawn(driver.run(told).instrument(span));
    }

    async fn run(mut self, mut told: mpsc::UnboundedReceiver<Told>) {
        loop {
            let happened = tokio::select! {
                biased;
                happened = self.next(&mut told) => happened,
                () = tokio::time::sleep(STORE_AGAIN), if self.unstored => Happened::StoreAgain,
            };
            match happened {
                Happened::StoreAgain => self.store(),
                Happened::Told(None) => return,
                Happened::Told(Some(Told::Job(job))) => {
                    if self.work(job).await {
                        return;
                    }
                }
                Happened::Told(Some(Told::StoodDown(reply))) => {
                    info!("stopped while it waited to be booted again");
                    self.record.restart = RestartStatus::stopped_by_hand(&self.record.spec.restart);
                    drop(reply.send(self.note()));
                }
                Happened::Told(Some(Told::Policy(policy, reply))) => {
                    info!(?policy, "another restart policy");
                    self.record.spec.restart = policy;
                    self.record.restart = self.record.restart.under(&policy);
                    if let Some(unseen) = &mut self.unseen {
                        unseen.under(policy);
                    }
                    drop(reply.send(self.note()));
                }
                Happened::Told(Some(Told::Reach)) => self.reach_soon(),
                Happened::LookIsDue => {
                    if self.look_again().await {
                        return;
                    }
                }
                Happened::AttemptIsDue(status) => {
                    if self.attempt(status).await {
                        return;
                    }
                }
                Happened::VmmExited(exit) => self.vmm_exited(&exit).await,
                Happened::Agent(Some(event)) => self.agent_said(event),
                Happened::Agent(None) => self.agent_lost().await,
                Happened::ReachIsDue => self.reach_again().await,
            }
        }
    }

    async fn next(&mut self, told: &mut mpsc::UnboundedReceiver<Told>) -> Happened {
        let Some(running) = &mut self.running else { return self.next_at_rest(told).await };
        let due = running.unreached.as_ref().map(Unreached::due);
        let (exited, events) = (&mut running.exited, &mut running.events);
        tokio::select! {
            // What the guest said before its VMM ended is heard first; the end before new work.
            biased;
            event = async { match events { Some(events) => events.next().await, None => std::future::pending().await } } =>
                Happened::Agent(event),
            exit = exited.wait_for(Option::is_some) => match exit {
                Ok(exit) => exit.clone().map_or(Happened::Agent(None), Happened::VmmExited),
                Err(_) => Happened::Agent(None),
            },
            told = told.recv() => Happened::Told(told),
            () = async { match due { Some(due) => tokio::time::sleep_until(due).await, None => std::future::pending().await } } =>
                Happened::ReachIsDue,
        }
    }

    /// Without a VMM: what is asked for, or the end of the back-off.
    async fn next_at_rest(&self, told: &mut mpsc::UnboundedReceiver<Told>) -> Happened {
        if let Some(unseen) = &self.unseen {
            tokio::select! {
                biased;
                told = told.recv() => return Happened::Told(told),
                () = tokio::time::sleep_until(unseen.due()) => return Happened::LookIsDue,
            }
        }
        if let Some(wait) = self.record.restart.waits(now_ms()) {
            tokio::select! {
                biased;
                // Whoever asks for something comes before what nobody has asked for.
                told = told.recv() => return Happened::Told(told),
                () = tokio::time::sleep(wait) => {}
            }
            // A daemon that drains begins nothing: the next one finds the attempt overdue.
            if !self.registry.draining().is_cancelled()
                && let Some(status) = self.handle.begin_attempt(now_ms())
            {
                return Happened::AttemptIsDue(status);
            }
            // Somebody was first, and is about to say so.
        }
        Happened::Told(told.recv().await)
    }

    /// Boots it again, because its policy says so.
    async fn attempt(&mut self, status: RestartStatus) -> bool {
        info!(attempt = status.attempts, "boots again by its restart policy");
        self.log(now_ms(), &format!("boots again by its restart policy, attempt {}", status.attempts));
        self.record.restart = status;
        // Nobody waits for it.
        let (reply, _) = oneshot::channel();
        self.work(Job { request: Request::Start, from: InstanceState::Stopped, by: By::Policy, reply }).await
    }

    /// Carries out one job; true when the instance is no more.
    async fn work(&mut self, Job { request, from, by, reply }: Job) -> bool {
        let (op, began) = (request.op(), Instant::now());
        // Its VMM may have ended since that was admitted: then it rests where that has led.
        let from = match &self.record.phase {
            Phase::Resting(state) => state.clone(),
            Phase::Busy { .. } => from,
        };
        if let Err(full) = self.make_room(&request) {
            drop(reply.send(Err(self.refuse(op, by, from, &full))));
            return false;
        }
        if let Err(error) = self.begin(op, &from) {
            self.settle_room(&from);
            self.record.phase = Phase::Resting(from);
            self.take_into_policy(op, by, Led::Back);
            self.publish();
            let error = OpError::from_kind(&error);
            self.count(op, Err(error.kind), began);
            drop(reply.send(Err(error)));
            return false;
        }
        // It is to be deleted: nothing else is admitted.
        self.unseen = None;

        let (result, record, steps) = self.operate(op, request).await;
        let (timeline, leaks) = match steps {
            Some(mut steps) => {
                let leaks = std::mem::take(&mut steps.leaks);
                (Some(steps.timeline(&self.record.id, result.as_ref().err())), leaks)
            }
            None => (None, Vec::new()),
        };
        let gone = match &result {
            Ok((Outcome::Gone, _)) => leaks.is_empty(),
            // Nothing of a creation that failed and was undone stays.
            Err(error) => matches!(op, Op::Create | Op::Fork) && error.left_behind.is_empty(),
            Ok(_) => false,
        };
        let timeline = timeline.filter(|_| !gone);
        let done = self.conclude((op, by), from, result, record, (leaks, gone), timeline.as_ref()).await;
        if let Some(timeline) = timeline {
            self.log_operation(&timeline);
        }
        self.count(op, done.as_ref().map(drop).map_err(|error| error.kind), began);
        drop(reply.send(done));
        if matches!(op, Op::Create | Op::Fork) && !gone {
            fresh::unmark_later(&self.host, self.handle.dir());
        }
        gone
    }

    /// The record says what is under way before the host is touched. That of a new instance said so
    /// when it was made.
    fn begin(&mut self, op: Op, from: &InstanceState) -> Result<(), RecordError> {
        let busy = Phase::Busy { op, from: from.clone() };
        if self.record.phase == busy {
            return Ok(());
        }
        self.record.phase = busy;
        if op == Op::Delete {
            // It makes room, also where there is none.
            return self.host.store.update_instance(&self.record);
        }
        self.host.store.begin(&self.record)
    }

    fn count(&self, op: Op, result: Result<(), ErrorKind>, began: Instant) {
        self.host.metrics.operation_ended(op, self.record.spec.backend, result, began.elapsed());
    }

    /// Runs the operation in a task of its own.
    async fn operate(
        &mut self,
        op: Op,
        request: Request,
    ) -> (Result<(Outcome, Option<SnapshotRecord>), OpError>, InstanceRecord, Option<crate::run::Steps>) {
        let (host, view) = (Arc::clone(&self.host), self.handle.watch());
        let mut subject = Subject {
            record: self.record.clone(),
            dir: self.handle.dir(),
            live: self.running.as_ref().map(|running| running.live.clone()),
        };
        let task = tokio::spawn(
            async move {
                let mut run = Run::new(op, &host, Some(view));
                let result = ops::carry_out(&host, &mut subject, request, &mut run).await;
                let (result, steps) = run.settle(result).await;
                (result, subject.record, steps)
            }
            .instrument(info_span!("op", %op)),
        );
        match task.await {
            Ok((result, record, steps)) => (result, record, Some(steps)),
            Err(panic) => {
                let error = OpError {
                    op: Some(op),
                    // Its undos went with it.
                    left_behind: vec!["whatever it had begun".to_owned()],
                    ..OpError::new(ErrorKind::Internal, format!("a bug ended it early: {panic}"))
                };
                (Err(error), self.record.clone(), None)
            }
        }
    }

    /// Stores and publishes what an operation led to.
    async fn conclude(
        &mut self,
        (op, by): (Op, By),
        from: InstanceState,
        result: Result<(Outcome, Option<SnapshotRecord>), OpError>,
        record: InstanceRecord,
        (leaks, gone): (Vec<String>, bool),
        timeline: Option<&TimelineRecord>,
    ) -> Result<Done, OpError> {
        let dropped = match &from {
            InstanceState::Standby { snapshot } => Some(snapshot.clone()),
            InstanceState::Stopped | InstanceState::Running | InstanceState::Failed { .. } => None,
        };
        let before = from.clone();
        // What is left of it: in which phase the record says so, and in words.
        let mut left = None;
        let (state, done) = match result {
            Ok((outcome, snapshot)) => {
                self.record = record;
                let is_gone = matches!(outcome, Outcome::Gone);
                let state = match outcome {
                    Outcome::Running(Born { live, events }) => {
                        self.watch(live, events);
                        InstanceState::Running
                    }
                    Outcome::StillRunning => InstanceState::Running,
                    Outcome::Rests(state) => {
                        self.unwatch();
                        state
                    }
                    Outcome::Gone => {
                        self.unwatch();
                        InstanceState::Stopped
                    }
                };
                if !leaks.is_empty() {
                    let reached = if is_gone { before.clone() } else { state.clone() };
                    let reason = format!("{op}: left behind: {}", leaks.join(", "));
                    error!(%op, %reason, "the host was not left as it should be");
                    left = Some((Phase::Busy { op, from: reached }, reason));
                }
                let done = match (is_gone, leaks.is_empty()) {
                    (true, false) => Err(self.not_all_removed(op, leaks)),
                    _ => Ok(snapshot.map_or(Done::Instance, |record| Done::Snapshot(Box::new(record)))),
                };
                (state, done)
            }
            Err(error) => {
                let expected = matches!(
                    error.kind,
                    ErrorKind::Invalid
                        | ErrorKind::WrongState
                        | ErrorKind::NotFound
                        | ErrorKind::AlreadyExists
                        | ErrorKind::Unsupported
                        | ErrorKind::Cancelled
                );
                if expected {
                    info!(%op, %error, "operation refused");
                } else {
                    error!(%op, %error, "operation failed");
                }
                let state = match (error.left_behind.is_empty(), error.kind) {
                    (true, _) => from,
                    // Nobody knows how far it came.
                    (false, ErrorKind::Internal) => InstanceState::Failed { reason: error.chain() },
                    (false, _) => {
                        left = Some((Phase::Busy { op, from: from.clone() }, error.chain()));
                        from
                    }
                };
                let error = error.in_operation(self.record.spec.name.as_str());
                (state, Err(error))
            }
        };
        let led = match (&state, &done) {
            (InstanceState::Failed { .. }, _) => Led::Astray,
            (_, Ok(_)) => Led::There,
            (_, Err(error)) if error.kind == ErrorKind::Cancelled => Led::CutShort,
            (_, Err(_)) => Led::Back,
        };
        // Of what is not undone yet it is taken in when it is.
        if left.is_none() || done.is_ok() {
            self.take_into_policy(op, by, led);
        }
        let state = match left {
            Some((phase, reason)) => self.hold(phase, reason),
            None => state,
        };

        let cut_off = state == InstanceState::Running && done.is_err() && self.saving_cuts_off(op);
        if gone {
            self.forget();
        } else {
            self.rest(state.clone(), timeline);
        }
        if cut_off {
            self.agent_lost().await;
        }
        if let (InstanceState::Standby { snapshot }, false) = (&state, gone) {
            self.host.settler.later(snapshot);
        }
        if let Ok(Done::Snapshot(snapshot)) = &done
            && !snapshot.internal
        {
            self.host.settler.later(&snapshot.id);
        }
        // The bundle that standby memory was in goes once no record points to it.
        if let Some(snapshot) = dropped
            && (gone || (state != before && !matches!(state, InstanceState::Failed { .. })))
        {
            self.registry.drop_snapshot_later(snapshot);
        }
        done
    }

    /// Notes what an operation that has ended means to the restart policy.
    fn take_into_policy(&mut self, op: Op, by: By, led: Led) {
        let now = now_ms();
        self.record.restart = self.record.restart.after_operation(&self.record.spec.restart, (op, by), led, now);
        if by == By::Policy
            && led != Led::There
            && let Some(next) = restart::in_words(&self.record, now)
        {
            info!(next, "the attempt was in vain");
            self.log(now, &next);
        }
    }

    /// What a deletion says that could not remove everything.
    fn not_all_removed(&self, op: Op, leaks: Vec<String>) -> OpError {
        let name = self.record.spec.name.as_str();
        let error = OpError {
            op: Some(op),
            left_behind: leaks,
            ..OpError::new(ErrorKind::HostFailed, format!("instance {name} could not be removed to the end"))
        };
        error.hinted("it is tried again by itself; see what the host's file system says (`dmesg`)").in_operation(name)
    }

    /// Whether the guest may have lost its connections in an operation that failed.
    fn saving_cuts_off(&self, op: Op) -> bool {
        matches!(op, Op::Standby | Op::Snapshot)
            && self
                .running
                .as_ref()
                .is_some_and(|running| running.live.agent.is_some() && running.live.vmm.save_cuts_off_the_guest())
    }

    /// Rests in a state: the record first, with what led there, then the view.
    fn rest(&mut self, state: InstanceState, timeline: Option<&TimelineRecord>) {
        self.settle_room(&state);
        self.record.phases.enter(state.name(), now_ms());
        self.record.phase = Phase::Resting(state);
        match timeline {
            Some(timeline) => match self.host.store.conclude(self.to_store(), timeline) {
                Ok(()) => self.unstored = false,
                Err(error) => {
                    warn!(%error, "timeline not stored");
                    self.store();
                }
            },
            None => self.store(),
        }
        self.publish();
    }

    /// Stores and publishes what was put in the record without an operation. The phase in the view
    /// stays: an operation may have been admitted that is still on its way here.
    fn note(&self) -> Result<(), OpError> {
        let stored = self.host.store.update_instance(self.to_store());
        self.handle.publish(|view| {
            let record = InstanceRecord { phase: view.record.phase.clone(), ..self.record.clone() };
            view.record = Arc::new(record);
        });
        stored.map_err(OpError::from)
    }

    /// The record as the next daemon shall find it.
    fn to_store(&self) -> &InstanceRecord {
        self.unseen.as_ref().map_or(&self.record, Unseen::record)
    }

    /// Stores the record; where that fails it is tried again. Until then the next daemon would take what
    /// has ended for cut off.
    fn store(&mut self) {
        match self.host.store.update_instance(self.to_store()) {
            Ok(()) if self.unstored => {
                info!("the record is stored now");
                self.unstored = false;
            }
            Ok(()) => {}
            Err(_) if self.unstored => {}
            Err(error) => {
                error!(%error, "the record could not be stored: trying again");
                self.unstored = true;
            }
        }
    }

    fn publish(&self) {
        let record = Arc::new(self.record.clone());
        self.handle.publish(|view| {
            view.record = record;
            view.busy_since_ms = None;
            view.cut_short = false;
        });
    }

    fn forget(&mut self) {
        self.unwatch();
        match self.host.store.remove_instance(&self.record.id) {
            Ok(()) => {
                self.host.networks.give_back(&self.record);
                fresh::forget_later(&self.host, &self.handle.dir());
            }
            Err(error) => {
                error!(%error, "the record could not be removed: trying again");
                let removed = remove_later(Arc::clone(&self.host), self.record.clone());
                tokio::spawn(removed.in_current_span());
            }
        }
        self.host.room.give_back(&self.record.id);
        self.registry.forget(self.handle.id());
        self.handle.publish(|view| {
            view.gone = true;
            view.busy_since_ms = None;
            view.cut_short = false;
        });
    }

    fn watch(&mut self, live: Live, events: Option<EventReceiver>) {
        let (sender, exited) = watch::channel(None);
        let exit = live.vmm.exited();
        tokio::spawn(async move {
            let exit = exit.await;
            // Nobody listens any more when the instance was stopped: then there is nothing to say.
            sender.send(Some(Arc::new(exit))).ok();
        });
        self.handle.publish_agent(live.agent.clone());
        let unreached = (self.record.spec.agent && live.agent.is_none()).then(Unreached::new);
        self.running = Some(Running { live, events, exited, unreached });
    }

    fn unwatch(&mut self) {
        if let Some(mut running) = self.running.take()
            && let Some(events) = &mut running.events
        {
            while let Some(Some(event)) = events.next().now_or_never() {
                self.note_exit(&event);
            }
        }
        self.handle.publish_agent(None);
    }

    fn agent_said(&mut self, event: Event) {
        if self.note_exit(&event)
            && let Err(error) = self.note()
        {
            error!(%error, "the record could not be stored");
        }
    }

    /// Takes the program's end into the record; true if that was the event.
    fn note_exit(&mut self, event: &Event) -> bool {
        let Some(exit) = agents::program_exit(event) else { return false };
        info!(code = exit.code, message = exit.message, "program ended");
        self.log(now_ms(), &format!("program {}", exit.message));
        self.record.exit = Some(exit);
        true
    }

    /// The VMM ended by itself: the guest powered off, or it crashed.
    async fn vmm_exited(&mut self, exit: &Exit) {
        self.unwatch();
        info!(exit = agents::exit_text(exit), program = ?self.record.exit, "VMM ended");
        let dir = self.handle.dir();
        let mut told = self.record.exit.take().unwrap_or_else(|| restart::vmm_exit(exit));
        let console_log = dir.serial_log();
        told.console = blocking(move || Ok::<_, OpError>(console::last_lines(&console_log))).await.unwrap_or_default();
        if told.of == Ending::Vmm {
            self.log(now_ms(), &told.message);
        }
        self.record.exit = Some(told);
        let before = self.record.clone();
        let files = [dir.memory(), dir.memory_base(), dir.vmstate()];
        let cleaned = end_vmm(Arc::clone(&self.host), dir, recorded_seat(&self.record)).await;
        let left = self.host.networks.release(&self.record.id).await;
        self.record.slot = None;
        let removed = blocking(move || files.iter().try_for_each(|file| hearth_disk::remove(file))).await;
        self.record.seat = None;
        self.record.stopped_at_ms = Some(now_ms());
        if let Err(error) = cleaned.and(left).and(removed) {
            let reason = format!("after the end of its VMM: {}", error.chain());
            error!(reason, "the host was not left as it should be");
            // What that means to its policy is found out when it is known where it rests.
            self.record = before;
            let state = self.hold(self.record.phase.clone(), reason);
            self.rest(state, None);
            return;
        }
        restart::after_end(&mut self.record, now_ms());
        if let Some(next) = restart::in_words(&self.record, now_ms()) {
            info!(next, "what its restart policy says");
            self.log(now_ms(), &next);
        }
        self.rest(InstanceState::Stopped, None);
    }

    fn log_operation(&self, timeline: &TimelineRecord) {
        let ms = timeline.total_us / 1000;
        let text = match &timeline.error {
            None => format!("{} done in {ms} ms", timeline.op),
            Some(error) => format!("{} failed after {ms} ms: {error}", timeline.op),
        };
        self.log(timeline.at_ms, &text);
    }

    /// One line for the instance's own log.
    fn log(&self, at_ms: i64, text: &str) {
        let when = jiff::Timestamp::from_millisecond(at_ms).unwrap_or_default();
        let line = format!("{when} {text}\n");
        let file = std::fs::OpenOptions::new().append(true).create(true).open(self.handle.dir().hearth_log());
        match file.and_then(|mut file| file.write_all(line.as_bytes())) {
            // Its directory went before the last of its news came: a guest that was asked to end in a
            // deletion.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => warn!(%error, "the instance's log could not be written"),
            Ok(()) => {}
        }
    }
}

/// Removes the record of an instance that is no more. Its name and its address are free after that.
async fn remove_later(host: Arc<Host>, record: InstanceRecord) {
    while host.store.remove_instance(&record.id).is_err() {
        tokio::time::sleep(STORE_AGAIN).await;
    }
    info!("the record is removed now");
    fresh::forget_later(&host, &host.data.instance(&record.id));
    host.networks.give_back(&record);
}
