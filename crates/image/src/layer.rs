//! One tar stream → the tree and the data area.
//!
//! In: a layer, or a root file system's archive. Out: its entries applied, its contents written.
//! Here names become paths: `..` is refused, a leading `/` or `./` means nothing, as with Docker.

use std::io::Read;
use std::path::Path;

use crate::blob::{Compression, Expanded, Hashing, stream_problem, tar_problem};
use crate::erofs::{DataArea, xattr_prefix};
use crate::error::Problem;
use crate::limits::Budget;
use crate::oci::{Check, Layer};
use crate::tarball::{DataError, Entry, EntryKind, TarError, TarReader};
use crate::tree::{Body, Meta, Tree, Xattrs};

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Where the entries of a stream go.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) tree: &'a mut Tree,
    pub(crate) data: &'a mut DataArea,
    /// Of the image file, for messages.
    pub(crate) path: &'a Path,
    /// Whether `.wh.` names hide what lower layers have; in a root file system they are just names.
    pub(crate) whiteouts: bool,
}

/// Reads a layer, and checks it: a damaged blob is reported as that, whatever it looked like.
pub(crate) fn read(
    layer: &Layer,
    target: &mut Target<'_>,
    budget: &mut Budget<'_>,
    report: &dyn Fn(u64),
) -> Result<(), Problem> {
    let limits = budget.limits;
    let problem = |error| stream_problem(&layer.name, error, limits);
    let compression = Compression::of(&layer.slice.head::<4>().map_err(problem)?);
    let mut raw = Hashing::new(layer.slice.clone(), matches!(layer.check, Check::Stored(_)), report);
    let (applied, unpacked) = {
        let decoded = compression.reader(&mut raw).map_err(problem)?;
        let hash = matches!(layer.check, Check::Unpacked(_));
        let mut decoded = Hashing::new(decoded, hash, &|_| {});
        let applied = apply(&layer.name, Expanded::new(&mut decoded, budget), target, layer.check == Check::Form);
        if let Err(Problem::Limit { .. } | Problem::Read { .. } | Problem::Write { .. }) = applied {
            return applied;
        }
        // What follows the end mark counts too: a digest or a checksum is about all of it.
        let left = budget.expandable();
        let rest = std::io::copy(&mut decoded.by_ref().take(left.saturating_add(1)), &mut std::io::sink());
        let rest = rest.map_err(problem).and_then(|bytes| budget.expanded(bytes));
        let unpacked = rest.and_then(|()| decoded.finish().map_err(problem));
        (applied, unpacked)
    };
    let stored = raw.finish().map_err(problem)?;
    let (expected, found) = match &layer.check {
        Check::Stored(expected) => (expected, stored),
        Check::Unpacked(expected) => (expected, unpacked?),
        Check::Form => return applied.and(unpacked.map(drop)),
    };
    match found {
        Some(found) if found != *expected => {
            Err(Problem::BlobDigest { blob: layer.name.clone(), expected: expected.clone(), found })
        }
        _ => applied,
    }
}

/// `must_end`: an archive without the end mark is a truncated one.
fn apply<R: Read>(
    name: &str,
    input: Expanded<'_, '_, R>,
    target: &mut Target<'_>,
    must_end: bool,
) -> Result<(), Problem> {
    let mut input = input;
    let limits = input.budget().limits;
    let mut reader = TarReader::new(input, limits.max_document_bytes);
    target.tree.begin_layer();
    let tar_problem = |error: TarError| tar_problem(name, error, limits);
    while let Some(entry) = reader.next_entry().map_err(tar_problem)? {
        let refuse = |problem: String| Problem::Entry {
            layer: name.to_owned(),
            entry: String::from_utf8_lossy(&entry.path).into_owned(),
            problem,
        };
        let xattrs: usize = entry.xattrs.iter().map(|(key, value)| key.len() + value.len()).sum();
        let budget = reader.input_mut().budget();
        budget.entry(entry.path.len() + xattrs)?;
        // Holes never come out of a decompressor, but somebody has to read them in the guest.
        budget.expanded(entry.holes())?;
        if entry.size > budget.expandable() {
            return Err(Problem::Limit { what: "bytes of unpacked content", limit: limits.max_expanded_bytes });
        }
        let path = parts(&entry.path, limits.max_path_len).map_err(refuse)?;
        if target.whiteouts && whiteout(target.tree, &path).map_err(refuse)? {
            continue;
        }
        let meta = meta(&entry).map_err(refuse)?;
        let body = match &entry.kind {
            EntryKind::HardLink(to) => {
                let to = parts(to, limits.max_path_len)
                    .map_err(|problem| refuse(format!("is a hard link that {problem}")))?;
                target.tree.link(&path, &to).map_err(|e| refuse(e.to_string()))?;
                continue;
            }
            EntryKind::File => {
                let mut writer = target.data.begin();
                let write = |source| Problem::Write { path: target.path.to_owned(), source };
                reader.data(&entry, &mut writer).map_err(|error| match error {
                    DataError::Tar(error) => tar_problem(error),
                    DataError::Sink(source) => write(source),
                })?;
                Body::File(writer.finish().map_err(write)?)
            }
            EntryKind::Symlink(to) => symlink(to).map_err(|problem| refuse(problem.to_owned()))?,
            EntryKind::Char(major, minor) => Body::Char(*major, *minor),
            EntryKind::Block(major, minor) => Body::Block(*major, *minor),
            EntryKind::Dir => Body::empty_dir(),
            EntryKind::Fifo => Body::Fifo,
        };
        target.tree.put(&path, meta, body).map_err(|e| refuse(e.to_string()))?;
    }
    if must_end && !reader.ended() {
        return Err(Problem::Damaged { archive: name.to_owned(), problem: "it ends without the end mark".into() });
    }
    Ok(())
}

/// Whether the entry was a whiteout (or AUFS's own business), which leaves no file.
fn whiteout(tree: &mut Tree, path: &[&[u8]]) -> Result<bool, String> {
    let Some((name, parents)) = path.split_last() else { return Ok(false) };
    if *name == OPAQUE {
        tree.opaque(parents).map_err(|e| e.to_string())?;
    } else if path.iter().any(|part| part.starts_with(WHITEOUT_META)) {
        // `.wh..wh.plnk` and the like: what AUFS kept beside the files.
    } else if let Some(hidden) = name.strip_prefix(WHITEOUT) {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err("is a whiteout of nothing".into());
        }
        let mut hidden_path = parents.to_vec();
        hidden_path.push(hidden);
        tree.whiteout(&hidden_path).map_err(|e| e.to_string())?;
    } else {
        return Ok(false);
    }
    Ok(true)
}

/// The parts of a path in the image.
fn parts(path: &[u8], max_len: usize) -> Result<Vec<&[u8]>, String> {
    if path.len() > max_len {
        return Err(format!("has a path of {} bytes; at most {max_len} are allowed", path.len()));
    }
    let mut parts = Vec::new();
    for part in path.split(|b| *b == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("leads outside the image: it contains \"..\"".into()),
            part if part.len() > 255 => {
                return Err(format!("has a name of {} bytes; at most 255 are allowed", part.len()));
            }
            part if part.contains(&0) => return Err("has a zero byte in its path".into()),
            part => parts.push(part),
        }
    }
    Ok(parts)
}

/// A symbolic link's target is for the guest to follow: it may be absolute, and may lead nowhere.
pub(crate) fn symlink(target: &[u8]) -> Result<Body, &'static str> {
    match target.len() {
        0 => Err("is a symbolic link without a target"),
        1..4096 => Ok(Body::Symlink(target.into())),
        _ => Err("is a symbolic link with a target of more than 4095 bytes"),
    }
}

fn meta(entry: &Entry) -> Result<Meta, String> {
    let xattrs = xattrs(entry.xattrs.iter().map(|(name, value)| (&name[..], &value[..])))?;
    // Linux has no other mode for symbolic links, whatever the archive says.
    let mode = if matches!(entry.kind, EntryKind::Symlink(_)) { 0o777 } else { entry.mode };
    Ok(Meta { mode, uid: entry.uid, gid: entry.gid, mtime: entry.mtime, xattrs })
}

/// The extended attributes that the image can keep.
pub(crate) fn xattrs<'a>(from: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<Xattrs, String> {
    // What EROFS can express for one inode, with room for headers.
    const MAX_TOTAL: usize = 128 << 10;
    let mut kept = Xattrs::new();
    let mut total = 0;
    for (name, value) in from {
        let shown = String::from_utf8_lossy(name);
        let Some((_, rest)) = xattr_prefix(name) else {
            tracing::debug!(xattr = %shown, "left out: EROFS has no such attributes");
            continue;
        };
        total += rest.len() + value.len() + 8;
        if rest.len() > 255 || value.len() > usize::from(u16::MAX) || total > MAX_TOTAL {
            return Err(format!("has the extended attribute {shown:?}, which is too large"));
        }
        kept.insert(name.into(), value.into());
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_normalised_and_never_climb() {
        let ok = |path: &[u8]| parts(path, 100).expect("fine").join(&b'/');
        assert_eq!(ok(b"/etc//./passwd"), b"etc/passwd");
        assert_eq!(ok(b"./"), b"");
        for (bad, says) in
            [(&b"../x"[..], "outside"), (b"a/../../x", "outside"), (b"a/..", "outside"), (&[b'x'; 101], "path of 101")]
        {
            let problem = parts(bad, 100).expect_err("refused");
            assert!(problem.contains(says), "{problem}");
        }
        assert!(parts(&[b'x'; 256], 4096).expect_err("refused").contains("name of 256"));
    }
}
