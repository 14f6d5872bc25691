//! Writes OCI image layouts: what `demo` and `bench` import.
//!
//! In: directory trees and single files, one for each layer, and what the image runs. Out: a
//! directory as the OCI image layout specification has it. The same content gives the same bytes.
//!
//! Not here: compression, more than one image or platform, extended attributes, device nodes.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// An image layout that is being written.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    layers: Vec<Blob>,
}

/// What the image runs.
#[derive(Debug, Clone, Copy)]
pub struct Runs<'a> {
    /// The program and what always follows it.
    pub entrypoint: &'a [&'a str],
    /// What follows unless the user says otherwise.
    pub cmd: &'a [&'a str],
    /// `KEY=VALUE`.
    pub env: &'a [&'a str],
    /// Where it runs.
    pub working_dir: &'a str,
}

/// One file of a layer.
#[derive(Debug, Clone, Copy)]
pub struct Item<'a> {
    /// Absolute path in the image. Directories above it must be there already.
    pub path: &'a str,
    /// Permissions.
    pub mode: u32,
    /// What it is.
    pub content: Content<'a>,
}

/// What an item is.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// A directory.
    Directory,
    /// A file with these bytes.
    Bytes(&'a [u8]),
    /// A symbolic link to this.
    Link(&'a str),
}

#[derive(Debug)]
struct Blob {
    digest: String,
    size: u64,
}

impl Layout {
    /// Begins one in `dir`, which must not be there yet.
    pub fn begin(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir.join("blobs/sha256")).with_context(|| format!("make {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), layers: Vec::new() })
    }

    /// Adds a layer of all that is in `tree`, but for what is below a path for which `skip` says
    /// so (relative to the tree; a directory that is skipped stays, empty). Times after `newest`
    /// (seconds since 1970) become `newest`: what was made just now has no time worth keeping.
    pub fn add_tree(&mut self, tree: &Path, newest: u64, skip: impl Fn(&Path) -> bool) -> Result<()> {
        let mut walk = Walk { tree, newest, skip: &skip, linked: HashMap::new() };
        self.add_layer(|tar| walk.directory(tar, Path::new("")))
            .with_context(|| format!("make a layer of {}", tree.display()))
    }

    /// Adds a layer of single files, owned by root, dated 1970.
    pub fn add_items(&mut self, items: &[Item<'_>]) -> Result<()> {
        self.add_layer(|tar| items.iter().try_for_each(|item| append_item(tar, item))).context("make a layer of files")
    }

    /// Writes configuration, manifest and index: the layout is complete.
    pub fn finish(self, runs: Runs<'_>) -> Result<()> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.digest.as_str()).collect();
        let config = self.add_json(&json!({
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "Entrypoint": runs.entrypoint,
                "Cmd": runs.cmd,
                "Env": runs.env,
                "WorkingDir": runs.working_dir,
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))?;
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = self.add_json(&json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": layers,
        }))?;
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor("application/vnd.oci.image.manifest.v1+json", &manifest)],
        });
        self.write("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }))?;
        self.write("index.json", &index)
    }

    fn write(&self, name: &str, value: &Value) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, value.to_string()).with_context(|| format!("write {}", path.display()))
    }

    fn add_json(&self, value: &Value) -> Result<Blob> {
        self.add_blob(|out| Ok(out.write_all(value.to_string().as_bytes())?))
    }

    fn add_layer(&mut self, fill: impl FnOnce(&mut tar::Builder<&mut dyn Write>) -> Result<()>) -> Result<()> {
        let layer = self.add_blob(|out| {
            let mut tar = tar::Builder::new(out);
            fill(&mut tar)?;
            tar.finish()?;
            Ok(())
        })?;
        self.layers.push(layer);
        Ok(())
    }

    /// Writes a blob, and names it by what was written.
    fn add_blob(&self, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Blob> {
        let blobs = self.dir.join("blobs/sha256");
        let draft = blobs.join("draft");
        let file = File::create(&draft).with_context(|| format!("make {}", draft.display()))?;
        let mut out = Hashing { out: BufWriter::with_capacity(1 << 20, file), hash: Sha256::new(), size: 0 };
        fill(&mut out).with_context(|| format!("write {}", draft.display()))?;
        out.flush().with_context(|| format!("write {}", draft.display()))?;
        let hex: String = out.hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        let blob = blobs.join(&hex);
        fs::rename(&draft, &blob).with_context(|| format!("name {}", blob.display()))?;
        Ok(Blob { digest: format!("sha256:{hex}"), size: out.size })
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.size })
}

/// Counts and sums what goes through it.
struct Hashing<W> {
    out: W,
    hash: Sha256,
    size: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hash.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Goes through a tree in the order of its names, so that a layer does not depend on the file
/// system's order.
struct Walk<'a> {
    tree: &'a Path,
    newest: u64,
    skip: &'a dyn Fn(&Path) -> bool,
    /// Where files with several names are already: by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
}

impl Walk<'_> {
    /// The directory's entries; `dir` is relative to the tree.
    fn directory(&mut self, tar: &mut tar::Builder<&mut dyn Write>, dir: &Path) -> Result<()> {
        let whole = self.tree.join(dir);
        let read = || format!("read {}", whole.display());
        let mut names: Vec<_> = fs::read_dir(&whole)
            .with_context(read)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<_>>()
            .with_context(read)?;
        names.sort();
        for name in names {
            let path = dir.join(name);
            if !(self.skip)(&path) {
                self.entry(tar, &path).with_context(|| format!("add {}", path.display()))?;
            }
        }
        Ok(())
    }

    fn entry(&mut self, tar: &mut tar::Builder<&mut dyn Write>, path: &Path) -> Result<()> {
        let whole = self.tree.join(path);
        let meta = fs::symlink_metadata(&whole)?;
        let mut header = tar::Header::new_gnu();
        header.set_mode(meta.mode() & 0o7777);
        header.set_uid(meta.uid().into());
        header.set_gid(meta.gid().into());
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0).min(self.newest));
        header.set_size(0);
        let kind = meta.file_type();
        if kind.is_dir() {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())?;
            self.directory(tar, path)
        } else if kind.is_symlink() {
            header.set_entry_type(tar::EntryType::Symlink);
            Ok(tar.append_link(&mut header, path, fs::read_link(&whole)?)?)
        } else if kind.is_file() {
            if meta.nlink() > 1 {
                if let Some(first) = self.linked.get(&(meta.dev(), meta.ino())) {
                    header.set_entry_type(tar::EntryType::Link);
                    return Ok(tar.append_link(&mut header, path, first)?);
                }
                self.linked.insert((meta.dev(), meta.ino()), path.to_owned());
            }
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(meta.size());
            Ok(tar.append_data(&mut header, path, File::open(&whole)?)?)
        } else if kind.is_socket() {
            // Whoever listened is gone.
            Ok(())
        } else {
            bail!("it is neither file, directory nor link")
        }
    }
}

fn append_item(tar: &mut tar::Builder<&mut dyn Write>, item: &Item<'_>) -> Result<()> {
    let path = item.path.trim_start_matches('/');
    let mut header = tar::Header::new_gnu();
    header.set_mode(item.mode);
    header.set_mtime(0);
    header.set_size(0);
    match item.content {
        Content::Directory => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, path, io::empty())
        }
        Content::Bytes(bytes) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, path, bytes)
        }
        Content::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, path, target)
        }
    }
    .with_context(|| format!("add {}", item.path))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    const RUNS: Runs<'static> = Runs { entrypoint: &["/a"], cmd: &[], env: &["A=1"], working_dir: "/" };

    fn a_tree(dir: &Path, names: &[&str]) {
        for name in names {
            fs::write(dir.join(name), name).expect("written");
        }
        fs::hard_link(dir.join("b"), dir.join("z")).expect("linked");
        symlink("b", dir.join("link")).expect("linked");
        fs::create_dir_all(dir.join("drop")).expect("made");
        fs::write(dir.join("drop/me"), "no").expect("written");
    }

    fn layout(tree: &Path, dir: &Path) -> Value {
        let mut layout = Layout::begin(dir).expect("begun");
        layout.add_tree(tree, 1000, |path| path.starts_with("drop") && path != Path::new("drop")).expect("a layer");
        let hello = Item { path: "/hello", mode: 0o755, content: Content::Bytes(b"hello") };
        layout.add_items(&[hello]).expect("a layer");
        layout.finish(RUNS).expect("finished");
        serde_json::from_slice(&fs::read(dir.join("index.json")).expect("an index")).expect("json")
    }

    fn blob(dir: &Path, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().expect("a digest");
        let bytes = fs::read(dir.join("blobs/sha256").join(&digest["sha256:".len()..])).expect("a blob");
        assert_eq!(bytes.len() as u64, descriptor["size"].as_u64().expect("a size"));
        bytes
    }

    #[test]
    fn a_layout_holds_what_the_tree_holds_and_no_more() {
        let dir = tempfile::tempdir().expect("a directory");
        let (tree, out) = (dir.path().join("tree"), dir.path().join("out"));
        fs::create_dir(&tree).expect("made");
        a_tree(&tree, &["b", "a"]);
        let index = layout(&tree, &out);
        let manifest: Value = serde_json::from_slice(&blob(&out, &index["manifests"][0])).expect("json");
        let config: Value = serde_json::from_slice(&blob(&out, &manifest["config"])).expect("json");
        assert_eq!(config["config"]["Entrypoint"][0], "/a");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        let layer = blob(&out, &manifest["layers"][0]);
        let mut archive = tar::Archive::new(layer.as_slice());
        let entries: Vec<_> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                assert_eq!(entry.header().mtime().expect("a time"), 1000);
                (entry.path().expect("a path").display().to_string(), entry.header().entry_type())
            })
            .collect();
        let expected = [
            ("a", tar::EntryType::Regular),
            ("b", tar::EntryType::Regular),
            ("drop/", tar::EntryType::Directory),
            ("link", tar::EntryType::Symlink),
            ("z", tar::EntryType::Link),
        ];
        let entries: Vec<_> = entries.iter().map(|(path, kind)| (path.trim_end_matches('/'), *kind)).collect();
        assert_eq!(entries, expected.map(|(path, kind)| (path.trim_end_matches('/'), kind)));
    }

    #[test]
    fn the_same_content_gives_the_same_bytes() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut digests = Vec::new();
        for (number, names) in [["a", "b"], ["b", "a"]].iter().enumerate() {
            let tree = dir.path().join(format!("tree{number}"));
            fs::create_dir(&tree).expect("made");
            a_tree(&tree, names);
            digests.push(layout(&tree, &dir.path().join(format!("out{number}")))["manifests"][0]["digest"].clone());
        }
        assert_eq!(digests[0], digests[1]);
    }
}
