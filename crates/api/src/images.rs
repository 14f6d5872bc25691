//! `/images`: OCI images, imported and made into root file systems.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An image that instances can be made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Image {
    /// When it was imported.
    pub created_at: Timestamp,
    /// Digest of its manifest, `sha256:…`.
    pub digest: String,
    /// Its reference in canonical spelling.
    #[schema(example = "docker.io/library/alpine:latest")]
    pub name: String,
    /// How far the import is.
    pub status: ImageStatus,
    /// Its command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Its entrypoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its variables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Why `status` is `failed`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `os/arch`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Size of its root file system in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
    /// Ours: the user that its program runs as; left out for root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Where its program starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
}

/// How far an import is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ImageStatus {
    /// Not begun.
    Pending,
    /// Being fetched.
    Pulling,
    /// Being made into a root file system.
    Converting,
    /// Usable.
    Ready,
    /// Failed; `error` says why.
    Failed,
}

/// `POST /images`: answers with the image of that name, which must have been imported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateImage {
    /// OCI image reference.
    #[schema(example = "docker.io/library/nginx:latest")]
    pub name: String,
    /// The user's tags; given ones are added to the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// `POST /images/import` (ours): makes an image of a file or directory on the server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Absolute path on the server: an OCI layout (directory or tar), a `docker save` tar, or a
    /// root file system (directory or tar).
    #[schema(example = "/srv/images/web.tar")]
    pub path: String,
    /// The reference that it gets.
    #[schema(example = "web:1")]
    pub name: String,
    /// The user's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// Query of `GET /images`: only tags, `tags[key]=value`, all of which must match.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListImages {}
