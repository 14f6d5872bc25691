//! Copies as `cp` and `docker cp` make them, into a guest and out of it.

#[path = "support/daemon.rs"]
mod daemon;

use std::fs;
use std::path::Path;

use daemon::Daemon;

/// A directory, a file in it, a directory in it with a file, and a link.
fn make_tree(at: &Path) {
    fs::create_dir_all(at.join("sub")).expect("makes");
    fs::write(at.join("one"), "1").expect("writes");
    fs::write(at.join("sub/two"), "two".repeat(100_000)).expect("writes");
    std::os::unix::fs::symlink("sub/two", at.join("link")).expect("links");
}

fn check_tree(at: &Path) {
    assert_eq!(fs::read_to_string(at.join("one")).expect("is there"), "1");
    assert_eq!(fs::read_to_string(at.join("sub/two")).expect("is there").len(), 300_000);
    assert_eq!(fs::read_link(at.join("link")).expect("is a link"), Path::new("sub/two"));
}

#[test]
fn files_go_where_cp_would_put_them() {
    let daemon = Daemon::start();
    let guest = daemon.guest.path();
    fs::create_dir(guest.join("srv")).expect("makes");
    fs::write(daemon.home().join("a"), "hello").expect("writes");
    for (to, lands) in [("web:/b", "b"), ("web:/srv", "srv/a"), ("web:/srv/", "srv/a"), ("web:/srv/c", "srv/c")] {
        let ran = daemon.run(&["cp", "a", to]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{ran:?}");
        assert_eq!(ran.stderr, "1 entry copied, 5 B\n");
        assert_eq!(fs::read_to_string(guest.join(lands)).expect(lands), "hello");
    }
    for (from, to, lands) in [("web:/srv/c", "d", "d"), ("web:/srv/c", ".", "c")] {
        let ran = daemon.run(&["cp", from, to, "--json"]);
        assert_eq!(ran.json(), serde_json::json!({"entries": 1, "bytes": 5}), "{ran:?}");
        assert_eq!(fs::read_to_string(daemon.home().join(lands)).expect(lands), "hello");
    }
}

#[test]
fn trees_go_both_ways_whole() {
    let daemon = Daemon::start();
    make_tree(&daemon.home().join("tree"));
    for (from, to, lands) in [
        ("tree", "web:/new", "new"),
        ("tree", "web:/new", "new/tree"),
        ("tree/.", "web:/other", "other"),
        ("./tree/", "web:/", "tree"),
    ] {
        let ran = daemon.run(&["cp", from, to]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), "5 entries copied, 292.9 KB\n"), "{from} {to}");
        check_tree(&daemon.guest.path().join(lands));
    }
    for (from, to, lands) in [
        ("web:/other", "back", "back"),
        ("web:/other", "back", "back/other"),
        ("web:/other/.", "content", "content"),
        ("web:/other/", "slash", "slash"),
    ] {
        let ran = daemon.run(&["cp", from, to]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), "5 entries copied, 292.9 KB\n"), "{from} {to}");
        check_tree(&daemon.home().join(lands));
    }
}

#[test]
fn all_of_a_guest_is_what_is_in_its_root() {
    let daemon = Daemon::start();
    make_tree(daemon.guest.path());
    for (from, lands) in [("web:/", "all"), ("web:/.", "again")] {
        let ran = daemon.run(&["cp", from, lands]);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), "4 entries copied, 292.9 KB\n"), "{from}");
        check_tree(&daemon.home().join(lands));
    }
}

#[test]
fn links_are_followed_when_asked() {
    let daemon = Daemon::start();
    make_tree(&daemon.home().join("tree"));
    assert_eq!(daemon.run(&["cp", "-L", "tree/link", "web:/file"]).code, Some(0));
    assert!(fs::symlink_metadata(daemon.guest.path().join("file")).expect("is there").is_file());

    std::os::unix::fs::symlink("..", daemon.home().join("tree/sub/up")).expect("links");
    let ran = daemon.run(&["cp", "-L", "tree", "web:/loop"]);
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("leads back to itself"), "{ran:?}");
}

#[test]
fn what_is_missing_is_named() {
    let daemon = Daemon::start();
    fs::write(daemon.home().join("a"), "hello").expect("writes");
    for (from, to, says) in [
        ("nowhere", "web:/b", "there is no nowhere"),
        ("a", "web:/no/such/b", "write /no/such/b"),
        ("a", "web:/no/", "there is no directory /no/ in web"),
        ("web:/nowhere", "b", "look at /nowhere"),
        ("web:/nowhere", "no/b", "look at /nowhere"),
    ] {
        let ran = daemon.run(&["cp", from, to]);
        assert_eq!(ran.code, Some(3), "{from} {to}: {ran:?}");
        assert!(ran.stderr.contains(says), "{from} {to}: {ran:?}");
    }
    assert!(!daemon.home().join("b").exists());
}
