//! One response of each type, as it goes over the wire: `responses.json` is what clients have been
//! told, and what the SDKs' own models are tried on.
//!
//! `HEARTH_UPDATE_RESPONSES=1` writes the file anew; a change in it is a change of the contract.

use std::collections::BTreeMap;

use hearth_api::capabilities::{
    Capabilities, DefaultRuntime, HostInfo, ImageSupport, NetworkModel, NetworkSupport, Runtime, ServerInfo,
};
use hearth_api::health::{Health, HealthState};
use hearth_api::images::{Image, ImageStatus};
use hearth_api::instances::{
    Busy, ForkedFrom, Instance, InstanceNetwork, InstanceState, InstanceStats, PathInfo, Waited,
};
use hearth_api::resources::{Allocation, DiskBreakdown, ResourceStatus, Resources};
use hearth_api::restart::{BlockedReason, Ended, InstanceEnd, RestartMode, RestartPolicy, RestartStatus};
use hearth_api::snapshots::{CompressionState, Snapshot, SnapshotKind};
use hearth_api::timeline::{TimedOperation, TimedStep, Timeline};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn time() -> Timestamp {
    Timestamp::from_millisecond(1_800_000_000_123).expect("in range")
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn instance() -> Instance {
    Instance {
        id: "tz4a98xxat96iws9zmbrgj3a".into(),
        created_at: time(),
        image: "docker.io/library/app:1".into(),
        name: "web-1".into(),
        state: InstanceState::Unknown,
        state_error: Some("the VMM could not be ended".into()),
        current_phase: Some("running".into()),
        current_phase_since: Some(time()),
        env: Some(map(&[("A", "1")])),
        exit_code: Some(137),
        exit_message: Some("killed by signal 9 (SIGKILL)".into()),
        has_snapshot: Some(false),
        hypervisor: Some("qemu-microvm".into()),
        network: Some(InstanceNetwork {
            enabled: Some(true),
            ip: None,
            mac: Some("52:54:00:12:34:56".into()),
            name: Some("default".into()),
            ..InstanceNetwork::default()
        }),
        overlay_size: Some("10 GB".into()),
        phase_durations_ms: Some([("running".to_owned(), 12)].into()),
        platform: Some("linux/amd64".into()),
        restart_policy: Some(RestartPolicy {
            policy: Some(RestartMode::OnFailure),
            backoff: Some("5s".into()),
            max_attempts: Some(3),
            stable_after: Some("10m0s".into()),
        }),
        restart_status: Some(RestartStatus {
            attempts: Some(3),
            blocked_reason: Some(BlockedReason::MaxAttemptsExceeded),
            last_attempt_at: Some(time()),
            next_attempt_at: Some(time()),
        }),
        size: Some("256 MB".into()),
        started_at: Some(time()),
        stopped_at: Some(time()),
        tags: Some(map(&[("team", "a")])),
        vcpus: Some(1),
        busy: Some(Busy { op: "standby".into(), since: Some(time()) }),
        end: Some(InstanceEnd {
            of: Ended::Program,
            signal: Some(9),
            out_of_memory: false,
            console: vec!["out of patience".into()],
        }),
        forked_from: Some(ForkedFrom { instance_id: Some("a".repeat(24)), snapshot_id: None }),
        generation: Some(3),
    }
}

fn image() -> Image {
    Image {
        created_at: time(),
        digest: format!("sha256:{}", "0".repeat(64)),
        name: "docker.io/library/app:1".into(),
        status: ImageStatus::Ready,
        cmd: Some(vec!["serve".into()]),
        entrypoint: Some(vec!["/app".into()]),
        env: Some(map(&[("PATH", "/bin")])),
        error: None,
        platform: Some("linux/amd64".into()),
        size_bytes: Some(1 << 30),
        tags: Some(map(&[("a", "b")])),
        user: Some("1000:1000".into()),
        working_dir: Some("/srv".into()),
    }
}

fn snapshot() -> Snapshot {
    Snapshot {
        id: "s".repeat(24),
        created_at: time(),
        kind: SnapshotKind::Standby,
        size_bytes: 5 << 20,
        source_hypervisor: "qemu".into(),
        source_instance_id: "a".repeat(24),
        source_instance_name: "web-1".into(),
        compression_state: Some(CompressionState::None),
        name: Some("base".into()),
        tags: Some(map(&[("a", "b")])),
        memory_bytes: Some(256 << 20),
        damage: None,
    }
}

fn capabilities() -> Capabilities {
    Capabilities {
        default_runtime: DefaultRuntime { available: true, name: "qemu-microvm".into() },
        features: vec!["instances".into()],
        host: HostInfo { arch: "amd64".into(), os: "linux".into() },
        images: ImageSupport { default_platform: "linux/amd64".into(), platforms: vec!["linux/amd64".into()] },
        network: NetworkSupport { guest_to_guest: false, model: NetworkModel::Nat, gateway: None, subnet: None },
        runtimes: vec![Runtime {
            available: true,
            features: vec!["fork".into()],
            name: "qemu-microvm".into(),
            accel: Some("tcg".into()),
            reason: Some("no /dev/kvm".into()),
        }],
        server: ServerInfo { api_version: "0.1.0".into(), version: "0.1.0".into() },
    }
}

fn resources() -> Resources {
    let status = |kind: &str| ResourceStatus {
        allocated: 1,
        available: 1,
        capacity: 2,
        effective_limit: 2,
        oversub_ratio: 1.0,
        kind: kind.into(),
        source: Some("detected".into()),
    };
    Resources {
        allocations: vec![Allocation {
            cpu: 1,
            disk_bytes: 10 << 30,
            instance_id: "a".repeat(24),
            instance_name: "web-1".into(),
            memory_bytes: 256 << 20,
        }],
        cpu: status("cpu"),
        disk: status("disk"),
        memory: status("memory"),
        network: status("network"),
        files: None,
        processes: None,
        disk_breakdown: Some(DiskBreakdown { images_bytes: Some(1), overlays_bytes: None, snapshots_bytes: Some(2) }),
    }
}

fn stats() -> InstanceStats {
    InstanceStats {
        allocated_memory_bytes: 256 << 20,
        allocated_vcpus: 1,
        cpu_seconds: 1.25,
        instance_id: "a".repeat(24),
        instance_name: "web-1".into(),
        memory_rss_bytes: 64 << 20,
        memory_vms_bytes: 1 << 30,
        network_rx_bytes: 0,
        network_tx_bytes: 0,
        memory_utilization_ratio: Some(0.25),
        memory_private_bytes: Some(4 << 20),
    }
}

fn path_info() -> PathInfo {
    PathInfo {
        exists: true,
        error: None,
        is_dir: Some(false),
        is_file: Some(false),
        is_symlink: Some(true),
        link_target: Some("/x".into()),
        mode: Some(0o777),
        size: Some(2),
    }
}

fn timeline() -> Timeline {
    let step =
        TimedStep { step: "load".into(), start_ms: 1.5, duration_ms: 40.25, note: Some("resume on load".into()) };
    let operation = TimedOperation {
        op: "restore".into(),
        started_at: time(),
        duration_ms: 80.5,
        error: Some("the agent did not answer".into()),
        steps: vec![step],
    };
    Timeline { instance_id: "a".repeat(24), operations: vec![operation] }
}

/// The value, once it is known to survive being read again.
fn wire<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(response: T) -> Value {
    let json = serde_json::to_value(&response).expect("plain data");
    assert_eq!(serde_json::from_value::<T>(json.clone()).expect("our own"), response);
    json
}

#[test]
fn responses_are_what_clients_have_been_told() {
    let responses: BTreeMap<&str, Value> = BTreeMap::from([
        ("Capabilities", wire(capabilities())),
        ("HealthCheckResponse", wire(Health { status: HealthState::Ok })),
        ("Image", wire(image())),
        ("Instance", wire(instance())),
        ("InstanceStats", wire(stats())),
        ("PathInfo", wire(path_info())),
        ("Resources", wire(resources())),
        ("Snapshot", wire(snapshot())),
        ("Timeline", wire(timeline())),
        (
            "WaitForStateResponse",
            wire(Waited { state: InstanceState::Running, timed_out: false, state_error: Some("x".into()) }),
        ),
    ]);
    let made = serde_json::to_string_pretty(&responses).expect("plain data") + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/responses.json");
    if std::env::var_os("HEARTH_UPDATE_RESPONSES").is_some() {
        std::fs::write(path, &made).expect("written");
    }
    let told = std::fs::read_to_string(path).expect("committed beside this test");
    assert!(told == made, "what goes over the wire has changed: see this file's head\n{made}");
}
