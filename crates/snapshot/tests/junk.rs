//! Manifests, checksums and marks that are anything: a bundle is opened, or refused with an error.

#[path = "support/sample.rs"]
mod sample;

use std::fs;
use std::path::Path;

use hearth_model::error::{ErrorKind, Kind, chain};
use hearth_snapshot::{DAMAGED, MANIFEST, SETTLED, check, open, settle};
use proptest::prelude::*;

/// One bundle for all cases, with its own manifest and checksums.
struct Host {
    dir: tempfile::TempDir,
    manifest: Vec<u8>,
    settled: Vec<u8>,
}

thread_local! {
    static HOST: Host = {
        let dir = tempfile::tempdir().expect("a directory");
        let bundle = sample::bundle(dir.path(), 1);
        settle(&bundle).expect("settles");
        let read = |file| fs::read(bundle.dir().join(file)).expect("reads");
        Host { manifest: read(MANIFEST), settled: read(SETTLED), dir }
    };
}

/// Puts that into a file of the bundle, and sees that it is opened or refused.
fn with(host: &Host, file: &str, content: &[u8]) {
    let id = sample::id(1);
    let path = host.dir.path().join(id.as_str()).join(file);
    fs::write(&path, content).expect("writes");
    match open(host.dir.path(), &id) {
        // Whatever it says, no file outside of the bundle is meant.
        Ok(bundle) => {
            for name in bundle.manifest().files() {
                let path = Path::new(&name);
                assert!(path.is_relative() && !name.contains(".."), "{name}");
            }
        }
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Incompatible), "{kind:?}: {}", chain(&error));
            assert!(error.to_string().contains(id.as_str()), "{error}");
            assert!(error.hint().is_some(), "{error}");
        }
    }
}

proptest! {
    #[test]
    fn anything_in_the_place_of_a_manifest(content in proptest::collection::vec(any::<u8>(), 0..2000)) {
        HOST.with(|host| with(host, MANIFEST, &content));
    }

    #[test]
    fn a_manifest_that_was_changed(
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<proptest::sample::Index>(),
        twice in any::<proptest::sample::Index>(),
    ) {
        HOST.with(|host| {
            let mut content = host.manifest.clone();
            for (at, byte) in changes {
                let at = at.index(content.len());
                content[at] = byte;
            }
            with(host, MANIFEST, &content);
            let (cut, twice) = (cut.index(content.len()), twice.index(content.len()));
            with(host, MANIFEST, &[&content[..cut], &content[twice..]].concat());
        });
    }

    #[test]
    fn anything_in_the_place_of_a_mark(content in proptest::collection::vec(any::<u8>(), 0..300)) {
        HOST.with(|host| {
            with(host, MANIFEST, &host.manifest);
            with(host, DAMAGED, &content);
            assert!(open(host.dir.path(), &sample::id(1)).is_err(), "a mark that cannot be read is one");
        });
    }
}

proptest! {
    // Each one that is no JSON is marked, which waits for the disk.
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn anything_in_the_place_of_checksums(
        content in proptest::collection::vec(any::<u8>(), 0..400),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        HOST.with(|host| {
            let (id, mut changed) = (sample::id(1), host.settled.clone());
            for (at, byte) in changes {
                let at = at.index(changed.len());
                changed[at] = byte;
            }
            let settled = host.dir.path().join(id.as_str()).join(SETTLED);
            with(host, MANIFEST, &host.manifest);
            for content in [&content, &changed] {
                fs::write(&settled, content).expect("writes");
                if let Err(error) = check(host.dir.path(), &id) {
                    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", chain(&error));
                }
            }
            fs::write(&settled, &host.settled).expect("writes");
            check(host.dir.path(), &id).expect("is well again");
        });
    }
}

#[test]
fn a_manifest_without_end_is_not_read_to_its_end() {
    HOST.with(|host| {
        let path = host.dir.path().join(sample::id(1).as_str()).join(MANIFEST);
        // Sparse: longer than this machine has memory, and of no bytes on disk.
        fs::File::create(&path).and_then(|file| file.set_len(1 << 40)).expect("made");
        let error = open(host.dir.path(), &sample::id(1)).expect_err("no manifest");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains("larger than any manifest"), "{error}");
    });
}
