//! What is looked at when somebody asks: instances as the registry sees them, and this process.
//!
//! No VMM is asked for anything, and nothing is kept: two that ask at once do not disturb each other.

use hearth_model::load::ResumeOnLoad;
use hearth_model::{Backend, Op, Phase};
use procfs::WithCurrentSystemInfo as _;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use tracing::debug;

use super::labels::{BuildLabels, InstanceLabels, OperationLabels};
use super::{Format, Metrics, format};
use crate::handle::InstanceView;

/// The states that an instance rests in, as `InstanceState::name` says them.
const STATES: [&str; 4] = ["running", "standby", "stopped", "failed"];

impl Metrics {
    /// Everything, as text. `backends` are those that an instance can have here.
    pub(crate) fn text(
        &self,
        format: Format,
        backends: &[Backend],
        instances: &[InstanceView],
        resume_on_load: ResumeOnLoad,
    ) -> String {
        let mut now = Registry::default();
        build(&mut now);
        hatch(&mut now, resume_on_load);
        count_instances(&mut now, backends, instances);
        if let Err(error) = process(&mut now) {
            debug!(%error, "this process's own figures could not be read");
        }
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)
            .and_then(|()| encode_registry(&mut text, &now))
            .and_then(|()| encode_eof(&mut text))
            .expect("writing to a String does not fail");
        match format {
            Format::OpenMetrics => text,
            Format::Plain => format::plain(&text),
        }
    }
}

fn build(registry: &mut Registry) {
    let info = Family::<BuildLabels, Gauge>::default();
    info.get_or_create(&BuildLabels { version: env!("CARGO_PKG_VERSION") }).set(1);
    registry.register("hearth_build_info", "Always 1; the daemon's version is the label", info);
}

fn hatch(registry: &mut Registry, resume_on_load: ResumeOnLoad) {
    registry.register(
        "hearth_resume_on_load_enabled",
        "1 if a restore that begins now resumes its guest inside the load, 0 if the escape hatch is closed",
        ConstGauge::new(u64::from(resume_on_load == ResumeOnLoad::On)),
    );
}

fn count_instances(registry: &mut Registry, backends: &[Backend], instances: &[InstanceView]) {
    let by_state = Family::<InstanceLabels, Gauge>::default();
    let in_progress = Family::<OperationLabels, Gauge>::default();
    for backend in backends {
        for state in STATES {
            drop(by_state.get_or_create(&InstanceLabels { state, backend: backend.as_str() }));
        }
        for op in Op::ALL {
            drop(in_progress.get_or_create(&OperationLabels::of(op, *backend)));
        }
    }
    for view in instances {
        let backend = view.record.spec.backend;
        by_state.get_or_create(&InstanceLabels { state: view.state().name(), backend: backend.as_str() }).inc();
        if let Phase::Busy { op, .. } = view.record.phase {
            in_progress.get_or_create(&OperationLabels::of(op, backend)).inc();
        }
    }
    registry.register(
        "hearth_instances",
        "Instances by the state they rest in, or came from while an operation is under way",
        by_state,
    );
    registry.register("hearth_operations_in_progress", "Operations under way", in_progress);
}

/// The figures that every Prometheus client gives of its process, under the names that they have
/// everywhere.
fn process(registry: &mut Registry) -> procfs::ProcResult<()> {
    let this = procfs::process::Process::myself()?;
    let stat = this.stat()?;
    let ticks = procfs::ticks_per_second();
    let gauge = |value: u64| ConstGauge::new(value);
    registry.register_with_unit(
        "process_resident_memory",
        "Resident memory size of the daemon",
        Unit::Bytes,
        gauge(stat.rss_bytes().get()),
    );
    registry.register_with_unit(
        "process_virtual_memory",
        "Virtual memory size of the daemon",
        Unit::Bytes,
        gauge(stat.vsize),
    );
    registry.register("process_open_fds", "Open file descriptors of the daemon", gauge(this.fd_count()? as u64));
    if let procfs::process::LimitValue::Value(most) = this.limits()?.max_open_files.soft_limit {
        registry.register("process_max_fds", "File descriptors that the daemon may open", gauge(most));
    }
    registry.register("process_threads", "Threads of the daemon", ConstGauge::new(stat.num_threads));
    #[allow(clippy::cast_precision_loss, reason = "seconds with two decimals")]
    let (cpu, started) = (
        (stat.utime + stat.stime) as f64 / ticks as f64,
        procfs::boot_time_secs()? as f64 + stat.starttime as f64 / ticks as f64,
    );
    registry.register_with_unit(
        "process_cpu",
        "User and system CPU time of the daemon",
        Unit::Seconds,
        ConstCounter::<f64>::new(cpu),
    );
    registry.register_with_unit(
        "process_start_time",
        "When the daemon started, since the Unix epoch",
        Unit::Seconds,
        ConstGauge::<f64>::new(started),
    );
    Ok(())
}
