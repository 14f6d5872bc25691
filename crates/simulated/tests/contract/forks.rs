//! Many from one: forks share a bundle's files, and nothing else.

use std::fs::{self, File};

use hearth_simulated::guest::Params;
use serde_json::json;

use crate::host::{Bundle, Lab, on_disk};
use crate::save::{assert_marks, has_mark};

const PAGE: u64 = 4096;
const TMPFS_MAGIC: i64 = 0x0102_1994;

pub async fn forks_run_side_by_side_and_leave_their_bundle_as_it_was(lab: Lab) {
    let bundle = lab.bundle().await;
    let (vmstate, memory) = contents(&bundle);
    let mut forks = Vec::new();
    for name in ["a", "b", "c", "d"] {
        forks.push(lab.restore(name, &bundle).await);
    }
    for fork in &mut forks {
        fork.ticks_beyond(bundle.tick + 5).await;
        fork.lives();
        let ticks = fork.ticks();
        assert_eq!(ticks, (bundle.tick + 1..).take(ticks.len()).collect::<Vec<_>>());
    }
    assert!(contents(&bundle) == (vmstate, memory), "the bundle was written to");
    // What one of them saves is its own.
    let own = lab.save_onto(&bundle, &mut forks[0], "own").await;
    assert_marks(&lab, &own.memory(), own.tick);
    assert!(own.tick > bundle.tick);
    let tick = forks[1].tick();
    forks[1].ticks_beyond(tick).await;
    let late = lab.restore("late", &bundle).await;
    late.ticks_beyond(bundle.tick).await;
    assert_eq!(late.ticks()[0], bundle.tick + 1);
}

pub async fn forks_of_a_paused_source_run_beside_it(lab: Lab) {
    let mut source = lab.boot("source").await;
    let bundle = lab.save(&mut source, "bundle", "Diff").await;
    let fork = lab.restore("fork", &bundle).await;
    fork.ticks_beyond(bundle.tick + 3).await;
    assert_eq!(source.tick(), bundle.tick);
    source.resume().await.done();
    source.ticks_beyond(bundle.tick).await;
    let ticks = source.ticks();
    assert_eq!(ticks, (1..=ticks.len() as u64).collect::<Vec<_>>());
}

pub async fn a_tracked_fork_writes_only_what_it_changed_onto_a_clone(lab: Lab) {
    let bundle = lab.bundle().await;
    let (mut fork, answer) = lab.load("fork", &bundle, json!({ "resume_vm": true, "track_dirty_pages": true })).await;
    answer.done();
    assert_eq!(fork.get("/machine-config").await.json()["track_dirty_pages"], true);
    fork.ticks_beyond(bundle.tick).await;
    let (changes, tick) = {
        let changes = lab.save(&mut fork, "changes", "Diff").await;
        (changes.memory(), changes.tick)
    };
    let disk = on_disk(&changes);
    let most = (tick - bundle.tick + 1) * u64::from(lab.params.per_tick) + 20;
    assert!(disk > 0 && disk <= most * PAGE, "{disk} bytes for {} ticks", tick - bundle.tick);
    fork.resume().await.done();
    fork.ticks_beyond(tick).await;
    fork.kill().await;

    // Onto a clone of what it was loaded from, it is whole.
    let more = json!({ "resume_vm": true, "track_dirty_pages": true });
    let (mut fork, answer) = lab.load("other", &bundle, more).await;
    answer.done();
    fork.ticks_beyond(bundle.tick + 2).await;
    let whole = lab.save_onto(&bundle, &mut fork, "clone").await;
    assert_marks(&lab, &whole.memory(), whole.tick);
    let grandchild = lab.restore("grandchild", &whole).await;
    grandchild.ticks_beyond(whole.tick).await;
    assert_eq!(grandchild.ticks()[0], whole.tick + 1);
}

/// Without tracking, a `Diff` holds of what was loaded only what happens to be in the page cache: it
/// is whole on a clone of that, and nowhere else.
pub async fn an_untracked_fork_s_diff_is_whole_on_a_clone_only(lab: Lab) {
    let params = Params { pages: 16, stride: 6144, step: 5, per_tick: 0, ..lab.params };
    let lab = lab.with_guest(params);
    let mut vmm = lab.boot_with("source", json!({ "mem_size_mib": params.memory_mib() })).await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.kill().await;
    let mut fork = lab.restore("fork", &bundle).await;
    fork.ticks_beyond(bundle.tick).await;
    fork.pause().await.done();
    // As when memory was short.
    let memory = File::open(bundle.memory()).expect("there");
    rustix::fs::fadvise(&memory, 0, None, rustix::fs::Advice::DontNeed).expect("advised");
    let alone = lab.save(&mut fork, "alone", "Diff").await;
    let lacking = (0..params.pages).filter(|page| !has_mark(&lab, &alone.memory(), *page)).count();
    let kept_by_the_file_system = rustix::fs::fstatfs(&memory).expect("there").f_type == TMPFS_MAGIC;
    assert!(lacking > 0 || kept_by_the_file_system, "it was whole");
    let whole = lab.save_onto(&bundle, &mut fork, "whole").await;
    assert_marks(&lab, &whole.memory(), whole.tick);
    let fork = lab.restore("other", &whole).await;
    fork.ticks_beyond(whole.tick).await;
}

pub async fn a_fork_of_a_fork_goes_on(lab: Lab) {
    let first = lab.bundle().await;
    let mut fork = lab.restore("fork", &first).await;
    fork.ticks_beyond(first.tick + 1).await;
    let second = lab.save_onto(&first, &mut fork, "second").await;
    let before = (contents(&first), contents(&second));
    fork.kill().await;
    let grandchild = lab.restore("grandchild", &second).await;
    grandchild.ticks_beyond(second.tick + 1).await;
    assert_eq!(grandchild.ticks()[0], second.tick + 1);
    assert!((contents(&first), contents(&second)) == before);
}

pub async fn a_fork_has_another_tap_beside_its_living_source(lab: Lab) {
    let Some(lab) = lab.with_networks() else { return };
    let mut source = lab.launch("source").await;
    source.configure(&lab.kernel, json!({})).await;
    let network = json!({ "iface_id": "eth0", "host_dev_name": "tap-a", "guest_mac": "06:00:AC:10:00:02" });
    source.put("/network-interfaces/eth0", network).await.done();
    source.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
    source.ticks_beyond(1).await;
    let bundle = lab.save(&mut source, "bundle", "Diff").await;
    let more = json!({
        "resume_vm": true, "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "tap-b" }],
    });
    let (mut fork, answer) = lab.load("fork", &bundle, more).await;
    answer.done();
    fork.ticks_beyond(bundle.tick).await;
    let network = |tap: &str| {
        json!([{ "iface_id": "eth0", "host_dev_name": tap, "guest_mac": "06:00:ac:10:00:02", "mtu": null,
            "rx_rate_limiter": null, "tx_rate_limiter": null }])
    };
    assert_eq!(fork.get("/vm/config").await.json()["network-interfaces"], network("tap-b"));
    assert_eq!(source.get("/vm/config").await.json()["network-interfaces"], network("tap-a"));
    source.lives();
}

pub async fn a_loaded_guest_is_saved_before_it_ever_ran(lab: Lab) {
    let bundle = lab.bundle().await;
    let (mut vmm, answer) = lab.load("fork", &bundle, json!({})).await;
    answer.done();
    let own = json!({ "drive_id": "overlay", "path_on_host": "disks/rootfs" });
    vmm.patch("/drives/overlay", own).await.done();
    let dir = lab.path("again");
    fs::create_dir(&dir).expect("made");
    vmm.save("Full", &dir.join("vmstate"), &dir.join("memory")).await.done();
    let again = Bundle { dir, tick: bundle.tick };
    let mut fork = lab.restore("again-fork", &again).await;
    fork.ticks_beyond(bundle.tick).await;
    assert_eq!(fork.ticks()[0], bundle.tick + 1);
    let drives = fork.get("/vm/config").await.json()["drives"].to_string();
    assert!(!drives.contains("overlay.img"), "a patched drive is saved as it is now: {drives}");
}

fn contents(bundle: &Bundle) -> (Vec<u8>, Vec<u8>) {
    (fs::read(bundle.vmstate()).expect("there"), fs::read(bundle.memory()).expect("there"))
}
