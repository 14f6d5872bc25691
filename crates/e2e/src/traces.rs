//! What Hearth has left on the host: processes, cgroups, and files below the data directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

/// How often it is tried to remove a cgroup of a VMM that was killed, and how long between two tries.
const TRIES: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// What is there of instances and snapshots.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Traces {
    /// Processes whose working directory is in an instance's.
    pub processes: Vec<String>,
    /// Cgroups of VMMs.
    pub cgroups: Vec<PathBuf>,
    /// What is in `instances/`, by name.
    pub instances: Vec<String>,
    /// What is in `snapshots/`, by name.
    pub snapshots: Vec<String>,
    /// What is in `images/`, by name.
    pub images: Vec<String>,
}

impl Traces {
    /// Looks at a data directory.
    #[must_use]
    pub fn of(data: &Path) -> Self {
        let processes = vmms(data).into_iter().map(|(pid, cwd)| format!("{pid} in {}", cwd.display())).collect();
        Self {
            processes,
            cgroups: cgroups(data),
            instances: names(&data.join("instances")),
            snapshots: names(&data.join("snapshots")),
            images: names(&data.join("images")),
        }
    }

    /// Whether nothing of any instance or snapshot is there.
    #[must_use]
    pub fn no_instances(&self) -> bool {
        self.processes.is_empty() && self.cgroups.is_empty() && self.instances.is_empty() && self.snapshots.is_empty()
    }
}

fn names(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(Result::ok).map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Processes that work below `dir`, also in a directory that was removed.
pub(crate) fn vmms(dir: &Path) -> Vec<(i32, PathBuf)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cwd = fs::read_link(entry.path().join("cwd")).ok()?;
            cwd.starts_with(dir).then_some((pid, cwd))
        })
        .collect()
}

/// What is there of slots of the network: namespaces whose names begin so, and the host's ends of
/// their links.
pub(crate) fn slots(namespaces: &str) -> Vec<String> {
    let links = namespaces.replacen("hearth-", "hv", 1);
    let links = links.trim_end_matches('-');
    let found = [("/run/netns", namespaces), ("/sys/class/net", links)];
    let named = |(dir, prefix): (&str, &str)| {
        let found: Vec<String> = names(Path::new(dir)).into_iter().filter(|name| name.starts_with(prefix)).collect();
        found
    };
    found.into_iter().flat_map(named).collect()
}

/// The cgroup of a data directory, wherever version 2 is mounted.
pub(crate) fn cgroup_parents(data: &Path) -> Vec<PathBuf> {
    let name = format!("hearth{}", data.to_string_lossy().replace('-', "\\x2d").replace('/', "-"));
    let parents = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(|mount| Path::new(mount).join(&name));
    parents.into_iter().filter(|parent| parent.is_dir()).collect()
}

/// Those in it.
fn cgroups(data: &Path) -> Vec<PathBuf> {
    cgroup_parents(data)
        .into_iter()
        .flat_map(|parent| {
            let inside = fs::read_dir(&parent).into_iter().flatten().flatten().map(|entry| entry.path());
            inside.filter(|path| path.is_dir()).collect::<Vec<_>>()
        })
        .collect()
}

/// Kills what works below `dir`, so that a story that failed leaves nothing running.
pub(crate) fn kill_vmms(dir: &Path) {
    for (pid, _) in vmms(dir) {
        if let Some(pid) = Pid::from_raw(pid) {
            // It may be gone already.
            kill_process(pid, Signal::KILL).ok();
        }
    }
    // Who was killed may not have left yet.
    for _ in 0..TRIES {
        let left = [cgroups(dir), cgroup_parents(dir)].concat();
        if left.is_empty() {
            return;
        }
        for cgroup in left {
            fs::remove_dir(cgroup).ok();
        }
        std::thread::sleep(PAUSE);
    }
}
