//! Whether the API, the records and the host show the same, and what the model allows.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_api::instances::{Instance, InstanceState};
use hearth_api::snapshots::SnapshotKind;
use hearth_e2e::{TestHost, slowness};
use rusqlite::{Connection, OpenFlags};

use crate::realm::{Realm, Rests, Seen, see_snapshots};

/// How long what goes on by itself may take: a VMM's end is noticed, a slot is made ready.
const SOON: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

/// How the host calls the namespaces and links of this daemon.
#[derive(Debug)]
pub(crate) struct Names {
    namespaces: String,
    links: String,
    /// What waits for an instance.
    pool: usize,
}

impl Names {
    /// Of a daemon that has no instance.
    pub(crate) fn of(host: &TestHost, pool: usize) -> Result<Self> {
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

/// Waits until all of them agree, and narrows what is known to what is seen.
pub(crate) async fn look(host: &TestHost, realms: &mut Vec<Realm>, names: &Names) -> Result<()> {
    let until = Instant::now() + SOON * slowness();
    loop {
        let mut narrowed: Vec<Realm> = realms.clone();
        match agree(host, &mut narrowed, names).await {
            Ok(()) => {
                *realms = narrowed;
                return Ok(());
            }
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn agree(host: &TestHost, realms: &mut [Realm], names: &Names) -> Result<()> {
    let (instances, snapshots) = (host.instances().await?, host.snapshots().await?);
    let mut by_name: BTreeMap<&str, &Instance> = BTreeMap::new();
    let mut addresses = BTreeSet::new();
    for instance in &instances {
        let name = instance.name.as_str();
        ensure!(instance.busy.is_none(), "{name} is busy: {:?}", instance.busy);
        ensure!(by_name.insert(name, instance).is_none(), "{name} is there twice");
        let address = instance.network.as_ref().and_then(|network| network.ip.clone());
        let address = address.with_context(|| format!("{name} has no address"))?;
        ensure!(addresses.insert(address.clone()), "{name} shares {address}");
    }
    for slot in realms.iter_mut().flat_map(|realm| realm.slots.iter_mut()) {
        let seen = by_name.remove(slot.name.as_str());
        let why = seen.and_then(|instance| instance.state_error.clone()).unwrap_or_default();
        let seen = seen.map(|instance| (instance.id.as_str(), rests(instance.state)));
        slot.see(seen).map_err(|told| anyhow::anyhow!("{told} {why}"))?;
    }
    ensure!(by_name.is_empty(), "nobody has made these: {:?}", by_name.keys());
    let kinds = snapshots.iter().map(|snapshot| {
        let memory = snapshot.kind == SnapshotKind::Standby;
        (snapshot.name.clone().unwrap_or_default(), Seen { memory })
    });
    see_snapshots(realms, kinds.collect()).map_err(anyhow::Error::msg)?;
    on_the_host(host, &instances, snapshots.len(), names)?;
    in_the_records(&host.data(), &instances, snapshots.len())
}

/// A directory for each instance; a VMM, a cgroup, a namespace and a link for each that runs; a bundle for
/// each snapshot and each that is in standby.
fn on_the_host(host: &TestHost, instances: &[Instance], snapshots: usize, names: &Names) -> Result<()> {
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
    // Those in one more, which may stay empty; none at all where version 2 is not mounted.
    ensure!(cgroups <= 1 || cgroups == running + 1, "{running} run, cgroups are {:?}", traces.cgroups);
    let bundles = snapshots + standby;
    ensure!(traces.snapshots.len() == bundles, "{bundles} bundles are wanted, there are {:?}", traces.snapshots);
    let slots = names.slots()?;
    ensure!(slots == [running + names.pool; 2], "{running} run, namespaces and links are {slots:?}");
    Ok(())
}

/// A record for each, in the same state.
fn in_the_records(data: &Path, instances: &[Instance], snapshots: usize) -> Result<()> {
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
    ensure!(internal == standby, "{standby} in standby, and {internal} records of their memory");
    Ok(())
}

/// What is left when everything was removed.
pub(crate) async fn nothing_is_left(host: &TestHost, names: &Names) -> Result<()> {
    let until = Instant::now() + SOON * slowness();
    loop {
        let looked = on_the_host(host, &[], 0, names).and_then(|()| in_the_records(&host.data(), &[], 0));
        match looked {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() > until => bail!("left behind: {error:#}"),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

fn rests(state: InstanceState) -> Rests {
    match state {
        InstanceState::Running => Rests::Running,
        InstanceState::Stopped => Rests::Stopped,
        InstanceState::Standby => Rests::Standby,
        InstanceState::Created
        | InstanceState::Initializing
        | InstanceState::Paused
        | InstanceState::Shutdown
        | InstanceState::Unknown => Rests::Failed,
    }
}
