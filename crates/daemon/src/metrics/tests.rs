//! What is counted, and what it costs to.

use std::sync::Arc;

use super::*;
use hearth_model::load::ResumeOnLoad;

fn metrics() -> Metrics {
    Metrics::new(Backend::ALL)
}

fn text(metrics: &Metrics) -> String {
    metrics.text(Format::Plain, &Backend::ALL, &[], ResumeOnLoad::On)
}

/// The value of a series, given as it stands in the text.
fn value(text: &str, series: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
    Some(line.parse().expect("a number"))
}

#[test]
fn a_restore_is_counted_by_its_plan_whatever_way_it_ends() {
    let metrics = metrics();
    let backend = Backend::QemuMicrovm;
    let restores = |plan: &str, result: &str| {
        let labels = format!("backend=\"qemu-microvm\",plan=\"{plan}\",result=\"{result}\"");
        value(&text(&metrics), &format!("hearth_restores_total{{{labels}}}")).expect(&labels)
    };
    let not_resumed = || {
        value(&text(&metrics), "hearth_restores_not_resumed_on_load_total{backend=\"qemu-microvm\"}").expect("there")
    };

    let fine = metrics.restore(backend, Plan::ResumeOnLoad);
    fine.loaded(true);
    fine.done();
    assert_eq!((restores("resume_on_load", "ok"), not_resumed()), (1.0, 0.0));

    let late = metrics.restore(backend, Plan::ResumeOnLoad);
    late.loaded(false);
    late.done();
    assert_eq!((restores("resume_on_load", "ok"), not_resumed()), (2.0, 1.0));

    for plan in [Plan::LoadResume, Plan::LoadPatchResume] {
        let two_steps = metrics.restore(backend, plan);
        two_steps.loaded(false);
        two_steps.done();
    }
    assert_eq!((restores("load_resume", "ok"), restores("load_patch_resume", "ok")), (1.0, 1.0));
    assert_eq!(not_resumed(), 1.0, "what is not asked for is not missed");

    drop(metrics.restore(backend, Plan::ResumeOnLoad));
    let bug = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _counted = metrics.restore(backend, Plan::ResumeOnLoad);
        panic!("a bug on the way");
    }));
    assert!(bug.is_err());
    assert_eq!((restores("resume_on_load", "failed"), restores("resume_on_load", "ok")), (2.0, 2.0));
    assert_eq!(not_resumed(), 1.0, "a load that failed is a failure, and nothing else");
}

#[test]
fn a_wait_for_a_socket_is_counted_by_its_end() {
    let metrics = metrics();
    for (times, end) in (1..).zip(SocketWait::ALL) {
        for _ in 0..times {
            metrics.socket_waited(end, Duration::from_micros(1800));
        }
    }
    let text = text(&metrics);
    for (times, end) in [(1.0, "immediate"), (2.0, "inotify"), (3.0, "polling"), (4.0, "vmm_died"), (5.0, "deadline")] {
        assert_eq!(value(&text, &format!("hearth_socket_waits_total{{end=\"{end}\"}}")), Some(times));
    }
    assert_eq!(value(&text, "hearth_socket_wait_duration_seconds_bucket{le=\"0.0015\"}"), Some(0.0));
    assert_eq!(value(&text, "hearth_socket_wait_duration_seconds_bucket{le=\"0.002\"}"), Some(15.0));
}

#[test]
fn what_failed_is_counted_and_not_timed() {
    let metrics = metrics();
    let took = Duration::from_millis(8);
    metrics.operation_ended(Op::Restore, Backend::Qemu, Ok(()), took);
    metrics.operation_ended(Op::Restore, Backend::Qemu, Err(ErrorKind::VmmFailed), Duration::from_secs(30));
    metrics.step_ended(Op::Restore, "load snapshot", true, took);
    metrics.step_ended(Op::Restore, "load snapshot", false, Duration::from_secs(30));
    metrics.refresh_failed(Backend::Qemu);

    let text = text(&metrics);
    let operations = |result: &str| {
        value(&text, &format!("hearth_operations_total{{op=\"restore\",backend=\"qemu\",result=\"{result}\"}}"))
    };
    assert_eq!((operations("ok"), operations("vmm_failed"), operations("internal")), (Some(1.0), Some(1.0), Some(0.0)));
    let timed = "hearth_operation_duration_seconds";
    assert_eq!(value(&text, &format!("{timed}_count{{op=\"restore\",backend=\"qemu\"}}")), Some(1.0));
    assert_eq!(value(&text, &format!("{timed}_sum{{op=\"restore\",backend=\"qemu\"}}")), Some(0.008));
    let step = "{op=\"restore\",step=\"load snapshot\"}";
    assert_eq!(value(&text, &format!("hearth_step_duration_seconds_count{step}")), Some(1.0));
    assert_eq!(value(&text, &format!("hearth_step_failures_total{step}")), Some(1.0));
    assert_eq!(value(&text, "hearth_refresh_failures_total{backend=\"qemu\"}"), Some(1.0));
    assert_eq!(value(&text, "hearth_refresh_failures_total{backend=\"qemu-microvm\"}"), Some(0.0));
}

/// A step that takes 50 µs and one that takes a minute fall between bounds, not beyond them.
#[test]
fn buckets_rise_and_span_what_is_measured() {
    for buckets in [&STEP_BUCKETS[..], &OPERATION_BUCKETS, &SOCKET_BUCKETS] {
        assert!(buckets.is_sorted_by(|a, b| a < b), "{buckets:?}");
    }
    assert_eq!((STEP_BUCKETS[0], STEP_BUCKETS[STEP_BUCKETS.len() - 1]), (50e-6, 60.0));
}

#[test]
fn what_others_record_at_once_is_all_counted() {
    let metrics = Arc::new(metrics());
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let metrics = Arc::clone(&metrics);
            std::thread::spawn(move || {
                for _ in 0..1000 {
                    metrics.step_ended(Op::Fork, "clone overlay", true, Duration::from_micros(70));
                    drop(metrics.restore(Backend::Qemu, Plan::LoadResume));
                }
                text(&metrics).len()
            })
        })
        .collect();
    for thread in threads {
        assert!(thread.join().expect("no panic") > 0);
    }
    let text = text(&metrics);
    let steps = "hearth_step_duration_seconds_count{op=\"fork\",step=\"clone overlay\"}";
    assert_eq!(value(&text, steps), Some(4000.0));
    let restores = "hearth_restores_total{backend=\"qemu\",plan=\"load_resume\",result=\"failed\"}";
    assert_eq!(value(&text, restores), Some(4000.0));
}

#[test]
fn the_processs_figures_are_plausible() {
    let text = text(&metrics());
    let resident = value(&text, "process_resident_memory_bytes").expect("there");
    assert!(resident > 1e5 && resident <= value(&text, "process_virtual_memory_bytes").expect("there"), "{resident}");
    let fds = value(&text, "process_open_fds").expect("there");
    assert!(fds >= 3.0 && fds <= value(&text, "process_max_fds").expect("there"), "{fds}");
    #[allow(clippy::cast_precision_loss, reason = "seconds")]
    let now = crate::clock::now_ms() as f64 / 1000.0;
    let started = value(&text, "process_start_time_seconds").expect("there");
    // A test process is younger than a day, and the kernel's boot time is rounded to seconds.
    assert!(started < now + 2.0 && started > now - 86_400.0, "{started} {now}");
    assert_eq!(value(&text, "hearth_resume_on_load_enabled"), Some(1.0));
    let closed = metrics().text(Format::Plain, &Backend::ALL, &[], ResumeOnLoad::Off);
    assert_eq!(value(&closed, "hearth_resume_on_load_enabled"), Some(0.0));
    assert_eq!(value(&text, &format!("hearth_build_info{{version=\"{}\"}}", env!("CARGO_PKG_VERSION"))), Some(1.0));
}
