//! An instance as the rest of the daemon sees it: a view to read, and requests to its driver.
//!
//! A request is admitted here, at once, under the view's lock; the work happens in the driver's
//! task. So "busy" is answered immediately, and a caller that hangs up stops nothing.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_agent_client::Agent;
use hearth_model::restart::By;
use hearth_model::{
    Admitted, Denied, ErrorKind, InstanceId, InstanceName, InstanceState, Op, Phase, RestartPolicy, RestartStatus,
    admit,
};
use hearth_store::{InstanceRecord, SnapshotRecord, TimelineRecord};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::OpError;
use crate::host::Host;
use crate::ops::{ForkPlan, RevertPlan, SnapshotPlan};
use crate::paths::InstanceDir;

/// What everybody may know about an instance, as of now.
#[derive(Debug, Clone)]
pub(crate) struct InstanceView {
    /// Its record, phase included.
    pub(crate) record: Arc<InstanceRecord>,
    /// Since when it is busy, in ms since 1970.
    pub(crate) busy_since_ms: Option<i64>,
    /// What is under way has been told to end.
    pub(crate) cut_short: bool,
    /// It has been deleted.
    pub(crate) gone: bool,
}

impl InstanceView {
    pub(crate) fn state(&self) -> &InstanceState {
        self.record.phase.state()
    }
}

/// Whose log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LogSource {
    /// The guest's console: what the program printed.
    App,
    /// The VMM's own output.
    Vmm,
    /// What was done to the instance.
    Hearth,
}

/// One request to a driver.
#[derive(Debug)]
pub(crate) enum Request {
    Create,
    Fork(ForkPlan),
    Start,
    Stop,
    Standby,
    Restore,
    Snapshot(SnapshotPlan),
    Revert(RevertPlan),
    Delete { graceful: bool },
}

impl Request {
    pub(crate) fn op(&self) -> Op {
        match self {
            Self::Create => Op::Create,
            Self::Fork(_) => Op::Fork,
            Self::Start => Op::Start,
            Self::Stop => Op::Stop,
            Self::Standby => Op::Standby,
            Self::Restore => Op::Restore,
            Self::Snapshot(_) => Op::Snapshot,
            Self::Revert(_) => Op::Revert,
            Self::Delete { .. } => Op::Delete,
        }
    }
}

/// An admitted request on its way to the driver.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) request: Request,
    /// Where the instance rests again if it fails.
    pub(crate) from: InstanceState,
    /// Who asked for it.
    pub(crate) by: By,
    pub(crate) reply: oneshot::Sender<Result<Done, OpError>>,
}

/// What a driver is told: to carry out an operation, to put something in the record that needs none
/// (the reply comes when it is stored), or to look at once for what it looks for now and then.
#[derive(Debug)]
pub(crate) enum Told {
    Job(Job),
    /// It was stopped while it waited to be booted again.
    StoodDown(oneshot::Sender<Result<(), OpError>>),
    /// Somebody waits for its agent.
    Reach,
    /// It has another restart policy.
    Policy(RestartPolicy, oneshot::Sender<Result<(), OpError>>),
}

/// What an operation leads to.
#[derive(Debug)]
pub(crate) enum Done {
    Instance,
    Snapshot(Box<SnapshotRecord>),
}

/// Names one instance; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct InstanceHandle {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    id: InstanceId,
    host: Arc<Host>,
    view: watch::Sender<InstanceView>,
    agent: watch::Sender<Option<Agent>>,
    to_driver: mpsc::UnboundedSender<Told>,
}

impl InstanceHandle {
    /// A handle, and the end of its queue for the driver.
    pub(crate) fn new(host: Arc<Host>, record: InstanceRecord) -> (Self, mpsc::UnboundedReceiver<Told>) {
        let (to_driver, queue) = mpsc::unbounded_channel();
        let busy_since_ms = matches!(record.phase, Phase::Busy { .. }).then(crate::clock::now_ms);
        let view = InstanceView { record: Arc::new(record), busy_since_ms, cut_short: false, gone: false };
        let shared = Shared {
            id: view.record.id.clone(),
            host,
            view: watch::Sender::new(view),
            agent: watch::Sender::new(None),
            to_driver,
        };
        (Self { shared: Arc::new(shared) }, queue)
    }

    pub(crate) fn id(&self) -> &InstanceId {
        &self.shared.id
    }

    pub(crate) fn name(&self) -> InstanceName {
        self.shared.view.borrow().record.spec.name.clone()
    }

    pub(crate) fn view(&self) -> InstanceView {
        self.shared.view.borrow().clone()
    }

    /// Sees every change from now on.
    pub(crate) fn watch(&self) -> watch::Receiver<InstanceView> {
        self.shared.view.subscribe()
    }

    pub(crate) fn dir(&self) -> InstanceDir {
        self.shared.host.data.instance(&self.shared.id)
    }

    pub(crate) async fn start(&self) -> Result<InstanceView, OpError> {
        self.request(Request::Start).await.map(|_| self.view())
    }

    pub(crate) async fn stop(&self) -> Result<InstanceView, OpError> {
        self.request(Request::Stop).await.map(|_| self.view())
    }

    pub(crate) async fn standby(&self) -> Result<InstanceView, OpError> {
        self.request(Request::Standby).await.map(|_| self.view())
    }

    pub(crate) async fn restore(&self) -> Result<InstanceView, OpError> {
        self.request(Request::Restore).await.map(|_| self.view())
    }

    pub(crate) async fn revert(&self, plan: RevertPlan) -> Result<InstanceView, OpError> {
        self.request(Request::Revert(plan)).await.map(|_| self.view())
    }

    pub(crate) async fn snapshot(&self, plan: SnapshotPlan) -> Result<SnapshotRecord, OpError> {
        match self.request(Request::Snapshot(plan)).await? {
            Done::Snapshot(record) => Ok(*record),
            Done::Instance => Err(OpError::new(ErrorKind::Internal, "a snapshot operation made no snapshot")),
        }
    }

    /// Ends and removes it, also while it boots. `graceful`: the guest is asked first.
    pub(crate) async fn delete(&self, graceful: bool) -> Result<(), OpError> {
        self.request(Request::Delete { graceful }).await.map(|_| ())
    }

    /// The connection to its agent; waits up to `wait` for one while it comes up.
    pub(crate) async fn agent(&self, wait: Duration) -> Result<Agent, OpError> {
        let mut agent = self.shared.agent.subscribe();
        let name = self.name();
        if !self.view().record.spec.agent {
            let message = format!("instance {name} runs no agent: exec, cp and stat do not work in it");
            return Err(OpError::new(ErrorKind::Unsupported, message)
                .hinted("it was made with skip_guest_agent; its console is in its logs")
                .about("instance", name.as_str()));
        }
        if agent.borrow().is_none() && !wait.is_zero() {
            // Nobody hears it once the instance is gone: then the state says that.
            drop(self.shared.to_driver.send(Told::Reach));
        }
        let found = tokio::time::timeout(wait, agent.wait_for(Option::is_some)).await;
        if let Ok(Ok(agent)) = found
            && let Some(agent) = agent.clone()
        {
            return Ok(agent);
        }
        let view = self.view();
        Err(match view.state() {
            InstanceState::Running => {
                OpError::new(ErrorKind::GuestUnresponsive, format!("instance {name}: its agent does not answer"))
                    .hinted(format!("see `hearth logs {name}`"))
            }
            state => {
                OpError::new(ErrorKind::WrongState, format!("instance {name} must be running; it is {}", state.name()))
                    .hinted(match state {
                        InstanceState::Standby { .. } => format!("`hearth restore {name}`"),
                        _ => format!("`hearth start {name}`"),
                    })
            }
        }
        .about("instance", name.as_str()))
    }

    pub(crate) fn log_path(&self, source: LogSource) -> PathBuf {
        let dir = self.dir();
        match source {
            LogSource::App => dir.serial_log(),
            LogSource::Vmm => dir.vmm_log(),
            LogSource::Hearth => dir.hearth_log(),
        }
    }

    /// The newest `count` operations, newest first.
    pub(crate) fn timeline(&self, count: usize) -> Result<Vec<TimelineRecord>, OpError> {
        Ok(self.shared.host.store.timelines(&self.shared.id, count)?)
    }

    /// What its VMM uses of the host; `None` without a VMM.
    pub(crate) fn usage(&self) -> Option<hearth_vmm::Usage> {
        let seat = crate::host::recorded_seat(&self.view().record)?;
        hearth_vmm::resource_usage(&seat).ok()
    }

    /// Admits a request and hands it to the driver; resolves when it has been carried out.
    pub(crate) async fn request(&self, request: Request) -> Result<Done, OpError> {
        let op = request.op();
        loop {
            let (mut verdict, mut stood_down) = (None, false);
            self.shared.view.send_if_modified(|view| {
                let decided = admit(&view.record.phase, op);
                match decided {
                    Ok(Admitted::Run) => {
                        let from = view.state().clone();
                        Arc::make_mut(&mut view.record).phase = Phase::Busy { op, from };
                        view.busy_since_ms = Some(crate::clock::now_ms());
                        view.cut_short = false;
                    }
                    Ok(Admitted::CutShort) => view.cut_short = true,
                    // It is stopped, and would not stay so.
                    Ok(Admitted::AlreadyThere)
                        if op == Op::Stop && view.record.restart.next_attempt_at_ms.is_some() =>
                    {
                        let record = Arc::make_mut(&mut view.record);
                        record.restart = RestartStatus::stopped_by_hand(&record.spec.restart);
                        stood_down = true;
                    }
                    Ok(Admitted::AlreadyThere) | Err(_) => {}
                }
                let changes = stood_down || matches!(decided, Ok(Admitted::Run | Admitted::CutShort));
                verdict = Some(decided);
                changes
            });
            match verdict {
                Some(Ok(Admitted::Run)) => return self.submit(request).await,
                Some(Ok(Admitted::AlreadyThere)) if stood_down => {
                    return self.tell(Told::StoodDown).await.map(|()| Done::Instance);
                }
                Some(Ok(Admitted::AlreadyThere)) => return Ok(Done::Instance),
                Some(Ok(Admitted::CutShort)) => {
                    let ended = |view: &InstanceView| view.gone || view.busy_since_ms.is_none();
                    // The sender lives in self.
                    if self.watch().wait_for(ended).await.is_ok_and(|view| view.gone) {
                        return Ok(Done::Instance);
                    }
                }
                Some(Err(denied)) => return Err(OpError::denied(op, self.name().as_str(), &denied)),
                None => return Err(OpError::new(ErrorKind::Internal, "a request was not decided")),
            }
        }
    }

    /// Hands over a request whose phase is already marked busy.
    pub(crate) async fn submit(&self, request: Request) -> Result<Done, OpError> {
        let (reply, answer) = oneshot::channel();
        let job = Job { request, from: self.view().state().clone(), by: By::Somebody, reply };
        self.shared.to_driver.send(Told::Job(job)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    /// Gives it another restart policy, unless something is under way on it.
    pub(crate) async fn set_restart_policy(&self, policy: RestartPolicy) -> Result<(), OpError> {
        if let Phase::Busy { op: running, .. } = self.view().record.phase {
            let (denied, name) = (Denied::Busy { running }, self.name());
            let busy = OpError::new(denied.kind(), format!("instance {name}: {denied}"));
            return Err(busy.hinted(denied.hint()).about("instance", name.as_str()));
        }
        self.tell(|reply| Told::Policy(policy, reply)).await
    }

    async fn tell(&self, what: impl FnOnce(oneshot::Sender<Result<(), OpError>>) -> Told) -> Result<(), OpError> {
        let (reply, answer) = oneshot::channel();
        self.shared.to_driver.send(what(reply)).map_err(|_| self.gone())?;
        answer.await.map_err(|_| self.gone())?
    }

    fn gone(&self) -> OpError {
        OpError::new(ErrorKind::Cancelled, format!("instance {} is gone", self.name()))
    }

    /// The driver's side: an attempt to boot it again is due. Marks it busy, if it still rests
    /// stopped and nobody has stood it down; then that is where it is with its policy now.
    pub(crate) fn begin_attempt(&self, now_ms: i64) -> Option<RestartStatus> {
        let mut begun = None;
        self.shared.view.send_if_modified(|view| {
            let rests = view.record.phase == Phase::Resting(InstanceState::Stopped);
            if rests && view.record.restart.next_attempt_at_ms.is_some() {
                let record = Arc::make_mut(&mut view.record);
                record.phase = Phase::Busy { op: Op::Start, from: InstanceState::Stopped };
                record.restart = record.restart.attempt_begins(now_ms);
                begun = Some(record.restart);
                view.busy_since_ms = Some(now_ms);
                view.cut_short = false;
            }
            begun.is_some()
        });
        begun
    }

    /// The driver's side: publishes a new view.
    pub(crate) fn publish(&self, change: impl FnOnce(&mut InstanceView)) {
        self.shared.view.send_modify(change);
    }

    /// The driver's side: the agent that answers now, if any.
    pub(crate) fn publish_agent(&self, agent: Option<Agent>) {
        self.shared.agent.send_replace(agent);
    }
}
