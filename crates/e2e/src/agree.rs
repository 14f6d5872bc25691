//! Whether the API, the records and the host show the same of instances and snapshots.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hearth_api::instances::{Instance, InstanceState};
use rusqlite::{Connection, OpenFlags};

use crate::TestHost;

/// How the host calls the namespaces and links of this daemon.
#[derive(Debug)]
pub struct Names {
    namespaces: String,
    links: String,
    /// What waits for an instance.
    pool: usize,
}

impl Names {
    /// Of a daemon that has no instance, and lets so many slots wait for one.
    ///
    /// # Errors
    /// No slot waits.
    pub fn of(host: &TestHost, pool: usize) -> Result<Self> {
        let slots = host.slots();
        let name = slots.iter().find(|name| name.starts_with("hearth-")).context("a slot waits")?;
        let (tag, _) = name["hearth-".len()..].rsplit_once('-').context("a slot has a number")?;
        Ok(Self { namespaces: format!("hearth-{tag}-"), links: format!("hv{tag}"), pool })
    }

    fn slots(&self) -> Result<[usize; 2]> {
        let count = |dir: &str, prefix: &str| -> Result<usize> {
            let entries = std::fs::read_dir(dir).with_context(|| format!("list {dir}"))?;
            Ok(entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix)).count())
        };
        Ok([count("/run/netns", &self.namespaces)?, count("/sys/class/net", &self.links)?])
    }
}

/// Memory that instances were restored from stays until it is on the disk that they were: some seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeftMemory {
    /// Some may be there.
    Lingers,
    /// None is.
    Gone,
}

impl LeftMemory {
    fn allows(self, wanted: usize, there: usize) -> bool {
        match self {
            Self::Lingers => there >= wanted,
            Self::Gone => there == wanted,
        }
    }
}

/// A directory for each instance; a VMM and a cgroup for each that runs, a namespace and a link for each
/// of those with a network; a bundle for each snapshot and each that is in standby.
///
/// # Errors
/// What is there without an owner, or missing.
pub fn on_the_host(
    host: &TestHost,
    instances: &[Instance],
    snapshots: usize,
    memory: LeftMemory,
    names: &Names,
) -> Result<()> {
    let traces = host.traces();
    let ids: BTreeSet<&str> = instances.iter().map(|instance| instance.id.as_str()).collect();
    let dirs: BTreeSet<&str> = traces.instances.iter().map(String::as_str).collect();
    ensure!(ids == dirs, "directories {dirs:?} of instances {ids:?}");
    let in_state = |state| instances.iter().filter(|instance| instance.state == state).count();
    let (running, standby) = (in_state(InstanceState::Running), in_state(InstanceState::Standby));
    for instance in instances {
        let vmms = host.vmms_of(&instance.id);
        let wanted = usize::from(instance.state == InstanceState::Running);
        ensure!(vmms.len() == wanted, "{} is {}, with VMMs {vmms:?}", instance.name, instance.state);
    }
    ensure!(traces.processes.len() == running, "{running} run, VMMs are {:?}", traces.processes);
    let cgroups = traces.cgroups.len();
    // None at all where version 2 is not mounted.
    ensure!([0, running].contains(&cgroups), "{running} run, cgroups are {:?}", traces.cgroups);
    let bundles = snapshots + standby;
    let there = traces.snapshots.len();
    ensure!(memory.allows(bundles, there), "{bundles} bundles are wanted, there are {:?}", traces.snapshots);
    // A guest that was saved elsewhere has no network.
    let has_address = |it: &Instance| it.network.as_ref().is_some_and(|network| network.ip.is_some());
    let runs = instances.iter().filter(|it| it.state == InstanceState::Running);
    let networked = runs.filter(|it| has_address(it)).count();
    let slots = names.slots()?;
    ensure!(slots == [networked + names.pool; 2], "{networked} have a network, namespaces and links are {slots:?}");
    Ok(())
}

/// A record for each, in the same state.
///
/// # Errors
/// What is recorded otherwise; the records cannot be read.
pub fn in_the_records(data: &Path, instances: &[Instance], snapshots: usize, memory: LeftMemory) -> Result<()> {
    let records = Connection::open_with_flags(data.join("state.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    let mut recorded = BTreeMap::new();
    let query = "SELECT id, record ->> '$.phase.phase', record ->> '$.phase.state' FROM instances";
    let mut rows = records.prepare(query)?;
    let mut rows = rows.query([])?;
    while let Some(row) = rows.next()? {
        // Of what is under way there is no state.
        let (id, phase, state): (String, String, Option<String>) = (row.get(0)?, row.get(1)?, row.get(2)?);
        recorded.insert(id, format!("{phase} {}", state.unwrap_or_default()));
    }
    for instance in instances {
        let wanted = format!("resting {}", instance.state.as_str().to_lowercase());
        let found = recorded.remove(&instance.id).unwrap_or_default();
        ensure!(found == wanted, "{} is {}, its record is {found:?}", instance.name, instance.state);
    }
    ensure!(recorded.is_empty(), "records of no instance: {recorded:?}");
    let count = |which: &str| -> Result<usize> {
        let query = format!("SELECT count(*) FROM snapshots WHERE {which}");
        let count: i64 = records.query_row(&query, [], |row| row.get(0))?;
        Ok(usize::try_from(count)?)
    };
    let listed = count("NOT internal")?;
    ensure!(listed == snapshots, "{snapshots} snapshots, and {listed} records");
    let standby = instances.iter().filter(|instance| instance.state == InstanceState::Standby).count();
    let internal = count("internal")?;
    ensure!(memory.allows(standby, internal), "{standby} in standby, and {internal} records of their memory");
    Ok(())
}
