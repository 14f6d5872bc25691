//! Thousands of operations by several clients on simulated VMMs, with faults, against a model.
//!
//! ```text
//!   draw ─► ask (each client) ─► answers ─► model ─┐
//!   draw ─► disturb                                ├─► look: API, records and host agree with it
//!                                                  ┘
//! ```
//! Everything is drawn from one seed. In a round each client asks for up to four things, one after
//! another, while at most one thing goes wrong; after each round all is looked at. `cargo xtask soak`
//! runs it; see `docs/testing.md`.

mod ask;
mod disturb;
mod draw;
mod figures;
mod look;
mod model;
mod realm;

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::future::{join, join_all};
use hearth_api::instances::{DeleteInstance, Instance, InstanceState};
use hearth_e2e::{Names, Setup, TestHost, TestImage, eventually, seed, slowness};

use crate::ask::IMAGE;
use crate::disturb::VMM_FAULTS;
use crate::draw::{Ask, Client, Fate, Fates};
use crate::figures::Figures;
use crate::look::look;
use crate::model::{Life, Trouble, all_at_once, perhaps_ended};
use crate::realm::{Id, Realm};

/// How much fits on the disk.
const DISK_MIB: u64 = 1024;
/// How long it may take until everything that could not be undone is tried again, and given up.
const UNDONE: Duration = Duration::from_secs(90);
/// Slots of the network that wait: as many as every daemon of a test has.
const POOL: usize = 2;

/// `HEARTH_SOAK_SECONDS`, `HEARTH_SOAK_ROUNDS`, `HEARTH_SOAK_CLIENTS`, `HEARTH_TEST_SEED`.
#[test]
#[ignore = "it takes as long as it is told to: cargo xtask soak"]
fn clients_and_faults_against_a_model() {
    let number = |name: &str, otherwise: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text:?}")),
        Err(_) => otherwise,
    };
    let (seconds, rounds) = (number("HEARTH_SOAK_SECONDS", 600), number("HEARTH_SOAK_ROUNDS", u64::MAX));
    let clients = usize::try_from(number("HEARTH_SOAK_CLIENTS", 4)).expect("a number of clients").max(1);
    let seed = seed();
    println!("soak: seed {seed}, {clients} clients, {seconds} s");
    simulated().limit_s(seconds + 240).story(async |host| {
        let image = TestImage::empty().file("bin/app", 0o755, "app").entrypoint(&["/bin/app"]);
        host.import(&image, IMAGE).await?;
        eventually("the pool is full", async || Ok(host.slots().len() == 2 * POOL)).await?;
        let names = Names::of(host, POOL)?;

        let mut soak = Soak::new(seed, clients);
        let until = Instant::now() + Duration::from_secs(seconds);
        let mut round = 0;
        while round < rounds && Instant::now() < until {
            let fate = soak.fates.round();
            let drawn = soak.draw(fate);
            let told = || format!("seed {seed}, round {round}, {fate:?}, {drawn:?}");
            soak.round(host, fate, &drawn).await.with_context(told)?;
            look(host, &mut soak.realms, &names).await.with_context(told)?;
            round += 1;
        }

        for instance in host.instances().await? {
            host.client().delete_instance(&instance.id, &DeleteInstance::default()).await?;
        }
        for snapshot in host.snapshots().await? {
            host.client().delete_snapshot(&snapshot.id).await?;
        }
        look::nothing_is_left(host, &names).await?;
        println!("soak: seed {seed}, {round} rounds, {}; nothing left behind", soak.figures);
        Ok(())
    });
}

/// A host with simulated VMMs, on a small disk.
fn simulated() -> Setup {
    let setup = Setup::default();
    let program = setup.dir().join("firecracker");
    symlink(hearth_simulated::program().expect("it is built"), &program).expect("a link is made");
    // Any ELF: what the simulated VMM boots has an agent, and no kernel.
    let mut kernel = b"\x7fELF\x02\x01\x01".to_vec();
    kernel.resize(4096, 0);
    let setup =
        setup.file("vmlinux", &kernel).without_guests().reflink_disk_if_possible(DISK_MIB).bad_disk_if_possible();
    let kernel = setup.dir().join("vmlinux").display().to_string();
    let settings = [
        ("HEARTH_DEFAULTS_HYPERVISOR", "firecracker"),
        ("HEARTH_FIRECRACKER_PATH", &program.display().to_string()),
        ("HEARTH_FIRECRACKER_KVM", "trust"),
        ("HEARTH_KERNEL_IMAGE", &kernel),
        ("HEARTH_KERNEL_INITRD", "none"),
        ("HEARTH_DEFAULTS_OVERLAY", "64 MB"),
        // An agent that does not answer is given up soon.
        ("HEARTH_TIMEOUTS_AGENT_S", "4"),
        ("HEARTH_TIMEOUTS_BOOT_S", "6"),
        // Addresses go round faster than that.
        ("HEARTH_NETWORK_REUSE_AFTER_S", "0"),
    ];
    let setup = settings.into_iter().fold(setup, |setup, (key, value)| setup.env(key, value));
    // What was made to fail is told of; that nothing else is, is told by the answers. A panic is never expected.
    let told = [
        "operation failed",
        "request failed",
        "the agent is not reached",
        "timeline not stored",
        "the record could not be",
        "a snapshot could not be removed",
        "the snapshot could not be brought to the disk",
        // Of a disk that fails.
        "the host was not left as it should be",
        "Input/output error",
        "disk I/O error",
        "unable to open database file",
        "database disk image is malformed",
    ];
    told.into_iter().fold(setup, Setup::expect_log)
}

/// All that is drawn, and all that is known.
struct Soak {
    clients: Vec<Client>,
    fates: Fates,
    realms: Vec<Realm>,
    figures: Figures,
}

impl Soak {
    fn new(seed: u64, clients: usize) -> Self {
        Self {
            clients: (0..clients).map(|client| Client::new(seed, client)).collect(),
            fates: Fates::new(seed, clients, VMM_FAULTS),
            realms: (0..clients).map(Realm::new).collect(),
            figures: Figures::default(),
        }
    }

    /// What each client asks for in this round.
    fn draw(&mut self, fate: Fate) -> Vec<Vec<Ask>> {
        match fate {
            Fate::Crowd { slot, .. } => (0..self.clients.len()).map(|nth| vec![self.fates.crowd(nth, slot)]).collect(),
            Fate::Calm
            | Fate::DaemonKilled { .. }
            | Fate::DaemonEnded { .. }
            | Fate::VmmKilled { .. }
            | Fate::VmmFault { .. }
            | Fate::AgentSilent
            | Fate::DiskFull { .. }
            | Fate::DiskBad(_)
            | Fate::DaemonOnBadDisk { .. } => self.clients.iter_mut().map(Client::round).collect(),
        }
    }

    async fn round(&mut self, host: &TestHost, fate: Fate, drawn: &[Vec<Ask>]) -> Result<()> {
        let figures = &self.figures;
        let unswept = unswept(host, fate);
        disturb::begin(host, fate)?;
        let victim = disturb::victim(fate, &self.realms);
        let happens = disturb::happen(host, fate, victim.as_deref(), figures);
        if let Fate::Crowd { client, slot } = fate {
            happens.await?;
            return self.crowd(host, (client, slot), drawn).await;
        }
        let asked = join_all(self.realms.iter_mut().zip(drawn).map(async |(realm, asks)| {
            let client = realm.client;
            for ask in asks {
                let trouble = |slot| disturb::trouble(fate, (client, slot));
                ask::ask(host, realm, *ask, trouble, figures)
                    .await
                    .with_context(|| format!("client {client}: {ask:?}"))?;
            }
            anyhow::Ok(())
        }));
        let (asked, happened) = join(asked, happens).await;
        disturb::over(host, fate)?;
        happened?;
        asked.into_iter().collect::<Result<Vec<()>>>()?;
        if matches!(fate, Fate::DiskFull { .. } | Fate::DiskBad(_) | Fate::DaemonOnBadDisk { .. }) {
            clear_up(host, &mut self.realms, figures).await?;
        }
        if self::unswept(host, fate) > unswept {
            // What a start should have removed, and said that it could not, the next one does.
            host.end_daemon()?;
            host.start_daemon()?;
        }
        for realm in &mut self.realms {
            for (nth, slot) in realm.slots.iter_mut().enumerate() {
                if disturb::trouble(fate, (realm.client, nth)).ends {
                    slot.lives = perhaps_ended(&slot.lives);
                }
            }
        }
        Ok(())
    }

    /// All clients at one instance.
    async fn crowd(&mut self, host: &TestHost, (client, slot): (usize, usize), drawn: &[Vec<Ask>]) -> Result<()> {
        let slot = &mut self.realms[client].slots[slot];
        let asks = drawn.iter().flatten();
        let asked = join_all(asks.map(|ask| ask::of_one(host, &slot.name, *ask, &self.figures))).await;
        let asked = asked.into_iter().collect::<Result<Vec<_>>>()?;
        let answers: Vec<_> = asked.into_iter().map(|(verb, answer, _)| (verb, answer)).collect();
        slot.lives = all_at_once(&slot.lives, &answers).map_err(anyhow::Error::msg)?;
        if slot.lives.contains(&Life::Absent) {
            slot.id = Id::New;
        }
        Ok(())
    }
}

/// How often starts on a disk that fails have said that something could not be swept.
fn unswept(host: &TestHost, fate: Fate) -> usize {
    match fate {
        Fate::DaemonOnBadDisk { .. } => host.log_lines("could not be swept") + host.log_lines("could not be looked at"),
        _ => 0,
    }
}

/// Waits until what the disk kept from being undone is undone, and deletes what has failed for good: nothing
/// of it may stay.
async fn clear_up(host: &TestHost, realms: &mut [Realm], figures: &Figures) -> Result<()> {
    let trying = |instance: &Instance| instance.state_error.as_ref().is_some_and(|why| why.ends_with(" again"));
    let until = Instant::now() + UNDONE * slowness();
    while let Some(instance) = host.instances().await?.into_iter().find(trying) {
        ensure!(Instant::now() < until, "{} is still not undone: {:?}", instance.name, instance.state_error);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let mut failed = host.instances().await?;
    failed.retain(|instance| instance.state == InstanceState::Unknown);
    for slot in realms.iter_mut().flat_map(|realm| realm.slots.iter_mut()) {
        let Some(failed) = failed.iter().find(|failed| failed.name == slot.name) else { continue };
        let why = failed.state_error.as_ref().context("a reason")?;
        ensure!(slot.lives.contains(&Life::Failed), "{} has failed, and may be {:?}: {why}", slot.name, slot.lives);
        host.client().delete_instance(&slot.name, &DeleteInstance::default()).await?;
        figures.fault("left behind and deleted");
        (slot.lives, slot.id) = ([Life::Absent].into(), Id::New);
    }
    for realm in realms {
        for place in 0..realm.places.len() {
            // Whoever was told that it failed asks once more.
            if realm.places[place].as_ref().is_some_and(|kept| kept.half_gone) {
                ask::drop_snapshot(host, realm, place, Trouble::default(), figures).await?;
            }
            if realm.places[place].as_ref().is_some_and(|kept| kept.suspect) {
                ask::verify(host, realm, place, Trouble::default(), figures).await?;
                figures.fault("called damaged and verified again");
            }
        }
    }
    Ok(())
}
