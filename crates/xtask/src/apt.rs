//! Debian's packages, by apt-get.
//!
//! In: names. Out: they are installed, and nothing else is taken away. A package that does not go
//! together with something newer on this host, as QEMU with a qemu-utils from backports, comes from
//! the release's backports too; the host's list of sources stays as it is.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;

/// Says whose the packages of `backports` are, where it is there; otherwise apt knows.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
/// The host's sources, in the older of the two forms; the newer is a directory beside it.
const SOURCES: &str = "/etc/apt/sources.list";

/// apt-get, which asks nothing.
pub fn get() -> Command {
    let mut command = Command::new("apt-get");
    // Another apt may be at work, such as a machine's first-boot upgrade.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=120"]);
    command
}

/// Installs these.
pub fn install(packages: &[&str]) -> Result<()> {
    process::run(get().arg("update"))?;
    let installing = |mut apt: Command, packages: &[&str]| {
        process::run(apt.args(["install", "--yes", "--no-remove", "--no-install-recommends"]).args(packages))
    };
    let Err(error) = installing(get(), packages) else { return Ok(()) };
    let refused: Vec<&str> =
        packages.iter().copied().filter(|package| installing(get(), &[package]).is_err()).collect();
    if refused.is_empty() {
        return Ok(());
    }
    println!("{} cannot be installed from this release: trying its backports", refused.join(" "));
    from_backports(|apt| installing(apt, &refused)).with_context(|| format!("after {error:#}, from backports"))
}

/// Hands over an apt-get that takes packages of this release's backports first.
fn from_backports(install: impl FnOnce(Command) -> Result<()>) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
    let release = codename(&release).context("/etc/os-release names no release of Debian")?;
    let known = process::stdout_of(get().args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"]))?;
    let mirror = mirror(&known, release).with_context(|| format!("apt knows no source of {release}"))?;
    let backports = format!("{release}-backports");
    let signed = if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
    let own = fs::read_to_string(SOURCES).unwrap_or_default();

    let sources = tempfile::Builder::new().suffix(".list").tempfile().context("make a list of sources")?;
    let list = sources.path().display();
    fs::write(&sources, format!("{own}\ndeb {signed}{mirror} {backports} main\n"))
        .with_context(|| format!("write {list}"))?;
    let with_backports = || {
        let mut apt = get();
        apt.args(["-o", &format!("Dir::Etc::SourceList={list}"), "-t", &backports]);
        apt
    };
    process::run(with_backports().arg("update"))?;
    install(with_backports())
}

/// As `bookworm`.
fn codename(os_release: &str) -> Option<&str> {
    os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).map(|name| name.trim_matches('"'))
}

/// Where this release comes from, out of lines with a release and its source each.
fn mirror<'a>(known: &'a str, release: &str) -> Option<&'a str> {
    known.lines().filter_map(|line| line.split_once(' ')).find(|(of, _)| *of == release).map(|(_, source)| source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_where_the_release_comes_from() {
        let known = "bookworm-updates http://first.example/debian/\nbookworm http://second.example/debian/\n";
        assert_eq!(mirror(known, "bookworm"), Some("http://second.example/debian/"));
        assert_eq!(mirror(known, "trixie"), None);
    }

    #[test]
    fn a_release_is_known_by_its_codename() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"\n"), Some("trixie"));
        assert_eq!(codename("ID=arch\n"), None);
    }
}
