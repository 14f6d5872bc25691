//! What a stranger may put into a bundle's small files: anything.
//!
//! For fuzzing, and for the replay of what it has found (`fuzz/corpus/snapshot_manifest`).

use std::path::Path;

use hearth_model::error::chain;
use hearth_model::{ErrorKind, Kind, SnapshotId};

use crate::mark::Damage;
use crate::open::parse;
use crate::settle::Settled;

/// Takes it for a manifest, for checksums and for a mark.
///
/// # Panics
/// On a manifest that leads out of its bundle, or is refused without saying whose it is.
pub fn manifest(bytes: &[u8]) {
    let id = SnapshotId::from_entropy([46; 16]);
    match parse(bytes, &id) {
        Ok(manifest) => {
            for name in manifest.files() {
                let path = Path::new(&name);
                assert!(path.is_relative() && path.components().all(|part| part.as_os_str() != ".."), "{name}");
            }
            let shown: u64 = manifest.allocated_bytes();
            let again = serde_json::to_vec(&manifest).expect("it came from JSON");
            let again = parse(&again, &id).expect("as it was");
            assert_eq!((&again, again.allocated_bytes()), (&manifest, shown));
        }
        Err(error) => {
            let kind = error.kind();
            assert!(matches!(kind, ErrorKind::Corrupt | ErrorKind::Incompatible), "{kind:?}: {}", chain(&error));
            assert!(error.to_string().contains(id.as_str()) && error.hint().is_some(), "{}", chain(&error));
        }
    }
    if let Ok(damage) = serde_json::from_slice::<Damage>(bytes) {
        assert!(!damage.found().is_empty());
    }
    drop(serde_json::from_slice::<Settled>(bytes));
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_fuzzing_has_found_is_borne() {
        let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/corpus/snapshot_manifest");
        let mut files = 0;
        for file in std::fs::read_dir(corpus).expect("the corpus") {
            super::manifest(&std::fs::read(file.expect("listed").path()).expect("readable"));
            files += 1;
        }
        assert!(files > 5, "{files} files in {corpus}");
    }
}
