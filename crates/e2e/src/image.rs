//! Images for stories: busybox, a program that counts in its memory, and whatever a story adds.
//!
//! Out: an OCI layout directory with one layer. Nothing is fetched.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::needs;

/// The program of most stories: it counts in a variable of a shell, so in the guest's memory
/// alone. Its nonce is new with each start: the same nonce means the same process.
const COUNTER: &str = r#"#!/bin/sh
mkfifo /run/counter.out /run/counter.in
read -r nonce < /proc/sys/kernel/random/uuid
count=0
echo "counter ready"
while read -r add < /run/counter.in; do
    count=$((count + add))
    echo "$nonce $count" > /run/counter.out
done
"#;

/// Adds its argument and prints nonce and count; the counter may only just be starting.
const COUNT: &str = r#"#!/bin/sh
until [ -p /run/counter.in ]; do sleep 0.05; done
echo "$1" > /run/counter.in
read -r answer < /run/counter.out
echo "$answer"
"#;

#[derive(Debug, Clone)]
enum What {
    File(Vec<u8>),
    Dir,
    Link(String),
}

#[derive(Debug, Clone)]
struct Entry {
    path: String,
    mode: u32,
    owner: u64,
    what: What,
}

/// An image as it is put together.
#[derive(Debug, Clone)]
pub struct TestImage {
    entries: Vec<Entry>,
    config: serde_json::Map<String, Value>,
}

impl TestImage {
    /// Nothing but directories.
    #[must_use]
    pub fn empty() -> Self {
        let mut image = Self { entries: Vec::new(), config: serde_json::Map::new() };
        for dir in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var"] {
            image = image.dir(dir, 0o755, 0);
        }
        image.dir("tmp", 0o1777, 0)
    }

    /// Busybox under all its names, users `root` and `app` (1000), and the counter's programs;
    /// its command is `sleep infinity`.
    ///
    /// # Errors
    /// If there is no busybox.
    pub fn busybox() -> Result<Self> {
        let busybox = needs::busybox().map_err(anyhow::Error::msg)?;
        let bytes = std::fs::read(&busybox).with_context(|| format!("read {}", busybox.display()))?;
        let list = Command::new(&busybox).arg("--list").output().context("ask busybox for its names")?;
        let mut image = Self::empty().file("bin/busybox", 0o755, bytes);
        for name in String::from_utf8_lossy(&list.stdout).lines().filter(|name| *name != "busybox") {
            image = image.link(&format!("bin/{name}"), "busybox");
        }
        Ok(image
            .file("etc/passwd", 0o644, "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
            .file("etc/group", 0o644, "root:x:0:\napp:x:1000:\n")
            .dir("home/app", 0o755, 1000)
            .file("bin/counter", 0o755, COUNTER)
            .file("bin/count", 0o755, COUNT)
            .cmd(&["sleep", "infinity"]))
    }

    /// Busybox, and runs the counter.
    ///
    /// # Errors
    /// If there is no busybox.
    pub fn counter() -> Result<Self> {
        Ok(Self::busybox()?.cmd(&["/bin/counter"]))
    }

    /// With that file, root's.
    #[must_use]
    pub fn file(self, path: &str, mode: u32, content: impl Into<Vec<u8>>) -> Self {
        self.entry(path, mode, 0, What::File(content.into()))
    }

    /// With that directory.
    #[must_use]
    pub fn dir(self, path: &str, mode: u32, owner: u64) -> Self {
        self.entry(path, mode, owner, What::Dir)
    }

    /// With that symbolic link.
    #[must_use]
    pub fn link(self, path: &str, target: &str) -> Self {
        self.entry(path, 0o777, 0, What::Link(target.into()))
    }

    /// With that entrypoint.
    #[must_use]
    pub fn entrypoint(self, argv: &[&str]) -> Self {
        self.set("Entrypoint", json!(argv))
    }

    /// With that command.
    #[must_use]
    pub fn cmd(self, argv: &[&str]) -> Self {
        self.set("Cmd", json!(argv))
    }

    /// With those variables, as `KEY=value`.
    #[must_use]
    pub fn env(self, variables: &[&str]) -> Self {
        self.set("Env", json!(variables))
    }

    /// With that user.
    #[must_use]
    pub fn user(self, user: &str) -> Self {
        self.set("User", json!(user))
    }

    /// With that working directory.
    #[must_use]
    pub fn workdir(self, dir: &str) -> Self {
        self.set("WorkingDir", json!(dir))
    }

    fn set(mut self, key: &str, value: Value) -> Self {
        self.config.insert(key.into(), value);
        self
    }

    fn entry(mut self, path: &str, mode: u32, owner: u64, what: What) -> Self {
        self.entries.push(Entry { path: path.into(), mode, owner, what });
        self
    }

    /// Its files as a tar archive: a layer, or a root file system.
    ///
    /// # Errors
    /// If a path does not fit.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for entry in &self.entries {
            let mut header = Header::new_gnu();
            header.set_mode(entry.mode);
            header.set_uid(entry.owner);
            header.set_gid(entry.owner);
            header.set_mtime(1_700_000_000);
            match &entry.what {
                What::File(content) => {
                    header.set_size(content.len() as u64);
                    tar.append_data(&mut header, &entry.path, content.as_slice())?;
                }
                What::Dir => {
                    header.set_entry_type(EntryType::Directory);
                    header.set_size(0);
                    tar.append_data(&mut header, format!("{}/", entry.path), std::io::empty())?;
                }
                What::Link(target) => {
                    header.set_entry_type(EntryType::Symlink);
                    header.set_size(0);
                    tar.append_link(&mut header, &entry.path, target)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }

    /// Writes it as an OCI layout directory.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write_oci(&self, dir: &Path) -> Result<PathBuf> {
        write_oci(dir, &self.tar()?, &Value::Object(self.config.clone()))?;
        Ok(dir.to_owned())
    }
}

/// Writes an OCI layout with one layer, whatever the layer's bytes are.
fn write_oci(dir: &Path, layer: &[u8], config: &Value) -> Result<()> {
    let blobs = dir.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).with_context(|| format!("make {}", blobs.display()))?;
    let blob = |media: &str, bytes: &[u8]| -> Result<Value> {
        let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        std::fs::write(blobs.join(&digest), bytes)?;
        Ok(json!({"mediaType": media, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let layer = blob("application/vnd.oci.image.layer.v1.tar", layer)?;
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", &serde_json::to_vec(&config)?)?;
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config, "layers": [layer],
    });
    let manifest = blob("application/vnd.oci.image.manifest.v1+json", &serde_json::to_vec(&manifest)?)?;
    std::fs::write(dir.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string())?;
    std::fs::write(dir.join("oci-layout"), json!({"imageLayoutVersion": "1.0.0"}).to_string())?;
    Ok(())
}
