//! Makes layers, OCI layouts and `docker save` archives in memory.

use std::io::Write;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

pub fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes that no compressor makes smaller.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// A tar in the making; names are written as they are given, however wrong.
pub struct Tar(tar::Builder<Vec<u8>>);

pub struct Entry {
    header: tar::Header,
    path: Vec<u8>,
    link: Option<Vec<u8>>,
    data: Vec<u8>,
    pax: Vec<(String, Vec<u8>)>,
}

pub fn entry(kind: tar::EntryType, path: &str) -> Entry {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(if kind == tar::EntryType::Directory { 0o755 } else { 0o644 });
    header.set_mtime(1_000_000_000);
    header.set_uid(0);
    header.set_gid(0);
    Entry { header, path: path.into(), link: None, data: Vec::new(), pax: Vec::new() }
}

pub fn file(path: &str, data: &[u8]) -> Entry {
    Entry { data: data.to_vec(), ..entry(tar::EntryType::Regular, path) }
}

pub fn dir(path: &str) -> Entry {
    entry(tar::EntryType::Directory, path)
}

pub fn symlink(path: &str, target: &str) -> Entry {
    Entry { link: Some(target.into()), ..entry(tar::EntryType::Symlink, path) }
}

pub fn hard_link(path: &str, target: &str) -> Entry {
    Entry { link: Some(target.into()), ..entry(tar::EntryType::Link, path) }
}

impl Entry {
    pub fn mode(mut self, mode: u32) -> Self {
        self.header.set_mode(mode);
        self
    }

    pub fn owner(mut self, uid: u64, gid: u64) -> Self {
        self.header.set_uid(uid);
        self.header.set_gid(gid);
        self
    }

    pub fn device(mut self, major: u32, minor: u32) -> Self {
        self.header.set_device_major(major).expect("ustar");
        self.header.set_device_minor(minor).expect("ustar");
        self
    }

    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        self.pax.push((key.into(), value.into()));
        self
    }

    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }
}

impl Tar {
    pub fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    pub fn of(entries: Vec<Entry>) -> Vec<u8> {
        entries.into_iter().fold(Self::new(), Self::add).finish()
    }

    pub fn add(mut self, entry: Entry) -> Self {
        let Entry { mut header, path, link, data, mut pax } = entry;
        let raw = header.as_ustar_mut().expect("ustar");
        if path.len() <= 100 {
            raw.name[..path.len()].copy_from_slice(&path);
        } else {
            pax.push(("path".into(), path));
        }
        match link {
            Some(link) if link.len() <= 100 => raw.linkname[..link.len()].copy_from_slice(&link),
            Some(link) => pax.push(("linkpath".into(), link)),
            None => {}
        }
        header.set_size(data.len() as u64);
        header.set_cksum();
        if !pax.is_empty() {
            let records: Vec<(&str, &[u8])> = pax.iter().map(|(key, value)| (key.as_str(), &value[..])).collect();
            self.0.append_pax_extensions(records).expect("in memory");
        }
        self.0.append(&header, &data[..]).expect("in memory");
        self
    }

    pub fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("in memory")
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("in memory");
    encoder.finish().expect("in memory")
}

pub fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).expect("in memory")
}

/// An OCI layout or docker archive: names and contents.
#[derive(Default, Clone)]
pub struct Layout {
    pub files: Vec<(String, Vec<u8>)>,
}

impl Layout {
    /// Adds a blob; its descriptor.
    pub fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = hex(bytes);
        self.files.push((format!("blobs/sha256/{digest}"), bytes.to_vec()));
        serde_json::json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    /// Adds configuration, layers and manifest; the manifest's descriptor, with its platform.
    pub fn image(&mut self, arch: &str, layers: &[Vec<u8>]) -> serde_json::Value {
        self.image_of(&config(arch, layers), layers)
    }

    pub fn image_of(&mut self, config: &serde_json::Value, layers: &[Vec<u8>]) -> serde_json::Value {
        let layers: Vec<_> =
            layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let described = self.blob("application/vnd.oci.image.config.v1+json", &json(config));
        let manifest = serde_json::json!({ "schemaVersion": 2, "config": described, "layers": layers });
        let mut descriptor = self.blob("application/vnd.oci.image.manifest.v1+json", &json(&manifest));
        descriptor["platform"] = serde_json::json!({ "os": "linux", "architecture": config["architecture"] });
        descriptor
    }

    pub fn index(mut self, manifests: &[serde_json::Value]) -> Self {
        self.files.push(("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()));
        let index = serde_json::json!({ "schemaVersion": 2, "manifests": manifests });
        self.files.push(("index.json".into(), json(&index)));
        self
    }

    /// A layout of one linux/amd64 image.
    pub fn oci(layers: &[Vec<u8>]) -> Self {
        let mut layout = Self::default();
        let manifest = layout.image("amd64", layers);
        layout.index(&[manifest])
    }

    /// What `docker save` made before it knew OCI.
    pub fn docker(layers: &[Vec<u8>]) -> Self {
        let mut layout = Self::default();
        let config = json(&config("amd64", layers));
        let config_name = format!("{}.json", hex(&config));
        layout.files.push((config_name.clone(), config));
        let mut names = Vec::new();
        for (n, layer) in layers.iter().enumerate() {
            names.push(format!("{n}/layer.tar"));
            layout.files.push((format!("{n}/layer.tar"), layer.clone()));
        }
        let manifest = serde_json::json!([{ "Config": config_name, "RepoTags": ["app:1"], "Layers": names }]);
        layout.files.push(("manifest.json".into(), json(&manifest)));
        layout
    }

    pub fn write_dir(&self, to: &Path) -> PathBuf {
        for (name, bytes) in &self.files {
            let path = to.join(name);
            std::fs::create_dir_all(path.parent().expect("below")).expect("mkdir");
            std::fs::write(path, bytes).expect("write");
        }
        to.to_owned()
    }

    pub fn tar(&self) -> Vec<u8> {
        Tar::of(self.files.iter().map(|(name, bytes)| file(name, bytes)).collect())
    }

    /// Changes the file whose name contains `part`.
    pub fn change(&mut self, part: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let found = self.files.iter_mut().find(|(name, _)| name.contains(part)).expect("such a file");
        change(&mut found.1);
    }
}

pub fn config(arch: &str, layers: &[Vec<u8>]) -> serde_json::Value {
    let diff_ids: Vec<String> = layers.iter().map(|layer| format!("sha256:{}", hex(layer))).collect();
    serde_json::json!({
        "os": "linux", "architecture": arch, "created": "2026-01-02T03:04:05Z",
        "config": {
            "Entrypoint": ["/bin/app", "--serve"], "Cmd": ["now"], "Env": ["A=1", "PATH=/bin"],
            "WorkingDir": "/srv", "User": "1000:1000", "Labels": { "who": "us" }
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids }
    })
}

pub fn json(value: &serde_json::Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("JSON")
}
