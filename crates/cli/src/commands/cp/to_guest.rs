//! From here into a guest: the tree is listed first, then directories are made, parents first, and
//! files are sent several at once. Each entry is a copy of its own to the server.

use std::fs::Metadata;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use futures_util::{StreamExt, TryStreamExt};
use hearth_api::client::Client;
use hearth_api::cp::CpRequest;
use hearth_api::instances::StatQuery;
use hearth_model::ErrorKind;

use super::{Copied, GuestPath, Options, is_content, last_name};
use crate::context::Context;
use crate::error::CliError;

/// Files on their way at once.
const AT_ONCE: usize = 8;

/// One entry of the tree.
struct Entry {
    here: PathBuf,
    there: String,
    what: What,
    meta: Metadata,
}

enum What {
    Directory,
    File,
    Link(String),
}

pub(super) async fn copy(
    context: &Context,
    client: &Client,
    from: &Path,
    to: &GuestPath,
    options: Options,
) -> Result<Copied, CliError> {
    let place = place(client, from, to, options).await?;
    let (here, follow) = (from.to_owned(), options.follow_links);
    let listed = tokio::task::spawn_blocking(move || list(&here, place, follow)).await;
    let (tree, skipped) =
        listed.map_err(|panic| CliError::new(ErrorKind::Internal, "list what is to be copied").because(&panic))??;
    for path in skipped {
        context.output.note(&format!("left out: {} is neither a file, a directory nor a link", path.display()));
    }

    let mut copied = Copied { entries: tree.len() as u64, bytes: 0 };
    let (directories, others): (Vec<Entry>, Vec<Entry>) =
        tree.into_iter().partition(|entry| matches!(entry.what, What::Directory));
    for entry in &directories {
        client.cp_to(&to.instance, &request(entry, options), tokio::io::empty()).await?;
    }
    let sent = futures_util::stream::iter(others)
        .map(|entry| async move { send(client, &to.instance, &entry, options).await })
        .buffer_unordered(AT_ONCE);
    copied.bytes = sent.try_fold(0, |sum, bytes| async move { Ok(sum + bytes) }).await?;
    Ok(copied)
}

/// Where the source's root goes: into the destination if that is a directory, else in its place.
async fn place(client: &Client, from: &Path, to: &GuestPath, options: Options) -> Result<String, CliError> {
    let meta = look(from, options.follow_links)?;
    let query = StatQuery { path: to.path.clone(), follow_links: Some(true) };
    let there = client.stat(&to.instance, &query).await?;
    let into = there.is_dir == Some(true);
    let base = to.path.trim_end_matches('/');
    if is_content(&from.to_string_lossy()) {
        if there.exists && !into {
            return Err(not_a_directory(to));
        }
        return Ok(to.path.clone());
    }
    if into {
        let absolute = std::path::absolute(from).unwrap_or_else(|_| from.to_owned());
        let name = last_name(&absolute).ok_or_else(|| {
            CliError::new(ErrorKind::Invalid, format!("{} has no name to give it in {}", from.display(), to.path))
        })?;
        return Ok(format!("{base}/{name}"));
    }
    if there.exists && meta.is_dir() {
        return Err(not_a_directory(to));
    }
    if to.path.ends_with('/') && !meta.is_dir() {
        return Err(CliError::new(
            ErrorKind::NotFound,
            format!("there is no directory {} in {}", to.path, to.instance),
        )
        .hint(format!("make it with `hearth exec {} -- mkdir -p {}`", to.instance, to.path)));
    }
    Ok(base.to_owned())
}

fn not_a_directory(to: &GuestPath) -> CliError {
    CliError::new(ErrorKind::Invalid, format!("{} in {} is not a directory", to.path, to.instance))
}

fn look(path: &Path, follow: bool) -> Result<Metadata, CliError> {
    let meta = if follow { std::fs::metadata(path) } else { std::fs::symlink_metadata(path) };
    meta.map_err(|error| {
        let what = format!("look at {}", path.display());
        if error.kind() == std::io::ErrorKind::NotFound {
            CliError::new(ErrorKind::NotFound, format!("there is no {}", path.display()))
        } else {
            CliError::host(what, &error)
        }
    })
}

/// The tree, parents first; and what cannot be copied.
fn list(from: &Path, place: String, follow: bool) -> Result<(Vec<Entry>, Vec<PathBuf>), CliError> {
    let (mut tree, mut skipped) = (Vec::new(), Vec::new());
    let mut open = vec![(from.to_owned(), place, Vec::new())];
    while let Some((here, there, above)) = open.pop() {
        let meta = look(&here, follow)?;
        let kind = meta.file_type();
        let what = if kind.is_dir() {
            // With -L a link may lead to a directory that it is in.
            let identity = (meta.dev(), meta.ino());
            if above.contains(&identity) {
                return Err(CliError::new(ErrorKind::Invalid, format!("{} leads back to itself", here.display())));
            }
            for name in children(&here)? {
                let mut inside = above.clone();
                inside.push(identity);
                open.push((here.join(&name), format!("{}/{name}", there.trim_end_matches('/')), inside));
            }
            What::Directory
        } else if kind.is_symlink() {
            let target = std::fs::read_link(&here)
                .map_err(|error| CliError::host(format!("read {}", here.display()), &error))?;
            What::Link(target.into_os_string().into_string().map_err(|_| not_utf8(&here))?)
        } else if kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device() {
            skipped.push(here);
            continue;
        } else {
            What::File
        };
        tree.push(Entry { here, there, what, meta });
    }
    Ok((tree, skipped))
}

fn children(dir: &Path) -> Result<Vec<String>, CliError> {
    let failed = |error| CliError::host(format!("list {}", dir.display()), &error);
    let mut names = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        names.push(name.into_string().map_err(|name| not_utf8(&dir.join(name)))?);
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names)
}

fn not_utf8(path: &Path) -> CliError {
    CliError::new(ErrorKind::Unsupported, format!("the name of {} is not UTF-8", path.display()))
}

fn request(entry: &Entry, options: Options) -> CpRequest {
    let meta = &entry.meta;
    CpRequest {
        is_dir: matches!(entry.what, What::Directory),
        mode: Some(meta.mode() & 0o7777),
        mtime: Some(meta.mtime()),
        link_target: match &entry.what {
            What::Link(target) => Some(target.clone()),
            What::Directory | What::File => None,
        },
        uid: options.archive.then(|| meta.uid()),
        gid: options.archive.then(|| meta.gid()),
        ..CpRequest::to(entry.there.clone())
    }
}

async fn send(client: &Client, instance: &str, entry: &Entry, options: Options) -> Result<u64, CliError> {
    let request = request(entry, options);
    match entry.what {
        What::File => {
            let file = tokio::fs::File::open(&entry.here)
                .await
                .map_err(|error| CliError::host(format!("open {}", entry.here.display()), &error))?;
            Ok(client.cp_to(instance, &request, file).await?)
        }
        What::Directory | What::Link(_) => Ok(client.cp_to(instance, &request, tokio::io::empty()).await?),
    }
}
