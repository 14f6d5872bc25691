//! The documents of an OCI layout: from `index.json` to one manifest and its configuration.
//!
//! In: blobs. Out: [`Chosen`]: the linux/amd64 image and the layers to read, every document
//! checked against its digest.

use std::collections::BTreeMap;

use hearth_model::spec::ImageConfig;
use serde::{Deserialize, Deserializer};
use sha2::{Digest, Sha256};

use crate::blob::{Blobs, Slice, hex, read_document};
use crate::error::Problem;
use crate::limits::Limits;

pub(crate) const PLATFORM: &str = "linux/amd64";
const MAX_INDEX_DEPTH: usize = 4;
const MAX_MANIFESTS: usize = 1000;

/// The image that is imported.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// `sha256:…` by which the image is known from now on.
    pub(crate) digest: String,
    pub(crate) config: ImageConfig,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: Option<String>,
    /// What the source calls it, if it does.
    pub(crate) names: Vec<String>,
    pub(crate) layers: Vec<Layer>,
}

/// A layer's blob.
#[derive(Debug)]
pub(crate) struct Layer {
    /// For messages.
    pub(crate) name: String,
    pub(crate) slice: Slice,
    pub(crate) check: Check,
}

/// How a layer shows that it is whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Check {
    /// Hex sha256 of the blob as it is stored.
    Stored(String),
    /// Hex sha256 of what it unpacks to.
    Unpacked(String),
    /// By nothing but its own format.
    Form,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    #[serde(default)]
    size: u64,
    platform: Option<Platform>,
    #[serde(default, deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    variant: Option<String>,
}

/// A manifest or an index: old ones do not say which.
#[derive(Debug, Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// An image configuration.
#[derive(Debug, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(flatten)]
    platform: Platform,
    created: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    config: RunConfig,
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) rootfs: Rootfs,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RunConfig {
    #[serde(deserialize_with = "or_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    working_dir: String,
    #[serde(deserialize_with = "or_default")]
    user: String,
    #[serde(deserialize_with = "or_default")]
    labels: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
pub(crate) struct Rootfs {
    #[serde(default, deserialize_with = "or_default")]
    pub(crate) diff_ids: Vec<String>,
}

/// Go writes `null` for what is empty.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A manifest that could be meant.
#[derive(Debug)]
struct Candidate {
    descriptor: Descriptor,
    platform: Platform,
    name: Option<String>,
}

/// Finds the image of a layout and the layers it is made of.
pub(crate) fn choose(blobs: &Blobs, limits: &Limits) -> Result<Chosen, Problem> {
    let name = "index.json";
    let bytes = blobs
        .document(name, limits)?
        .ok_or_else(|| Problem::MissingBlob { blob: name.into(), wanted_by: "the OCI layout".into() })?;
    let index: Document = parse(name, &bytes)?;
    let mut candidates = Vec::new();
    collect(blobs, limits, name, index.manifests.unwrap_or_default(), None, 0, &mut candidates)?;
    let chosen = pick(candidates)?;
    let manifest: Document = parse(&chosen.descriptor.digest, &blob(blobs, limits, &chosen.descriptor, name)?)?;
    let wanted_by = format!("manifest {}", chosen.descriptor.digest);
    let (Some(config), Some(layers)) = (manifest.config, manifest.layers) else {
        return Err(Problem::Document { document: wanted_by, problem: "has no config or no layers".into() });
    };
    if layers.len() > limits.max_layers {
        return Err(Problem::Limit { what: "layers", limit: limits.max_layers as u64 });
    }
    let document = parse_config(&config.digest, &blob(blobs, limits, &config, &wanted_by)?)?;
    let layers = layers
        .iter()
        .enumerate()
        .map(|(n, descriptor)| {
            let name = format!("layer {} ({})", n + 1, descriptor.digest);
            refuse_unreadable(&name, &descriptor.media_type)?;
            let slice = find(blobs, descriptor, &wanted_by)?;
            Ok(Layer { name, slice, check: Check::Stored(sha256_hex(&descriptor.digest)?.to_owned()) })
        })
        .collect::<Result<_, Problem>>()?;
    Ok(document.chosen(chosen.descriptor.digest.clone(), chosen.name.into_iter().collect(), layers))
}

/// Parses a configuration and refuses one that is not for us.
pub(crate) fn parse_config(name: &str, bytes: &[u8]) -> Result<ConfigDocument, Problem> {
    let document: ConfigDocument = parse(&format!("configuration {name}"), bytes)?;
    let platform = &document.platform;
    if !platform.is_known() {
        let what = format!("{name} is the configuration of an artifact, not of a container image");
        return Err(Problem::Unsupported { what });
    }
    if !platform.runs_here() {
        return Err(Problem::NoPlatform { have: vec![platform.text()] });
    }
    Ok(document)
}

impl ConfigDocument {
    pub(crate) fn chosen(self, digest: String, names: Vec<String>, layers: Vec<Layer>) -> Chosen {
        let RunConfig { entrypoint, cmd, env, working_dir, user, labels } = self.config;
        let config = ImageConfig { entrypoint, cmd, env, workdir: working_dir, user };
        Chosen { digest, config, labels, created: self.created, names, layers }
    }
}

impl Platform {
    fn runs_here(&self) -> bool {
        self.os == "linux" && self.architecture == "amd64"
    }

    /// Attestations say "unknown", artifacts nothing.
    fn is_known(&self) -> bool {
        !matches!(self.os.as_str(), "" | "unknown")
    }

    fn text(&self) -> String {
        let variant = self.variant.as_deref().filter(|v| !v.is_empty()).map(|v| format!("/{v}")).unwrap_or_default();
        format!("{}/{}{variant}", self.os, self.architecture)
    }

    /// Plain amd64 before those that need newer CPUs.
    fn rank(&self) -> &str {
        self.variant.as_deref().unwrap_or_default()
    }
}

fn collect(
    blobs: &Blobs,
    limits: &Limits,
    wanted_by: &str,
    descriptors: Vec<Descriptor>,
    name: Option<&str>,
    depth: usize,
    found: &mut Vec<Candidate>,
) -> Result<(), Problem> {
    if depth > MAX_INDEX_DEPTH {
        let problem = format!("is more than {MAX_INDEX_DEPTH} indexes deep");
        return Err(Problem::Document { document: wanted_by.to_owned(), problem });
    }
    for descriptor in descriptors {
        if found.len() >= MAX_MANIFESTS {
            return Err(Problem::Limit { what: "manifests", limit: MAX_MANIFESTS as u64 });
        }
        let own_name = ["io.containerd.image.name", "org.opencontainers.image.ref.name"]
            .iter()
            .find_map(|key| descriptor.annotations.get(*key).cloned())
            .or_else(|| name.map(str::to_owned));
        let is_index = descriptor.media_type.contains("index") || descriptor.media_type.contains("manifest.list");
        if let (Some(platform), false) = (&descriptor.platform, is_index) {
            // Attestations beside the images: not meant to be run.
            let platform = platform.clone();
            if platform.is_known() {
                found.push(Candidate { descriptor, platform, name: own_name });
            }
            continue;
        }
        let digest = descriptor.digest.clone();
        let document: Document = parse(&digest, &blob(blobs, limits, &descriptor, wanted_by)?)?;
        if let Some(manifests) = document.manifests {
            collect(blobs, limits, &digest, manifests, own_name.as_deref(), depth + 1, found)?;
        } else if let Some(config) = document.config {
            // No platform beside the digest: the configuration says it.
            let bytes = blob(blobs, limits, &config, &digest)?;
            let platform: Platform = parse(&config.digest, &bytes)?;
            if platform.is_known() {
                found.push(Candidate { descriptor, platform, name: own_name });
            }
        } else {
            return Err(Problem::Document { document: digest, problem: "is neither a manifest nor an index".into() });
        }
    }
    Ok(())
}

fn pick(candidates: Vec<Candidate>) -> Result<Candidate, Problem> {
    let mut have: Vec<String> = candidates.iter().map(|c| c.platform.text()).collect();
    let mut fitting: Vec<Candidate> = candidates.into_iter().filter(|c| c.platform.runs_here()).collect();
    fitting.sort_by(|a, b| (a.platform.rank(), &a.descriptor.digest).cmp(&(b.platform.rank(), &b.descriptor.digest)));
    fitting.dedup_by(|a, b| a.descriptor.digest == b.descriptor.digest);
    let same_rank = fitting.iter().filter(|c| c.platform.rank() == fitting[0].platform.rank()).count();
    if same_rank > 1 {
        let name = |c: &Candidate| c.name.clone().unwrap_or_else(|| c.descriptor.digest.clone());
        return Err(Problem::Several { names: fitting.iter().map(name).collect() });
    }
    if have.is_empty() {
        return Err(Problem::Document { document: "index.json".into(), problem: "lists no image".into() });
    }
    have.sort();
    have.dedup();
    fitting.into_iter().next().ok_or(Problem::NoPlatform { have })
}

/// The document that a descriptor names, checked.
fn blob(blobs: &Blobs, limits: &Limits, descriptor: &Descriptor, wanted_by: &str) -> Result<Vec<u8>, Problem> {
    let expected = sha256_hex(&descriptor.digest)?;
    let bytes = read_document(find(blobs, descriptor, wanted_by)?, &descriptor.digest, limits)?;
    check_digest(&descriptor.digest, expected, &bytes)?;
    Ok(bytes)
}

pub(crate) fn check_digest(blob: &str, expected: &str, bytes: &[u8]) -> Result<(), Problem> {
    let found = hex(&Sha256::digest(bytes));
    if found == expected {
        return Ok(());
    }
    Err(Problem::BlobDigest { blob: blob.to_owned(), expected: expected.to_owned(), found })
}

fn find(blobs: &Blobs, descriptor: &Descriptor, wanted_by: &str) -> Result<Slice, Problem> {
    let path = format!("blobs/sha256/{}", sha256_hex(&descriptor.digest)?);
    let missing = || Problem::MissingBlob { blob: descriptor.digest.clone(), wanted_by: wanted_by.to_owned() };
    let slice = blobs.find(&path)?.ok_or_else(missing)?;
    if slice.len() != descriptor.size {
        let (expected, found) = (descriptor.size, slice.len());
        return Err(Problem::BlobSize { blob: descriptor.digest.clone(), expected, found });
    }
    Ok(slice)
}

/// The digits of a digest; they become part of a path, so nothing else passes.
pub(crate) fn sha256_hex(digest: &str) -> Result<&str, Problem> {
    let digits = digest.strip_prefix("sha256:").filter(|hex| is_hex64(hex));
    digits.ok_or_else(|| Problem::Unsupported { what: format!("the digest {digest:?} is not sha256 and 64 digits") })
}

pub(crate) fn is_hex64(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Layers say what they are; how they are compressed is seen when they are read.
fn refuse_unreadable(name: &str, media_type: &str) -> Result<(), Problem> {
    let is_layer = media_type.is_empty() || (media_type.contains("tar") && !media_type.contains("encrypted"));
    if is_layer {
        return Ok(());
    }
    Err(Problem::Unsupported { what: format!("{name} has the type {media_type:?}, which is not a file system layer") })
}

pub(crate) fn parse<T: for<'de> Deserialize<'de>>(document: &str, bytes: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(bytes).map_err(|source| Problem::Json { document: document.to_owned(), source })
}
