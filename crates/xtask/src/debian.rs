//! A tree of Debian files, made by debootstrap: for the demo's image and for the lab's host.
//!
//! In: the release of this machine's Debian, and the mirror that its apt uses. Out: a directory.
//! Needs root.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::process;

/// Where a Debian comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Debian {
    /// The release's code name.
    pub suite: String,
    /// debootstrap's own choice if there is none.
    pub mirror: Option<String>,
    /// For whoever sets none by an environment variable.
    pub proxy: Option<String>,
}

impl Debian {
    /// The release of this machine, from where its apt gets it.
    pub fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let field = |name: &str| {
            let line = release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
            Some(line.trim_matches('"').to_owned())
        };
        // Another distribution's debootstrap makes a Debian, too.
        let suite = match (field("ID").as_deref(), field("VERSION_CODENAME")) {
            (Some("debian"), Some(codename)) => codename,
            _ => "bookworm".into(),
        };
        let format = "$(ORIGIN)|$(CODENAME)|$(RELEASE)|$(COMPONENT)|$(REPO_URI)";
        let targets =
            Command::new("apt-get").args(["indextargets", "--format", format, "Created-By: Packages"]).output();
        let mirror = targets.ok().and_then(|output| mirror(&suite, &String::from_utf8_lossy(&output.stdout)));
        let dump = Command::new("apt-config").args(["dump", "--format", "%v%n", "Acquire::http::Proxy"]).output();
        let proxy = dump.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
        Ok(Self { suite, mirror, proxy: proxy.filter(|proxy| proxy.starts_with("http")) })
    }
}

/// Where apt gets this release's `main` from, if debootstrap can get it from there, too.
fn mirror(suite: &str, targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let [origin, codename, release, component, uri] = line.split('|').collect::<Vec<_>>().try_into().ok()?;
        // What no index has been fetched for has no origin and no codename: it stays as it was asked for.
        let debian = origin == "Debian" || origin.starts_with('$');
        let ours = [codename, release].contains(&suite) && component == "main";
        let usable = ["http://", "https://", "file:/"].iter().any(|scheme| uri.starts_with(scheme));
        (debian && ours && usable).then(|| uri.to_owned())
    })
}

/// Makes the tree with these packages on top of `minbase`; when that began, in seconds since 1970.
pub fn debootstrap(debian: &Debian, packages: &str, tree: &Path) -> Result<u64> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs();
    let mut command = in_its_own_namespaces();
    command.args(["debootstrap", "--variant=minbase"]).arg(format!("--include={packages}"));
    command.arg(&debian.suite).arg(tree).args(&debian.mirror);
    if let Some(proxy) = debian.proxy.as_ref().filter(|_| std::env::var_os("http_proxy").is_none()) {
        command.env("http_proxy", proxy);
    }
    watch(&mut command)?;
    Ok(began)
}

/// What debootstrap mounts and starts is gone when it is, however it ends: nothing of the host is
/// mounted below a directory that we remove.
fn in_its_own_namespaces() -> Command {
    let mut command = Command::new("unshare");
    command.args(["--mount-proc", "--pid", "--fork", "--kill-child"]);
    if process::works(Command::new("unshare").args(["--mount-proc", "--pid", "--fork", "--kill-child", "true"])) {
        return command;
    }
    // A container that may not: debootstrap knows what to do in those.
    Command::new("env")
}

/// Runs debootstrap with its hundreds of lines shown as one.
fn watch(command: &mut Command) -> Result<()> {
    println!("$ {}", process::line(command));
    let (reader, writer) = io::pipe().context("make a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("copy a pipe's end")?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("start `{}`", process::line(command)))?;
    // The command holds the pipe's other end, and we would wait for ourselves.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let live = io::stdout().is_terminal();
    let mut shown = Instant::now();
    let mut last = Vec::new();
    for line in io::BufRead::lines(io::BufReader::new(reader)) {
        let line = line.context("read what debootstrap says")?;
        if live {
            print!("\r\x1b[K{line:.100}");
            io::stdout().flush().ok();
        } else if shown.elapsed().as_secs() >= 5 {
            println!("{line}");
            shown = Instant::now();
        }
        if last.len() == 10 {
            last.remove(0);
        }
        last.push(line);
    }
    if live {
        print!("\r\x1b[K");
    }
    let status = child.wait().context("wait for debootstrap")?;
    if !status.success() {
        bail!("debootstrap failed ({status}); it said:\n{}", last.join("\n"));
    }
    Ok(())
}

/// Removes a tree that was made here, unless something is mounted in it.
pub fn remove(path: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("look at the mounts")?;
    let below = |line: &&str| line.split(' ').nth(1).is_some_and(|at| Path::new(at).starts_with(path));
    if let Some(mount) = mounts.lines().find(below) {
        bail!("{} has something mounted in it, and will not be removed: {mount}", path.display());
    }
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_that_apt_uses() {
        let targets = "\
Other|nodistro|nodistro|main|https://other.example/
Debian|bookworm-security|bookworm-security|main|http://deb.example/debian-security/
Debian|bookworm|stable|contrib|http://contrib.example/debian/
Debian|bookworm|stable|main|http://deb.example/debian/
";
        assert_eq!(mirror("bookworm", targets).as_deref(), Some("http://deb.example/debian/"));
        assert_eq!(mirror("trixie", targets), None);
        let never_updated = "$(ORIGIN)|$(CODENAME)|trixie|main|http://deb.example/debian/";
        assert_eq!(mirror("trixie", never_updated).as_deref(), Some("http://deb.example/debian/"));
        assert_eq!(mirror("trixie", "Debian|trixie|trixie|main|cdrom://x/"), None);
        assert_eq!(mirror("trixie", ""), None);
    }
}
