//! The daemon is stopped dead inside each verb, at what can be seen of its effects, and started again:
//! all is as it was or as it was asked to be, nothing is in between or left over, and no guest notices.

mod guests;
mod verb;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_api::Tags;
use hearth_api::client::ClientError;
use hearth_api::images::ImportImage;
use hearth_api::instances::{DeleteInstance, InstanceState, TargetState};
use hearth_api::snapshots::{CreateSnapshot, ForkSnapshot, SnapshotKind};
use hearth_e2e::{
    LeftMemory, Names, Point, Setup, TestHost, TestImage, Vm, eventually, in_the_records, on_the_host, seed, slowness,
};

use crate::firecracker::{SLOT, SLOTS_OF_A_POOL, on_the_network, real};
use crate::import::plain::{Plain, Program};
use guests::{Guests, Known};
use verb::{Before, Verb};

/// How long the world may take to come to rest.
const SOON: Duration = Duration::from_secs(20);
/// It is at rest when it was the same for so long.
const STILL: Duration = Duration::from_millis(300);
/// How long a guest that was asked to end takes for it.
const ENDS_WITHIN: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

#[test]
fn what_begins_and_ends_an_instance_has_happened_or_not() {
    tell(&[Verb::Create, Verb::Start, Verb::Stop, Verb::StopStandby, Verb::Delete, Verb::DeleteStandby]);
}

#[test]
fn standby_and_what_leads_out_of_it_have_happened_or_not() {
    tell(&[Verb::Standby, Verb::StandbyOfRestored, Verb::Restore, Verb::Revert]);
}

#[test]
fn a_snapshot_has_been_taken_or_not() {
    tell(&[
        Verb::Snapshot,
        Verb::SnapshotOfRestored,
        Verb::SnapshotStandby,
        Verb::SnapshotStopped,
        Verb::DeleteSnapshot,
    ]);
}

#[test]
fn a_fork_is_there_or_not() {
    tell(&[Verb::ForkRunning, Verb::ForkStandby, Verb::ForkToStandby, Verb::ForkStopped]);
}

#[test]
fn an_image_is_there_or_not() {
    tell(&[Verb::ImportImage, Verb::DeleteImage]);
}

/// Its guests need no kernel, so this runs on any KVM, and quickly.
#[test]
fn on_real_firecracker_every_verb_has_happened_or_not() {
    let Some(setup) = real() else { return };
    let verbs = [
        Verb::Create,
        Verb::Start,
        Verb::Stop,
        Verb::StopStandby,
        Verb::Delete,
        Verb::DeleteStandby,
        Verb::Standby,
        Verb::StandbyOfRestored,
        Verb::Restore,
        Verb::Revert,
        Verb::Snapshot,
        Verb::SnapshotOfRestored,
        Verb::SnapshotStandby,
        Verb::SnapshotStopped,
        Verb::DeleteSnapshot,
        Verb::ForkRunning,
        Verb::ForkStandby,
        Verb::ForkToStandby,
        Verb::ForkStopped,
        Verb::Import,
        Verb::ForkImported,
        Verb::RestoreImported,
    ];
    tell_on(setup, Guests::Bare, &verbs);
}

/// What there is to be seen, without what is random.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    /// By name: where it rests, and the files in its directory.
    instances: BTreeMap<String, (InstanceState, Vec<String>)>,
    /// By name: what it holds, and its files.
    snapshots: BTreeMap<String, (SnapshotKind, Vec<String>)>,
    /// Names of images, and how many directories they have.
    images: (Vec<String>, usize),
}

/// How the kills of one verb ended.
#[derive(Debug, Default)]
struct Figures {
    kills: usize,
    as_before: usize,
    as_asked: usize,
    /// Of those: so many were answered before the kill.
    answered: usize,
}

/// A host on which verbs are cut off one after another: beside what they are about, `base` runs all the time.
#[derive(Debug)]
pub(crate) struct Stage<'h> {
    pub(crate) host: &'h TestHost,
    pub(crate) guests: Guests,
    names: Names,
    /// What runs `base`, and what that knows.
    vmm: Option<i32>,
    base: RefCell<Known>,
    /// What the snapshot `cold` has on its disk.
    pub(crate) cold: Known,
    /// A guest that was saved elsewhere.
    pub(crate) theirs: Option<Plain>,
}

/// How many points of each verb: `HEARTH_TEST_POINTS`, which may be `all`.
fn points(guests: Guests) -> usize {
    match std::env::var("HEARTH_TEST_POINTS") {
        Ok(all) if all == "all" => usize::MAX,
        Ok(number) => number.parse().expect("HEARTH_TEST_POINTS is a number, or all"),
        // Where nothing translates the guests, a kill is done with in half a second.
        Err(_) => match guests {
            Guests::Linux => 1,
            Guests::Bare => 2,
        },
    }
}

fn tell(verbs: &[Verb]) {
    tell_on(Setup::default(), Guests::Linux, verbs);
}

fn tell_on(setup: Setup, guests: Guests, verbs: &[Verb]) {
    let (seed, many) = (seed(), points(guests));
    println!("HEARTH_TEST_SEED={seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let kills = u64::try_from(verbs.len() * many.min(200)).expect("few");
    setup.limit_s(200 + 10 * kills).story(async |host| {
        let mut stage = Stage::set(host, guests).await?;
        if verbs.contains(&Verb::Import) {
            stage.save_theirs().await?;
        }
        stage.at_rest().await?;
        let network = on_the_network(host).await?;
        let mut all = Figures::default();
        for verb in verbs {
            let figures =
                stage.cut_off(*verb, many, &mut random).await.with_context(|| format!("seed {seed}, {verb:?}"))?;
            println!("{verb:?}: {}", figures.told());
            all.add(&figures);
        }
        println!("{} verbs (seed {seed}): {}", verbs.len(), all.told());
        let same = eventually("the network is as before", async || Ok(on_the_network(host).await? == network)).await;
        same.with_context(|| format!("it was:\n{network}"))
    });
}

impl Figures {
    fn told(&self) -> String {
        let Self { kills, as_before, as_asked, answered } = self;
        format!("{kills} kills, {as_before} ended as before and {as_asked} as asked, {answered} of these answered")
    }

    fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.as_before += other.as_before;
        self.as_asked += other.as_asked;
        self.answered += other.answered;
    }
}

impl<'h> Stage<'h> {
    /// With `base`, which runs, and what others are forked from: `warm` with its memory, `cold` without.
    async fn set(host: &'h TestHost, guests: Guests) -> Result<Self> {
        let full = async || Ok(host.slots().len() == SLOTS_OF_A_POOL);
        eventually("the pool is full", full).await?;
        let names = Names::of(host, SLOTS_OF_A_POOL / SLOT)?;
        let base = guests.boot(host, "base").await?;
        let cold = guests.learn(&base, "cold").await?;
        base.snapshot("warm").await?;
        let stopped = fork(host, "warm", "stopped", Some(TargetState::Running)).await?;
        stopped.stop().await?;
        let request = CreateSnapshot { kind: SnapshotKind::Stopped, name: Some("cold".into()), tags: None };
        host.client().create_snapshot("stopped", &request).await?;
        stopped.delete().await?;
        TestImage::busybox()?.file("etc/other", 0o644, "other").write_oci(&host.dir().join("other"))?;
        Ok(Self {
            host,
            guests,
            names,
            vmm: base.vmm_pid().await?,
            base: RefCell::new(cold.clone()),
            cold,
            theirs: None,
        })
    }

    async fn save_theirs(&mut self) -> Result<()> {
        let program = Program::firecracker().map_err(anyhow::Error::msg)?;
        let (dir, drives) = (self.host.dir().join("theirs"), self.host.dir().join("drives"));
        self.theirs = Some(Plain::save(&program, &dir, &drives).await?);
        Ok(())
    }

    /// What is asked of [`Verb::ImportImage`].
    pub(crate) fn image(&self) -> ImportImage {
        ImportImage { path: self.host.dir().join("other").display().to_string(), name: "other:1".into(), tags: None }
    }

    /// Runs a verb undisturbed, then so many times with a kill in it.
    async fn cut_off(&self, verb: Verb, many: usize, random: &mut fastrand::Rng) -> Result<Figures> {
        let known = verb.prepare(self, "undisturbed").await?;
        let before = self.at_rest().await?;
        let watch = self.host.watch(None)?;
        let began = Instant::now();
        verb.act(self).await?;
        let took = began.elapsed();
        let done = self.at_rest().await?;
        let changes = watch.end()?;
        ensure!(before != done && !changes.is_empty(), "nothing has changed: {changes:?}");
        let span = changes.last().map_or(took, |last| last.at.max(took));
        self.can_be_used(verb, &done, &known, true).await.context("undisturbed")?;
        self.clear().await?;

        let mut figures = Figures::default();
        for (nth, point) in Point::of(&changes, span, many, random).into_iter().enumerate() {
            let at = changes.get(point.changes.wrapping_sub(1)).map_or("it was asked for", |change| &change.what);
            let told = format!(
                "{:.1} ms after change {} of {} ({at})",
                point.then.as_secs_f64() * 1e3,
                point.changes,
                changes.len()
            );
            let known = verb.prepare(self, &format!("mark-{nth}")).await.context(told.clone())?;
            self.settles_to([&before, &before]).await.with_context(|| format!("{told}: it begins otherwise"))?;
            let outcome = self.killed_at(verb, point, span, [&before, &done]).await.context(told.clone())?;
            figures.kills += 1;
            figures.answered += usize::from(outcome.answered);
            figures.as_asked += usize::from(outcome.done);
            figures.as_before += usize::from(!outcome.done);
            let picture = if outcome.done { &done } else { &before };
            let used = self.can_be_used(verb, picture, &known, outcome.done).await;
            used.with_context(|| format!("{told}, then {}", if outcome.done { "as asked" } else { "as before" }))?;
            self.clear().await.context(told)?;
        }
        Ok(figures)
    }

    /// Has the daemon killed at that point of a verb, starts it again, and sees what has become of it.
    async fn killed_at(&self, verb: Verb, point: Point, span: Duration, allowed: [&Picture; 2]) -> Result<Outcome> {
        let watch = self.host.watch(Some(point))?;
        let answer = verb.act(self).await;
        // After the answer something may go on, and the kill be meant for that. What is seen differs a
        // little from one time to another: then the kill comes now.
        watch.kills_within(span + STILL).await;
        watch.end()?;
        self.host.crash_daemon()?;
        self.host.start_daemon()?;
        let answered = match answer {
            Ok(()) => true,
            Err(ClientError::Api(refused)) => bail!("it was refused: {refused:?}"),
            Err(_) => false,
        };
        let mut found = self.settles_to(allowed).await?;
        if verb.asks_the_guest_to_end() && found == allowed[0] {
            tokio::time::sleep(ENDS_WITHIN * slowness()).await;
            found = self.settles_to(allowed).await?;
        }
        let done = found == allowed[1];
        ensure!(done || !answered, "it was answered, and has not happened");
        Ok(Outcome { answered, done })
    }

    /// Waits until what is to be seen is one of these.
    async fn settles_to<'p>(&self, allowed: [&'p Picture; 2]) -> Result<&'p Picture> {
        let until = Instant::now() + SOON * slowness();
        loop {
            let seen = self.look().await;
            if let Some(found) = seen.as_ref().ok().and_then(|seen| allowed.into_iter().find(|it| *it == seen)) {
                return Ok(found);
            }
            if Instant::now() > until {
                let [before, done] = allowed;
                bail!("neither as before:\n{before:#?}\nnor as asked:\n{done:#?}\nbut:\n{:#?}", seen?);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What is to be seen when nothing changes any more.
    async fn at_rest(&self) -> Result<Picture> {
        let until = Instant::now() + SOON * slowness();
        let (mut last, mut since) = (self.look().await, Instant::now());
        loop {
            if last.is_ok() && since.elapsed() >= STILL {
                return last;
            }
            if Instant::now() > until {
                return Err(last.err().context("it changes again and again")?);
            }
            tokio::time::sleep(PAUSE).await;
            let now = self.look().await;
            if now.as_ref().ok() != last.as_ref().ok() {
                since = Instant::now();
            }
            last = now;
        }
    }

    /// What is to be seen, if the API, the records and the host show the same.
    async fn look(&self) -> Result<Picture> {
        let (host, data) = (self.host, self.host.data());
        let (instances, snapshots) = (host.instances().await?, host.snapshots().await?);
        on_the_host(host, &instances, snapshots.len(), LeftMemory::Lingers, &self.names)?;
        in_the_records(&data, &instances, snapshots.len(), LeftMemory::Lingers)?;
        let imports: Vec<_> = fs::read_dir(data.join("imports"))?.flatten().map(|entry| entry.path()).collect();
        ensure!(imports.is_empty(), "imports are under way: {imports:?}");
        let mut picture = Picture { instances: BTreeMap::new(), snapshots: BTreeMap::new(), images: (Vec::new(), 0) };
        for instance in instances {
            ensure!(instance.busy.is_none(), "{} is busy: {:?}", instance.name, instance.busy);
            let files = files(&data.join("instances").join(&instance.id));
            picture.instances.insert(instance.name, (instance.state, files));
        }
        for snapshot in snapshots {
            ensure!(snapshot.size_bytes > 0, "it is not known how much {snapshot:?} takes");
            let files = files(&data.join("snapshots").join(&snapshot.id));
            picture.snapshots.insert(snapshot.name.unwrap_or_default(), (snapshot.kind, files));
        }
        let images = host.client().images(&Tags::new()).await?;
        picture.images = (images.into_iter().map(|image| image.name).collect(), host.traces().images.len());
        Ok(picture)
    }

    /// Everything that is there does what it is for, and knows what it knew; `base` has not noticed anything.
    async fn can_be_used(&self, verb: Verb, picture: &Picture, before: &Before, done: bool) -> Result<()> {
        let (host, guests) = (self.host, self.guests);
        for (name, (state, _)) in picture.instances.iter().filter(|(name, _)| *name != "base") {
            let vm = host.vm(name);
            let known = if verb == Verb::Revert && done { &before.older } else { &before.web };
            // Of one that was undone something may be on the console; a new one has its own.
            let said = match state {
                InstanceState::Standby => guests.said(&vm).await?,
                _ if name == "web" => known.said,
                _ => 0,
            };
            let known = &Known { said, ..known.clone() };
            match state {
                InstanceState::Running if verb == Verb::Create => guests.runs(&vm).await?,
                InstanceState::Running if verb.boots() => guests.has_on_disk(&vm, known).await?,
                InstanceState::Running => guests.knows(&vm, known).await?,
                InstanceState::Standby => {
                    vm.restore().await?;
                    guests.knows(&vm, known).await?;
                }
                InstanceState::Stopped => {
                    vm.start().await?;
                    guests.has_on_disk(&vm, known).await?;
                }
                other => bail!("{name} is {other}"),
            }
            guests.runs(&vm).await?;
        }
        for (name, (kind, _)) in &picture.snapshots {
            let known = match name.as_str() {
                "warm" | "cold" => continue,
                "older" => &before.older,
                _ => &before.web,
            };
            let known = &Known { said: 0, ..known.clone() };
            let probe = fork(host, name, "probe", None).await?;
            if *kind == SnapshotKind::Stopped {
                probe.start().await?;
                guests.has_on_disk(&probe, known).await?;
            } else {
                guests.knows(&probe, known).await?;
            }
        }
        if picture.images.0.iter().any(|name| name.contains("other")) {
            let vm = host.create(&TestHost::request("other", "other:1")).await?;
            ensure!(vm.sh("cat /etc/other").await? == "other", "it is another image");
        }
        let base = host.vm("base");
        ensure!(base.vmm_pid().await? == self.vmm, "base has another VMM");
        let mut known = self.base.borrow().clone();
        guests.counts_on(&base, &mut known).await?;
        self.base.replace(known);
        Ok(())
    }

    /// Removes what a verb was about.
    async fn clear(&self) -> Result<()> {
        let client = self.host.client();
        for instance in self.host.instances().await?.iter().filter(|instance| instance.name != "base") {
            client.delete_instance(&instance.id, &DeleteInstance::default()).await?;
        }
        for snapshot in self.host.snapshots().await? {
            if !["warm", "cold"].map(Some).contains(&snapshot.name.as_deref()) {
                client.delete_snapshot(&snapshot.id).await?;
            }
        }
        for image in client.images(&Tags::new()).await?.iter().filter(|image| image.name.contains("other")) {
            client.delete_image(&image.name).await?;
        }
        Ok(())
    }
}

/// How one kill ended.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    /// It was answered before.
    answered: bool,
    /// All is as asked; as before otherwise.
    done: bool,
}

/// Makes an instance of a snapshot.
pub(crate) async fn fork<'h>(
    host: &'h TestHost,
    snapshot: &str,
    name: &str,
    target_state: Option<TargetState>,
) -> Result<Vm<'h>> {
    let request = ForkSnapshot { name: name.into(), target_state, ..ForkSnapshot::default() };
    host.client().fork_snapshot(snapshot, &request).await?;
    Ok(host.vm(name))
}

/// Names of the files below, without those that are written to whenever there is something to say, and
/// those that may be missing.
fn files(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for path in fs::read_dir(&next).into_iter().flatten().flatten().map(|entry| entry.path()) {
            if path.is_dir() {
                dirs.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap_or(&path).display().to_string();
            let logs = name.ends_with(".log") || name.ends_with(".err");
            // A save that was begun takes the base away; the sums of a bundle come later, and the mark of an
            // instance goes when its record is on the disk.
            let comes_and_goes = ["memory.base", "settled.json", "unrecorded-"];
            if !logs && !comes_and_goes.iter().any(|other| name.starts_with(other)) {
                names.push(name);
            }
        }
    }
    names.sort();
    names
}
