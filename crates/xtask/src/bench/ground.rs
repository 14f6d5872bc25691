//! The ground that is measured on: a daemon with a small image, on one file system.
//!
//! In: a built `hearth`. Out: a daemon on an empty data directory in `target/bench`, on this file
//! system or on a fresh XFS with reflink, and a guest image that is quick. All of it is gone when
//! this is dropped.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::bench::floor::Arguments;
use crate::bench::http::Client;
use crate::daemon::{self, Daemon};
use crate::oci::{Content, Item, Layout, Runs};
use crate::process;
use crate::workspace::Workspace;

/// Where the static busybox is.
const BUSYBOX: &str = "/bin/busybox";
const IMAGE: &str = "idle";
/// What the daemon says in the moment in which a load has returned and the guest runs.
const RESUMED: &str = "resumed during snapshot load";
/// Until the daemon has made and removed the slots that it is going to.
const PATIENCE: Duration = Duration::from_secs(30);
/// Of the kernel's clock, at 250 a second.
const TWO_TICKS: Duration = Duration::from_millis(8);
/// Of the file that XFS is made in; it is sparse.
const XFS_BYTES: u64 = 8 << 30;

/// On which file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileSystem {
    /// That of the target directory.
    Plain,
    /// XFS with reflink in a loop device; needs root.
    Reflink,
}

/// What is measured, and where.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Its directory below the target directory. Two grounds of two names may stand side by side.
    pub name: &'static str,
    pub on: FileSystem,
    pub backend: String,
    /// For the daemon, on top of what every ground has.
    pub settings: Vec<(&'static str, OsString)>,
    /// The guests' memory.
    pub size: &'static str,
    /// Whether an agent answers in the guests.
    pub agent: bool,
    /// How many slots of the network wait for them; without any they have QEMU's own network.
    pub pool: Option<usize>,
}

/// A daemon, ready to be measured.
#[derive(Debug)]
pub struct Ground {
    // Dropped in this order: the daemon before what it stands on.
    daemon: Daemon,
    data: PathBuf,
    floors: PathBuf,
    wanted: Wanted,
    /// How the names of its slots begin, if it has any.
    slots: Option<String>,
    _root: Root,
}

/// A directory that is emptied in the beginning and in the end, and unmounted if need be.
#[derive(Debug)]
struct Root {
    dir: PathBuf,
    mount: Option<PathBuf>,
}

impl Wanted {
    /// Guests of 256 MB with an agent. Their floors run side by side in this process's own network
    /// namespace, where a tap has one user: they have no slots.
    pub fn usual(on: FileSystem, backend: &str) -> Self {
        let settings = vec![("HEARTH_NETWORK_MODE", "user".into())];
        Self { name: "bench", on, backend: backend.to_owned(), settings, size: "256MB", agent: true, pool: None }
    }
}

impl Ground {
    pub fn new(workspace: &Workspace, hearth: &Path, wanted: Wanted) -> Result<Self> {
        let root = Root::new(&workspace.target.join(wanted.name), wanted.on)?;
        let at = root.mount.as_ref().unwrap_or(&root.dir);
        let (data, floors) = (at.join("data"), at.join("floors"));
        let layout = root.dir.join("idle.oci");
        write_image(&layout)?;
        let mut settings = vec![
            ("HEARTH_KERNEL_DIR", workspace.target.join("hearth-kernel").into_os_string()),
            // Of what goes well, it says when a guest was resumed.
            ("HEARTH_LOG", "warn,hearth_daemon::ops::bring_back=info".into()),
        ];
        settings.extend(wanted.settings.iter().cloned());
        let others = slots()?;
        let daemon = Daemon::start(hearth, &data, &settings)?;
        let slots = wanted.pool.map(|_| own_slots(&others)).transpose()?;
        let ground = Self { daemon, data, floors, wanted, slots, _root: root };
        let layout = layout.to_str().context("the target directory is not UTF-8")?;
        ground.client()?.post("/images/import", Some(&json!({ "path": layout, "name": IMAGE })))?;
        Ok(ground)
    }

    pub fn client(&self) -> Result<Client> {
        Client::connect(self.daemon.url())
    }

    /// How vCPUs are executed, as the daemon says.
    pub fn accel(&self) -> Result<String> {
        let answer = self.client()?.get("/capabilities")?.body;
        let runtimes = answer["runtimes"].as_array().context("a daemon has runtimes")?;
        let ours = runtimes.iter().find(|runtime| runtime["name"] == self.wanted.backend.as_str());
        let ours = ours.with_context(|| format!("the daemon does not know {}", self.wanted.backend))?;
        ensure!(ours["available"] == true, "{} cannot be used here: {}", self.wanted.backend, ours["reason"]);
        Ok(ours["accel"].as_str().unwrap_or("unknown").to_owned())
    }

    /// Waits until nothing is done in the background any more, and for a moment on top of that. No guest
    /// may run.
    ///
    /// A load waits for grace periods of the kernel's, which end at ticks of its clock: what always starts
    /// so long after a tick is always lucky, or never.
    pub fn calm(&self) -> Result<()> {
        self.await_pool()?;
        thread::sleep(TWO_TICKS.mul_f64(fastrand::f64()));
        Ok(())
    }

    /// Waits until as many slots are there as shall wait, and those that were left are gone.
    fn await_pool(&self) -> Result<()> {
        let (Some(pool), Some(own)) = (self.wanted.pool, &self.slots) else { return Ok(()) };
        let until = Instant::now() + PATIENCE;
        while slots()?.iter().filter(|name| name.starts_with(own)).count() != pool {
            ensure!(Instant::now() < until, "the pool does not come to have {pool} slots");
            thread::sleep(Duration::from_millis(20));
        }
        // The last one is there, and is made up yet.
        thread::sleep(Duration::from_millis(100));
        Ok(())
    }

    /// A directory of its own for something else.
    pub fn place(&self, name: &str) -> Result<PathBuf> {
        let dir = self.floors.join(name);
        remove(&dir)?;
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        Ok(dir)
    }

    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// Boots a new instance; how the product started it.
    pub fn boot(&self, client: &mut Client, name: &str) -> Result<Arguments> {
        let Wanted { size, backend, agent, .. } = &self.wanted;
        let request = json!({
            "name": name, "image": IMAGE, "size": size, "hypervisor": backend, "skip_guest_agent": !agent,
        });
        let made = client.post("/instances", Some(&request))?.body;
        let waited = client.get(&format!("/instances/{name}/wait?state=Running&timeout=2m"))?.body;
        ensure!(waited["state"] == "Running", "{name} does not boot: {waited}");
        Arguments::of(self.vmm(text(&made, "id")?)?)
    }

    /// How long after `since` the guest of an instance was resumed inside its load, as the daemon's log
    /// says.
    pub fn resumed_after(&self, id: &str, since: SystemTime) -> Result<Duration> {
        let path = self.data.join("daemon.log");
        let until = Instant::now() + Duration::from_secs(2);
        loop {
            let log = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            let resumed = log.lines().rev().filter(|line| line.contains(RESUMED) && line.contains(id));
            if let Some(after) = resumed.filter_map(|line| after(line, since)).next() {
                return Ok(after);
            }
            // It comes through a pipe, and may be behind the answer.
            ensure!(Instant::now() < until, "{} does not say that instance {id} was resumed", path.display());
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The directory of an instance.
    pub fn instance_dir(&self, id: &str) -> PathBuf {
        self.data.join("instances").join(id)
    }

    /// The process that runs an instance: the one that sits in its directory.
    pub fn vmm(&self, id: &str) -> Result<u32> {
        let dir = self.instance_dir(id);
        let sits = |pid: &u32| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
        let mut pids = fs::read_dir("/proc")
            .context("look at the processes")?
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        pids.find(sits).with_context(|| format!("nothing runs in {}", dir.display()))
    }

    /// The bundle that an instance in standby rests in: the newest one of it.
    pub fn bundle_of(&self, id: &str) -> Result<PathBuf> {
        let snapshots = self.data.join("snapshots");
        let mut newest: Option<(i64, PathBuf)> = None;
        for entry in fs::read_dir(&snapshots).with_context(|| format!("look in {}", snapshots.display()))? {
            let bundle = entry.context("look at the bundles")?.path();
            let Ok(bytes) = fs::read(bundle.join("manifest.json")) else { continue };
            let manifest: Value = serde_json::from_slice(&bytes).context("read a manifest")?;
            let when = manifest["created_at_ms"].as_i64().unwrap_or_default();
            if manifest["source_instance"] == id && newest.as_ref().is_none_or(|(known, _)| *known < when) {
                newest = Some((when, bundle));
            }
        }
        newest.map(|(_, bundle)| bundle).with_context(|| format!("instance {id} has no bundle"))
    }

    /// A directory in which a floor can load that bundle: links and a clone, as the product has.
    pub fn floor_of_bundle(&self, name: &str, bundle: &Path) -> Result<PathBuf> {
        let dir = self.floor(name, bundle)?;
        for (from, to) in [("memory", "memory.base"), ("vmstate", "vmstate")] {
            link(&bundle.join(from), &dir.join(to))?;
        }
        Ok(dir)
    }

    /// A directory in which a floor can boot: the disks of one that runs. Its overlay is copied as
    /// it is, which is good enough for one that nobody writes to.
    pub fn floor_of_instance(&self, name: &str, id: &str) -> Result<PathBuf> {
        self.floor(name, &self.instance_dir(id))
    }

    fn floor(&self, name: &str, from: &Path) -> Result<PathBuf> {
        let dir = self.place(name)?;
        fs::create_dir(dir.join("disks")).with_context(|| format!("make disks in {}", dir.display()))?;
        link(&from.join("disks/rootfs"), &dir.join("disks/rootfs"))?;
        let mut cp = Command::new("cp");
        cp.args(["--sparse=always", "--reflink=auto"]);
        cp.args([from.join("disks/overlay.img"), dir.join("disks/overlay.img")]);
        process::stdout_of(&mut cp)?;
        Ok(dir)
    }
}

/// All slots on this host, whosever they are, by the names of their namespaces.
fn slots() -> Result<BTreeSet<String>> {
    let entries = match fs::read_dir("/run/netns") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        entries => entries.context("look at the network namespaces")?,
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name.starts_with("hearth-")).collect())
}

/// How the slots' names of the daemon that has just started begin: it makes the first ones, and `others`
/// were there before.
fn own_slots(others: &BTreeSet<String>) -> Result<String> {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some((own, _)) = slots()?.difference(others).find_map(|name| name.rsplit_once('-')) {
            return Ok(format!("{own}-"));
        }
        ensure!(Instant::now() < until, "the daemon makes no slots");
        thread::sleep(Duration::from_millis(20));
    }
}

impl Root {
    fn new(dir: &Path, on: FileSystem) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
        let dir = dir.canonicalize().with_context(|| format!("look for {}", dir.display()))?;
        let mount = dir.join("xfs");
        // What a run that was killed left.
        let mut root = Self { dir, mount: Some(mount.clone()) };
        root.clear()?;
        fs::create_dir_all(&mount).with_context(|| format!("make {}", mount.display()))?;
        if on == FileSystem::Plain {
            root.mount = None;
            return Ok(root);
        }
        let disk = root.dir.join("xfs.img");
        let made = File::create(&disk).and_then(|file| file.set_len(XFS_BYTES));
        made.with_context(|| format!("make {}", disk.display()))?;
        process::stdout_of(Command::new("mkfs.xfs").args(["-q", "-m", "reflink=1"]).arg(&disk))?;
        process::stdout_of(Command::new("mount").args(["-o", "loop"]).args([&disk, &mount]))?;
        Ok(root)
    }

    fn clear(&self) -> Result<()> {
        daemon::end_all(&self.dir)?;
        if let Some(mount) = self.mount.as_ref().filter(|mount| is_mounted(mount)) {
            process::stdout_of(Command::new("umount").arg(mount))?;
        }
        if is_mounted(&self.dir.join("xfs")) {
            bail!("{} is still mounted", self.dir.join("xfs").display());
        }
        remove(&self.dir)
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            eprintln!("warning: {error:#}");
        }
    }
}

/// How long after `since` a line of the log was written, which begins with its time; none of a line
/// from before.
fn after(line: &str, since: SystemTime) -> Option<Duration> {
    // 2026-11-24T12:00:00.123456Z, and colours before it on a terminal, which the log is not.
    let (_, time) = line.split_once(' ')?.0.strip_suffix('Z')?.split_once('T')?;
    let mut parts = time.split(':');
    let mut whole = || parts.next()?.parse::<f64>().ok();
    let logged = Duration::try_from_secs_f64(whole()? * 3600.0 + whole()? * 60.0 + whole()?).ok()?;
    let day = Duration::from_secs(24 * 60 * 60);
    let since = since.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let since =
        Duration::from_secs(since.as_secs() % day.as_secs()) + Duration::from_nanos(since.subsec_nanos().into());
    // Over midnight the time of day begins anew.
    let after = if logged >= since { logged - since } else { (logged + day).checked_sub(since)? };
    (after < day / 2).then_some(after)
}

/// A text field of an answer.
pub fn text<'a>(answer: &'a Value, field: &str) -> Result<&'a str> {
    answer[field].as_str().with_context(|| format!("there is no {field} in {answer}"))
}

/// One static program and nothing else.
fn write_image(dir: &Path) -> Result<()> {
    let busybox = fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let directory = |path| Item { path, mode: 0o755, content: Content::Directory };
    let mut layout = Layout::begin(dir)?;
    layout.add_items(&[
        directory("/bin"),
        Item { path: "/bin/busybox", mode: 0o755, content: Content::Bytes(&busybox) },
        Item { path: "/bin/sh", mode: 0o777, content: Content::Link("busybox") },
        Item { path: "/bin/sleep", mode: 0o777, content: Content::Link("busybox") },
    ])?;
    layout.finish(Runs { entrypoint: &["/bin/sleep"], cmd: &["1000000"], env: &["PATH=/bin"], working_dir: "/" })
}

fn is_mounted(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|at| Path::new(at) == dir))
}

fn link(from: &Path, to: &Path) -> Result<()> {
    fs::hard_link(from, to).with_context(|| format!("link {} to {}", from.display(), to.display()))
}

fn remove(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", dir.display()))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_log_is_told_in_time_from_one_before_also_over_midnight() {
        let at = |seconds: u64, micros: u64| {
            SystemTime::UNIX_EPOCH + Duration::from_secs(20_000 * 86_400 + seconds) + Duration::from_micros(micros)
        };
        let line = "2026-11-24T12:00:01.000250Z  INFO instance{id=x name=web}: VM was resumed";
        assert_eq!(after(line, at(12 * 3600, 999_000)), Some(Duration::from_micros(1250)));
        assert_eq!(after(line, at(12 * 3600 + 2, 0)), None, "it is from before");
        let midnight = "2026-11-25T00:00:00.001000Z  INFO";
        assert_eq!(after(midnight, at(86_399, 999_000)), Some(Duration::from_millis(2)));
        assert_eq!(after("no time at all", at(0, 0)), None);
    }
}
