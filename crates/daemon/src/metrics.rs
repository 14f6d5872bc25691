//! What the daemon counts and times, for Prometheus: `GET /metrics`.
//!
//! In: what operations and backends say when something has happened. Out: text in one of
//! Prometheus' formats. What is counted is kept here; what *is* (instances, this process) is looked
//! at when it is asked for (`scrape`). Every label is from a closed set, so there is an end to the
//! series: no instance, image or path is ever a label. `docs/metrics.md` is the reference.
//!
//! Recording takes a lock for as long as an addition takes, and no memory once a series is there.

mod format;
mod labels;
mod scrape;

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use hearth_model::capacity::{Amounts, Resource};
use hearth_model::recovery::Outcome;
use hearth_model::{Backend, ErrorKind, Op};
use hearth_net::Made;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

pub(crate) use format::Format;
use labels::{
    BackendLabel, EndLabel, MadeLabel, OperationLabels, OperationResultLabels, OutcomeLabel, ResourceLabel,
    RestoreLabels, StepLabels, VerificationLabel,
};
pub(crate) use labels::{Plan, SocketWait, Verdict};

/// What an operation that succeeded has as its result; one that failed has its error's kind.
const OK: &str = "ok";
/// What a restore has that did not come to its end.
const FAILED: &str = "failed";

/// From a step that links a file to one that waits for a guest.
const STEP_BUCKETS: [f64; 19] = [
    50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3, 1.0, 2.5, 5.0,
    10.0, 30.0, 60.0,
];

/// Close together where restores and forks are, so that their p99 can be told from their budget.
const OPERATION_BUCKETS: [f64; 20] = [
    1e-3, 2.5e-3, 5e-3, 7.5e-3, 10e-3, 15e-3, 20e-3, 30e-3, 50e-3, 75e-3, 100e-3, 150e-3, 250e-3, 500e-3, 1.0, 2.5,
    5.0, 15.0, 60.0, 180.0,
];

/// A VMM's socket is there within milliseconds, or something is wrong.
const SOCKET_BUCKETS: [f64; 13] =
    [100e-6, 250e-6, 500e-6, 1e-3, 1.5e-3, 2e-3, 3e-3, 5e-3, 10e-3, 50e-3, 250e-3, 1.0, 5.0];

type Histograms<L> = Family<L, Histogram, fn() -> Histogram>;

/// Everything that is counted and timed.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    operations: Family<OperationResultLabels, Counter>,
    operation_duration: Histograms<OperationLabels>,
    step_duration: Histograms<StepLabels>,
    step_failures: Family<StepLabels, Counter>,
    restores: Family<RestoreLabels, Counter>,
    not_resumed_on_load: Family<BackendLabel, Counter>,
    socket_waits: Family<EndLabel, Counter>,
    socket_wait_duration: Histogram,
    refresh_failures: Family<BackendLabel, Counter>,
    slots_taken: Family<MadeLabel, Counter>,
    verifications: Family<VerificationLabel, Counter>,
    damaged: Gauge,
    recovered: Family<OutcomeLabel, Counter>,
    recovery_duration: Gauge<f64, AtomicU64>,
    refusals: Family<ResourceLabel, Counter>,
    reserved: Family<ResourceLabel, Gauge>,
    limits: Family<ResourceLabel, Gauge>,
}

impl Metrics {
    /// All at zero, for a host that can run these backends.
    pub(crate) fn new(backends: impl IntoIterator<Item = Backend>) -> Self {
        let mut this = Self {
            registry: Registry::with_prefix("hearth"),
            operations: Family::default(),
            operation_duration: Family::new_with_constructor(|| Histogram::new(OPERATION_BUCKETS)),
            step_duration: Family::new_with_constructor(|| Histogram::new(STEP_BUCKETS)),
            step_failures: Family::default(),
            restores: Family::default(),
            not_resumed_on_load: Family::default(),
            socket_waits: Family::default(),
            socket_wait_duration: Histogram::new(SOCKET_BUCKETS),
            refresh_failures: Family::default(),
            slots_taken: Family::default(),
            verifications: Family::default(),
            damaged: Gauge::default(),
            recovered: Family::default(),
            recovery_duration: Gauge::default(),
            refusals: Family::default(),
            reserved: Family::default(),
            limits: Family::default(),
        };
        this.register();
        // A counter that first appears at one has not risen, as Prometheus sees it: the failure
        // that an alert is for would go unnoticed.
        backends.into_iter().for_each(|backend| this.begin_at_zero(backend));
        for made in [Made::Ahead, Made::Inline] {
            drop(this.slots_taken.get_or_create(&MadeLabel::of(made)));
        }
        for end in SocketWait::ALL {
            drop(this.socket_waits.get_or_create(&EndLabel::of(end)));
        }
        for resource in Resource::ALL {
            drop(this.refusals.get_or_create(&ResourceLabel::of(resource)));
        }
        for outcome in Outcome::ALL {
            drop(this.recovered.get_or_create(&OutcomeLabel::of(outcome)));
        }
        for verdict in Verdict::ALL {
            drop(this.verifications.get_or_create(&VerificationLabel::of(verdict)));
        }
        this
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "operations",
            "Operations on instances that ended, by result: ok, or the kind of the error",
            self.operations.clone(),
        );
        registry.register_with_unit(
            "operation_duration",
            "How long operations took that succeeded, from their admission to their answer",
            Unit::Seconds,
            self.operation_duration.clone(),
        );
        registry.register_with_unit(
            "step_duration",
            "How long the steps of operations took that succeeded",
            Unit::Seconds,
            self.step_duration.clone(),
        );
        registry.register("step_failures", "Steps of operations that failed", self.step_failures.clone());
        registry.register(
            "restores",
            "Guests brought back from a snapshot's memory (restore, fork, revert), by load plan",
            self.restores.clone(),
        );
        registry.register(
            "restores_not_resumed_on_load",
            "Loads that should have left the guest running, and left it paused",
            self.not_resumed_on_load.clone(),
        );
        registry.register(
            "socket_waits",
            "Waits for the API socket of a VMM that was started, by how they ended",
            self.socket_waits.clone(),
        );
        registry.register_with_unit(
            "socket_wait_duration",
            "How long the API socket of a VMM was waited for, however that ended",
            Unit::Seconds,
            self.socket_wait_duration.clone(),
        );
        registry.register(
            "refresh_failures",
            "Refreshes of a guest's identity or network that its agent did not acknowledge",
            self.refresh_failures.clone(),
        );
        registry.register(
            "network_slots_taken",
            "Slots of the network that instances took, by when they were made",
            self.slots_taken.clone(),
        );
        registry.register(
            "snapshot_verifications",
            "Snapshots that were compared with their checksums, by what came of it",
            self.verifications.clone(),
        );
        registry.register(
            "snapshots_damaged",
            "Snapshots that a verification has found to be damaged, and that are not loaded",
            self.damaged.clone(),
        );
        registry.register(
            "recovered",
            "Instances that the daemon found when it started, by what it did about them",
            self.recovered.clone(),
        );
        registry.register_with_unit(
            "recovery_duration",
            "How long that took, before the daemon served",
            Unit::Seconds,
            self.recovery_duration.clone(),
        );
        registry.register(
            "capacity_refusals",
            "Requests that were refused before they began, by what the host has too little of",
            self.refusals.clone(),
        );
        registry.register(
            "capacity_reserved",
            "What running instances and operations under way hold of the host, in the resource's unit",
            self.reserved.clone(),
        );
        registry.register(
            "capacity_limit",
            "How much of it may be held, oversubscription included, in the resource's unit",
            self.limits.clone(),
        );
    }

    fn begin_at_zero(&self, backend: Backend) {
        for op in Op::ALL {
            for result in std::iter::once(OK).chain(ErrorKind::ALL.map(ErrorKind::as_str)) {
                drop(self.operations.get_or_create(&OperationResultLabels::of(op, backend, result)));
            }
        }
        for op in [Op::Restore, Op::Fork] {
            drop(self.operation_duration.get_or_create(&OperationLabels::of(op, backend)));
        }
        for plan in Plan::ALL {
            for result in [OK, FAILED] {
                drop(self.restores.get_or_create(&RestoreLabels::of(backend, plan, result)));
            }
        }
        drop(self.not_resumed_on_load.get_or_create(&BackendLabel::of(backend)));
        drop(self.refresh_failures.get_or_create(&BackendLabel::of(backend)));
    }

    /// An operation that was admitted has ended.
    pub(crate) fn operation_ended(&self, op: Op, backend: Backend, result: Result<(), ErrorKind>, took: Duration) {
        let kind = result.err().map_or(OK, ErrorKind::as_str);
        self.operations.get_or_create(&OperationResultLabels::of(op, backend, kind)).inc();
        if result.is_ok() {
            self.operation_duration.get_or_create(&OperationLabels::of(op, backend)).observe(took.as_secs_f64());
        }
    }

    /// A step of an operation has ended.
    pub(crate) fn step_ended(&self, op: Op, step: &'static str, succeeded: bool, took: Duration) {
        let labels = StepLabels { op: op.as_str(), step };
        if succeeded {
            self.step_duration.get_or_create(&labels).observe(took.as_secs_f64());
        } else {
            self.step_failures.get_or_create(&labels).inc();
        }
    }

    /// An instance took a slot of the network.
    pub(crate) fn slot_taken(&self, made: Made) {
        self.slots_taken.get_or_create(&MadeLabel::of(made)).inc();
    }

    /// A guest is about to be brought back from a bundle; counted when what this returns is
    /// dropped, as failed unless it was told otherwise.
    pub(crate) fn restore(&self, backend: Backend, plan: Plan) -> Restore<'_> {
        Restore { metrics: self, backend, plan, done: false }
    }

    /// The API socket of a VMM was waited for. To be called by whoever starts a VMM.
    pub(crate) fn socket_waited(&self, end: SocketWait, took: Duration) {
        self.socket_waits.get_or_create(&EndLabel::of(end)).inc();
        self.socket_wait_duration.observe(took.as_secs_f64());
    }

    /// An agent did not acknowledge who it is now, or its new network.
    pub(crate) fn refresh_failed(&self, backend: Backend) {
        self.refresh_failures.get_or_create(&BackendLabel::of(backend)).inc();
    }

    /// A snapshot was compared with its checksums.
    pub(crate) fn verified(&self, verdict: Verdict) {
        self.verifications.get_or_create(&VerificationLabel::of(verdict)).inc();
    }

    /// That was done about an instance, at the start or when it was seen at last.
    pub(crate) fn recovered(&self, outcome: Outcome) {
        self.recovered.get_or_create(&OutcomeLabel::of(outcome)).inc();
    }

    /// The start has dealt with all of them.
    pub(crate) fn recovered_all(&self, took: Duration) {
        self.recovery_duration.set(took.as_secs_f64());
    }

    /// Something was refused for want of this.
    pub(crate) fn refused(&self, short: Resource) {
        self.refusals.get_or_create(&ResourceLabel::of(short)).inc();
    }

    /// So much is held now.
    pub(crate) fn reserved(&self, total: &Amounts) {
        set(&self.reserved, total, &Resource::ALL);
    }

    /// So much may be held; of disk, which is counted as it is free, nothing is known beforehand.
    pub(crate) fn limits(&self, most: &Amounts) {
        set(&self.limits, most, &[Resource::Vcpus, Resource::Memory, Resource::Files, Resource::Processes]);
    }

    /// So many are marked as damaged now.
    pub(crate) fn damaged(&self, count: usize) {
        self.damaged.set(i64::try_from(count).unwrap_or(i64::MAX));
    }
}

fn set(family: &Family<ResourceLabel, Gauge>, amounts: &Amounts, resources: &[Resource]) {
    for resource in resources {
        let amount = i64::try_from(amounts.of(*resource)).unwrap_or(i64::MAX);
        family.get_or_create(&ResourceLabel::of(*resource)).set(amount);
    }
}

/// A guest that is being brought back.
#[derive(Debug)]
#[must_use = "it is counted when it is dropped"]
pub(crate) struct Restore<'a> {
    metrics: &'a Metrics,
    backend: Backend,
    plan: Plan,
    done: bool,
}

impl Restore<'_> {
    /// The load returned; `resumed` is whether the guest ran by then.
    pub(crate) fn loaded(&self, resumed: bool) {
        if self.plan == Plan::ResumeOnLoad && !resumed {
            self.metrics.not_resumed_on_load.get_or_create(&BackendLabel::of(self.backend)).inc();
        }
    }

    /// The guest is back, and is itself.
    pub(crate) fn done(mut self) {
        self.done = true;
    }
}

impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let labels = RestoreLabels::of(self.backend, self.plan, if self.done { OK } else { FAILED });
        self.metrics.restores.get_or_create(&labels).inc();
    }
}

#[cfg(test)]
mod tests;
