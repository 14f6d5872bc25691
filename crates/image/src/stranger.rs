//! What a stranger may give us to import: an archive of anything.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/image_archive`, `image_layer`).

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use hearth_model::error::chain;
use hearth_model::{ErrorKind, Kind};

use crate::blob::Slice;
use crate::erofs::{self, DataArea};
use crate::error::{ImportError, Problem};
use crate::layer::{self, Target};
use crate::limits::{Budget, Limits};
use crate::oci::{Check, Layer};
use crate::shelf::{self, ROOTFS};
use crate::tree::Tree;

/// Small enough that each of them is reached.
fn limits() -> Limits {
    Limits {
        max_layers: 4,
        max_entries: 64,
        max_expanded_bytes: 256 << 10,
        max_path_len: 200,
        max_metadata_bytes: 16 << 10,
        max_document_bytes: 8 << 10,
    }
}

/// More than an image may have under these limits.
const LARGEST_IMAGE: u64 = 2 << 20;

/// A place for one import: in memory, where the system has such a place.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let memory = Path::new("/dev/shm");
        let place = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        Self(place.expect("a directory"))
    }

    fn archive(&self, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join("archive");
        fs::write(&path, bytes).expect("written");
        path
    }
}

thread_local! {
    static PLACE: Place = Place::new();
}

/// Imports it.
///
/// # Panics
/// On an import that leaves something although it failed, blames the host, or is larger than its
/// limits.
pub fn archive(bytes: &[u8]) {
    PLACE.with(|place| {
        let source = place.archive(bytes);
        let images = place.0.path().join("images");
        fs::create_dir_all(&images).expect("made");
        match crate::import(&source, &images, &limits(), &|_| {}) {
            Ok(image) => {
                let stored = shelf::open(&images, &image.digest).expect("it was just stored");
                assert_eq!(stored.image, image);
                assert!(image.size_bytes <= LARGEST_IMAGE, "{} bytes", image.size_bytes);
                shelf::remove(&images, &image.digest).expect("removed");
            }
            Err(error) => blamed(&error),
        }
        let left: Vec<_> = fs::read_dir(&images).expect("listed").map(|entry| entry.expect("one").path()).collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// Reads it as a layer, after its headers were given the checksums that they need: those keep
/// errors out, and no enemy.
///
/// # Panics
/// On a layer that is refused without its name, or that makes a larger image than its limits allow.
pub fn layer(bytes: &[u8]) {
    let mut bytes = bytes.to_vec();
    repair_checksums(&mut bytes);
    PLACE.with(|place| {
        let source = place.archive(&bytes);
        for whiteouts in [true, false] {
            if let Err(problem) = read(&source, &place.0.path().join(ROOTFS), whiteouts) {
                blamed(&ImportError { path: source.clone(), problem });
            }
        }
    });
}

fn read(source: &Path, rootfs: &Path, whiteouts: bool) -> Result<(), Problem> {
    let slice = File::open(source).and_then(Slice::whole).expect("it was just written");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(rootfs).expect("made");
    let limits = limits();
    let (mut tree, mut data, mut budget) = (Tree::new(), DataArea::new(file, true), Budget::new(&limits));
    let mut target = Target { tree: &mut tree, data: &mut data, path: rootfs, whiteouts };
    // Twice: what one layer made, the next one meets.
    for name in ["layer 1", "layer 2"] {
        let layer = Layer { name: name.into(), slice: slice.clone(), check: Check::Form };
        layer::read(&layer, &mut target, &mut budget, &|_| {})?;
    }
    let size = erofs::finish(data, &tree).map_err(|source| Problem::Write { path: rootfs.to_owned(), source })?;
    assert!(size <= LARGEST_IMAGE, "{size} bytes");
    Ok(())
}

/// It is the archive's fault, and the error says so and what to do.
fn blamed(error: &ImportError) {
    let kind = error.kind();
    let expected = matches!(kind, ErrorKind::Invalid | ErrorKind::Corrupt | ErrorKind::Unsupported);
    assert!(expected, "{kind:?}: {}", chain(error));
    assert!(error.hint().is_some(), "{}", chain(error));
    assert!(error.to_string().contains("archive"), "{}", chain(error));
}

fn repair_checksums(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512).filter(|block| block[257..].starts_with(b"ustar")) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[cfg(test)]
mod tests {
    fn replay(target: &str, run: fn(&[u8])) {
        let corpus = format!("{}/../../fuzz/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut files = 0;
        for file in std::fs::read_dir(&corpus).expect("the corpus") {
            run(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }

    #[test]
    fn archives_that_fuzzing_has_found_are_borne() {
        replay("image_archive", super::archive);
    }

    #[test]
    fn layers_that_fuzzing_has_found_are_borne() {
        replay("image_layer", super::layer);
    }
}
