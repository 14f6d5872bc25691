//! The documents of a `docker save` archive without an OCI index.
//!
//! In: blobs. Out: [`Chosen`]. There is no manifest with digests here, so the image is known by
//! its configuration's digest (Docker's image id), whose `diff_ids` check what layers unpack to.

use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::blob::{Blobs, hex};
use crate::error::Problem;
use crate::limits::Limits;
use crate::oci::{Check, Chosen, Layer, check_digest, is_hex64, parse, parse_config, sha256_hex};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Image {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Finds the image of an archive and the layers it is made of.
pub(crate) fn choose(blobs: &Blobs, limits: &Limits) -> Result<Chosen, Problem> {
    let name = "manifest.json";
    let missing = |blob: &str, wanted_by: &str| Problem::MissingBlob { blob: blob.into(), wanted_by: wanted_by.into() };
    let bytes = blobs.document(name, limits)?.ok_or_else(|| missing(name, "docker save"))?;
    let mut images: Vec<Image> = parse(name, &bytes)?;
    if images.len() > 1 {
        let name = |image: Image| image.repo_tags.and_then(|tags| tags.into_iter().next()).unwrap_or(image.config);
        return Err(Problem::Several { names: images.into_iter().map(name).collect() });
    }
    let no_image = || Problem::Document { document: name.into(), problem: "lists no image".into() };
    let image = images.pop().ok_or_else(no_image)?;
    let config = blobs.document(&image.config, limits)?.ok_or_else(|| missing(&image.config, name))?;
    let digest = hex(&Sha256::digest(&config));
    // The file is named for its digest: `<hex>.json` or `blobs/sha256/<hex>`.
    let stem = image.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    let stem = stem.strip_prefix("sha256:").unwrap_or(stem);
    if is_hex64(stem) {
        check_digest(&image.config, stem, &config)?;
    }
    let document = parse_config(&image.config, &config)?;
    let diff_ids = &document.rootfs.diff_ids;
    if diff_ids.len() != image.layers.len() {
        let problem = format!("lists {} layers, but its configuration {}", image.layers.len(), diff_ids.len());
        return Err(Problem::Document { document: name.into(), problem });
    }
    if image.layers.len() > limits.max_layers {
        return Err(Problem::Limit { what: "layers", limit: limits.max_layers as u64 });
    }
    let layers = image
        .layers
        .iter()
        .zip(diff_ids)
        .enumerate()
        .map(|(n, (path, diff_id))| {
            let slice = blobs.find(path)?.ok_or_else(|| missing(path, name))?;
            let check = Check::Unpacked(sha256_hex(diff_id)?.to_owned());
            Ok(Layer { name: format!("layer {} ({path})", n + 1), slice, check })
        })
        .collect::<Result<_, Problem>>()?;
    Ok(document.chosen(format!("sha256:{digest}"), image.repo_tags.unwrap_or_default(), layers))
}
