//! What decides whether a bundle fits a host, and the format that must be read for ever.

#[path = "support/sample.rs"]
mod sample;

use std::fs;
use std::path::Path;

use hearth_model::error::{ErrorKind, Kind};
use hearth_model::foreign::{DriveId, ForeignState, NamedDrive};
use hearth_model::{Accel, Backend, ByteSize, InstanceSpec};
use hearth_snapshot::{
    Bundle, BundleKind, FileEntry, HostFacts, MANIFEST, Manifest, OVERLAY, ROOTFS, compatible, open, publish, settle,
    verify,
};

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

/// A guest that was imported: its drives, and what its state names.
fn foreign() -> Manifest {
    let drive = |id: &str, path: &str, read_only| NamedDrive {
        id: DriveId::try_from(id.to_owned()).expect("an id"),
        path: path.into(),
        read_only,
    };
    let drives = vec![drive("data", "/srv/vm/data.img", false), drive("root", "disks/root", true)];
    let state = ForeignState { drives, vsock: true };
    let plain = sample::manifest(1, BundleKind::Standby);
    let spec = InstanceSpec {
        backend: Backend::Firecracker,
        network: None,
        agent: false,
        foreign: Some(state.devices()),
        ..plain.spec.clone()
    };
    Manifest {
        backend: Backend::Firecracker,
        state_format: "firecracker-1".into(),
        spec,
        foreign: Some(state),
        ..plain
    }
}

/// A bundle of it.
fn foreign_bundle(snapshots: &Path) -> Bundle {
    let draft = sample::draft(snapshots, 1);
    for (from, to) in [(ROOTFS, "disks/root"), (OVERLAY, "disks/data")] {
        fs::rename(draft.path(from), draft.path(to)).expect("renamed");
    }
    publish(draft, foreign()).expect("publishes")
}

#[test]
fn a_bundle_of_an_imported_guest_has_the_drives_that_it_came_with() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = foreign_bundle(dir.path());
    assert_eq!(bundle.manifest().files(), ["vmstate", "memory", "disks/data", "disks/root"]);
    settle(&bundle).expect("settles");
    verify(&bundle).expect("is what it was");
    fs::remove_file(bundle.dir().join("disks/data")).expect("removed");
    let error = open(dir.path(), &sample::id(1)).expect_err("a drive is missing");
    assert!(error.to_string().contains("disks/data"), "{error}");
}

#[test]
fn a_manifest_of_format_2_is_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = foreign_bundle(dir.path());
    let golden = include_str!("golden/manifest-2.json");
    fs::write(bundle.dir().join(MANIFEST), golden).expect("writes");
    fs::write(bundle.dir().join(hearth_snapshot::SETTLED), "{\"files\":{}}").expect("writes");

    let file = |name: &str, bytes| FileEntry { name: name.into(), bytes, allocated_bytes: 4096 };
    let expected = Manifest {
        format: 2,
        boot_id: "6c1f9c1e-2f0e-4d0c-9d5e-3f2b6a1d0e11".into(),
        files: vec![file("vmstate", 1000), file("memory", 4 << 20), file("disks/data", 3000), file("disks/root", 2000)],
        ..foreign()
    };
    let opened = open(dir.path(), &sample::id(1)).expect("opens");
    assert_eq!(opened.manifest(), &expected);
    let written = serde_json::to_string_pretty(&expected).expect("plain data") + "\n";
    assert_eq!(written, golden, "what is written now is what was written then");
}

#[test]
fn ids_that_lead_out_of_the_bundle_and_drives_that_do_not_match_are_refused() {
    let dir = tempfile::tempdir().expect("a directory");
    let bundle = foreign_bundle(dir.path());
    let golden = include_str!("golden/manifest-2.json");
    let refused = |from: &str, to: &str| {
        fs::write(bundle.dir().join(MANIFEST), golden.replacen(from, to, 9)).expect("writes");
        let error = open(dir.path(), &sample::id(1)).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        hearth_model::error::chain(&error)
    };
    let error = refused(r#""id": "data""#, r#""id": "../data""#);
    assert!(error.contains("../data"), "{error}");
    let error = refused(
        r#""path": "disks/root",
        "read_only": true"#,
        r#""path": "disks/root",
        "read_only": false"#,
    );
    assert!(error.contains("other drives"), "{error}");
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
