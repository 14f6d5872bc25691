//! What the Firecracker backend promises, told as stories that run alike on the simulated VMM and on
//! the real Firecracker (natively, with a guest that needs no kernel).
//!
//! The real part needs Firecracker on PATH or in `HEARTH_FIRECRACKER`, `/dev/kvm` and gcc, and says
//! SKIPPED on stderr where they are missing.

mod host;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use hearth_model::load::{DrivePatch, Replacements};
use hearth_model::{ErrorKind, Kind, LoadPlan};
use hearth_vmm::{Adopted, Loaded, MEMORY_BASE, OVERLAY, ROOTFS, Ram, RunState, SERIAL_LOG, SaveMemory, SocketWait};
use host::{Host, allocated, answers, fault, last_tick, ticks};
use serde_json::json;

macro_rules! on_both {
    ($($(#[$attr:meta])* $story:ident),* $(,)?) => {
        mod simulated {
            use super::*;
            $(#[tokio::test]
            async fn $story() {
                super::$story(Host::simulated()).await;
            })*
        }

        mod firecracker {
            use super::*;
            $(#[tokio::test]
            async fn $story() {
                if let Some(host) = Host::firecracker() {
                    super::$story(host).await;
                }
            })*
        }
    };
}

on_both!(
    a_booted_guest_counts_answers_and_leaves_nothing_when_killed,
    a_guest_that_was_paused_for_nothing_is_reached_again,
    a_guest_that_runs_is_not_resumed_again,
    a_restored_guest_runs_when_the_load_returns_and_its_console_goes_on,
    forks_of_one_bundle_run_side_by_side_and_the_bundle_stays_as_it_is,
    with_the_hatch_closed_a_guest_is_paused_until_it_is_resumed,
    a_fork_s_snapshot_holds_what_it_wrote_and_its_forks_go_on_from_there,
    a_guest_that_goes_on_after_its_snapshot_is_saved_again_from_there,
    a_fork_whose_base_is_lost_is_saved_whole,
    a_save_that_fails_costs_the_guest_nothing,
    a_guest_is_saved_only_while_paused,
    foreign_drives_are_replaced_before_the_guest_runs,
    what_is_missing_is_named_and_nothing_is_left,
    what_is_damaged_is_refused_nothing_is_left_and_the_bundle_still_loads,
    a_vmm_is_found_again_and_an_unrecorded_one_is_ended_by_its_directory,
    a_vmm_that_is_killed_leaves_sockets_that_are_in_nobody_s_way,
    the_socket_is_told_by_the_file_system,
);

async fn a_booted_guest_counts_answers_and_leaves_nothing_when_killed(host: Host) {
    let vmm = host.boot("web").await;
    assert_eq!(vmm.run_state().await.expect("answers"), RunState::Running);
    assert!(matches!(vmm.ram(), Ram::Anonymous | Ram::Tracked), "{:?}", vmm.ram());
    answers(&vmm).await;
    let dir = vmm.seat().dir.clone();
    let left = host.left(&dir);
    assert_eq!(left.len(), 3 + host.cgroups_each(), "two sockets, a process and, where it can be, a cgroup: {left:?}");
    vmm.kill().await.expect("ends");
    vmm.kill().await.expect("gone already is success");
    assert_eq!(host.left(&dir), [""; 0]);
}

/// Firecracker 1.16.1 by itself would leave every later call to the guest hanging.
async fn a_guest_that_was_paused_for_nothing_is_reached_again(host: Host) {
    let vmm = host.boot("web").await;
    for _ in 0..2 {
        vmm.pause().await.expect("pauses");
        vmm.pause().await.expect("is paused");
        assert_eq!(vmm.run_state().await.expect("answers"), RunState::Paused);
        vmm.resume().await.expect("resumes");
        answers(&vmm).await;
    }
    // A daemon that was started anew does not know how the guest came to be paused.
    vmm.pause().await.expect("pauses");
    let Adopted::Alive(again) = host.launcher.adopt(vmm.seat()).await.expect("could look") else { panic!("alive") };
    again.resume().await.expect("resumes");
    answers(&again).await;
    assert!(!vmm.seat().dir.join("vmstate.aside").exists());
    vmm.kill().await.expect("ends");
}

/// A second resume is answered with success, and cuts the guest off.
async fn a_guest_that_runs_is_not_resumed_again(host: Host) {
    let vmm = host.boot("web").await;
    vmm.resume().await.expect("runs");
    answers(&vmm).await;
    let Adopted::Alive(again) = host.launcher.adopt(vmm.seat()).await.expect("could look") else { panic!("alive") };
    again.resume().await.expect("runs");
    answers(&vmm).await;
    let bundle = host.standby(vmm, "bundle").await;
    let fork = host.fork(&bundle, "fork").await;
    fork.resume().await.expect("runs");
    answers(&fork).await;
    fork.kill().await.expect("ends");
}

async fn a_restored_guest_runs_when_the_load_returns_and_its_console_goes_on(host: Host) {
    let vmm = host.boot("web").await;
    let bundle = host.standby(vmm, "bundle").await;
    let before = fs::read_to_string(host.spec("web").dir.join(SERIAL_LOG)).expect("there");
    let vmm = host.fork(&bundle, "web").await;
    assert_eq!(vmm.run_state().await.expect("answers"), RunState::Running);
    let dir = vmm.seat().dir.clone();
    let saved = last_tick(&dir);
    ticks(&vmm, saved + 3).await;
    let after = fs::read_to_string(dir.join(SERIAL_LOG)).expect("there");
    assert!(after.starts_with(&before), "what the console said before is still there");
    answers(&vmm).await;
    // Neither file is needed by name any more.
    fs::remove_file(dir.join(MEMORY_BASE)).expect("removed");
    fs::remove_file(dir.join("vmstate")).expect("removed");
    ticks(&vmm, saved + 10).await;
    vmm.kill().await.expect("ends");
}

async fn forks_of_one_bundle_run_side_by_side_and_the_bundle_stays_as_it_is(host: Host) {
    let vmm = host.boot("source").await;
    vmm.pause().await.expect("pauses");
    let bundle = host.save(&vmm, "bundle").await;
    let content = fs::read(&bundle.state.memory).expect("there");
    // The source is still there, paused, while its forks load.
    let (a, b, c) = tokio::join!(host.fork(&bundle, "a"), host.fork(&bundle, "b"), host.fork(&bundle, "c"));
    for fork in [&a, &b, &c] {
        answers(fork).await;
        let told = last_tick(&fork.seat().dir);
        ticks(fork, told + 3).await;
    }
    vmm.resume().await.expect("resumes");
    answers(&vmm).await;
    assert!(content == fs::read(&bundle.state.memory).expect("there"), "nobody wrote into the bundle");
    for vmm in [vmm, a, b, c] {
        vmm.kill().await.expect("ends");
    }
}

async fn with_the_hatch_closed_a_guest_is_paused_until_it_is_resumed(host: Host) {
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    let loaded = host.load(&bundle, "fork", &LoadPlan::LoadResume).await.expect("loads");
    let Loaded::Paused(vmm) = loaded else { panic!("it must not run") };
    assert_eq!(vmm.run_state().await.expect("answers"), RunState::Paused);
    let dir = vmm.seat().dir.clone();
    assert_eq!(last_tick(&dir), 0, "it has said nothing yet");
    vmm.resume().await.expect("resumes");
    answers(&vmm).await;
    vmm.kill().await.expect("ends");
}

async fn a_fork_s_snapshot_holds_what_it_wrote_and_its_forks_go_on_from_there(host: Host) {
    let bundle = host.standby(host.boot("source").await, "bundle").await;
    let touched = allocated(&bundle.state.memory);
    assert!(touched < 4 << 20, "{touched} bytes on disk of a guest that touched little");
    let fork = host.fork(&bundle, "fork").await;
    assert_eq!(fork.ram(), Ram::Tracked);
    let told = last_tick(&fork.seat().dir);
    ticks(&fork, told + 5).await;
    let second = host.standby(fork, "second").await;
    let saved = last_tick(&host.spec("fork").dir);
    let grandchild = host.fork(&second, "grandchild").await;
    ticks(&grandchild, saved + 1).await;
    let log = fs::read_to_string(grandchild.seat().dir.join(SERIAL_LOG)).expect("there");
    let first = log.lines().find_map(|line| line.strip_prefix("tick ")?.trim().parse::<u64>().ok()).expect("a tick");
    assert!((saved..=saved + 2).contains(&first), "it goes on at {first}, where {saved} was the last");
    answers(&grandchild).await;
    grandchild.kill().await.expect("ends");
}

/// Snapshot, go on, snapshot: the second is what changed since the first, onto a copy of the first.
async fn a_guest_that_goes_on_after_its_snapshot_is_saved_again_from_there(host: Host) {
    let bundle = host.standby(host.boot("source").await, "bundle").await;
    let fork = host.fork(&bundle, "fork").await;
    let dir = fork.seat().dir.clone();
    let mut last = bundle;
    for round in ["first", "second", "third"] {
        let told = last_tick(&dir);
        ticks(&fork, told + 4).await;
        fork.pause().await.expect("pauses");
        last = host.save(&fork, round).await;
        // From here on it differs from this.
        fs::remove_file(dir.join(MEMORY_BASE)).expect("removed");
        fs::hard_link(&last.state.memory, dir.join(MEMORY_BASE)).expect("linked");
        fork.resume().await.expect("resumes");
        answers(&fork).await;
    }
    fork.pause().await.expect("pauses");
    let whole = host.shelf("whole").join("memory");
    let (vmstate, onto) = (host.shelf("whole").join("vmstate"), host.shelf("onto").join("memory"));
    host::copy_sparse(&last.state.memory, &onto);
    fork.save(&vmstate, SaveMemory::Onto(&onto)).await.expect("saved");
    fork.save(&vmstate, SaveMemory::Into(&whole)).await.expect("saved");
    let (onto, whole) = (fs::read(&onto).expect("there"), fs::read(&whole).expect("there"));
    let differ = onto.chunks(4096).zip(whole.chunks(4096)).filter(|(a, b)| a != b).count();
    // Each save announces a reset to the guest, in the guest's memory: the event and the queue's ring.
    assert!(differ <= 2, "three diffs make the whole but for {differ} pages");
    fork.kill().await.expect("ends");
}

async fn a_fork_whose_base_is_lost_is_saved_whole(host: Host) {
    let bundle = host.standby(host.boot("source").await, "bundle").await;
    let fork = host.fork(&bundle, "fork").await;
    let dir = fork.seat().dir.clone();
    let told = last_tick(&dir);
    ticks(&fork, told + 2).await;
    fs::remove_file(dir.join(MEMORY_BASE)).expect("removed");
    let whole = host.standby(fork, "whole").await;
    let saved = last_tick(&dir);
    let again = host.fork(&whole, "again").await;
    ticks(&again, saved + 2).await;
    answers(&again).await;
    again.kill().await.expect("ends");
}

async fn a_save_that_fails_costs_the_guest_nothing(host: Host) {
    let vmm = host.boot("web").await;
    vmm.pause().await.expect("pauses");
    let nowhere = host.shelf("shelf").join("nowhere/memory");
    let error = vmm.save("vmstate".as_ref(), SaveMemory::Into(&nowhere)).await.expect_err("there is no such place");
    assert_eq!(error.kind(), ErrorKind::VmmFailed);
    assert!(error.to_string().contains("No such file"), "{error}");
    vmm.resume().await.expect("resumes");
    answers(&vmm).await;
    let bundle = host.standby(vmm, "bundle").await;
    let fork = host.fork(&bundle, "fork").await;
    answers(&fork).await;
    fork.kill().await.expect("ends");
}

async fn a_guest_is_saved_only_while_paused(host: Host) {
    let vmm = host.boot("web").await;
    let memory = host.shelf("shelf").join("memory");
    let error = vmm.save("vmstate".as_ref(), SaveMemory::Into(&memory)).await.expect_err("it runs");
    assert_eq!(error.kind(), ErrorKind::WrongState, "{error}");
    answers(&vmm).await;
    vmm.kill().await.expect("ends");
}

/// The state names drives by absolute paths. The guest sees its own before it runs, and the others
/// are not written.
async fn foreign_drives_are_replaced_before_the_guest_runs(host: Host) {
    // Whose state this is does not matter to the backend: the plan says that drives are replaced.
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    let patch = |id: &str, path: &str| DrivePatch { id: id.into(), path: path.into() };
    let patches = vec![patch("rootfs", "disks/own-rootfs"), patch("overlay", "disks/own-overlay")];
    let plan = LoadPlan::LoadPatchResume(Replacements::new(patches, true).expect("two"));

    let (spec, state) = host.place(&bundle, "fork");
    let error = host.launcher.load(&spec, &state, &plan).await.expect_err("its own drives are not there");
    assert!(error.to_string().contains("PATCH /drives") || format!("{error:?}").contains("PATCH /drives"), "{error:?}");
    assert_eq!(host.left(&spec.dir), [""; 0]);

    for (from, own) in [(ROOTFS, "disks/own-rootfs"), (OVERLAY, "disks/own-overlay")] {
        fs::copy(spec.dir.join(from), spec.dir.join(own)).expect("copied");
    }
    let Loaded::Paused(vmm) = host.launcher.load(&spec, &state, &plan).await.expect("loads") else {
        panic!("it must not run before its drives are its own")
    };
    let log = spec.dir.join(SERIAL_LOG);
    assert_eq!(fs::read_to_string(&log).unwrap_or_default(), "", "it has not run");
    vmm.resume().await.expect("resumes");
    answers(&vmm).await;
    vmm.kill().await.expect("ends");
}

async fn what_is_missing_is_named_and_nothing_is_left(host: Host) {
    let good = host.spec("web");
    let mut spec = good.clone();
    spec.machine.kernel = spec.dir.join("no-such-kernel");
    let error = host.launcher.boot(&spec).await.expect_err("there is no such kernel");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("no-such-kernel"), "{error}");

    let mut spec = good.clone();
    spec.program = "no-such-firecracker".into();
    let error = host.launcher.boot(&spec).await.expect_err("there is no such program");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.hint().is_some_and(|hint| hint.contains("firecracker.path")), "{error:?}");

    let mut spec = good.clone();
    fs::write(spec.dir.join("text"), "this is no kernel").expect("written");
    spec.machine.kernel = spec.dir.join("text");
    let error = host.launcher.boot(&spec).await.expect_err("this is no kernel");
    assert_eq!(error.kind(), ErrorKind::VmmFailed, "{error:?}");

    fs::remove_file(good.dir.join(OVERLAY)).expect("removed");
    let error = host.launcher.boot(&good).await.expect_err("a disk is missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(OVERLAY), "{error}");
    assert_eq!(host.left(&good.dir), [""; 0]);
}

async fn what_is_damaged_is_refused_nothing_is_left_and_the_bundle_still_loads(host: Host) {
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    let aside = |name: &str, file: &str| {
        let (spec, state) = host.place(&bundle, name);
        let (from, to) = (spec.dir.join(file), spec.dir.join("aside"));
        fs::copy(&from, &to).expect("copied");
        fs::rename(&to, &from).expect("in place of the link");
        (spec, state, File::options().write(true).open(&from).expect("there"))
    };

    let (spec, state, file) = aside("flipped", "vmstate");
    file.write_all_at(&[0xff; 4], 4096).expect("written");
    let error = host.launcher.load(&spec, &state, &LoadPlan::ResumeOnLoad).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error:?}");
    assert!(error.to_string().contains("vmstate"), "{error}");
    assert_eq!(host.left(&spec.dir), [""; 0]);

    let (spec, state, file) = aside("short", MEMORY_BASE);
    file.set_len(1 << 20).expect("shortened");
    let error = host.launcher.load(&spec, &state, &LoadPlan::ResumeOnLoad).await.expect_err("too short");
    assert_eq!(error.kind(), ErrorKind::Incompatible, "{error:?}");
    assert!(error.to_string().contains(MEMORY_BASE), "{error}");
    assert_eq!(host.left(&spec.dir), [""; 0]);

    let (spec, state) = host.place(&bundle, "no-overlay");
    fs::remove_file(spec.dir.join(OVERLAY)).expect("removed");
    let error = host.launcher.load(&spec, &state, &LoadPlan::ResumeOnLoad).await.expect_err("a disk is missing");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(host.left(&spec.dir), [""; 0]);

    let fork = host.fork(&bundle, "fork").await;
    answers(&fork).await;
    fork.kill().await.expect("ends");
}

async fn a_vmm_is_found_again_and_an_unrecorded_one_is_ended_by_its_directory(host: Host) {
    let vmm = host.boot("web").await;
    let neighbour = host.boot("neighbour").await;
    let stored = serde_json::to_string(vmm.seat()).expect("a seat is stored as JSON");
    drop(vmm);
    let seat = serde_json::from_str(&stored).expect("and read back");
    let Adopted::Alive(vmm) = host.launcher.adopt(&seat).await.expect("could look") else { panic!("alive") };
    answers(&vmm).await;
    host.launcher.clean_up(&seat.dir, None).await.expect("ends");
    tokio::time::timeout(host::PATIENCE, vmm.exited()).await.expect("it was ended");
    assert_eq!(host.left(&seat.dir), [""; 0]);
    assert!(matches!(host.launcher.adopt(&seat).await.expect("could look"), Adopted::Gone));
    answers(&neighbour).await;
    neighbour.kill().await.expect("ends");
}

async fn a_vmm_that_is_killed_leaves_sockets_that_are_in_nobody_s_way(host: Host) {
    let vmm = host.boot("web").await;
    let bundle = host.standby(vmm, "bundle").await;
    let vmm = host.fork(&bundle, "fork").await;
    let dir = vmm.seat().dir.clone();
    let exited = vmm.exited();
    let killed = std::process::Command::new("kill").args(["-9", &vmm.seat().pid.to_string()]).status();
    assert!(killed.expect("kill is there").success());
    let told = Instant::now();
    exited.await;
    assert!(told.elapsed() < Duration::from_millis(500), "{:?}", told.elapsed());
    assert_eq!(host.left(&dir).len(), 2 + host.cgroups_each(), "{:?}", host.left(&dir));
    let vmm = host.fork(&bundle, "fork").await;
    answers(&vmm).await;
    vmm.kill().await.expect("ends");
}

async fn the_socket_is_told_by_the_file_system(host: Host) {
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    let (spec, state) = host.place(&bundle, "fork");
    let ready = host.launcher.start(&spec).await.expect("starts").ready(&state).await.expect("comes up");
    let (wait, _) = ready.socket_wait().expect("it has a socket of its own");
    let wait = wait.clone();
    assert!(matches!(wait, SocketWait::Inotify | SocketWait::Immediate), "{wait:?}");
    let Loaded::Resumed(vmm) = ready.load(&LoadPlan::ResumeOnLoad).await.expect("loads") else { panic!("runs") };
    vmm.kill().await.expect("ends");
}

/// A request that must not be sent ends the VMM.
#[tokio::test]
async fn no_second_resume_is_sent_to_a_guest_that_was_resumed_in_the_load() {
    let host = Host::simulated();
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    let (spec, state) = host.place(&bundle, "fork");
    host.faults(&spec, vec![fault(json!({ "on": "PATCH /vm", "do": "exit" }))]);
    let loaded = host.launcher.load(&spec, &state, &LoadPlan::ResumeOnLoad).await.expect("loads");
    let Loaded::Resumed(vmm) = loaded else { panic!("{loaded:?}") };
    vmm.resume().await.expect("nothing is asked of the VMM");
    answers(&vmm).await;
    vmm.kill().await.expect("ends");

    let (spec, state) = host.place(&bundle, "two-step");
    host.faults(&spec, vec![fault(json!({ "on": "PATCH /vm", "do": "exit" }))]);
    let Ok(Loaded::Paused(vmm)) = host.launcher.load(&spec, &state, &LoadPlan::LoadResume).await else {
        panic!("paused")
    };
    vmm.resume().await.expect_err("the one resume of a two-step restore is sent");
    vmm.kill().await.expect("ends");
}

/// Whatever goes wrong, before or after it took effect: an error that says so, and nothing left.
#[tokio::test]
async fn every_way_to_fail_in_a_load_leaves_nothing() {
    let host = Host::simulated();
    let bundle = host.standby(host.boot("web").await, "bundle").await;
    for (number, plan) in [
        json!({ "on": "start", "do": "exit" }),
        json!({ "on": "listen", "do": "exit" }),
        json!({ "on": "PUT /snapshot/load", "do": "exit" }),
        json!({ "on": "PUT /snapshot/load", "when": "after", "do": "exit" }),
        json!({ "on": "PUT /snapshot/load", "do": "drop" }),
        json!({ "on": "PUT /snapshot/load", "when": "after", "do": "drop" }),
        json!({ "on": "PUT /snapshot/load", "do": { "error": 400 } }),
        json!({ "on": "PUT /snapshot/load", "when": "after", "do": { "error": 500 } }),
        json!({ "on": "PUT /snapshot/load", "do": "kill" }),
        json!({ "on": "PUT /snapshot/load", "when": "after", "do": "abort" }),
    ]
    .into_iter()
    .enumerate()
    {
        let (spec, state) = host.place(&bundle, &format!("fork-{number}"));
        host.faults(&spec, vec![fault(plan.clone())]);
        let began = Instant::now();
        let error = host.launcher.load(&spec, &state, &LoadPlan::ResumeOnLoad).await.expect_err(&plan.to_string());
        assert!(began.elapsed() < Duration::from_secs(10), "{plan}: {:?}", began.elapsed());
        assert!(matches!(error.kind(), ErrorKind::VmmFailed | ErrorKind::Incompatible), "{plan}: {error:?}");
        assert_eq!(host.left(&spec.dir), [""; 0], "{plan}");
    }
    // A delay is none: it is waited for.
    let (spec, state) = host.place(&bundle, "late");
    host.faults(&spec, vec![fault(json!({ "on": "start", "do": { "delay_ms": 150 } }))]);
    let ready = host.launcher.start(&spec).await.expect("starts").ready(&state).await.expect("comes up");
    assert_eq!(ready.socket_wait().map(|(wait, _)| wait), Some(&SocketWait::Inotify));
    let Loaded::Resumed(vmm) = ready.load(&LoadPlan::ResumeOnLoad).await.expect("loads") else { panic!("runs") };
    answers(&vmm).await;
    vmm.kill().await.expect("ends");
}
