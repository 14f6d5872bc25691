//! What every VMM promises, told as stories that run alike on the fake and on real QEMU, on both
//! of its boards; and what only a real guest can show (`memory.rs`).
//!
//! The real part needs QEMU, gcc and `HEARTH_TEST_KERNEL_DIR` (an unpacked kernel package with
//! `boot/vmlinuz-*` and `lib/modules/*`), and says SKIPPED on stderr where they are missing.

mod figures;
mod guest;
mod host;
mod memory;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use hearth_model::{Backend, ErrorKind, Kind, LoadPlan, MemMib};
use hearth_vmm::{
    Adopted, ControlError, Ended, Loaded, Nic, OVERLAY, Ram, RunState, SERIAL_LOG, SaveMemory, resource_usage,
};
use host::{BOARDS, Host, ready, sockets};

macro_rules! on_every_vmm {
    ($($(#[$attr:meta])* $story:ident),* $(,)?) => {
        $(mod $story {
            use super::*;

            #[tokio::test]
            async fn on_the_fake() {
                super::$story(Host::fake().expect("the fake is always there")).await;
            }

            #[tokio::test]
            async fn on_qemu_microvm() {
                if let Some(host) = Host::real(Backend::QemuMicrovm) {
                    super::$story(host).await;
                }
            }

            #[tokio::test]
            async fn on_qemu_q35() {
                if let Some(host) = Host::real(Backend::Qemu) {
                    super::$story(host).await;
                }
            }
        })*
    };
}

on_every_vmm!(
    a_booted_guest_answers_and_leaves_no_socket_when_killed,
    a_guest_pauses_and_goes_on,
    a_saved_guest_is_loaded_paused_and_its_files_are_not_needed_any_more,
    a_guest_is_saved_only_while_paused,
    what_is_missing_is_named_and_nothing_is_left,
    a_state_does_not_load_into_another_machine_and_a_short_memory_not_at_all,
    a_vmm_is_found_again_by_its_seat,
    an_unrecorded_vmm_is_ended_by_its_directory,
    the_guest_can_be_dialled_again,
    sockets_of_an_earlier_vmm_are_in_nobody_s_way,
);

async fn a_booted_guest_answers_and_leaves_no_socket_when_killed(host: Host) {
    let vmm = host.boot("web").await;
    let dir = vmm.seat().dir.clone();
    assert_eq!((vmm.ram(), vmm.run_state().await.expect("answers")), (Ram::Shared, RunState::Running));
    ready(&vmm).await;
    assert_eq!(sockets(&dir).len(), 2);
    vmm.kill().await.expect("ends");
    assert!(sockets(&dir).is_empty());
    assert_eq!(vmm.exited().await.ended, Ended::Signal(9));
    vmm.kill().await.expect("gone already is success");
    assert!(matches!(vmm.pause().await, Err(ControlError::Gone { .. } | ControlError::Unreachable { .. })));
}

async fn a_guest_pauses_and_goes_on(host: Host) {
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    for _ in 0..2 {
        vmm.pause().await.expect("pauses, also when it is paused");
        assert_eq!(vmm.run_state().await.expect("answers"), RunState::Paused);
    }
    for _ in 0..2 {
        vmm.resume().await.expect("resumes, also when it runs");
        assert_eq!(vmm.run_state().await.expect("answers"), RunState::Running);
    }
    ready(&vmm).await;
    vmm.kill().await.expect("ends");
}

async fn a_saved_guest_is_loaded_paused_and_its_files_are_not_needed_any_more(host: Host) {
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    let bundle = host.standby(vmm, "bundle", None).await;
    let spec = host.spec("again");
    fs::copy(&bundle.overlay, spec.dir.join(OVERLAY)).expect("copied");
    let Loaded::Paused(vmm) = host.launcher.load(&spec, &bundle.state, &LoadPlan::ResumeOnLoad).await.expect("loads")
    else {
        panic!("neither of these resumes on load");
    };
    assert_eq!((vmm.ram(), vmm.run_state().await.expect("answers")), (Ram::Private, RunState::Paused));
    fs::remove_file(&bundle.state.memory).expect("removed");
    fs::remove_file(&bundle.state.vmstate).expect("removed");
    vmm.resume().await.expect("resumes");
    ready(&vmm).await;
    vmm.kill().await.expect("ends");
}

async fn a_guest_is_saved_only_while_paused(host: Host) {
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    let refused = vmm.save(Path::new("vmstate"), SaveMemory::Leave).await.expect_err("it runs");
    assert_eq!(refused.kind(), ErrorKind::WrongState);
    vmm.pause().await.expect("pauses");
    let bundle = host.standby(vmm, "bundle", None).await;

    let fork = host.fork(&bundle, "fork").await;
    let onto = bundle.state.memory.with_file_name("onto");
    let refused = fork.save(Path::new("vmstate"), SaveMemory::Onto(&onto)).await.expect_err("it runs");
    assert_eq!(refused.kind(), ErrorKind::WrongState);
    fork.pause().await.expect("pauses");
    File::create(&onto).expect("made").set_len(4096).expect("sized");
    let refused = fork.save(Path::new("vmstate"), SaveMemory::Onto(&onto)).await.expect_err("a file of another length");
    assert!(refused.to_string().contains("onto"), "{refused}");
    fork.kill().await.expect("ends");
}

async fn what_is_missing_is_named_and_nothing_is_left(host: Host) {
    let good = host.spec("web");
    let mut spec = good.clone();
    spec.machine.kernel = spec.dir.join("no-such-kernel");
    let error = host.launcher.boot(&spec).await.expect_err("there is no such kernel");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("no-such-kernel") && error.hint().is_some(), "{error}");

    if host.fake.is_none() {
        let mut spec = good.clone();
        spec.program = "no-such-qemu".into();
        let error = host.launcher.boot(&spec).await.expect_err("there is no such program");
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.hint().is_some_and(|hint| hint.contains("apt install")), "{error}");
    }

    fs::remove_file(good.dir.join(OVERLAY)).expect("removed");
    let error = host.launcher.boot(&good).await.expect_err("a disk is missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(OVERLAY), "{error}");
    assert!(sockets(&good.dir).is_empty());
    assert!(host::processes_in(&good.dir).is_empty());
}

/// QEMU itself finds the fault, after its process has started: its own words reach the user.
#[tokio::test]
async fn a_vmm_that_dies_while_it_starts_says_why() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let spec = host.spec("web");
    fs::remove_file(spec.dir.join(OVERLAY)).expect("removed");
    fs::create_dir(spec.dir.join(OVERLAY)).expect("made");
    let begin = Instant::now();
    let error = host.launcher.boot(&spec).await.expect_err("a directory is no disk");
    assert_eq!(error.kind(), ErrorKind::VmmFailed, "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains(OVERLAY)), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    assert!(sockets(&spec.dir).is_empty());
    assert!(host::processes_in(&spec.dir).is_empty());
}

/// A daemon's secrets are in its environment.
#[tokio::test]
async fn a_vmm_has_a_session_and_an_environment_of_its_own() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let vmm = host.boot("web").await;
    let pid = vmm.seat().pid;
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
    assert!(!String::from_utf8_lossy(&environment).contains(guest::KERNEL_DIR));
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    assert_eq!(stat.split(' ').nth(5), Some(pid.to_string().as_str()), "its session is its own");
    vmm.kill().await.expect("ends");
}

async fn a_state_does_not_load_into_another_machine_and_a_short_memory_not_at_all(host: Host) {
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    let bundle = host.standby(vmm, "bundle", None).await;

    let mut spec = host.spec("other");
    spec.machine.vcpus = 2;
    spec.machine.network = Nic::None;
    let error = host.launcher.load(&spec, &bundle.state, &LoadPlan::ResumeOnLoad).await.expect_err("another machine");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error:?}");
    assert!(error.to_string().contains("vmstate"), "{error}");

    let mut larger = host.spec("larger");
    larger.machine.memory = MemMib::new(512).expect("in range");
    let error = host
        .launcher
        .load(&larger, &bundle.state, &LoadPlan::LoadResume)
        .await
        .expect_err("more memory than was saved");
    assert_eq!(error.kind(), ErrorKind::Incompatible);

    let damaged = host.spec("damaged");
    File::options()
        .write(true)
        .open(&bundle.state.vmstate)
        .expect("there")
        .write_all_at(&[0xff; 3], 0)
        .expect("written");
    let error = host.launcher.load(&damaged, &bundle.state, &LoadPlan::LoadResume).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error:?}");
    for spec in [&spec, &larger, &damaged] {
        assert!(sockets(&spec.dir).is_empty());
        assert!(host::processes_in(&spec.dir).is_empty());
    }
}

async fn a_vmm_is_found_again_by_its_seat(host: Host) {
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    vmm.pause().await.expect("pauses");
    let stored = serde_json::to_string(vmm.seat()).expect("a seat is stored as JSON");
    drop(vmm); // the daemon ends, the VMM does not
    let seat = serde_json::from_str(&stored).expect("and read back");
    let Adopted::Alive(vmm) = host.launcher.adopt(&seat).await.expect("could look") else { panic!("it is alive") };
    assert_eq!(vmm.run_state().await.expect("answers"), RunState::Paused);
    vmm.resume().await.expect("resumes");
    ready(&vmm).await;
    if host.fake.is_none() {
        assert!(resource_usage(&seat).expect("it lives").rss_bytes > 1 << 20);
    }
    let mut other = seat.clone();
    other.start_ticks += 1;
    assert!(matches!(host.launcher.adopt(&other).await.expect("could look"), Adopted::Gone));
    host.launcher.clean_up(&seat.dir, Some(&seat)).await.expect("ends");
    assert!(matches!(host.launcher.adopt(&seat).await.expect("could look"), Adopted::Gone));
    assert!(sockets(&seat.dir).is_empty());
    host.launcher.clean_up(&seat.dir, Some(&seat)).await.expect("nothing there is success");
}

async fn an_unrecorded_vmm_is_ended_by_its_directory(host: Host) {
    let vmm = host.boot("web").await;
    let neighbour = host.boot("neighbour").await;
    let dir = vmm.seat().dir.clone();
    host.launcher.clean_up(&dir, None).await.expect("ends");
    tokio::time::timeout(Duration::from_secs(5), vmm.exited()).await.expect("it was ended");
    assert!(sockets(&dir).is_empty());
    assert_eq!(neighbour.run_state().await.expect("answers"), RunState::Running);
    host.launcher.clean_up(&dir, None).await.expect("nothing there is success");
    host.launcher.clean_up(&dir.join("nowhere"), None).await.expect("nor is no directory an error");
    neighbour.kill().await.expect("ends");
}

async fn the_guest_can_be_dialled_again(host: Host) {
    let vmm = host.boot("web").await;
    for round in 0..5 {
        let mut guest = ready(&vmm).await;
        let line = format!("round {round}");
        assert_eq!(guest.ask(&line).await, line);
    }
    vmm.kill().await.expect("ends");
}

async fn sockets_of_an_earlier_vmm_are_in_nobody_s_way(host: Host) {
    let vmm = host.boot("web").await;
    let dir = vmm.seat().dir.clone();
    match &host.fake {
        Some(fake) => fake.end(&dir, Ended::Signal(9)),
        None => end_from_outside(vmm.seat().pid),
    }
    vmm.exited().await;
    assert!(!sockets(&dir).is_empty(), "a VMM that is killed leaves its sockets");
    let vmm = host.boot("web").await;
    ready(&vmm).await;
    vmm.kill().await.expect("ends");
}

/// The exit is pushed, not polled.
#[tokio::test]
async fn the_end_of_a_vmm_is_known_at_once() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let vmm = host.boot("web").await;
    let exited = vmm.exited();
    end_from_outside(vmm.seat().pid);
    let killed = Instant::now();
    assert_eq!(exited.await.ended, Ended::Signal(9));
    assert!(killed.elapsed() < Duration::from_millis(500), "{:?}", killed.elapsed());
    vmm.kill().await.expect("gone already is success");
}

#[tokio::test]
async fn a_guest_that_switches_itself_off_ends_its_vmm() {
    for backend in BOARDS {
        let Some(host) = Host::real(backend) else { return };
        let vmm = host.boot("web").await;
        let mut guest = ready(&vmm).await;
        let ended = vmm.exited();
        tokio::spawn(async move { guest.ask("off").await });
        let exit = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it ends");
        assert_eq!(exit.ended, Ended::Code(0), "{}", exit.log_tail);
    }
}

#[tokio::test]
async fn a_guest_sees_its_disks_its_network_and_its_serial_port() {
    for backend in BOARDS {
        let Some(host) = Host::real(backend) else { return };
        let vmm = host.boot("web").await;
        let mut guest = ready(&vmm).await;
        let disks = guest.ask("disks").await;
        assert!(disks.contains("=rootfs") && disks.contains("=overlay"), "{disks}");
        assert!(guest.ask("net").await.contains("eth0"));
        assert_eq!(guest.ask("put something").await, "put");
        assert_eq!(guest.ask("get").await, "get something");
        let dir = vmm.seat().dir.clone();
        vmm.kill().await.expect("ends");
        let serial = fs::read_to_string(dir.join(SERIAL_LOG)).expect("there");
        assert_eq!(serial.replace('\r', "").lines().next(), Some("guest: init"), "{serial}");
        assert_eq!(host::log(&dir), "", "QEMU has nothing to complain about");
    }
}

/// 20 in a row; `HEARTH_TEST_BOOTS` for more.
#[tokio::test]
async fn every_boot_succeeds() {
    let Some(host) = Host::real(Backend::QemuMicrovm) else { return };
    let boots = std::env::var("HEARTH_TEST_BOOTS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut took = Vec::new();
    for _ in 0..boots {
        let begin = Instant::now();
        let vmm = host.boot("web").await;
        ready(&vmm).await;
        took.push(begin.elapsed());
        vmm.kill().await.expect("ends");
    }
    eprintln!("{boots} boots to the first answer: {}", figures::spread(took));
}

fn end_from_outside(pid: u32) {
    let status = std::process::Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill is there");
    assert!(status.success());
}
