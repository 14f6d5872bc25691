//! Records for the tests, with every field set.
#![allow(dead_code, reason = "each test file uses some")]

use std::collections::BTreeMap;

use hearth_model::restart::RestartOn;
use hearth_model::spec::{ImageConfig, Program};
use hearth_model::{
    Backend, ByteSize, ImageRef, InstanceId, InstanceSpec, InstanceState, MemMib, Phase, RestartPolicy, RestartStatus,
    SnapshotId,
};
use hearth_store::{
    Ending, ImageRecord, InstanceRecord, Origin, PhaseClock, ProgramExit, SnapshotKind, SnapshotRecord, StepTime,
    TimelineRecord,
};

pub fn instance_id(number: u8) -> InstanceId {
    InstanceId::from_entropy([number.wrapping_mul(37).wrapping_add(11); 16])
}

pub fn snapshot_id(number: u8) -> SnapshotId {
    SnapshotId::from_entropy([number.wrapping_mul(41).wrapping_add(5); 16])
}

pub fn spec(name: &str) -> InstanceSpec {
    InstanceSpec {
        restart: RestartPolicy::default(),
        foreign: None,
        name: name.parse().expect("a name"),
        image: "app".parse().expect("a reference"),
        backend: Backend::QemuMicrovm,
        memory: MemMib::new(256).expect("in range"),
        vcpus: 2,
        overlay: ByteSize::gib(10),
        network: Some(hearth_model::Network::default()),
        agent: true,
        tags: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
        env: BTreeMap::from([("A".to_owned(), "1".to_owned())]),
        program: Program {
            argv: vec!["/bin/app".into(), "serve".into()],
            env: vec!["A=1".into()],
            workdir: "/".into(),
            user: "app".into(),
        },
    }
}

pub fn restart_policy() -> RestartPolicy {
    RestartPolicy { on: RestartOn::Failure, max_attempts: 3, ..RestartPolicy::default() }
}

pub fn instance(number: u8, name: &str) -> InstanceRecord {
    InstanceRecord {
        id: instance_id(number),
        spec: InstanceSpec { restart: restart_policy(), ..spec(name) },
        phase: Phase::Resting(InstanceState::Standby { snapshot: snapshot_id(number) }),
        created_at_ms: 1_700_000_000_000 + i64::from(number),
        started_at_ms: Some(1_700_000_001_000),
        stopped_at_ms: Some(1_700_000_002_000),
        generation: 3,
        source: Some(Origin::Snapshot(snapshot_id(100))),
        image_digest: digest(),
        seat: Some(serde_json::json!({ "pid": 4242, "start_time": 77 })),
        ram_base: Some(snapshot_id(number)),
        exit: Some(ProgramExit {
            code: 137,
            message: "killed by signal 9 (SIGKILL)".into(),
            of: Ending::Program,
            signal: Some(9),
            out_of_memory: true,
            console: vec!["out of patience".into()],
        }),
        restart: RestartStatus {
            attempts: 2,
            last_attempt_at_ms: Some(1_700_000_001_000),
            next_attempt_at_ms: Some(1_700_000_003_000),
            blocked: None,
        },
        mac: Some("02:00:00:00:00:01".into()),
        address: Some(std::net::Ipv4Addr::new(10, 100, 0, 2)),
        slot: Some(3),
        phases: PhaseClock {
            durations_ms: BTreeMap::from([("running".to_owned(), 1_000)]),
            current: "standby".into(),
            since_ms: 1_700_000_002_000,
        },
    }
}

pub fn snapshot(number: u8, name: &str) -> SnapshotRecord {
    SnapshotRecord {
        id: snapshot_id(number),
        name: Some(name.parse().expect("a name")),
        kind: SnapshotKind::Standby,
        internal: false,
        source_instance: instance_id(1),
        source_name: "web".parse().expect("a name"),
        backend: Backend::QemuMicrovm,
        created_at_ms: 1_700_000_002_000 + i64::from(number),
        size_bytes: 5 << 20,
        tags: BTreeMap::new(),
        spec: spec("web"),
        image_digest: digest(),
        memory: Some(MemMib::new(256).expect("in range")),
    }
}

pub fn image(name: &str) -> ImageRecord {
    ImageRecord {
        name: name.parse::<ImageRef>().expect("a reference"),
        digest: digest(),
        config: ImageConfig { cmd: vec!["/bin/app".into()], ..ImageConfig::default() },
        size_bytes: 30 << 20,
        platform: "linux/amd64".into(),
        created_at_ms: 1_700_000_000_000,
        tags: BTreeMap::new(),
    }
}

pub fn timeline(instance: &InstanceId, at_ms: i64) -> TimelineRecord {
    TimelineRecord {
        op: "restore".into(),
        instance: instance.clone(),
        at_ms,
        total_us: 80_000,
        ok: false,
        error: Some("restore web: load snapshot: no such file".into()),
        steps: vec![StepTime {
            name: "load snapshot".into(),
            start_us: 10,
            took_us: 70_000,
            note: Some("resume on load".into()),
        }],
    }
}

fn digest() -> String {
    format!("sha256:{}", "a".repeat(64))
}
