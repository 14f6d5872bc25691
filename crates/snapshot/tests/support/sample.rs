//! A small bundle for the tests, made as the daemon makes one.
#![allow(dead_code, reason = "each test file uses some")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use hearth_model::spec::Program;
use hearth_model::{Accel, Backend, ByteSize, InstanceId, InstanceSpec, MemMib, SnapshotId};
use hearth_snapshot::{
    Bundle, BundleKind, CpuFingerprint, Draft, MEMORY, Manifest, OVERLAY, ROOTFS, VMSTATE, begin, publish,
};

pub fn id(number: u8) -> SnapshotId {
    SnapshotId::from_entropy([number.wrapping_mul(41).wrapping_add(5); 16])
}

pub fn manifest(number: u8, kind: BundleKind) -> Manifest {
    Manifest {
        format: 0,
        id: id(number),
        kind,
        created_at_ms: 1_700_000_000_000,
        source_instance: InstanceId::from_entropy([9; 16]),
        backend: Backend::QemuMicrovm,
        accel: Accel::Kvm,
        vmm_version: "7.2.22".into(),
        device_set: vec!["virtio-blk".into(), "virtio-serial".into()],
        state_format: "qemu-ignore-shared-1".into(),
        memory: MemMib::new(256).expect("in range"),
        vcpus: 2,
        cpu: CpuFingerprint {
            vendor: "AuthenticAMD".into(),
            family: "25".into(),
            model: "1".into(),
            flags_sha256: "0123456789abcdef".repeat(4),
        },
        host_kernel: "6.1.0-56-amd64".into(),
        image_digest: format!("sha256:{}", "a".repeat(64)),
        spec: InstanceSpec {
            restart: hearth_model::RestartPolicy::default(),
            foreign: None,
            name: "web".parse().expect("a name"),
            image: "app".parse().expect("a reference"),
            backend: Backend::QemuMicrovm,
            memory: MemMib::new(256).expect("in range"),
            vcpus: 2,
            overlay: ByteSize::gib(10),
            network: Some(hearth_model::Network::default()),
            agent: true,
            tags: BTreeMap::from([("team".to_owned(), "a".to_owned())]),
            env: BTreeMap::new(),
            program: Program {
                argv: vec!["/bin/app".into()],
                env: vec!["A=1".into()],
                workdir: "/".into(),
                user: String::new(),
            },
        },
        foreign: None,
        base: Some(id(200)),
        boot_id: String::new(),
        files: Vec::new(),
    }
}

/// A draft with all files: 4 MiB of memory with one page in its third MiB.
pub fn draft(snapshots: &Path, number: u8) -> Draft {
    let draft = begin(snapshots, &id(number)).expect("begins");
    fs::write(draft.path(VMSTATE), [number; 1000]).expect("writes");
    let memory = File::create(draft.path(MEMORY)).expect("creates");
    memory.set_len(4 << 20).expect("sets its length");
    memory.write_all_at(&[number; 4096], 2 << 20).expect("writes");
    fs::write(draft.path(ROOTFS), [number; 2000]).expect("writes");
    fs::write(draft.path(OVERLAY), [number; 3000]).expect("writes");
    draft
}

pub fn bundle(snapshots: &Path, number: u8) -> Bundle {
    publish(draft(snapshots, number), manifest(number, BundleKind::Standby)).expect("publishes")
}
