//! What series are told apart by: closed sets, and the labels made of them.

use hearth_model::capacity::Resource;
use hearth_model::recovery::Outcome;
use hearth_model::{Backend, LoadPlan, Op};
use hearth_net::Made;
use prometheus_client::encoding::EncodeLabelSet;

/// How a guest is brought from a bundle to running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The load leaves it running.
    ResumeOnLoad,
    /// Loaded, then resumed: the backend cannot do it in one, or was told not to.
    LoadResume,
    /// Loaded, pointed at its own drives, then resumed: what a bundle with foreign paths needs.
    LoadPatchResume,
}

impl From<&LoadPlan> for Plan {
    fn from(plan: &LoadPlan) -> Self {
        match plan {
            LoadPlan::ResumeOnLoad => Self::ResumeOnLoad,
            LoadPlan::LoadResume => Self::LoadResume,
            LoadPlan::LoadPatchResume(_) => Self::LoadPatchResume,
        }
    }
}

impl Plan {
    pub(super) const ALL: [Self; 3] = [Self::ResumeOnLoad, Self::LoadResume, Self::LoadPatchResume];

    const fn as_str(self) -> &'static str {
        match self {
            Self::ResumeOnLoad => "resume_on_load",
            Self::LoadResume => "load_resume",
            Self::LoadPatchResume => "load_patch_resume",
        }
    }
}

/// What came of comparing a snapshot with its checksums.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is what it was.
    Ok,
    /// A file of it is not.
    Corrupt,
    /// That could not be told.
    Error,
}

impl Verdict {
    pub(super) const ALL: [Self; 3] = [Self::Ok, Self::Corrupt, Self::Error];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Corrupt => "corrupt",
            Self::Error => "error",
        }
    }
}

/// How the wait for a VMM's API socket ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SocketWait {
    /// It accepted at the first try.
    Immediate,
    /// The kernel told when it was there.
    Inotify,
    /// It was asked for again and again: inotify could not be had.
    Polling,
    /// The VMM ended first.
    VmmDied,
    /// It was not there in time.
    Deadline,
}

impl From<&hearth_vmm::SocketWait> for SocketWait {
    fn from(wait: &hearth_vmm::SocketWait) -> Self {
        match wait {
            hearth_vmm::SocketWait::Immediate => Self::Immediate,
            hearth_vmm::SocketWait::Inotify => Self::Inotify,
            hearth_vmm::SocketWait::Polling(_) => Self::Polling,
        }
    }
}

impl SocketWait {
    pub(super) const ALL: [Self; 5] = [Self::Immediate, Self::Inotify, Self::Polling, Self::VmmDied, Self::Deadline];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Immediate => "immediate",
            Self::Inotify => "inotify",
            Self::Polling => "polling",
            Self::VmmDied => "vmm_died",
            Self::Deadline => "deadline",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OperationResultLabels {
    op: &'static str,
    backend: &'static str,
    result: &'static str,
}

impl OperationResultLabels {
    pub(super) fn of(op: Op, backend: Backend, result: &'static str) -> Self {
        Self { op: op.as_str(), backend: backend.as_str(), result }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OperationLabels {
    op: &'static str,
    backend: &'static str,
}

impl OperationLabels {
    pub(super) fn of(op: Op, backend: Backend) -> Self {
        Self { op: op.as_str(), backend: backend.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct StepLabels {
    pub(super) op: &'static str,
    /// As in timelines: a literal of the code.
    pub(super) step: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RestoreLabels {
    backend: &'static str,
    plan: &'static str,
    result: &'static str,
}

impl RestoreLabels {
    pub(super) fn of(backend: Backend, plan: Plan, result: &'static str) -> Self {
        Self { backend: backend.as_str(), plan: plan.as_str(), result }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BackendLabel {
    backend: &'static str,
}

impl BackendLabel {
    pub(super) fn of(backend: Backend) -> Self {
        Self { backend: backend.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct EndLabel {
    end: &'static str,
}

impl EndLabel {
    pub(super) fn of(end: SocketWait) -> Self {
        Self { end: end.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MadeLabel {
    made: &'static str,
}

impl MadeLabel {
    pub(super) fn of(made: Made) -> Self {
        let made = match made {
            Made::Ahead => "ahead",
            Made::Inline => "inline",
        };
        Self { made }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct VerificationLabel {
    result: &'static str,
}

impl VerificationLabel {
    pub(super) fn of(verdict: Verdict) -> Self {
        Self { result: verdict.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct OutcomeLabel {
    outcome: &'static str,
}

impl OutcomeLabel {
    pub(super) fn of(outcome: Outcome) -> Self {
        Self { outcome: outcome.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ResourceLabel {
    resource: &'static str,
}

impl ResourceLabel {
    pub(super) fn of(resource: Resource) -> Self {
        Self { resource: resource.as_str() }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct InstanceLabels {
    pub(super) state: &'static str,
    pub(super) backend: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BuildLabels {
    pub(super) version: &'static str,
}
