//! The demo's image: a minimal Debian with Python, and a web service on top of it.
//!
//! In: the release of this machine's Debian, from the mirror that its apt uses. Out: an OCI image
//! layout of two layers, kept for the next run as long as its recipe stays the same.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::debian::{self, Debian, remove};
use crate::oci::{Content, Item, Layout, Runs};

/// What is on top of `minbase`.
const PACKAGES: &str = "python3";
/// What a service does not need of its Debian: most of the files, and a third of the bytes.
const DROPPED: [&str; 10] = [
    "dev",
    "run",
    "tmp",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
];
const SERVICE: [Item<'static>; 3] = [
    Item { path: "/srv/counter", mode: 0o755, content: Content::Directory },
    Item {
        path: "/srv/counter/counter.py",
        mode: 0o644,
        content: Content::Bytes(include_bytes!("service/counter.py")),
    },
    Item { path: "/usr/local/bin/ask", mode: 0o755, content: Content::Bytes(include_bytes!("service/ask")) },
];
const RUNS: Runs<'static> = Runs {
    entrypoint: &["/usr/bin/python3", "-I", "-S"],
    cmd: &["counter.py"],
    env: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    working_dir: "/srv/counter",
};

/// The image, made if `place` does not hold it yet.
pub fn ensure(place: &Path) -> Result<PathBuf> {
    let debian = Debian::of_this_machine()?;
    let layout = place.join("counter.oci");
    let (stamp, recipe) = (place.join("counter.recipe"), recipe(&debian));
    if fs::read_to_string(&stamp).is_ok_and(|known| known == recipe) && layout.is_dir() {
        println!("{} is there from an earlier run", layout.display());
        return Ok(layout);
    }

    let (tree, draft) = (place.join("debian"), place.join("counter.oci.new"));
    for old in [&tree, &draft, &layout] {
        remove(old)?;
    }
    let made = debian::debootstrap(&debian, PACKAGES, &tree).and_then(|began| {
        println!("writing two layers to {}", layout.display());
        let mut image = Layout::begin(&draft)?;
        image.add_tree(&tree, began, |path| DROPPED.iter().any(|dropped| path.parent() == Some(Path::new(dropped))))?;
        image.add_items(&SERVICE)?;
        image.finish(RUNS)?;
        fs::rename(&draft, &layout).with_context(|| format!("name {}", layout.display()))?;
        fs::write(&stamp, &recipe).with_context(|| format!("write {}", stamp.display()))
    });
    for scratch in [&tree, &draft] {
        remove(scratch)?;
    }
    made.map(|()| layout)
}

/// Everything that the image is made of.
fn recipe(debian: &Debian) -> String {
    let mut recipe = format!("{} {PACKAGES}\nwithout {DROPPED:?}\n{RUNS:?}\n", debian.suite);
    for item in SERVICE {
        if let Content::Bytes(bytes) = item.content {
            recipe += &format!("{} {:o}\n{}\n", item.path, item.mode, String::from_utf8_lossy(bytes));
        }
    }
    recipe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_service_is_another_image() {
        let debian = |suite: &str| Debian { suite: suite.into(), mirror: None, proxy: None };
        assert_ne!(recipe(&debian("bookworm")), recipe(&debian("trixie")));
        assert!(recipe(&debian("bookworm")).contains("BaseHTTPRequestHandler"));
    }
}
