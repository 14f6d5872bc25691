//! Layers become one file system, and nothing of what they say is lost.

use crate::build::{Layout, Tar, dir, entry, file, gzip, hard_link, symlink, zstd};
use crate::look::{Store, names};

const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn everything_a_tar_can_say_is_in_the_image() {
    let store = Store::new();
    let long = format!("{}/{}", "d".repeat(200), "f".repeat(255));
    let big: Vec<u8> = (0..3_000_001_u32).map(|n| (n % 253).to_le_bytes()[0]).collect();
    let layer = Tar::of(vec![
        dir("./").mode(0o751).owner(3, 4),
        dir("tmp/").mode(0o1777),
        file("bin/su", b"#!").mode(0o4755).owner(0, 42),
        file("bin/wall", b"#!").mode(0o2755),
        file("home/me/note", b"hello").owner(1000, 4_000_000).pax("gid", b"4000000000").mode(0o600),
        file("bin/ping", b"ping").xattr("security.capability", &CAPABILITY).xattr("user.empty", b""),
        file("acl", b"").xattr("user.a", b"line\none").xattr("trusted.b", &[0, 255]).xattr("nonsense.c", b"left out"),
        dir("with-xattr").xattr("user.on", b"a directory"),
        symlink("etc/mtab", "/proc/self/mounts"),
        symlink("dangling", "../../nowhere"),
        symlink("long-link", &"x".repeat(3000)),
        entry(tar::EntryType::Char, "dev/null").device(1, 3).mode(0o666),
        entry(tar::EntryType::Char, "dev/big").device(300, 70_000),
        entry(tar::EntryType::Block, "dev/sda").device(8, 0),
        entry(tar::EntryType::Fifo, "run/pipe"),
        file("a/one", b"the same"),
        hard_link("b/two", "a/one"),
        hard_link("three", "./b/two"),
        file(&long, b"long"),
        file("fine", b"").pax("mtime", b"1700000000.123456789"),
        file("old", b"").pax("mtime", b"-86400"),
        file("big", &big),
        file("exact", &[7; 8192]),
        file("medium", &[9; 5000]),
    ]);
    let source = Layout::oci(&[layer]).write_dir(&store.path("oci"));
    let image = store.import(&source).expect("imported");
    let Some(tree) = store.tree(&image) else { return };

    let at = |path: &str| tree.get(path).unwrap_or_else(|| panic!("{path} in {:?}", names(&tree)));
    assert_eq!((at("/").mode, at("/").owner), (0o751, (3, 4)));
    assert_eq!(at("/tmp").mode, 0o1777);
    assert_eq!((at("/bin/su").mode, at("/bin/su").owner), (0o4755, (0, 42)));
    assert_eq!(at("/bin/wall").mode, 0o2755);
    assert_eq!((at("/home/me/note").mode, at("/home/me/note").owner), (0o600, (1000, 4_000_000_000)));
    assert_eq!(at("/home/me/note").content, b"hello");
    assert_eq!((at("/home/me").mode, at("/home/me").what.as_str()), (0o755, "dir"), "made as it was needed");
    let xattrs = |path: &str| at(path).xattrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect::<Vec<_>>();
    assert_eq!(
        xattrs("/bin/ping"),
        [("security.capability".to_owned(), CAPABILITY.to_vec()), ("user.empty".to_owned(), vec![])]
    );
    assert_eq!(xattrs("/acl"), [("trusted.b".to_owned(), vec![0, 255]), ("user.a".to_owned(), b"line\none".to_vec())]);
    assert_eq!(xattrs("/with-xattr"), [("user.on".to_owned(), b"a directory".to_vec())]);
    assert_eq!(at("/etc/mtab").what, "-> /proc/self/mounts");
    assert_eq!(at("/dangling").what, "-> ../../nowhere");
    assert_eq!(at("/long-link").what, format!("-> {}", "x".repeat(3000)));
    assert_eq!((at("/dev/null").what.as_str(), at("/dev/null").mode), ("char 1:3", 0o666));
    assert_eq!(at("/dev/big").what, "char 300:70000");
    assert_eq!(at("/dev/sda").what, "block 8:0");
    assert_eq!(at("/run/pipe").what, "fifo");
    assert_eq!(at("/a/one").links, 3);
    assert!(at("/a/one").ino == at("/b/two").ino && at("/a/one").ino == at("/three").ino);
    assert_eq!(at("/three").content, b"the same");
    assert_eq!(at(&format!("/{long}")).content, b"long");
    assert_eq!(at("/fine").mtime, (1_700_000_000, 123_456_789));
    assert_eq!(at("/old").mtime, (-86_400, 0));
    assert_eq!(at("/bin/su").mtime, (1_000_000_000, 0));
    assert!(at("/big").content == big);
    assert_eq!(at("/exact").content, [7; 8192]);
    assert_eq!(at("/medium").content, [9; 5000]);
    assert_eq!(
        at("/").links,
        2 + tree.iter().filter(|(p, s)| p.matches('/').count() == 1 && *p != "/" && s.what == "dir").count() as u64
    );
}

#[test]
fn upper_layers_hide_and_replace_what_lower_ones_have() {
    let store = Store::new();
    let lower = Tar::of(vec![
        file("etc/keep", b"1"),
        file("etc/gone", b"1"),
        file("cache/a", b"1"),
        file("cache/deep/b", b"1"),
        file("becomes-dir", b"1"),
        file("becomes-file/x", &[1; 100_000]),
        symlink("lib", "usr/lib"),
        dir("usr/lib"),
        file("shared", b"from below"),
    ]);
    let upper = Tar::of(vec![
        file("etc/.wh.gone", b""),
        file("cache/new", b"2"),
        file("cache/.wh..wh..opq", b""),
        dir("becomes-dir"),
        file("becomes-dir/y", b"2"),
        file("becomes-file", b"2"),
        file("lib/z.so", b"2"),
        hard_link("also-shared", "shared"),
        file("/absolute/path", b"2"),
    ]);
    let top = Tar::of(vec![file(".wh.shared", b""), file("etc/keep", b"3")]);
    let source = store.write("image", &Layout::oci(&[lower, gzip(&upper), zstd(&top)]).tar());
    let image = store.import(&source).expect("imported");
    let Some(tree) = store.tree(&image) else { return };
    assert_eq!(
        names(&tree),
        [
            "/",
            "/absolute",
            "/absolute/path",
            "/also-shared",
            "/becomes-dir",
            "/becomes-dir/y",
            "/becomes-file",
            "/cache",
            "/cache/new",
            "/etc",
            "/etc/keep",
            "/lib",
            "/usr",
            "/usr/lib",
            "/usr/lib/z.so"
        ]
    );
    assert_eq!(tree["/etc/keep"].content, b"3");
    assert_eq!(tree["/also-shared"].content, b"from below");
    assert_eq!(tree["/also-shared"].links, 1);
    assert_eq!(tree["/lib"].what, "-> usr/lib");
    assert!(image.size_bytes < 100_000, "what was replaced uses no space: {}", image.size_bytes);
}

#[test]
fn a_directory_of_thousands_of_names_is_listed_whole() {
    let store = Store::new();
    let name = |n: usize| format!("many/{}{n:05}", ["-", "a", "ä", "long-name-that-fills-blocks-sooner-"][n % 4]);
    let layer = Tar::of((0..5000).map(|n| file(&name(n), n.to_string().as_bytes())).collect());
    let image = store.import(&Layout::oci(&[layer]).write_dir(&store.path("oci"))).expect("imported");
    let Some(tree) = store.tree(&image) else { return };
    assert_eq!(tree.len(), 5002);
    for n in 0..5000 {
        assert_eq!(tree[&format!("/{}", name(n))].content, n.to_string().as_bytes());
    }
}

#[test]
fn sparse_files_keep_their_length_and_cost_only_their_data() {
    let store = Store::new();
    // PAX 1.0: the map stands before the data.
    let mut data = b"2\n1048576\n4\n2097148\n4\n".to_vec();
    data.resize(512, 0);
    data.extend_from_slice(b"datatail");
    let pax = file("GNUSparseFile.0/sparse", &data)
        .pax("GNU.sparse.major", b"1")
        .pax("GNU.sparse.minor", b"0")
        .pax("GNU.sparse.name", b"sparse")
        .pax("GNU.sparse.realsize", b"2097152");
    // PAX 0.1: the map is in a record.
    let older = file("older", b"xyz").pax("GNU.sparse.map", b"65536,3").pax("GNU.sparse.size", b"131072");
    let image = store.import(&store.write("rootfs.tar", &Tar::of(vec![pax, older]))).expect("imported");
    assert!(image.size_bytes < 3_000_000);
    let stored = hearth_image::open(&store.images(), &image.digest).expect("stored");
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(stored.rootfs).expect("stat"));
    assert!(blocks * 512 < 200_000, "{blocks} sectors for eleven bytes of data");
    let Some(tree) = store.tree(&image) else { return };
    let mut expected = vec![0; 2 << 20];
    expected[1_048_576..1_048_580].copy_from_slice(b"data");
    expected[2_097_148..].copy_from_slice(b"tail");
    assert!(tree["/sparse"].content == expected);
    assert_eq!(tree["/older"].content.len(), 131_072);
    assert_eq!(&tree["/older"].content[65_536..65_540], b"xyz\0");
}
