//! `hearth cp`: files and directories into an instance and out of it.
//!
//! ```text
//! hearth cp SRC NAME:/path      SRC becomes /path, or /path/SRC if /path is a directory
//! hearth cp NAME:/path DST      the same, the other way
//! ```
//! A source that ends in `/.` is a directory's content. Symbolic links are copied as links, unless
//! `-L` is given. Owners are those of the other side's user, unless `-a` is given.

mod from_guest;
mod to_guest;

use std::path::{Path, PathBuf};

use hearth_model::ErrorKind;

use crate::context::Context;
use crate::error::CliError;
use crate::output::size;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
  hearth cp ./site web:/srv/www      into the instance
  hearth cp -a web:/var/log .        out of it")]
pub(crate) struct Arguments {
    /// Keep owners and groups, by number
    #[arg(short, long)]
    archive: bool,
    /// Copy what symbolic links lead to instead of the links
    #[arg(short = 'L', long)]
    follow_links: bool,
    /// A path here, or NAME:/path in an instance
    #[arg(value_name = "SRC")]
    source: String,
    /// A path here, or NAME:/path in an instance
    #[arg(value_name = "DST")]
    destination: String,
}

/// How to copy.
#[derive(Debug, Clone, Copy)]
struct Options {
    archive: bool,
    follow_links: bool,
}

/// What was copied.
#[derive(Debug, Default, serde::Serialize)]
struct Copied {
    entries: u64,
    bytes: u64,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum End {
    Here(PathBuf),
    Guest(GuestPath),
}

/// Where in which instance.
#[derive(Debug, Clone, PartialEq, Eq)]
struct GuestPath {
    instance: String,
    /// Absolute.
    path: String,
}

pub(crate) async fn cp(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let options = Options { archive: arguments.archive, follow_links: arguments.follow_links };
    let doing = format!("copying {}", arguments.source);
    let ends = (end(&arguments.source)?, end(&arguments.destination)?);
    let client = context.client()?;
    let copied = match ends {
        (End::Here(from), End::Guest(to)) => {
            let copy = to_guest::copy(context, &client, &from, &to, options);
            context.output.while_waiting(&doing, copy).await?
        }
        (End::Guest(from), End::Here(to)) => {
            let copy = from_guest::copy(&client, &from, &to, options);
            context.output.while_waiting(&doing, copy).await?
        }
        (End::Here(_), End::Here(_)) => {
            return Err(CliError::new(ErrorKind::Invalid, "neither SRC nor DST is in an instance")
                .hint("write the one that is as NAME:/path; `cp` copies on this host"));
        }
        (End::Guest(_), End::Guest(_)) => {
            return Err(
                CliError::new(ErrorKind::Invalid, "both SRC and DST are in instances").hint("copy to this host first")
            );
        }
    };
    context.output.note(&format!("{} copied, {}", entries(copied.entries), size(copied.bytes)));
    if context.output.json { context.output.result(&copied, |_| String::new()) } else { Ok(()) }
}

fn entries(number: u64) -> String {
    if number == 1 { "1 entry".into() } else { format!("{number} entries") }
}

/// `NAME:/path`, unless a slash comes before the colon: `./a:b` is a path here.
fn end(text: &str) -> Result<End, CliError> {
    match text.split_once(':') {
        Some((instance, path)) if !instance.is_empty() && !instance.contains('/') => {
            if path.starts_with('/') {
                Ok(End::Guest(GuestPath { instance: instance.to_owned(), path: path.to_owned() }))
            } else {
                Err(CliError::new(ErrorKind::Invalid, format!("{path:?} is not an absolute path in {instance}")).hint(
                    format!("write {instance}:/{path}; a file of this host with a colon in its name is ./{text}"),
                ))
            }
        }
        _ if text.is_empty() => Err(CliError::new(ErrorKind::Invalid, "a path is empty")),
        _ => Ok(End::Here(text.into())),
    }
}

/// Whether a source means a directory's content.
fn is_content(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

/// The last component, if the path has one that is a name.
fn last_name(path: &Path) -> Option<&str> {
    path.file_name().and_then(|name| name.to_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_in_a_guest_if_it_says_so() {
        let guest = |instance: &str, path: &str| End::Guest(GuestPath { instance: instance.into(), path: path.into() });
        for (text, expected) in [
            ("web:/etc/passwd", guest("web", "/etc/passwd")),
            ("web:/a:b", guest("web", "/a:b")),
            ("./a:b", End::Here("./a:b".into())),
            ("/a:b", End::Here("/a:b".into())),
            (":/a", End::Here(":/a".into())),
            ("a", End::Here("a".into())),
        ] {
            assert_eq!(end(text).expect(text), expected);
        }
        assert!(end("web:tmp").is_err());
        assert!(end("").is_err());
    }
}
