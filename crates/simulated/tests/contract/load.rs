//! Loads: what goes on, from where, and what ends the process.

use std::fs::{self, File};
use std::time::Duration;

use serde_json::json;
use tokio::net::UnixStream;

use crate::host::{Lab, MEMORY_LEN, Vmm, names, until};

const STATE: &str = "Load snapshot error: Failed to restore from snapshot: Failed to get snapshot state from file: ";
const MEMORY: &str = "Load snapshot error: Failed to restore from snapshot: Failed to load guest memory: Error \
                      creating guest memory from file: ";
const DEVICES: &str = "Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: \
                       Failed to restore devices: Error restoring MMIO devices: ";
const NONE: &str = "No such file or directory (os error 2)";

pub async fn a_guest_that_is_resumed_in_the_load_goes_on_where_it_stood(lab: Lab) {
    let bundle = lab.bundle().await;
    let mut vmm = lab.restore("fork", &bundle).await;
    assert_eq!(vmm.state().await, "Running");
    vmm.ticks_beyond(bundle.tick + 2).await;
    let ticks = vmm.ticks();
    let expected: Vec<u64> = (bundle.tick + 1..).take(ticks.len()).collect();
    assert_eq!(ticks, expected);
}

pub async fn a_second_resume_is_no_error(lab: Lab) {
    let bundle = lab.bundle().await;
    let mut vmm = lab.restore("fork", &bundle).await;
    vmm.resume().await.done();
    vmm.ticks_beyond(bundle.tick).await;
    vmm.resume().await.done();
    assert_eq!(vmm.state().await, "Running");
}

pub async fn a_guest_that_is_loaded_paused_waits_for_its_resume(lab: Lab) {
    let bundle = lab.bundle().await;
    let (mut vmm, answer) = lab.load("fork", &bundle, json!({})).await;
    answer.done();
    assert_eq!(vmm.state().await, "Paused");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(vmm.serial(), "");
    vmm.resume().await.done();
    vmm.ticks_beyond(bundle.tick).await;
    assert_eq!(vmm.ticks()[0], bundle.tick + 1);
}

pub async fn relative_paths_are_opened_where_the_new_one_works(lab: Lab) {
    let bundle = lab.bundle().await;
    fs::remove_dir_all(lab.path("source")).expect("removed");
    let mut vmm = lab.restore("fork", &bundle).await;
    assert!(vmm.has_open("disks/rootfs") && vmm.has_open("disks/overlay.img"));
    assert!(UnixStream::connect(vmm.dir.join("vsock.sock")).await.is_ok());
    let config = vmm.get("/vm/config").await.json();
    assert_eq!(config["vsock"]["uds_path"], "vsock.sock");
    assert_eq!(names(&vmm.dir), ["api.sock", "disks", "serial.log", "vmm.log", "vsock.sock"]);
}

pub async fn the_console_goes_on_in_the_file_that_was_named_before(lab: Lab) {
    let bundle = lab.bundle().await;
    let mut vmm = lab.launch("fork").await;
    vmm.put("/serial", json!({ "serial_out_path": "console" })).await.done();
    vmm.put("/snapshot/load", bundle.body(json!({ "resume_vm": true }))).await.done();
    let first = format!("tick {}\n", bundle.tick + 1);
    let console = vmm.dir.join("console");
    until("the console", async || fs::read_to_string(&console).ok().filter(|text| text.starts_with(&first))).await;
    // Without a word about it, it is the VMM's own output.
    let mut vmm = lab.launch("other").await;
    vmm.put("/snapshot/load", bundle.body(json!({ "resume_vm": true }))).await.done();
    until("the console", async || vmm.log().contains(&first).then_some(())).await;
}

pub async fn a_console_that_is_there_is_written_over_from_its_beginning(lab: Lab) {
    let bundle = lab.bundle().await;
    let dir = lab.instance("fork");
    fs::write(dir.join("serial.log"), "#".repeat(1000)).expect("written");
    let vmm = lab.restore("fork", &bundle).await;
    vmm.ticks_beyond(bundle.tick).await;
    let serial = vmm.serial();
    assert!(serial.starts_with(&format!("tick {}\n", bundle.tick + 1)), "{serial}");
    assert!(serial.len() == 1000 && serial.ends_with('#'), "neither emptied nor appended to: {}", serial.len());
}

pub async fn after_a_start_nothing_is_loaded_and_the_guest_goes_on(lab: Lab) {
    let bundle = lab.bundle().await;
    let mut vmm = lab.restore("fork", &bundle).await;
    let refusal = "The requested operation is not supported after starting the microVM.";
    vmm.put("/snapshot/load", bundle.body(json!({}))).await.refused(refusal);
    let tick = vmm.tick();
    vmm.ticks_beyond(tick).await;
    vmm.lives();
}

pub async fn after_boot_configuration_nothing_is_loaded_and_the_process_lives(lab: Lab) {
    let bundle = lab.bundle().await;
    let refusal =
        "Load snapshot error: Loading a microVM snapshot not allowed after configuring boot-specific resources.";
    let boots = [
        ("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })),
        ("/boot-source", json!({ "kernel_image_path": lab.kernel })),
        ("/vsock", json!({ "guest_cid": 3, "uds_path": "vsock.sock" })),
        ("/entropy", json!({})),
        // Also what was refused.
        ("/drives/d", json!({ "drive_id": "d", "is_root_device": false, "path_on_host": "nowhere" })),
    ];
    for (number, (path, body)) in boots.into_iter().enumerate() {
        let mut vmm = lab.launch(&format!("fork-{number}")).await;
        vmm.put(path, body).await;
        vmm.put("/snapshot/load", bundle.body(json!({}))).await.refused(refusal);
        assert_eq!(vmm.state().await, "Not started", "after {path}");
        vmm.lives();
    }
}

pub async fn a_stale_vsock_socket_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    let dir = lab.instance("fork");
    drop(std::os::unix::net::UnixListener::bind(dir.join("vsock.sock")).expect("bound"));
    let (vmm, answer) = lab.load("fork", &bundle, json!({ "resume_vm": true })).await;
    let unbound = "VsockUnixBackend: Error binding to the host-side Unix socket: Address already in use (os error 98)";
    answer.refused(&format!("{DEVICES}{unbound}"));
    ended(vmm, &["api.sock", "disks", "serial.log", "vmm.log", "vsock.sock"]).await;
}

pub async fn a_missing_drive_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    fs::remove_file(lab.instance("fork").join("disks/overlay.img")).expect("removed");
    let mut vmm = lab.launch_in(lab.path("fork")).await;
    vmm.put("/serial", json!({ "serial_out_path": "serial.log" })).await.done();
    vmm.put("/snapshot/load", bundle.body(json!({ "resume_vm": true }))).await.refused(&format!(
        "{DEVICES}Block: Virtio backend error: Error manipulating the backing file: {NONE} disks/overlay.img"
    ));
    ended(vmm, &["api.sock", "disks", "serial.log", "vmm.log"]).await;
}

pub async fn what_is_not_there_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    let (vmm, answer) = lab.load("one", &bundle, json!({ "snapshot_path": "nowhere" })).await;
    answer.refused(&format!("{STATE}Failed to open snapshot file: {NONE}"));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    let memory = json!({ "mem_backend": { "backend_type": "File", "backend_path": "nowhere" } });
    let (vmm, answer) = lab.load("two", &bundle, memory).await;
    answer.refused(&format!("{MEMORY}Failed to load guest memory: {NONE}"));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    let mut vmm = lab.launch("three").await;
    vmm.put("/serial", json!({ "serial_out_path": "no/where" })).await.done();
    vmm.put("/snapshot/load", bundle.body(json!({}))).await.refused(&format!(
        "Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: Failed to \
         restore devices: Error creating DeviceManager: Error with EventFd: {NONE}"
    ));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
}

pub async fn a_truncated_memory_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    File::options().write(true).open(bundle.memory()).and_then(|f| f.set_len(MEMORY_LEN - 4096)).expect("cut");
    let (vmm, answer) = lab.load("fork", &bundle, json!({ "resume_vm": true })).await;
    let why = "Total sum of memory regions exceeds largest possible file offset";
    answer.refused(&format!("{MEMORY}Failed to restore guest memory: {why}"));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    // A longer one is none of its business.
    File::options().write(true).open(bundle.memory()).and_then(|f| f.set_len(MEMORY_LEN + 4096)).expect("sized");
    let (_vmm, answer) = lab.load("other", &bundle, json!({ "resume_vm": true })).await;
    answer.done();
}

pub async fn a_damaged_state_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    let state = fs::read(bundle.vmstate()).expect("there");
    let load = "Failed to load snapshot state from file: ";
    let bitcode = "An error occurred during bitcode serialization: bitcode error";
    let mut flipped = state.clone();
    flipped[state.len() / 2] ^= 1;
    let mut sum = state.clone();
    sum[state.len() - 3] ^= 1;
    for (name, bytes, why) in [
        ("flipped", &flipped[..], "CRC64 validation failed"),
        ("sum", &sum[..], "CRC64 validation failed"),
        ("cut", &state[..state.len() / 2], bitcode),
        ("short", b"abc", "IO Error: File too short to contain CRC"),
    ] {
        fs::write(bundle.vmstate(), bytes).expect("written");
        let (vmm, answer) = lab.load(name, &bundle, json!({ "resume_vm": true })).await;
        answer.refused(&format!("{STATE}{load}{why}"));
        ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    }
}

pub async fn an_unknown_device_ends_it(lab: Lab) {
    let bundle = lab.bundle().await;
    let network = json!({ "network_overrides": [{ "iface_id": "eth0", "host_dev_name": "tap0" }] });
    let (vmm, answer) = lab.load("fork", &bundle, network).await;
    answer.refused(&format!("{STATE}Unknown Network Device."));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;

    let mut vmm = lab.launch("bare").await;
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })).await.done();
    vmm.put("/boot-source", json!({ "kernel_image_path": lab.kernel })).await.done();
    vmm.put("/serial", json!({ "serial_out_path": "serial.log" })).await.done();
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
    let bare = lab.save(&mut vmm, "bare-bundle", "Diff").await;
    let (vmm, answer) = lab.load("other", &bare, json!({ "vsock_override": { "uds_path": "other.sock" } })).await;
    answer.refused(&format!("{STATE}Unknown Vsock Device."));
    ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
}

pub async fn an_unknown_field_does_not_end_it(lab: Lab) {
    let bundle = lab.bundle().await;
    let (mut vmm, answer) = lab.load("fork", &bundle, json!({ "huge_pages": "2M" })).await;
    assert_eq!(answer.status, 400);
    let message = answer.json()["fault_message"].as_str().expect("a message").to_owned();
    assert!(message.contains("unknown field `huge_pages`, expected one of `snapshot_path`"), "{message}");
    vmm.put("/snapshot/load", bundle.body(json!({ "resume_vm": true }))).await.done();
    vmm.ticks_beyond(bundle.tick).await;
}

pub async fn the_vsock_can_be_moved(lab: Lab) {
    let bundle = lab.bundle().await;
    let dir = lab.instance("fork");
    fs::write(dir.join("vsock.sock"), "somebody else's").expect("written");
    let more = json!({ "resume_vm": true, "vsock_override": { "uds_path": "other.sock" } });
    let (mut vmm, answer) = lab.load("fork", &bundle, more).await;
    answer.done();
    assert!(UnixStream::connect(dir.join("other.sock")).await.is_ok());
    assert_eq!(vmm.get("/vm/config").await.json()["vsock"]["uds_path"], "other.sock");
    assert_eq!(fs::read_to_string(dir.join("vsock.sock")).expect("there"), "somebody else's");
}

pub async fn a_drive_is_changed_before_the_resume(lab: Lab) {
    let bundle = lab.bundle().await;
    let dir = lab.instance("fork");
    File::create(dir.join("own.img")).and_then(|file| file.set_len(1 << 20)).expect("a disk");
    let (mut vmm, answer) = lab.load("fork", &bundle, json!({})).await;
    answer.done();
    let own = json!({ "drive_id": "overlay", "path_on_host": "own.img" });
    vmm.patch("/drives/overlay", own).await.done();
    assert!(vmm.has_open("own.img"));
    assert_eq!(vmm.serial(), "", "it has not run yet");
    vmm.resume().await.done();
    vmm.ticks_beyond(bundle.tick).await;
}

pub async fn the_wall_clock_is_had_or_refused(lab: Lab) {
    let bundle = lab.bundle().await;
    let (vmm, answer) = lab.load("fork", &bundle, json!({ "resume_vm": true, "clock_realtime": true })).await;
    let refused = "Load snapshot error: Failed to restore from snapshot: Failed to build microVM from snapshot: Failed \
                   to restore microVM state: clock_realtime requested but not present in the snapshot state";
    // A host without a stable TSC has nothing of it in its snapshots.
    if lab.simulated || answer.status == 204 {
        answer.done();
        vmm.ticks_beyond(bundle.tick).await;
    } else {
        answer.refused(refused);
        ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    }
    if lab.simulated {
        fs::write(lab.instance("without").join("simulated.json"), r#"{ "stable_tsc": false }"#).expect("written");
        let mut vmm = lab.launch("without").await;
        vmm.configure(&lab.kernel, json!({})).await;
        vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
        let bundle = lab.save(&mut vmm, "without-bundle", "Diff").await;
        let (vmm, answer) = lab.load("other", &bundle, json!({ "clock_realtime": true })).await;
        answer.refused(refused);
        ended(vmm, &["api.sock", "disks", "vmm.log"]).await;
    }
}

pub async fn state_and_memory_of_two_moments_load_and_are_torn(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    let one = lab.save(&mut vmm, "one", "Diff").await;
    vmm.resume().await.done();
    vmm.ticks_beyond(one.tick).await;
    let two = lab.save(&mut vmm, "two", "Diff").await;
    let mut more = two.body(json!({ "resume_vm": true }));
    more["snapshot_path"] = json!(one.vmstate());
    let (vmm, answer) = lab.load("fork", &two, more).await;
    answer.done();
    until("the guest to notice", async || vmm.serial().starts_with("torn\n").then_some(())).await;
}

pub async fn the_old_way_of_naming_the_memory_is_deprecated(lab: Lab) {
    let bundle = lab.bundle().await;
    let mut vmm = lab.launch("fork").await;
    vmm.put("/serial", json!({ "serial_out_path": "serial.log" })).await.done();
    let old = json!({ "snapshot_path": bundle.vmstate(), "mem_file_path": bundle.memory(), "resume_vm": true });
    let answer = vmm.put("/snapshot/load", old).await;
    answer.done();
    assert_eq!(answer.headers.get("Deprecation").and_then(|value| value.to_str().ok()), Some("true"));
    vmm.ticks_beyond(bundle.tick).await;
}

/// That a load has ended the process, with code 1, and left just these files.
async fn ended(mut vmm: Vmm, left: &[&str]) {
    let exit = vmm.exit().await;
    assert_eq!(exit.code(), Some(1), "{}", vmm.log());
    assert!(vmm.log().contains("Loading snapshot failed"), "{}", vmm.log());
    assert_eq!(names(&vmm.dir), left);
}
