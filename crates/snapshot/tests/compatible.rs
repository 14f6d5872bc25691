//! What decides whether a bundle fits a host, and the format that must be read for ever.

#[path = "support/sample.rs"]
mod sample;

use std::fs;

use hearth_model::error::{ErrorKind, Kind};
use hearth_model::{Accel, Backend, ByteSize};
use hearth_snapshot::{BundleKind, FileEntry, HostFacts, MANIFEST, Manifest, compatible, open};

fn like(manifest: &Manifest) -> HostFacts {
    HostFacts {
        backend: manifest.backend,
        vmm_version: Some(manifest.vmm_version.clone()),
        accel: manifest.accel,
        cpu: manifest.cpu.clone(),
        memory: ByteSize::gib(8),
    }
}

#[test]
fn whatever_differs_is_named() {
    let manifest = sample::manifest(1, BundleKind::Standby);
    let host = like(&manifest);
    compatible(&manifest, &host, &manifest.device_set).expect("the same host");

    let mut cpu = host.cpu.clone();
    cpu.flags_sha256 = "f".repeat(64);
    for (host, says) in [
        (
            HostFacts { backend: Backend::Qemu, ..host.clone() },
            "hypervisor is qemu-microvm in the snapshot and qemu here",
        ),
        (
            HostFacts { vmm_version: None, ..host.clone() },
            "VMM version is 7.2.22 in the snapshot and not installed here",
        ),
        (HostFacts { vmm_version: Some("9.0".into()), ..host.clone() }, "7.2.22 in the snapshot and 9.0 here"),
        (HostFacts { accel: Accel::Tcg, ..host.clone() }, "acceleration is kvm in the snapshot and tcg here"),
        (
            HostFacts { cpu, ..host.clone() },
            "flags 01234567 in the snapshot and AuthenticAMD family 25 model 1 flags ffffffff here",
        ),
        (
            HostFacts { memory: ByteSize::mib(128), ..host.clone() },
            "memory is 256 MB in the snapshot and 128 MB in all here",
        ),
    ] {
        let error = compatible(&manifest, &host, &manifest.device_set).expect_err(says);
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!((error.differences.len(), error.kind()), (1, ErrorKind::Incompatible));
    }

    let error = compatible(&manifest, &host, &["virtio-blk".to_owned()]).expect_err("a device is missing");
    let says = "device set is virtio-blk virtio-serial in the snapshot and virtio-blk here";
    assert!(error.to_string().contains(says), "{error}");

    let nothing_alike = HostFacts { backend: Backend::Qemu, accel: Accel::Tcg, memory: ByteSize(0), ..host };
    assert_eq!(
        compatible(&manifest, &nothing_alike, &manifest.device_set).expect_err("nothing fits").differences.len(),
        3
    );
    let disks = sample::manifest(1, BundleKind::Stopped);
    compatible(&disks, &nothing_alike, &[]).expect("disks fit everywhere");
}

#[test]
fn translated_vcpus_do_not_mind_the_hosts_cpu() {
    let manifest = Manifest { accel: Accel::Tcg, ..sample::manifest(1, BundleKind::Standby) };
    let mut host = like(&manifest);
    host.cpu.vendor = "GenuineIntel".into();
    compatible(&manifest, &host, &manifest.device_set).expect("fits");
}

#[test]
fn a_manifest_of_format_1_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = sample::bundle(dir.path(), 1);
    let golden = include_str!("golden/manifest-1.json");
    fs::write(bundle.dir().join(MANIFEST), golden).expect("writes");
    // It was published in another boot: settled, as every bundle that is kept so long.
    fs::write(bundle.dir().join(hearth_snapshot::SETTLED), "{\"files\":{}}").expect("writes");

    let file = |name: &str, bytes, allocated_bytes| FileEntry { name: name.into(), bytes, allocated_bytes };
    let expected = Manifest {
        format: 1,
        boot_id: "6c1f9c1e-2f0e-4d0c-9d5e-3f2b6a1d0e11".into(),
        files: vec![
            file("vmstate", 1000, 4096),
            file("memory", 4 << 20, 4096),
            file("disks/rootfs", 2000, 4096),
            file("disks/overlay.img", 3000, 4096),
        ],
        ..sample::manifest(1, BundleKind::Standby)
    };
    let opened = open(dir.path(), &sample::id(1)).expect("opens");
    assert_eq!(opened.manifest(), &expected);
}
