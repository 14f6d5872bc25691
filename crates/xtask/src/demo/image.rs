//! The demo's image: a minimal Debian with Python, and a web service on top of it.
//!
//! In: the release of this machine's Debian, from the mirror that its apt uses. Out: an OCI image
//! layout of two layers, kept for the next run as long as its recipe stays the same.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::oci::{Content, Item, Layout, Runs};
use crate::process;

/// What is on top of `minbase`.
const PACKAGES: &str = "python3";
/// What a service does not need of its Debian: most of the files, and a third of the bytes.
const DROPPED: [&str; 10] = [
    "dev",
    "run",
    "tmp",
    "usr/share/doc",
    "usr/share/info",
    "usr/share/locale",
    "usr/share/man",
    "var/cache",
    "var/lib/apt/lists",
    "var/log",
];
const SERVICE: [Item<'static>; 3] = [
    Item { path: "/srv/counter", mode: 0o755, content: Content::Directory },
    Item {
        path: "/srv/counter/counter.py",
        mode: 0o644,
        content: Content::Bytes(include_bytes!("service/counter.py")),
    },
    Item { path: "/usr/local/bin/ask", mode: 0o755, content: Content::Bytes(include_bytes!("service/ask")) },
];
const RUNS: Runs<'static> = Runs {
    entrypoint: &["/usr/bin/python3", "-I", "-S"],
    cmd: &["counter.py"],
    env: &["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"],
    working_dir: "/srv/counter",
};

/// Where a Debian comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Debian {
    suite: String,
    /// debootstrap's own choice if there is none.
    mirror: Option<String>,
    proxy: Option<String>,
}

/// The image, made if `place` does not hold it yet.
pub fn ensure(place: &Path) -> Result<PathBuf> {
    let debian = Debian::of_this_machine()?;
    let layout = place.join("counter.oci");
    let (stamp, recipe) = (place.join("counter.recipe"), recipe(&debian));
    if fs::read_to_string(&stamp).is_ok_and(|known| known == recipe) && layout.is_dir() {
        println!("{} is there from an earlier run", layout.display());
        return Ok(layout);
    }

    let (tree, draft) = (place.join("debian"), place.join("counter.oci.new"));
    for old in [&tree, &draft, &layout] {
        remove(old)?;
    }
    let made = debootstrap(&debian, &tree).and_then(|began| {
        println!("writing two layers to {}", layout.display());
        let mut image = Layout::begin(&draft)?;
        image.add_tree(&tree, began, |path| DROPPED.iter().any(|dropped| path.parent() == Some(Path::new(dropped))))?;
        image.add_items(&SERVICE)?;
        image.finish(RUNS)?;
        fs::rename(&draft, &layout).with_context(|| format!("name {}", layout.display()))?;
        fs::write(&stamp, &recipe).with_context(|| format!("write {}", stamp.display()))
    });
    for scratch in [&tree, &draft] {
        remove(scratch)?;
    }
    made.map(|()| layout)
}

/// Everything that the image is made of.
fn recipe(debian: &Debian) -> String {
    let mut recipe = format!("{} {PACKAGES}\nwithout {DROPPED:?}\n{RUNS:?}\n", debian.suite);
    for item in SERVICE {
        if let Content::Bytes(bytes) = item.content {
            recipe += &format!("{} {:o}\n{}\n", item.path, item.mode, String::from_utf8_lossy(bytes));
        }
    }
    recipe
}

fn remove(path: &Path) -> Result<()> {
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

/// Makes the tree; when that began, in seconds since 1970.
fn debootstrap(debian: &Debian, tree: &Path) -> Result<u64> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH).context("read the clock")?.as_secs();
    let mut command = in_its_own_namespaces();
    command.args(["debootstrap", "--variant=minbase"]).arg(format!("--include={PACKAGES}"));
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

impl Debian {
    fn of_this_machine() -> Result<Self> {
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

    #[test]
    fn another_service_is_another_image() {
        let debian = |suite: &str| Debian { suite: suite.into(), mirror: None, proxy: None };
        assert_ne!(recipe(&debian("bookworm")), recipe(&debian("trixie")));
        assert!(recipe(&debian("bookworm")).contains("BaseHTTPRequestHandler"));
    }
}
