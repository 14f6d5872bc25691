//! Whether the API, the records and the host show the same, and what the model allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_api::instances::{Instance, InstanceState};
use hearth_api::snapshots::SnapshotKind;
use hearth_e2e::{LeftMemory, Names, TestHost, in_the_records, on_the_host, slowness};

use crate::realm::{Realm, Rests, Seen, see_snapshots};

/// How long what goes on by itself may take: a VMM's end is noticed, a slot is made ready.
const SOON: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

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
    on_the_host(host, &instances, snapshots.len(), LeftMemory::Lingers, names)?;
    in_the_records(&host.data(), &instances, snapshots.len(), LeftMemory::Lingers)
}

/// What is left when everything was removed.
pub(crate) async fn nothing_is_left(host: &TestHost, names: &Names) -> Result<()> {
    let until = Instant::now() + SOON * slowness();
    loop {
        let looked = on_the_host(host, &[], 0, LeftMemory::Gone, names)
            .and_then(|()| in_the_records(&host.data(), &[], 0, LeftMemory::Gone));
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
