//! The daemon is killed while it forks: nothing is lost, nothing is there twice, and no guest notices.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use futures_util::future::join_all;
use hearth_api::client::ClientError;
use hearth_api::instances::{DeleteInstance, Forked, InstanceState, TargetState};
use hearth_api::snapshots::ForkSnapshot;
use hearth_e2e::{TestHost, eventually, seed};

use crate::counters::Counters;
use crate::firecracker::{SLOT, SLOTS_OF_A_POOL, boot_without_agent, goes_on, on_the_network, real};

/// How many are forked at once.
const FORKS: usize = 16;
/// How many of them go on, through further kills.
const KEPT: usize = 4;

/// What there must be only one of, for each instance that runs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    name: String,
    address: String,
    vmm: i32,
    namespace: u64,
}

/// What became of all forks.
#[derive(Debug, Default)]
struct Figures {
    asked: usize,
    answered: usize,
    there_unanswered: usize,
    undone: usize,
    survived: usize,
}

/// 5 kills; `HEARTH_TEST_KILLS` for more, `HEARTH_TEST_SEED` for the same moments again.
#[test]
fn a_daemon_killed_amid_sixteen_forks_loses_nothing_and_makes_nothing_twice() {
    let Some(setup) = real() else { return };
    let kills: u32 = std::env::var("HEARTH_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(5);
    let seed = seed();
    println!("HEARTH_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    setup.limit_s(150 + 30 * u64::from(kills)).story(async |host| {
        let web = boot_without_agent(host, "web").await?;
        goes_on(&web, 2).await?;
        let warm = web.snapshot("warm").await?.id;
        as_the_host_shows(host, 1).await?;
        let network = on_the_network(host).await?;
        let counters = Counters::watch();
        counters.follow(&web.info().await?.id, &web.dir().await?);

        let unhindered = Instant::now();
        let forks = join_all((0..FORKS).map(|nth| fork(host, &warm, format!("first-{nth}")))).await;
        let span = unhindered.elapsed();
        ensure!(forks.iter().all(|(_, answer)| answer.is_ok()), "unhindered: {forks:?}");
        remove(host, &counters, &[web.info().await?.id]).await?;

        let mut figures = Figures::default();
        let mut kept = vec![web.info().await?.id];
        for round in 0..kills {
            let before = all(host).await?;
            let moment = span.mul_f64(random.f64() * 1.25);
            let forks = join_all((0..FORKS).map(|nth| fork(host, &warm, format!("fork-{round}-{nth}"))));
            let kill = async {
                tokio::time::sleep(moment).await;
                host.crash_daemon()
            };
            let (answers, killed) = futures_util::future::join(forks, kill).await;
            killed?;
            host.start_daemon()?;

            let told = format!("seed {seed}, kill {round}, {} ms into the forks", moment.as_millis());
            let after = all(host).await.context(told.clone())?;
            let found = account(&before, &after, &answers, &mut figures).context(told.clone())?;
            as_the_host_shows(host, after.len()).await.context(told.clone())?;
            for id in after.keys() {
                counters.follow(id, &host.data().join("instances").join(id));
            }
            counters.all_go_on().await.context(told.clone())?;
            // What was found again can be handled: the kept ones stay, and the rest is removed.
            kept.extend(found);
            let surplus = kept.len().saturating_sub(1 + KEPT);
            kept.drain(1..=surplus);
            remove(host, &counters, &kept).await.context(told)?;
            figures.survived += before.len();
        }
        println!(
            "{kills} kills (seed {seed}): {} forks asked for, {} answered and there, {} there though the answer was \
             cut off, {} not at all; {} times a running guest went on; longest time without a tick {} ms",
            figures.asked,
            figures.answered,
            figures.there_unanswered,
            figures.undone,
            figures.survived,
            counters.longest_pause().as_millis(),
        );
        remove(host, &counters, &kept[..1]).await?;
        as_the_host_shows(host, 1).await?;
        eventually("the network is as before", async || Ok(on_the_network(host).await? == network)).await?;
        counters.nothing_is_wrong()
    });
}

/// A fork that was asked for by a name, and the answer.
type Asked = (String, Result<Forked, ClientError>);

async fn fork(host: &TestHost, snapshot: &str, name: String) -> Asked {
    let target_state = Some(TargetState::Running);
    let request = ForkSnapshot { name: name.clone(), target_state, ..ForkSnapshot::default() };
    (name, host.client().fork_snapshot(snapshot, &request).await)
}

/// Every instance that the API shows. Each of them runs, and shares nothing with another.
async fn all(host: &TestHost) -> Result<BTreeMap<String, Shown>> {
    let mut all = BTreeMap::new();
    for instance in host.instances().await? {
        let name = instance.name;
        ensure!(instance.state == InstanceState::Running, "{name} is {}: {:?}", instance.state, instance.state_error);
        ensure!(instance.busy.is_none(), "{name} is busy: {:?}", instance.busy);
        let address = instance.network.and_then(|network| network.ip);
        let address = address.with_context(|| format!("{name} has no address"))?;
        let vmm = host.vm(&name).vmm_pid().await?.with_context(|| format!("{name} has no VMM"))?;
        let namespace = std::fs::metadata(format!("/proc/{vmm}/ns/net"))?.ino();
        let shown = Shown { name, address, vmm, namespace };
        ensure!(all.insert(instance.id.clone(), shown).is_none(), "{} is there twice", instance.id);
    }
    let only_once = |what: &str, count: usize| {
        ensure!(count == all.len(), "{} instances have {count} {what}: {all:#?}", all.len());
        Ok(())
    };
    only_once("names", all.values().map(|shown| &shown.name).collect::<BTreeSet<_>>().len())?;
    only_once("addresses", all.values().map(|shown| &shown.address).collect::<BTreeSet<_>>().len())?;
    only_once("VMMs", all.values().map(|shown| shown.vmm).collect::<BTreeSet<_>>().len())?;
    only_once("namespaces", all.values().map(|shown| shown.namespace).collect::<BTreeSet<_>>().len())?;
    Ok(all)
}

/// What was there is there as it was; what was answered is there; nothing else is but what was asked
/// for. Returns the forks that are there.
fn account(
    before: &BTreeMap<String, Shown>,
    after: &BTreeMap<String, Shown>,
    answers: &[Asked],
    figures: &mut Figures,
) -> Result<Vec<String>> {
    for (id, shown) in before {
        let found = after.get(id).with_context(|| format!("{} is lost", shown.name))?;
        ensure!(found == shown, "it was {shown:?}, and is {found:?}");
    }
    let mut there = Vec::new();
    for (name, answer) in answers {
        figures.asked += 1;
        let found = after.iter().find(|(id, shown)| shown.name == *name && !before.contains_key(*id));
        match (answer, found) {
            (Ok(forked), found) => {
                let told = forked.instances.first().context("an answer without an instance")?;
                let (id, shown) = found.with_context(|| format!("{name} was answered, and is lost"))?;
                let address = told.network.as_ref().and_then(|network| network.ip.as_ref());
                ensure!(*id == told.id && Some(&shown.address) == address, "answered {told:?}, there is {shown:?}");
                figures.answered += 1;
            }
            (Err(ClientError::Api(refused)), _) => anyhow::bail!("{name} was refused: {refused:?}"),
            (Err(_), Some(_)) => figures.there_unanswered += 1,
            (Err(_), None) => figures.undone += 1,
        }
        there.extend(found.map(|(id, _)| id.clone()));
    }
    ensure!(after.len() == before.len() + there.len(), "nobody asked for all of these: {after:#?}");
    Ok(there)
}

/// So many instances are there, to the host as to the API: a directory, a VMM, a cgroup, a namespace and
/// a link for each, beside those in the pool, and the one snapshot.
async fn as_the_host_shows(host: &TestHost, instances: usize) -> Result<()> {
    let slots = SLOTS_OF_A_POOL + SLOT * instances;
    let agrees = async || {
        let traces = host.traces();
        Ok(traces.processes.len() == instances
            && traces.instances.len() == instances
            && traces.snapshots.len() == 1
            // None where version 2 is not mounted.
            && [0, instances].contains(&traces.cgroups.len())
            && host.slots().len() == slots)
    };
    let agreed = eventually("the host shows what the API shows", agrees).await;
    agreed.with_context(|| format!("{instances} instances, {:#?}, {:?}", host.traces(), host.slots()))
}

/// Removes every instance but those.
async fn remove(host: &TestHost, counters: &Counters, but: &[String]) -> Result<()> {
    let all = host.instances().await?.into_iter().map(|instance| instance.id);
    let removed = join_all(all.filter(|id| !but.contains(id)).map(|id| async move {
        counters.leave(&id);
        host.client().delete_instance(&id, &DeleteInstance::default()).await
    }));
    removed.await.into_iter().collect::<Result<Vec<()>, _>>()?;
    Ok(())
}
