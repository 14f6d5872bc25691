//! Every kind of bad source has a message that names what is wrong, and leaves nothing behind.

use std::path::Path;

use hearth_image::Limits;
use hearth_model::error::chain;
use hearth_model::{ErrorKind, Kind};

use crate::build::{Entry, Layout, Tar, config, dir, entry, file, gzip, hard_link, hex, json, noise, symlink, zstd};
use crate::look::Store;

fn says(store: &Store, source: &Path, kind: ErrorKind, words: &[&str]) {
    let (found, message) = store.refused(source);
    for word in words {
        assert!(message.contains(word), "{word:?} in: {message}");
    }
    assert_eq!(found, kind, "{message}");
    assert!(message.starts_with("import image from "), "{message}");
}

#[test]
fn what_is_not_an_image_is_said() {
    let store = Store::new();
    says(&store, &store.path("nothing"), ErrorKind::NotFound, &["no such file or directory", "nothing"]);
    let mut elf = b"\x7fELF".to_vec();
    elf.resize(2000, 7);
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"FROM alpine\nRUN true\n", "a Dockerfile"),
        (b"hello there\nand more\n", "a text file that begins with \"hello there\""),
        (b"PK\x03\x04....", "a zip archive"),
        (b"\xfd7zXZ\0...", "an xz-compressed file"),
        (&elf, "an ELF program"),
        (&gzip(&elf), "a compressed file that holds no tar archive"),
        (&[0xff; 4000], "a file of an unknown format"),
        (&[0; 1024], "a tar archive without entries"),
        (&Tar::of(vec![file("x/oci-layout", b"{}"), file("x/index.json", b"{}")]), "OCI layout below \"x\""),
    ] {
        says(&store, &store.write("thing", bytes), ErrorKind::Invalid, &[what]);
    }
    std::fs::create_dir(store.path("empty")).expect("mkdir");
    says(&store, &store.path("empty"), ErrorKind::Invalid, &["an empty directory"]);
    let unpacked = Layout::docker(&[]).write_dir(&store.path("unpacked"));
    says(&store, &unpacked, ErrorKind::Invalid, &["an unpacked `docker save` archive"]);
    says(&store, Path::new("/dev/null"), ErrorKind::Invalid, &["a device, pipe or socket"]);
}

#[test]
fn a_damaged_or_truncated_archive_is_corrupt() {
    let store = Store::new();
    let noise = noise(200_000);
    let layer = Tar::of(vec![file("big", &noise)]);
    let layer_digest = hex(&layer);
    let oci = Layout::oci(std::slice::from_ref(&layer));

    // One flipped byte, in content that the tar itself does not check, and in a header.
    for at in [100_000, 10] {
        let mut damaged = oci.clone();
        damaged.change(&layer_digest, |bytes| bytes[at] ^= 1);
        let source = damaged.write_dir(&store.path(&format!("flipped-{at}")));
        says(&store, &source, ErrorKind::Corrupt, &["layer 1", &layer_digest, "is damaged"]);
    }
    let mut short = oci.clone();
    short.change(&layer_digest, |bytes| bytes.truncate(70_000));
    let source = short.write_dir(&store.path("short"));
    says(&store, &source, ErrorKind::Corrupt, &[&layer_digest, "has 70000 bytes", "truncated"]);
    let mut missing = oci.clone();
    missing.files.retain(|(name, _)| !name.contains(&layer_digest));
    let source = missing.write_dir(&store.path("missing"));
    says(&store, &source, ErrorKind::Corrupt, &[&layer_digest, "is missing", "manifest sha256:"]);

    for (name, layer) in [("gz", gzip(&layer)), ("zst", zstd(&layer))] {
        let digest = hex(&layer);
        let mut damaged = Layout::oci(&[layer]);
        damaged.change(&digest, |bytes| bytes[100_000] ^= 0x55);
        let source = damaged.write_dir(&store.path(name));
        says(&store, &source, ErrorKind::Corrupt, &["layer 1", &digest]);
    }

    let mut docker = Layout::docker(std::slice::from_ref(&layer));
    docker.change("layer.tar", |bytes| bytes[100_000] ^= 1);
    let source = store.write("docker.tar", &docker.tar());
    says(&store, &source, ErrorKind::Corrupt, &["layer 1 (0/layer.tar)", "is damaged"]);
    let mut docker = Layout::docker(std::slice::from_ref(&layer));
    docker.files.retain(|(name, _)| name != "0/layer.tar");
    says(&store, &store.write("docker.tar", &docker.tar()), ErrorKind::Corrupt, &["0/layer.tar is missing"]);

    let whole = oci.tar();
    says(&store, &store.write("cut.tar", &whole[..150_000]), ErrorKind::Corrupt, &["ends too early"]);
    let packed = gzip(&whole);
    says(&store, &store.write("cut.tgz", &packed[..packed.len() / 2]), ErrorKind::Corrupt, &["ends too early"]);
    let packed = zstd(&whole);
    says(
        &store,
        &store.write("cut.zst", &packed[..packed.len() / 2]),
        ErrorKind::Corrupt,
        &["the archive is truncated"],
    );

    let rootfs = Tar::of(vec![dir("etc"), file("etc/big", &noise)]);
    let cut = |len: usize| store.write("rootfs.tar", &rootfs[..len]);
    says(&store, &cut(100_000), ErrorKind::Corrupt, &["ends too early"]);
    says(&store, &cut(rootfs.len() - 1024), ErrorKind::Corrupt, &["without the end mark"]);
    let mut flipped = rootfs.clone();
    flipped[512 + 3] ^= 1;
    says(&store, &store.write("rootfs.tar", &flipped), ErrorKind::Corrupt, &["no valid header at byte 512"]);
    let mut packed = gzip(&rootfs);
    let crc = packed.len() - 6;
    packed[crc] ^= 1;
    says(&store, &store.write("rootfs.tgz", &packed), ErrorKind::Corrupt, &["the archive is truncated or damaged"]);
}

#[test]
fn entries_that_lead_outside_are_refused_and_touch_nothing() {
    let store = Store::new();
    let outside = store.path("outside");
    std::fs::create_dir(&outside).expect("mkdir");
    std::fs::write(outside.join("victim"), "untouched").expect("write");
    let outside = outside.to_str().expect("UTF-8").to_owned();
    let cases: Vec<(Vec<Entry>, &str, &str)> = vec![
        (vec![file("../evil", b"x")], "../evil", "leads outside the image: it contains \"..\""),
        (vec![file("a/../../evil", b"x")], "a/../../evil", "it contains \"..\""),
        (vec![dir("..")], "..", "it contains \"..\""),
        (vec![symlink("up", "../../outside"), file("up/victim", b"x")], "up/victim", "\"up\" -> \"../../outside\""),
        (vec![symlink("abs", &outside), file("abs/victim", b"x")], "abs/victim", "which leads outside the image"),
        (vec![symlink("abs", &outside), file("abs/.wh.victim", b"")], "abs/.wh.victim", "leads outside"),
        (vec![symlink("abs", &outside), file("abs/.wh..wh..opq", b"")], "abs/.wh..wh..opq", "leads outside"),
        (vec![hard_link("stolen", "../../outside/victim")], "stolen", "is a hard link that leads outside"),
        (vec![hard_link("stolen", &format!("{outside}/victim"))], "stolen", "which does not exist"),
        (vec![symlink("abs", &outside), hard_link("stolen", "abs/victim")], "stolen", "leads outside"),
    ];
    for (n, (mut entries, name, words)) in cases.into_iter().enumerate() {
        entries.insert(0, dir("etc"));
        let tar = Tar::of(entries);
        let oci = Layout::oci(std::slice::from_ref(&tar)).write_dir(&store.path(&format!("case-{n}")));
        says(&store, &oci, ErrorKind::Invalid, &[&format!("entry {name:?} of layer 1 (sha256:"), words]);
        if !name.contains(".wh.") {
            says(&store, &store.write("rootfs.tar", &tar), ErrorKind::Invalid, &[&format!("entry {name:?}"), words]);
        }
    }
    // Across layers too: the link comes with the first, the write with the second.
    let layers = [Tar::of(vec![symlink("abs", &outside)]), Tar::of(vec![file("abs/victim", b"x")])];
    let source = Layout::oci(&layers).write_dir(&store.path("layers"));
    says(&store, &source, ErrorKind::Invalid, &["\"abs/victim\" of layer 2", "leads outside"]);
    assert_eq!(std::fs::read_to_string(format!("{outside}/victim")).expect("still there"), "untouched");
    assert_eq!(std::fs::read_dir(&outside).expect("list").count(), 1);
    assert!(!store.path("evil").exists() && !store.path("../evil").exists());
}

#[test]
fn entries_that_no_file_system_can_hold_are_refused() {
    let store = Store::new();
    let cases: Vec<(Vec<Entry>, &str)> = vec![
        (vec![file(&"n".repeat(256), b"")], "has a name of 256 bytes"),
        (vec![file(&"n/".repeat(2100), b"")], "has a path of 4200 bytes"),
        (vec![symlink("l", "")], "without a target"),
        (vec![symlink("l", &"t".repeat(4096))], "more than 4095 bytes"),
        (vec![hard_link("l", "missing")], "is a hard link to \"missing\", which does not exist"),
        (vec![dir("d"), hard_link("l", "d")], "is a hard link to the directory \"d\""),
        (vec![file("f", b""), file("f/below", b"")], "goes through \"f\", which is not a directory"),
        (vec![symlink("a", "b"), symlink("b", "a"), file("a/x", b"")], "symbolic links"),
        (vec![file("f", b"").xattr("user.big", &[7; 70_000])], "\"user.big\", which is too large"),
        (vec![entry(tar::EntryType::new(b'M'), "volume")], "has the unknown type 'M'"),
        (vec![file("f", b"").pax("uid", b"99999999999")], "has the owner 99999999999"),
        (vec![file(".wh.", b"")], "is a whiteout of nothing"),
        (vec![file("s", b"ab").pax("GNU.sparse.map", b"9,2").pax("GNU.sparse.size", b"10")], "map of its holes"),
        (vec![file("s", b"ab").pax("GNU.sparse.map", b"5,1,4,1").pax("GNU.sparse.size", b"10")], "map of its holes"),
    ];
    for (n, (entries, words)) in cases.into_iter().enumerate() {
        let source = Layout::oci(&[Tar::of(entries)]).write_dir(&store.path(&format!("case-{n}")));
        says(&store, &source, ErrorKind::Invalid, &["layer 1", words]);
    }
}

#[test]
fn documents_that_make_no_sense_are_named() {
    let store = Store::new();
    let layers = [Tar::of(vec![file("a", b"a")])];
    let oci = Layout::oci(&layers);
    let manifest_digest = oci.files[oci.files.len() - 3].0.rsplit('/').next().expect("digest").to_owned();

    let mut broken = oci.clone();
    broken.change("index.json", |bytes| bytes.truncate(10));
    let source = broken.write_dir(&store.path("index"));
    says(&store, &source, ErrorKind::Invalid, &["index.json is not a valid document", "line 1"]);
    let mut broken = oci.clone();
    broken.change(&manifest_digest, |bytes| bytes[2] = b'!');
    let source = broken.write_dir(&store.path("manifest"));
    says(&store, &source, ErrorKind::Corrupt, &[&manifest_digest, "is damaged"]);

    let source = Layout::default().index(&[]).write_dir(&store.path("none"));
    std::fs::create_dir(store.path("none/blobs")).expect("mkdir");
    assert!(chain(&store.import(&source).expect_err("refused")).ends_with("index.json lists no image"));

    let mut layout = Layout::default();
    let manifests = [layout.image("arm64", &layers), layout.image("s390x", &layers)];
    let source = layout.index(&manifests).write_dir(&store.path("platforms"));
    says(&store, &source, ErrorKind::Unsupported, &["no image for linux/amd64, only for linux/arm64, linux/s390x"]);
    let mut lying = Layout::default();
    let mut manifest = lying.image("arm64", &layers);
    manifest["platform"]["architecture"] = "amd64".into();
    let source = lying.index(&[manifest]).write_dir(&store.path("lying"));
    says(&store, &source, ErrorKind::Unsupported, &["only for linux/arm64"]);

    let mut two = Layout::default();
    let mut manifests = [two.image("amd64", &layers), two.image("amd64", &[])];
    manifests[0]["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "one:1" });
    manifests[1]["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "two:2" });
    let source = two.index(&manifests).write_dir(&store.path("two"));
    says(&store, &source, ErrorKind::Invalid, &["several images", "one:1", "two:2"]);

    let evil = serde_json::json!({ "digest": "sha256:../../../etc/passwd", "size": 1, "platform": { "os": "linux", "architecture": "amd64" } });
    let source = Layout::default().index(&[evil]).write_dir(&store.path("evil"));
    let error = store.import(&source).expect_err("refused");
    assert!(chain(&error).contains("is not sha256 and 64 digits"), "{}", chain(&error));

    let mut artifact = Layout::default();
    let blob = artifact.blob("application/vnd.wasm", b"wasm");
    let described = artifact.blob("application/vnd.oci.image.config.v1+json", &json(&config("amd64", &[])));
    let manifest = json(&serde_json::json!({ "config": described, "layers": [blob] }));
    let manifest = artifact.blob("application/vnd.oci.image.manifest.v1+json", &manifest);
    let error = store.import(&artifact.index(&[manifest]).write_dir(&store.path("wasm"))).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(chain(&error).contains("\"application/vnd.wasm\", which is not a file system layer"), "{}", chain(&error));

    let mut short = Layout::docker(&layers);
    short.change("manifest.json", |bytes| {
        let mut value: serde_json::Value = serde_json::from_slice(bytes).expect("JSON");
        value[0]["Layers"] = serde_json::json!([]);
        *bytes = json(&value);
    });
    let source = store.write("docker.tar", &short.tar());
    says(&store, &source, ErrorKind::Invalid, &["manifest.json lists 0 layers, but its configuration 1"]);
}

#[test]
fn bombs_are_stopped_while_they_are_read() {
    let store = Store::new();
    let zeros = vec![0; 64 << 20];
    let layer = gzip(&Tar::of(vec![file("zeros", &zeros)]));
    let oci = Layout::oci(&[layer]);
    let source = oci.write_dir(&store.path("zeros"));
    let refused = |source: &Path, limits: &Limits| {
        let error = store.import_with(source, limits).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.hint().is_some());
        error.problem.to_string()
    };
    let small = Limits { max_expanded_bytes: 1 << 20, ..Limits::default() };
    assert_eq!(refused(&source, &small), "there are more than 1048576 bytes of unpacked content");
    let outer = store.write("zeros.tgz", &gzip(&oci.tar()));
    let tiny = Limits { max_expanded_bytes: 60_000, ..Limits::default() };
    assert_eq!(refused(&outer, &tiny), "there are more than 60000 bytes of unpacked content");

    let sparse = file("s", b"").pax("GNU.sparse.map", b"0,0").pax("GNU.sparse.size", b"9000000000000000000");
    let source = store.write("sparse.tar", &Tar::of(vec![sparse]));
    assert!(refused(&source, &Limits::default()).ends_with("bytes of unpacked content"));

    let source = store.write("many.tar", &Tar::of((0..100).map(|n| file(&format!("etc/{n}"), b"")).collect()));
    let few = Limits { max_entries: 50, ..Limits::default() };
    assert_eq!(refused(&source, &few), "there are more than 50 entries");

    let layers: Vec<_> = (0..5).map(|n| Tar::of(vec![file(&n.to_string(), b"")])).collect();
    let source = Layout::oci(&layers).write_dir(&store.path("layers"));
    let few = Limits { max_layers: 4, ..Limits::default() };
    assert_eq!(refused(&source, &few), "there are more than 4 layers");

    let mut huge = Layout::oci(&[]);
    huge.change("index.json", |bytes| bytes.resize((4 << 20) + 1, b' '));
    let source = huge.write_dir(&store.path("document"));
    assert_eq!(refused(&source, &Limits::default()), "there are more than 4194304 bytes in a JSON document");

    let header = file("etc/f", b"").pax("comment", &vec![b'x'; 5 << 20]);
    let source = store.write("header.tar", &Tar::of(vec![header]));
    assert_eq!(refused(&source, &Limits::default()), "there are more than 4194304 bytes in an extended header");

    let fat = |n: u32| file(&format!("etc/{n}"), b"").xattr("user.x", &[1; 60_000]);
    let source = store.write("xattrs.tar", &gzip(&Tar::of((0..40).map(fat).collect())));
    let small = Limits { max_metadata_bytes: 1 << 20, ..Limits::default() };
    assert_eq!(refused(&source, &small), "there are more than 1048576 bytes of names and attributes");
}

#[test]
fn a_directory_that_holds_the_store_is_refused() {
    let store = Store::new();
    store.write("some file", b"x");
    let root = store.path("");
    says(&store, &root, ErrorKind::Invalid, &["the directory holds", "where images are stored"]);
}
