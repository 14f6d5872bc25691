//! The import, top to bottom: look, choose, read the layers, write the image, publish.
//!
//! In: a path. Out: an image on the shelf, or nothing: everything happens in a directory that is
//! removed unless it is published.

use std::cell::Cell;
use std::fs::File;
use std::path::Path;

use hearth_model::spec::ImageConfig;

use crate::blob::{Blobs, Slice, plain};
use crate::detect::{Source, look};
use crate::erofs::{self, DataArea};
use crate::error::{ImportError, Problem};
use crate::layer::{self, Target};
use crate::limits::{Budget, Limits};
use crate::oci::{Check, Chosen, Layer, PLATFORM};
use crate::shelf::{self, Imported, ROOTFS};
use crate::tree::Tree;
use crate::{digest, docker, hostdir, oci};

/// How far an import is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress<'a> {
    /// What is being done: "reading layer 2 of 5".
    pub stage: &'a str,
    /// Bytes of the source that have been read in this stage.
    pub done: u64,
    /// Of how many; `None` where nobody knows.
    pub total: Option<u64>,
}

/// Imports what `source` holds. The same content gives the same digest, and a digest that is
/// stored already is not stored again. `progress` is called at least once per stage and every few
/// MiB, from this thread.
///
/// # Errors
/// See [`Problem`]. Nothing is left of an import that failed.
pub fn import(
    source: &Path,
    images_dir: &Path,
    limits: &Limits,
    progress: &dyn Fn(Progress<'_>),
) -> Result<Imported, ImportError> {
    run(source, images_dir, limits, progress).map_err(|problem| ImportError { path: source.to_owned(), problem })
}

fn run(path: &Path, images_dir: &Path, limits: &Limits, progress: &dyn Fn(Progress<'_>)) -> Result<Imported, Problem> {
    progress(Progress { stage: "looking at the source", done: 0, total: None });
    let source = look(path, limits)?;
    let unfinished = shelf::begin(images_dir)?;
    let whole_file = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file).map(|file| file.len());
    let unpacked = || -> Result<Slice, Problem> {
        plain(path, unfinished.path(), limits, &|done| {
            progress(Progress { stage: "unpacking the archive", done, total: whole_file });
        })
    };
    let image = match &source {
        Source::OciDir(dir) => Some(oci::choose(&Blobs::Dir(dir.clone()), limits)?),
        Source::OciTar(_) => Some(oci::choose(&Blobs::of_tar(&unpacked()?, limits)?, limits)?),
        Source::DockerTar(_) => Some(docker::choose(&Blobs::of_tar(&unpacked()?, limits)?, limits)?),
        Source::RootfsTar(_) | Source::RootfsDir(_) => None,
    };
    if let Some(image) = &image
        && let Ok(stored) = shelf::open(images_dir, &image.digest)
    {
        return Ok(stored.image);
    }

    let rootfs = unfinished.path().join(ROOTFS);
    let write = |source| Problem::Write { path: rootfs.clone(), source };
    let mut data = DataArea::new(File::create_new(&rootfs).map_err(write)?, image.is_none());
    let mut tree = Tree::new();
    let mut budget = Budget::new(limits);
    let mut target = Target { tree: &mut tree, data: &mut data, path: &rootfs, whiteouts: image.is_some() };
    match (&image, &source) {
        (Some(image), _) => read_layers(&image.layers, &mut target, &mut budget, progress)?,
        (None, Source::RootfsDir(dir)) => {
            refuse_own_store(dir, images_dir)?;
            hostdir::read(dir, &mut target, &mut budget, &|done| {
                progress(Progress { stage: "reading the directory", done, total: None });
            })?;
        }
        (None, _) => {
            let slice = File::open(path).and_then(Slice::whole);
            let slice = slice.map_err(|source| Problem::Read { what: "the archive".into(), source })?;
            let archive = Layer { name: "the archive".into(), slice, check: Check::Form };
            read_layers(&[archive], &mut target, &mut budget, progress)?;
        }
    }

    progress(Progress { stage: "writing the file system", done: 0, total: None });
    let size_bytes = erofs::finish(data, &tree).map_err(write)?;
    let imported = imported(image, size_bytes, &tree);
    shelf::publish(images_dir, unfinished, &imported)?;
    Ok(imported)
}

fn read_layers(
    layers: &[Layer],
    target: &mut Target<'_>,
    budget: &mut Budget<'_>,
    progress: &dyn Fn(Progress<'_>),
) -> Result<(), Problem> {
    let total = Some(layers.iter().map(|layer| layer.slice.len()).sum());
    let before = Cell::new(0);
    for (n, layer) in layers.iter().enumerate() {
        let stage = format!("reading layer {} of {}", n + 1, layers.len());
        let report = |done: u64| progress(Progress { stage: &stage, done: before.get() + done, total });
        report(0);
        layer::read(layer, target, budget, &report)?;
        before.set(before.get() + layer.slice.len());
    }
    Ok(())
}

/// A directory that holds the store would be imported into itself.
fn refuse_own_store(dir: &Path, images_dir: &Path) -> Result<(), Problem> {
    let real =
        |path: &Path| path.canonicalize().map_err(|source| Problem::Read { what: path.display().to_string(), source });
    let images_dir = real(images_dir)?;
    if images_dir.starts_with(real(dir)?) { Err(Problem::HoldsStore { images_dir }) } else { Ok(()) }
}

fn imported(image: Option<Chosen>, size_bytes: u64, tree: &Tree) -> Imported {
    let platform = PLATFORM.to_owned();
    match image {
        Some(Chosen { digest, config, labels, created, names, layers: _ }) => {
            Imported { digest, config, size_bytes, platform, labels, created, names }
        }
        None => Imported {
            digest: format!("sha256:{}", digest::of(tree)),
            config: ImageConfig::default(),
            size_bytes,
            platform,
            labels: std::collections::BTreeMap::new(),
            created: None,
            names: Vec::new(),
        },
    }
}
