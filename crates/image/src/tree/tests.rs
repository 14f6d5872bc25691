//! The merge against a naive model, and the cases in which the two could not differ.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn split(path: &str) -> Vec<&[u8]> {
    path.split('/').filter(|part| !part.is_empty()).map(str::as_bytes).collect()
}

fn file(text: &str) -> Body {
    let bytes: Box<[u8]> = text.as_bytes().into();
    Body::File(Content { len: bytes.len() as u64, place: Place::Memory(bytes), sha256: None })
}

fn put(tree: &mut Tree, path: &str, body: Body) -> Result<(), TreeError> {
    tree.put(&split(path), Meta::default(), body)
}

fn link_to(target: &str) -> Body {
    Body::Symlink(target.as_bytes().into())
}

/// Path → what is there: a directory is "/", a link its arrow, a file its text.
fn listing(tree: &Tree) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![(String::new(), ROOT)];
    while let Some((path, ino)) = todo.pop() {
        let shown = match &tree.inode(ino).body {
            Body::Dir(children) => {
                todo.extend(children.iter().map(|(name, child)| (format!("{path}/{}", text(name)), child.ino)));
                "/".to_owned()
            }
            Body::File(Content { place: Place::Memory(bytes), .. }) => text(bytes),
            Body::Symlink(target) => format!("-> {}", text(target)),
            other => format!("{other:?}"),
        };
        all.insert(path, shown);
    }
    all.remove("");
    all
}

fn expect(tree: &Tree, expected: &[(&str, &str)]) {
    let expected = expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(listing(tree), expected);
}

#[test]
fn a_relative_link_to_a_directory_is_followed_within_the_image() {
    let mut tree = Tree::new();
    put(&mut tree, "usr/lib", Body::empty_dir()).expect("dir");
    put(&mut tree, "lib", link_to("usr/lib")).expect("link");
    tree.begin_layer();
    put(&mut tree, "lib/a/b", file("x")).expect("through the link");
    expect(
        &tree,
        &[("/lib", "-> usr/lib"), ("/usr", "/"), ("/usr/lib", "/"), ("/usr/lib/a", "/"), ("/usr/lib/a/b", "x")],
    );
}

#[test]
fn no_path_goes_through_a_link_that_leads_outside() {
    for target in ["/etc", "../../etc", "..", "a/../../.."] {
        let mut tree = Tree::new();
        put(&mut tree, "dir/link", link_to(target)).expect("a link may point anywhere");
        tree.begin_layer();
        let error = put(&mut tree, "dir/link/passwd", file("x"));
        let outside = matches!(&error, Err(TreeError::LeadsOutside { .. }));
        // From "dir", ".." is the root: inside.
        assert_eq!(outside, target != "..", "{target}: {error:?}");
        assert!(tree.whiteout(&split("dir/link/passwd")).is_err() == outside);
        assert!(tree.link(&split("stolen"), &split("dir/link/shadow")).is_err());
    }
}

#[test]
fn links_in_a_circle_end_in_an_error() {
    let mut tree = Tree::new();
    put(&mut tree, "a", link_to("b")).expect("link");
    put(&mut tree, "b", link_to("a")).expect("link");
    assert_eq!(put(&mut tree, "a/x", file("")), Err(TreeError::TooManyLinks));
}

#[test]
fn nothing_nests_deeper_than_a_path_can_say() {
    let mut tree = Tree::new();
    let deep = "d/".repeat(1000);
    put(&mut tree, &deep, Body::empty_dir()).expect("deep, but not too deep");
    put(&mut tree, "short", link_to(&deep)).expect("link");
    assert_eq!(put(&mut tree, &format!("short/{deep}x"), file("")), Err(TreeError::TooDeep));
}

#[test]
fn hard_links_name_one_file_across_layers_until_one_name_is_replaced() {
    let mut tree = Tree::new();
    put(&mut tree, "a", file("one")).expect("file");
    tree.begin_layer();
    tree.link(&split("b"), &split("a")).expect("link to a lower layer's file");
    tree.link(&split("a"), &split("a")).expect("a link to itself changes nothing");
    let ino = |name: &[u8]| tree.child(ROOT, name).expect("there").ino;
    assert_eq!(ino(b"a"), ino(b"b"));
    put(&mut tree, "a", file("two")).expect("file");
    expect(&tree, &[("/a", "two"), ("/b", "one")]);
    tree.begin_layer();
    tree.whiteout(&split("b")).expect("hidden");
    expect(&tree, &[("/a", "two")]);
    assert!(matches!(tree.link(&split("c"), &split("gone")), Err(TreeError::NoTarget(_))));
    assert!(matches!(tree.link(&split("c"), &[]), Err(TreeError::LinkToDirectory(_))));
}

#[test]
fn a_whiteout_does_not_hide_what_its_own_layer_brought() {
    for whiteout_first in [true, false] {
        let mut tree = Tree::new();
        put(&mut tree, "dir/old", file("old")).expect("file");
        put(&mut tree, "gone", file("old")).expect("file");
        tree.begin_layer();
        let hide = |tree: &mut Tree| {
            tree.opaque(&split("dir")).expect("opaque");
            tree.whiteout(&split("gone")).expect("whiteout");
            tree.whiteout(&split("never/was")).expect("hiding nothing is fine");
        };
        if whiteout_first {
            hide(&mut tree);
        }
        put(&mut tree, "dir/new", file("new")).expect("file");
        if !whiteout_first {
            hide(&mut tree);
        }
        expect(&tree, &[("/dir", "/"), ("/dir/new", "new")]);
    }
}

#[test]
fn files_and_directories_replace_each_other() {
    let mut tree = Tree::new();
    put(&mut tree, "a/x", file("x")).expect("file");
    put(&mut tree, "b", file("b")).expect("file");
    put(&mut tree, "c", link_to("a")).expect("link");
    tree.begin_layer();
    put(&mut tree, "a", file("now a file")).expect("over a directory");
    put(&mut tree, "b/y", file("y")).expect("below a lower layer's file");
    put(&mut tree, "c", Body::empty_dir()).expect("a directory over a link is not the link's target");
    expect(&tree, &[("/a", "now a file"), ("/b", "/"), ("/b/y", "y"), ("/c", "/")]);
    assert_eq!(put(&mut tree, "a/z", file("")), Err(TreeError::NotADirectory("a".into())), "in the same layer");
}

#[test]
fn a_directory_over_a_directory_keeps_the_children_and_takes_the_metadata() {
    let mut tree = Tree::new();
    put(&mut tree, "d/x", file("x")).expect("file");
    let meta = Meta { mode: 0o1777, uid: 7, ..Meta::default() };
    tree.put(&split("d"), meta.clone(), Body::empty_dir()).expect("dir");
    tree.put(&[], meta.clone(), Body::empty_dir()).expect("root");
    assert_eq!(tree.put(&[], meta.clone(), file("")), Err(TreeError::RootNotADirectory));
    assert_eq!(tree.inode(tree.child(ROOT, b"d").expect("there").ino).meta, meta);
    assert_eq!(tree.inode(ROOT).meta, meta);
    expect(&tree, &[("/d", "/"), ("/d/x", "x")]);
}

#[derive(Debug, Clone)]
enum Change {
    File(String, u8),
    Dir(String),
    Whiteout(String),
    Opaque(String),
}

/// Paths of one to three parts out of three names: collisions are the rule.
fn path() -> impl Strategy<Value = String> {
    proptest::collection::vec("[abc]", 1..=3).prop_map(|parts| parts.join("/"))
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        4 => (path(), any::<u8>()).prop_map(|(path, byte)| Change::File(path, byte)),
        2 => path().prop_map(Change::Dir),
        2 => path().prop_map(Change::Whiteout),
        1 => path().prop_map(Change::Opaque),
    ]
}

/// The naive model: path → text, where first all that the layer hides is taken away, then all that
/// it brings is put in. Only for layers that do not put something below their own file.
fn naive(layers: &[Vec<Change>]) -> BTreeMap<String, String> {
    let mut map: BTreeMap<String, String> = BTreeMap::new();
    let below = |path: &str, dir: &str| path.starts_with(&format!("{dir}/"));
    for layer in layers {
        for change in layer {
            match change {
                Change::Whiteout(at) => map.retain(|path, _| path != at && !below(path, at)),
                Change::Opaque(at) => map.retain(|path, _| !below(path, at)),
                Change::File(..) | Change::Dir(_) => {}
            }
        }
        for change in layer {
            let (at, what) = match change {
                Change::File(at, byte) => (at, format!("{byte}")),
                Change::Dir(at) | Change::Opaque(at) => (at, "/".to_owned()),
                Change::Whiteout(_) => continue,
            };
            let parts: Vec<&str> = at.split('/').collect();
            for len in 1..parts.len() {
                map.insert(parts[..len].join("/"), "/".into());
            }
            if what != "/" {
                map.retain(|path, _| !below(path, at));
            }
            map.insert(at.clone(), what);
        }
    }
    map.into_iter().map(|(path, what)| (format!("/{path}"), what)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_merge_is_what_a_map_would_make_of_it(
        layers in proptest::collection::vec(proptest::collection::vec(change(), 0..8), 1..5)
    ) {
        let mut tree = Tree::new();
        for layer in &layers {
            tree.begin_layer();
            for change in layer {
                let done = match change {
                    Change::File(at, byte) => put(&mut tree, at, file(&byte.to_string())),
                    Change::Dir(at) => put(&mut tree, at, Body::empty_dir()),
                    Change::Whiteout(at) => tree.whiteout(&split(at)),
                    Change::Opaque(at) => tree.opaque(&split(at)),
                };
                // A layer that contradicts itself is refused; the model has no word for it.
                if done.is_err() {
                    return Ok(());
                }
            }
        }
        prop_assert_eq!(listing(&tree), naive(&layers));
    }
}
