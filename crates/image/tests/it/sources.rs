//! Every kind of source gives the image that it holds.

use std::path::PathBuf;

use hearth_image::{Source, detect};

use crate::build::{Layout, Tar, config, dir, file, gzip, json, symlink, zstd};
use crate::look::{Store, names};

fn layers() -> Vec<Vec<u8>> {
    vec![Tar::of(vec![file("etc/a", b"1"), file("bin/app", b"app")]), Tar::of(vec![file("etc/a", b"2")])]
}

#[test]
fn one_image_in_every_wrapping() {
    let store = Store::new();
    let oci = Layout::oci(&layers());
    let docker = Layout::docker(&layers());
    let mut both = oci.clone();
    both.files.push(("manifest.json".into(), docker.files.last().expect("manifest").1.clone()));
    type Kind = fn(PathBuf) -> Source;
    let kinds: Vec<(PathBuf, Kind)> = vec![
        (oci.write_dir(&store.path("dir")), Source::OciDir),
        (store.write("1", &oci.tar()), Source::OciTar),
        (store.write("2", &gzip(&oci.tar())), Source::OciTar),
        (store.write("3", &zstd(&both.tar())), Source::OciTar),
        (store.write("4", &docker.tar()), Source::DockerTar),
        (store.write("5", &gzip(&docker.tar())), Source::DockerTar),
    ];
    let mut digests = std::collections::BTreeSet::new();
    for (source, kind) in kinds {
        assert_eq!(detect(&source).expect("known"), kind(source.clone()));
        let image = store.import(&source).expect("imported");
        assert_eq!(image.config.entrypoint, ["/bin/app", "--serve"]);
        assert_eq!(image.config.cmd, ["now"]);
        assert_eq!(image.config.env, ["A=1", "PATH=/bin"]);
        assert_eq!((image.config.workdir.as_str(), image.config.user.as_str()), ("/srv", "1000:1000"));
        assert_eq!(image.labels["who"], "us");
        assert_eq!(image.platform, "linux/amd64");
        assert_eq!(image.created.as_deref(), Some("2026-01-02T03:04:05Z"));
        if let Some(tree) = store.tree(&image) {
            assert_eq!(names(&tree), ["/", "/bin", "/bin/app", "/etc", "/etc/a"]);
            assert_eq!(tree["/etc/a"].content, b"2");
        }
        digests.insert(image.digest);
    }
    assert_eq!(digests.len(), 2, "the manifest's digest, and docker's image id");
    assert_eq!(hearth_image::list(&store.images()).expect("listed"), digests.into_iter().collect::<Vec<_>>());
}

#[test]
fn a_root_file_system_has_the_same_digest_as_directory_and_as_tar() {
    let store = Store::new();
    let entries = || {
        vec![
            dir("./"),
            dir("etc"),
            file("etc/passwd", b"root:x:0:0").mode(0o640),
            symlink("etc/link", "passwd"),
            file("etc/.wh.not-a-layer", b"kept"),
            file("big", &[5; 300_000]),
        ]
    };
    let tar = Tar::of(entries());
    let plain = store.import(&store.write("rootfs.tar", &tar)).expect("imported");
    let again = store.import(&store.write("other name", &gzip(&tar))).expect("imported");
    assert_eq!(plain, again, "compression and file names mean nothing");
    assert_eq!(plain.config, hearth_model::spec::ImageConfig::default());
    if let Some(tree) = store.tree(&plain) {
        assert_eq!(names(&tree), ["/", "/big", "/etc", "/etc/.wh.not-a-layer", "/etc/link", "/etc/passwd"]);
    }
    let changed: Vec<_> = entries().into_iter().chain([file("etc/passwd", b"other").mode(0o640)]).collect();
    let changed = store.import(&store.write("changed.tar", &Tar::of(changed))).expect("imported");
    assert_ne!(changed.digest, plain.digest);

    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: without root a tar cannot be unpacked with its owners");
        return;
    }
    let dir = store.path("unpacked");
    let mut archive = tar::Archive::new(&tar[..]);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.unpack(&dir).expect("unpacked");
    // The tar crate sets the root's time before it puts files into it, and no times on links.
    for name in ["", "etc"] {
        set_mtime(&dir.join(name));
    }
    set_mtime(&dir.join("etc/link"));
    assert_eq!(store.import(&dir).expect("imported").digest, plain.digest);
}

fn set_mtime(path: &std::path::Path) {
    let time = rustix::fs::Timespec { tv_sec: 1_000_000_000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).expect("utimensat");
}

#[test]
fn a_directory_keeps_owners_links_devices_and_attributes() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: without root there are no owners and devices to keep");
        return;
    }
    let store = Store::new();
    let dir = store.path("root");
    std::fs::create_dir_all(dir.join("etc/sub")).expect("mkdir");
    std::fs::write(dir.join("etc/a"), "one").expect("write");
    std::fs::hard_link(dir.join("etc/a"), dir.join("etc/sub/b")).expect("link");
    std::os::unix::fs::symlink("/etc/shadow", dir.join("outside")).expect("symlink");
    std::os::unix::fs::chown(dir.join("etc/a"), Some(12), Some(34)).expect("chown");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    let device = rustix::fs::makedev(1, 3);
    let made =
        rustix::fs::mknodat(rustix::fs::CWD, dir.join("null"), rustix::fs::FileType::CharacterDevice, mode, device);
    if made.is_err() {
        eprintln!("SKIPPED: device nodes cannot be made here");
    }
    xattr::set(dir.join("etc/a"), "user.note", b"kept").expect("user attributes on the test's file system");
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).expect("bind");

    let image = store.import(&dir).expect("imported");
    let Some(tree) = store.tree(&image) else { return };
    assert!(!tree.contains_key("/socket"), "a socket is no content");
    assert_eq!((tree["/etc/a"].owner, tree["/etc/a"].links), ((12, 34), 2));
    assert_eq!(tree["/etc/a"].ino, tree["/etc/sub/b"].ino);
    assert_eq!(tree["/etc/a"].xattrs["user.note"], b"kept");
    assert_eq!(tree["/outside"].what, "-> /etc/shadow", "never followed");
    if made.is_ok() {
        assert_eq!((tree["/null"].what.as_str(), tree["/null"].mode), ("char 1:3", 0o600));
    }
}

#[test]
fn the_image_for_this_platform_is_chosen_from_nested_indexes() {
    let store = Store::new();
    let mut layout = Layout::default();
    let layer = |text: &str| vec![Tar::of(vec![file("which", text.as_bytes())])];
    let arm = layout.image("arm64", &layer("arm"));
    let mut v3 = layout.image("amd64", &layer("new CPUs only"));
    v3["platform"]["variant"] = "v3".into();
    let mut plain = layout.image("amd64", &layer("amd64"));
    plain.as_object_mut().expect("object").remove("platform");
    let attestation = serde_json::json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)),
        "size": 5, "platform": { "os": "unknown", "architecture": "unknown" }
    });
    let inner = serde_json::json!({ "schemaVersion": 2, "manifests": [arm, attestation, v3, plain] });
    let nested = layout.blob("application/vnd.oci.image.index.v1+json", &json(&inner));
    let source = store.write("image.tar", &layout.index(&[nested]).tar());
    let image = store.import(&source).expect("imported");
    assert_eq!(image.digest, plain["digest"]);
    if let Some(tree) = store.tree(&image) {
        assert_eq!(tree["/which"].content, b"amd64");
    }
}

#[test]
fn a_configuration_of_nulls_is_an_empty_one() {
    let store = Store::new();
    let mut layout = Layout::default();
    let mut config = config("amd64", &[]);
    config["config"] = serde_json::json!({ "Entrypoint": null, "Cmd": null, "Env": null, "Labels": null });
    let manifest = layout.image_of(&config, &[]);
    let image = store.import(&layout.index(&[manifest]).write_dir(&store.path("oci"))).expect("imported");
    assert_eq!(image.config, hearth_model::spec::ImageConfig::default());
    if let Some(tree) = store.tree(&image) {
        assert_eq!(names(&tree), ["/"]);
    }
}
