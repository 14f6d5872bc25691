//! A guest that runs: what it does, what it is told, what is refused.

use std::time::Duration;

use hearth_simulated::guest::{After, Params};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{Lab, MEMORY_MIB, until};

const POSTBOOT: &str = "The requested operation is not supported after starting the microVM.";

pub async fn a_guest_boots_and_counts(lab: Lab) {
    let vmm = lab.boot("web").await;
    vmm.ticks_beyond(4).await;
    let first = format!("hearth guest: pages {}\ntick 1\ntick 2\ntick 3\n", lab.params.pages);
    assert!(vmm.serial().starts_with(&first), "{}", vmm.serial());
    let ticks = vmm.ticks();
    assert_eq!(ticks, (1..=ticks.len() as u64).collect::<Vec<_>>());
}

pub async fn what_runs_tells_its_configuration_as_it_was_given(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    assert_eq!(vmm.state().await, "Running");
    let config = vmm.get("/vm/config").await.json();
    let drives = config["drives"].as_array().expect("drives");
    assert_eq!(drives.len(), 2);
    let drive = |id: &str, path: &str, root: bool| {
        json!({ "drive_id": id, "partuuid": null, "is_root_device": root, "cache_type": "Unsafe",
            "is_read_only": root, "path_on_host": path, "rate_limiter": null, "io_engine": "Sync", "socket": null })
    };
    assert!(drives.contains(&drive("rootfs", "disks/rootfs", true)), "{drives:?}");
    assert!(drives.contains(&drive("overlay", "disks/overlay.img", false)), "{drives:?}");
    assert_eq!(config["vsock"], json!({ "guest_cid": 3, "uds_path": "vsock.sock" }));
    assert_eq!(config["entropy"], json!({ "rate_limiter": null }));
    assert_eq!(config["boot-source"]["boot_args"], "console=ttyS0");
    assert_eq!(config["machine-config"]["mem_size_mib"], MEMORY_MIB);
    assert_eq!(vmm.get("/machine-config").await.json(), config["machine-config"]);
    assert!(vmm.has_open("disks/rootfs") && vmm.has_open("disks/overlay.img"));
}

pub async fn nothing_that_belongs_before_the_start_is_done_after_it(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.refused(POSTBOOT);
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 64 })).await.refused(POSTBOOT);
    vmm.put("/boot-source", json!({ "kernel_image_path": lab.kernel })).await.refused(POSTBOOT);
    vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": "other.sock" })).await.refused(POSTBOOT);
    vmm.put("/serial", json!({ "serial_out_path": "other.log" })).await.refused(POSTBOOT);
    vmm.put("/entropy", json!({})).await.refused(POSTBOOT);
    let drive = json!({ "drive_id": "new", "is_root_device": false, "path_on_host": "disks/overlay.img" });
    vmm.put("/drives/new", drive).await.refused("PCI is not enabled");
    let network = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
    vmm.put("/network-interfaces/eth0", network).await.refused("PCI is not enabled");
    vmm.request("DELETE", "/drives/overlay", String::new()).await.refused("PCI is not enabled");
    vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).await.done();
    let tick = vmm.tick();
    vmm.ticks_beyond(tick).await;
}

pub async fn pausing_and_resuming_again_change_nothing(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    for _ in 0..2 {
        vmm.resume().await.done();
        assert_eq!(vmm.state().await, "Running");
    }
    for _ in 0..2 {
        vmm.pause().await.done();
        assert_eq!(vmm.state().await, "Paused");
    }
    let stood = vmm.serial();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(vmm.serial(), stood, "a paused guest stands still");
    let tick = vmm.tick();
    vmm.resume().await.done();
    vmm.ticks_beyond(tick + 1).await;
    let ticks = vmm.ticks();
    assert_eq!(ticks, (1..=ticks.len() as u64).collect::<Vec<_>>());
}

pub async fn a_drive_is_changed_while_it_runs_and_not_to_what_is_not_there(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    std::fs::copy(vmm.dir.join("disks/overlay.img"), vmm.dir.join("other.img")).expect("copied");
    let drive = |path: &str| json!({ "drive_id": "overlay", "path_on_host": path });
    let request = "Please verify the request arguments.";
    let refused = "Drive config error: Unable to patch the block device: ";
    vmm.patch("/drives/overlay", drive("nowhere")).await.refused(&format!(
        "{refused}Block: Virtio backend error: Error manipulating the backing file: No such file or directory (os \
         error 2) nowhere {request}"
    ));
    let other = json!({ "drive_id": "other", "path_on_host": "other.img" });
    let none = format!("{refused}Failed perform action on device: Device not found {request}");
    vmm.patch("/drives/other", other).await.refused(&none);
    let nothing = format!("{refused}Block: Running method expected different backend. {request}");
    vmm.patch("/drives/overlay", json!({ "drive_id": "overlay" })).await.refused(&nothing);
    assert!(!vmm.has_open("other.img"));
    vmm.patch("/drives/overlay", drive("other.img")).await.done();
    assert!(vmm.has_open("other.img"));
    let config = vmm.get("/vm/config").await.json();
    let drives = config["drives"].as_array().expect("drives");
    assert!(drives.iter().any(|drive| drive["path_on_host"] == "other.img"), "{drives:?}");
}

pub async fn a_guest_without_a_driver_leaves_its_callers_waiting(lab: Lab) {
    let vmm = lab.boot("web").await;
    let mut stream = UnixStream::connect(vmm.dir.join("vsock.sock")).await.expect("the door is there");
    stream.write_all(b"CONNECT 52\n").await.expect("taken");
    let answer = tokio::time::timeout(Duration::from_millis(200), stream.read(&mut [0; 16])).await;
    assert!(answer.is_err(), "{answer:?}");
}

pub async fn keys_that_nobody_reads_do_nothing(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    vmm.put("/actions", json!({ "action_type": "SendCtrlAltDel" })).await.done();
    let tick = vmm.tick();
    vmm.ticks_beyond(tick + 1).await;
    vmm.lives();
}

pub async fn a_guest_that_halts_goes_on_halting_after_a_load(lab: Lab) {
    let params = Params { after: After::Halt, ..lab.params };
    let lab = lab.with_guest(params);
    let mut vmm = lab.launch("web").await;
    vmm.configure(&lab.kernel, json!({})).await;
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
    let printed = format!("hearth guest: pages {}\nhalted\n", params.pages);
    until("the guest to halt", async || (vmm.serial() == printed).then_some(())).await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    crate::save::assert_marks(&lab, &bundle.memory(), 0);
    let mut fork = lab.restore("fork", &bundle).await;
    assert_eq!(fork.state().await, "Running");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(fork.serial(), "");
    fork.lives();
}

pub async fn a_guest_that_spins_is_paused_and_saved_too(lab: Lab) {
    let params = Params { after: After::Spin, ..lab.params };
    let lab = lab.with_guest(params);
    let mut vmm = lab.launch("web").await;
    vmm.configure(&lab.kernel, json!({})).await;
    vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
    until("the guest to spin", async || vmm.serial().ends_with("spinning\n").then_some(())).await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.kill().await;
    let (mut fork, answer) = lab.load("fork", &bundle, json!({ "track_dirty_pages": true })).await;
    answer.done();
    fork.resume().await.done();
    fork.pause().await.done();
    assert_eq!(fork.state().await, "Paused");
}
