//! Before the start: what is told, what is taken, what is refused and lets the process live.

use std::fs;

use serde_json::json;

use crate::host::{Lab, names};

const PREBOOT: &str = "The requested operation is not supported before starting the microVM.";
const NO_JSON: &str = "An error occurred when deserializing the json body of a request: ";

pub async fn it_tells_what_it_is_before_it_is_told_anything(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let answer = vmm.get("/").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.body, r#"{"id":"lab-1","state":"Not started","vmm_version":"1.16.1","app_name":"Firecracker"}"#);
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok());
    assert_eq!(header("Server"), Some("Firecracker API"));
    assert_eq!(header("Connection"), Some("keep-alive"));
    assert_eq!(header("Content-Type"), Some("application/json"));
    assert_eq!(vmm.get("/version").await.body, r#"{"firecracker_version":"1.16.1"}"#);
    let machine = r#"{"vcpu_count":1,"mem_size_mib":128,"smt":false,"track_dirty_pages":false,"huge_pages":"None"}"#;
    assert_eq!(vmm.get("/machine-config").await.body, machine);
    let boot_source = r#"{"kernel_image_path":"","initrd_path":null,"boot_args":null}"#;
    assert_eq!(
        vmm.get("/vm/config").await.body,
        format!(
            r#"{{"balloon":null,"drives":[],"boot-source":{boot_source},"cpu-config":null,"logger":null,"machine-config":{machine},"metrics":null,"mmds-config":null,"network-interfaces":[],"vsock":null,"entropy":null,"pmem":[],"memory-hotplug":null}}"#
        )
    );
    assert_eq!(names(&vmm.dir), ["api.sock", "disks", "vmm.log"]);
}

pub async fn what_cannot_be_opened_is_refused_when_it_is_named(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let none = "No such file or directory (os error 2)";
    let drive = "Drive config error: Unable to create the virtio block device: ";
    let mut body = json!({ "drive_id": "d", "is_root_device": false, "path_on_host": "nowhere" });
    let backing = format!("{drive}Virtio backend error: Error manipulating the backing file: ");
    vmm.put("/drives/d", body.clone()).await.refused(&format!("{backing}{none} nowhere"));
    body["path_on_host"] = json!("disks");
    vmm.put("/drives/d", body).await.refused(&format!("{backing}Is a directory (os error 21) disks"));
    let body = json!({ "drive_id": "d", "is_root_device": false });
    vmm.put("/drives/d", body).await.refused(&format!("{drive}Invalid block config."));
    let kernel = json!({ "kernel_image_path": "nowhere" });
    let refusal = format!("Boot source error: The kernel file cannot be opened: {none}");
    vmm.put("/boot-source", kernel).await.refused(&refusal);
    let initrd = json!({ "kernel_image_path": lab.kernel, "initrd_path": "nowhere" });
    vmm.put("/boot-source", initrd).await.refused(&format!(
        "Boot source error: The initrd file cannot be opened due to invalid path or invalid permissions. {none}"
    ));
    let vsock = json!({ "guest_cid": 3, "uds_path": "nowhere/vsock.sock" });
    let unbound =
        "Vsock config error: Cannot create backend for vsock device: Error binding to the host-side Unix socket";
    vmm.put("/vsock", vsock).await.refused(&format!("{unbound}: {none}"));
    fs::write(vmm.dir.join("stale.sock"), "").expect("written");
    let vsock = json!({ "guest_cid": 3, "uds_path": "stale.sock" });
    vmm.put("/vsock", vsock).await.refused(&format!("{unbound}: Address already in use (os error 98)"));
    let network = json!({ "iface_id": "eth0", "host_dev_name": "a-name-that-is-too-long" });
    vmm.put("/network-interfaces/eth0", network).await.refused(
        "Network config error: Could not create the network device: Open tap device failed: Invalid interface name",
    );
    vmm.lives();
}

pub async fn a_machine_that_cannot_be_is_refused(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let vcpus = "Machine config error: The number of vCPUs must be greater than 0, less than 32 and must be 1 or an \
                 even number if SMT is enabled.";
    vmm.put("/machine-config", json!({ "vcpu_count": 0, "mem_size_mib": 64 })).await.refused(vcpus);
    vmm.put("/machine-config", json!({ "vcpu_count": 33, "mem_size_mib": 64 })).await.refused(vcpus);
    vmm.put("/machine-config", json!({ "vcpu_count": 3, "mem_size_mib": 64, "smt": true })).await.refused(vcpus);
    let memory =
        "Machine config error: The memory size (MiB) is either 0, or not a multiple of the configured page size.";
    vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": 0 })).await.refused(memory);
    let huge = json!({ "vcpu_count": 1, "mem_size_mib": 3, "huge_pages": "2M" });
    vmm.put("/machine-config", huge).await.refused(memory);
    vmm.patch("/machine-config", json!({ "mem_size_mib": 256 })).await.done();
    assert_eq!(vmm.get("/machine-config").await.json()["mem_size_mib"], 256);
    let root = |id: &str| json!({ "drive_id": id, "is_root_device": true, "path_on_host": "disks/rootfs" });
    vmm.put("/drives/one", root("one")).await.done();
    vmm.put("/drives/one", root("one")).await.done();
    vmm.put("/drives/two", root("two")).await.refused("Drive config error: A root block device already exists!");
    let old = json!({ "vcpu_count": 1, "mem_size_mib": 64, "cpu_template": "None" });
    let answer = vmm.put("/machine-config", old).await;
    answer.done();
    assert!(answer.headers.contains_key("Deprecation"));
}

pub async fn an_unknown_field_is_refused_with_the_known_ones(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let machine = "`vcpu_count`, `mem_size_mib`, `smt`, `cpu_template`, `track_dirty_pages`, `huge_pages`";
    let load = "`snapshot_path`, `mem_file_path`, `mem_backend`, `enable_diff_snapshots`, `track_dirty_pages`, \
                `resume_vm`, `network_overrides`, `vsock_override`, `clock_realtime`";
    let drive = "`drive_id`, `partuuid`, `is_root_device`, `cache_type`, `is_read_only`, `path_on_host`, \
                 `rate_limiter`, `io_engine`, `socket`";
    let network = "`iface_id`, `host_dev_name`, `guest_mac`, `mtu`, `rx_rate_limiter`, `tx_rate_limiter`";
    for (method, path, known) in [
        ("PUT", "/machine-config", format!("one of {machine}")),
        ("PATCH", "/machine-config", format!("one of {machine}")),
        ("PUT", "/boot-source", "one of `kernel_image_path`, `initrd_path`, `boot_args`".to_owned()),
        ("PUT", "/drives/d", format!("one of {drive}")),
        ("PATCH", "/drives/d", "one of `drive_id`, `path_on_host`, `rate_limiter`".to_owned()),
        ("PUT", "/network-interfaces/e", format!("one of {network}")),
        ("PUT", "/vsock", "one of `vsock_id`, `guest_cid`, `uds_path`".to_owned()),
        ("PUT", "/serial", "`serial_out_path` or `rate_limiter`".to_owned()),
        ("PUT", "/entropy", "`rate_limiter`".to_owned()),
        ("PUT", "/actions", "`action_type`".to_owned()),
        ("PATCH", "/vm", "`state`".to_owned()),
        ("PUT", "/snapshot/create", "one of `snapshot_type`, `snapshot_path`, `mem_file_path`".to_owned()),
        ("PUT", "/snapshot/load", format!("one of {load}")),
    ] {
        let answer = vmm.request(method, path, r#"{"new":1}"#.to_owned()).await;
        answer.refused(&format!("{NO_JSON}unknown field `new`, expected {known} at line 1 column 6."));
    }
    // What 1.17 would take:
    let create = r#"{"snapshot_path":"s","mem_file_path":"m","sync_snapshot_files":false}"#;
    assert_eq!(vmm.request("PUT", "/snapshot/create", create.to_owned()).await.status, 400);
    vmm.lives();
}

pub async fn what_is_no_request_is_refused(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let id = "API Resource IDs can only contain alphanumeric characters and underscores.";
    let other_id = "The id from the path does not match the id from the body!";
    for (method, path, body, refusal) in [
        ("GET", "/nothing", "", "Invalid request method and/or path: GET nothing."),
        ("GET", "/vm", "", "Invalid request method and/or path: GET vm."),
        ("PUT", "/vm", "{}", "Invalid request method and/or path: PUT vm."),
        ("PUT", "/snapshot/other", "{}", "Invalid request method and/or path: PUT /snapshot/other."),
        ("PUT", "/snapshot", "{}", "Missing snapshot operation type."),
        ("PUT", "/vm", "", "Empty PUT request."),
        ("PATCH", "/vm", "", "Empty PATCH request."),
        ("GET", "/", "x", "GET request cannot have a body."),
        ("PUT", "/drives", "{}", "The ID cannot be empty."),
        ("PUT", "/drives/", "{}", "The ID cannot be empty."),
        ("PUT", "/drives/a-b", r#"{"drive_id":"a-b","is_root_device":false}"#, id),
        ("PUT", "/drives/a", r#"{"drive_id":"b","is_root_device":false}"#, other_id),
        ("PATCH", "/drives/a", r#"{"drive_id":"b"}"#, other_id),
        (
            "PUT",
            "/network-interfaces/a",
            r#"{"iface_id":"b","host_dev_name":"tap0"}"#,
            "The id from the path [a] does not match the id from the body [b]!",
        ),
    ] {
        vmm.request(method, path, body.to_owned()).await.refused(refusal);
    }
    for (path, body, error) in [
        ("/actions", "{", "EOF while parsing an object at line 1 column 1."),
        ("/actions", "{}", "missing field `action_type` at line 1 column 2."),
        (
            "/actions",
            r#"{"action_type":"Halt"}"#,
            "unknown variant `Halt`, expected one of `FlushMetrics`, `InstanceStart`, `SendCtrlAltDel` at line 1 \
             column 21.",
        ),
        ("/drives/a", r#"{"drive_id":"a"}"#, "missing field `is_root_device` at line 1 column 16."),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"s"}"#,
            "missing field: either `mem_backend` or `mem_file_path` is required.",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"s","mem_file_path":"m","mem_backend":{"backend_type":"File","backend_path":"m"}}"#,
            "too many fields: either `mem_backend` or `mem_file_path` exclusively is required.",
        ),
        (
            "/snapshot/load",
            r#"{"snapshot_path":"s","mem_backend":{"backend_type":"Tape","backend_path":"m"}}"#,
            "unknown variant `Tape`, expected `File` or `Uffd` at line 1 column 57.",
        ),
        (
            "/network-interfaces/e",
            r#"{"iface_id":"e","host_dev_name":"t","guest_mac":"zz"}"#,
            "The provided MAC address is invalid. at line 1 column 53.",
        ),
    ] {
        vmm.request("PUT", path, body.to_owned()).await.refused(&format!("{NO_JSON}{error}"));
    }
    let answer = vmm.patch("/vm", json!({ "state": "Halted" })).await;
    answer.refused(&format!("{NO_JSON}unknown variant `Halted`, expected `Paused` or `Resumed` at line 1 column 17."));
    vmm.lives();
}

pub async fn nothing_that_needs_a_machine_is_done_before_the_start(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    vmm.pause().await.refused(PREBOOT);
    vmm.resume().await.refused(PREBOOT);
    vmm.put("/actions", json!({ "action_type": "SendCtrlAltDel" })).await.refused(PREBOOT);
    vmm.put("/actions", json!({ "action_type": "FlushMetrics" })).await.refused(PREBOOT);
    vmm.patch("/drives/d", json!({ "drive_id": "d", "path_on_host": "disks/rootfs" })).await.refused(PREBOOT);
    vmm.request("DELETE", "/drives/d", String::new()).await.refused(PREBOOT);
    let (vmstate, memory) = (vmm.dir.join("vmstate"), vmm.dir.join("memory"));
    vmm.save("Diff", &vmstate, &memory).await.refused(PREBOOT);
    assert_eq!(names(&vmm.dir), ["api.sock", "disks", "vmm.log"], "and nothing was written");
    vmm.lives();
}

pub async fn without_a_kernel_nothing_starts(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let start = || json!({ "action_type": "InstanceStart" });
    let refusal = "Start microvm error: Cannot start microvm without kernel configuration.";
    vmm.put("/actions", start()).await.refused(refusal);
    let loader = "Start microvm error: System configuration error: Cannot load kernel due to invalid memory \
                  configuration or invalid kernel image: Kernel Loader: failed to load ELF kernel image: Kernel \
                  Loader: ";
    for (kernel, why) in [
        ("no kernel at all, but long enough for a header ".repeat(4), "Invalid Elf magic number"),
        ("short".to_owned(), "Unable to read elf header"),
    ] {
        fs::write(vmm.dir.join("kernel"), kernel).expect("written");
        vmm.put("/boot-source", json!({ "kernel_image_path": "kernel" })).await.done();
        vmm.put("/actions", start()).await.refused(&format!("{loader}{why}"));
    }
    assert_eq!(vmm.state().await, "Not started");
    // After all that, it still starts.
    vmm.configure(&lab.kernel, json!({})).await;
    vmm.put("/actions", start()).await.done();
    vmm.ticks_beyond(0).await;
}

pub async fn a_vsock_that_is_named_again_moves(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": "one.sock" })).await.done();
    vmm.put("/vsock", json!({ "guest_cid": 4, "uds_path": "two.sock" })).await.done();
    assert_eq!(names(&vmm.dir), ["api.sock", "disks", "two.sock", "vmm.log"]);
    assert_eq!(vmm.get("/vm/config").await.json()["vsock"], json!({ "guest_cid": 4, "uds_path": "two.sock" }));
}
