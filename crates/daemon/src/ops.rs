//! The verbs: one file each, read once from top to bottom.
//!
//! A step's undo is said before the step. No verb calls another; what several share are plain
//! functions here (`boot`, `bring_back`, `bundle`).

use hearth_agent_client::{Agent, EventReceiver};
use hearth_model::{Backend, InstanceId, InstanceName, InstanceState, Op};
use hearth_store::{InstanceRecord, SnapshotKind, SnapshotRecord};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use crate::error::OpError;
use crate::handle::Request;
use crate::host::Host;
use crate::paths::InstanceDir;
use crate::pins::Pin;
use crate::run::Run;

pub(crate) mod boot;
pub(crate) mod bring_back;
pub(crate) mod bundle;
mod create;
mod delete;
pub(crate) mod files;
mod fork;
mod import;
mod restore;
mod revert;
mod slot;
mod snapshot;
mod standby;
mod start;
mod stop;

pub(crate) mod faults;
#[cfg(test)]
mod tests;

/// A VMM and the agent in its guest.
#[derive(Debug, Clone)]
pub(crate) struct Live {
    pub(crate) vmm: Arc<hearth_vmm::Vmm>,
    pub(crate) agent: Option<Agent>,
}

/// What an operation works on: a working copy of the record, stored if it succeeds.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) record: InstanceRecord,
    pub(crate) dir: InstanceDir,
    /// Its VMM, if it has one.
    pub(crate) live: Option<Live>,
}

impl Subject {
    pub(crate) fn id(&self) -> &InstanceId {
        &self.record.id
    }

    /// Its VMM; an error if the record said there is one and there is none.
    pub(crate) fn live(&self) -> Result<Live, OpError> {
        self.live.clone().ok_or_else(|| {
            OpError::new(
                hearth_model::ErrorKind::VmmFailed,
                format!("instance {} has no VMM any more", self.record.spec.name),
            )
        })
    }
}

/// Where an operation led.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// A new VMM runs, or the one from before is reached in a new way.
    Running(Born),
    /// The VMM from before runs on.
    StillRunning,
    /// It rests without a VMM.
    Rests(InstanceState),
    /// It is no more.
    Gone,
}

/// A VMM that has come up, and its guest's events from here on.
#[derive(Debug)]
pub(crate) struct Born {
    pub(crate) live: Live,
    /// None where there is no agent.
    pub(crate) events: Option<EventReceiver>,
}

/// Make an instance of a snapshot.
#[derive(Debug)]
pub(crate) struct ForkPlan {
    /// The snapshot, kept from removal until the fork holds its own links.
    pub(crate) source: Pin,
    /// Where the fork shall rest.
    pub(crate) target: Target,
}

/// Where a fork or a revert shall rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Running,
    Standby,
    Stopped,
}

/// Save a copy of an instance.
#[derive(Debug, Clone)]
pub(crate) struct SnapshotPlan {
    pub(crate) name: Option<InstanceName>,
    pub(crate) tags: BTreeMap<String, String>,
    /// With memory, or disks alone.
    pub(crate) kind: SnapshotKind,
    /// Made for a fork, and removed after it.
    pub(crate) internal: bool,
}

/// Put a snapshot in the instance's place.
#[derive(Debug)]
pub(crate) struct RevertPlan {
    pub(crate) source: Pin,
    pub(crate) target: Target,
}

pub(crate) use import::{ImportPlan, is_imported};
pub(crate) use snapshot::can_be_saved;

/// Takes over a guest that was saved elsewhere: an operation on no instance.
pub(crate) async fn import_guest(host: Arc<Host>, plan: ImportPlan) -> Result<SnapshotRecord, OpError> {
    let began = Instant::now();
    let mut run = Run::new(Op::Import, &host, None);
    let result = import::import(&host, &plan, &mut run).await;
    let (result, _) = run.settle(result).await;
    let ended = result.as_ref().map(drop).map_err(|error| error.kind);
    host.metrics.operation_ended(Op::Import, Backend::Firecracker, ended, began.elapsed());
    result
        .inspect(|saved| tracing::info!(snapshot = %saved.id, name = %plan.name, "imported"))
        .map_err(|error| error.about("snapshot", plan.name.as_str()))
        .inspect_err(|error| tracing::info!(name = %plan.name, %error, "import refused"))
}

/// Carries out one request. What it changed of the record is in `subject`.
pub(crate) async fn carry_out(
    host: &Arc<Host>,
    subject: &mut Subject,
    request: Request,
    run: &mut Run,
) -> Result<(Outcome, Option<SnapshotRecord>), OpError> {
    let outcome = match request {
        Request::Create => create::create(host, subject, run).await,
        Request::Fork(plan) => fork::fork(host, subject, &plan, run).await,
        Request::Start => start::start(host, subject, run).await,
        Request::Stop => stop::stop(host, subject, run).await,
        Request::Standby => standby::standby(host, subject, run).await,
        Request::Restore => restore::restore(host, subject, run).await,
        Request::Revert(plan) => revert::revert(host, subject, &plan, run).await,
        Request::Delete { graceful } => delete::delete(host, subject, graceful, run).await,
        Request::Snapshot(plan) => {
            let (outcome, record) = snapshot::snapshot(host, subject, &plan, run).await?;
            return Ok((outcome, Some(record)));
        }
    };
    Ok((outcome?, None))
}
