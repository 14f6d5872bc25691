//! Restore and fork to a guest that runs: product and floor take turns on the same bundle, and in
//! being the first of a round.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use super::TRACK_DIRTY_PAGES;
use super::floor::{Load, Moments, Vmm, Wait};
use super::netns::Namespaces;
use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::floor::Arguments;
use crate::bench::ground::{Ground, text};
use crate::bench::http::{Answer, Client};
use crate::bench::restore::{AtOnce, Source, Taken, WARM_UP, at_once, taken};

const RATIO: f64 = 1.15;
const OWN_MS: f64 = 2.0;
/// Of several at once, until the last one.
const WALL_RATIO: f64 = 1.2;
/// What a fork may take on top of a restore.
const FORK_MS: f64 = 2.0;
const DIRTY_BYTES: usize = 64 << 20;
/// As fast as can be, with what the product tells Firecracker.
const LOAD: Load = Load { wait: Wait::Inotify, track_dirty_pages: TRACK_DIRTY_PAGES };

/// What both sides took.
#[derive(Debug, Default)]
struct Race {
    /// From the request's first byte to the answer's last.
    answered: Samples,
    /// From the request's first byte to a guest that runs.
    running: Samples,
    /// End points A and B, from the operation's begin.
    loaded: Samples,
    resumed: Samples,
    /// From the request's first byte to a guest that runs, without the load.
    before: Samples,
    /// Of the timeline's steps, by name, in the order of the first sample.
    order: Vec<String>,
    steps: BTreeMap<String, Samples>,
    outside: Samples,
    floor: Samples,
    floor_up: Samples,
    floor_load: Samples,
    /// Of those that ran side by side, until the last was answered.
    wall: Samples,
    floor_wall: Samples,
    /// The daemon's processor time for each.
    cpu: Samples,
}

impl Race {
    fn product(&mut self, (Taken { took, operation }, running): &(Taken, Duration)) -> Result<()> {
        let took = took.as_secs_f64() * 1000.0;
        let mut outside = took;
        // Steps may overlap: what two of them share is counted once.
        let mut told_until = 0.0_f64;
        let mut load = None;
        let mut resumed = None;
        for step in operation["steps"].as_array().context("a timeline has steps")? {
            let name = text(step, "step")?;
            let began = step["start_ms"].as_f64().context("a step has a begin")?;
            let lasted = step["duration_ms"].as_f64().context("a step takes time")?;
            outside -= (began + lasted - told_until.max(began)).max(0.0);
            told_until = told_until.max(began + lasted);
            match name {
                "load snapshot" => load = Some((began + lasted, lasted)),
                "resume" => resumed = Some(began + lasted),
                _ => {}
            }
            if !self.steps.contains_key(name) {
                self.order.push(name.to_owned());
            }
            self.steps.entry(name.to_owned()).or_default().push(lasted);
        }
        let (loaded, load) = load.context("a guest is brought back by a load")?;
        self.answered.push(took);
        self.running.time(*running);
        self.loaded.push(loaded);
        self.resumed.push(resumed.unwrap_or(loaded));
        self.before.push(running.as_secs_f64() * 1000.0 - load);
        self.outside.push(outside);
        Ok(())
    }

    fn round(&mut self, product: &Product, floors: AtOnce<Moments>) -> Result<()> {
        product.taken.iter().try_for_each(|taken| self.product(taken))?;
        self.wall.time(product.wall);
        self.cpu.time(product.cpu);
        self.floor_wall.time(floors.wall);
        floors.done.into_iter().for_each(|moments| self.floor(moments));
        Ok(())
    }

    fn floor(&mut self, Moments { up, loaded }: Moments) {
        self.floor_up.time(up);
        self.floor_load.time(loaded - up);
        self.floor.time(loaded);
    }

    fn report(&self, verb: &str, concurrency: usize, figures: &mut Figures) {
        let verb = match concurrency {
            1 => verb.to_owned(),
            many => format!("{verb}, {many} at once"),
        };
        figures.times(&format!("{verb}: product, request to answer"), &self.answered);
        figures.times(&format!("{verb}: product, request to resumed"), &self.running);
        figures.times(&format!("{verb}:   A, load returned"), &self.loaded);
        figures.times(&format!("{verb}:   B, resumed"), &self.resumed);
        for name in &self.order {
            figures.times(&format!("{verb}:   step {name}"), &self.steps[name]);
        }
        figures.times(&format!("{verb}:   in no step"), &self.outside);
        figures.times(&format!("{verb}:   request to resumed, without the load"), &self.before);
        figures.times(&format!("{verb}: floor, spawn to 204"), &self.floor);
        figures.times(&format!("{verb}:   until its socket answers"), &self.floor_up);
        figures.times(&format!("{verb}:   PUT /snapshot/load"), &self.floor_load);
        if concurrency > 1 {
            figures.times(&format!("{verb}: the daemon's processor time for each"), &self.cpu);
            figures.times(&format!("{verb}: product, until the last answer"), &self.wall);
            figures.times(&format!("{verb}: floor, until the last 204"), &self.floor_wall);
            let (wall, floor) = (self.wall.median(), self.floor_wall.median());
            let ratio = wall / floor.max(0.001);
            figures.target(
                &format!("{verb}, until the last answer"),
                format!("at most {WALL_RATIO} × floor"),
                format!("{ratio:.2} × ({wall:.1} ms : {floor:.1} ms)"),
                ratio <= WALL_RATIO,
            );
            return;
        }
        let floor = self.floor.median();
        for (what, product) in [("request to resumed", &self.running), ("request to answer", &self.answered)] {
            let product = product.median();
            let ratio = product / floor.max(0.001);
            figures.target(
                &format!("{verb}, {what}"),
                format!("at most {RATIO} × floor"),
                format!("{ratio:.2} × ({product:.1} ms : {floor:.1} ms)"),
                ratio <= RATIO,
            );
        }
        // Meanwhile Firecracker comes up: that takes the floor as long, and is its own.
        let (before, up) = (self.before.median(), self.floor_up.median());
        let own = before - up;
        figures.target(
            &format!("{verb}, all that is not Firecracker's"),
            format!("under {OWN_MS} ms"),
            format!("{own:.2} ms ({before:.2} - {up:.2})"),
            own < OWN_MS,
        );
    }
}

/// One round of the product.
#[derive(Debug)]
struct Product {
    taken: Vec<(Taken, Duration)>,
    wall: Duration,
    /// Of the daemon, for each of them.
    cpu: Duration,
}

impl Product {
    /// Asks for all at the same time. What the daemon says of them is gathered after the last has
    /// ended: to read its log and to ask it takes the time of those that are under way.
    fn race<'a, T: Sync>(
        ground: &Ground,
        client: &mut Client,
        all: &'a [T],
        ask: impl Fn(&mut Client, &'a T) -> Result<(&'a str, Answer)> + Sync,
    ) -> Result<Self> {
        let before = ground.daemon().cpu_time()?;
        let AtOnce { done, wall } = at_once(all, |one| ask(&mut ground.client()?, one))?;
        let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
        let cpu = (ground.daemon().cpu_time()? - before) / count;
        let taken = done.into_iter().map(|(name, answer)| told(ground, client, name, &answer));
        Ok(Self { taken: taken.collect::<Result<_>>()?, wall, cpu })
    }
}

/// Instances in standby, restored and put back again and again.
pub fn restore(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let sources = (0..often.concurrency)
        .map(|number| Source::boot(ground, &mut client, &format!("restore-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let arguments = arguments(ground, &mut client, &sources[0])?;
    let namespaces = Namespaces::new(often.concurrency)?;
    let mut race = Race::default();
    let mut done = 0;
    for round in 0.. {
        // Linked before: a restored instance drops its bundle.
        let dirs = sources
            .iter()
            .map(|source| ground.floor_of_bundle(&source.name, &ground.bundle_of(&source.id)?))
            .collect::<Result<Vec<_>>>()?;
        let mut product = || {
            let all = Product::race(ground, &mut client, &sources, |client, source| {
                Ok((source.name.as_str(), ask_to_restore(client, &source.name)?))
            })?;
            for source in &sources {
                client.post(&format!("/instances/{}/standby", source.name), None)?;
            }
            Ok(all)
        };
        let (product, floors) = in_turn(ground, round, &mut product, || floors(&arguments, &namespaces, &dirs))?;
        if round >= WARM_UP {
            race.round(&product, floors)?;
            done += sources.len();
            often.tick("restore", done)?;
        }
        if done >= often.n {
            break;
        }
    }
    for source in &sources {
        client.delete(&format!("/instances/{}", source.name))?;
    }
    race.report("restore", often.concurrency, figures);
    Ok(())
}

/// New instances of an instance in standby.
pub fn fork(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let source = Source::boot(ground, &mut client, "fork-source")?;
    let arguments = arguments(ground, &mut client, &source)?;
    let bundle = ground.bundle_of(&source.id)?;
    let namespaces = Namespaces::new(often.concurrency)?;
    let names: Vec<String> = (0..often.concurrency).map(|number| format!("fork-{number}")).collect();
    let dirs = names.iter().map(|name| ground.floor_of_bundle(name, &bundle)).collect::<Result<Vec<PathBuf>>>()?;
    let mut race = Race::default();
    let mut done = 0;
    for round in 0.. {
        let mut product = || {
            let all = Product::race(ground, &mut client, &names, |client, name| {
                Ok((name.as_str(), ask_to_fork(client, &source.name, name)?))
            })?;
            for name in &names {
                client.delete(&format!("/instances/{name}"))?;
            }
            Ok(all)
        };
        let (product, floors) = in_turn(ground, round, &mut product, || floors(&arguments, &namespaces, &dirs))?;
        if round >= WARM_UP {
            race.round(&product, floors)?;
            done += names.len();
            often.tick("fork", done)?;
        }
        if done >= often.n {
            break;
        }
    }
    client.delete(&format!("/instances/{}", source.name))?;
    race.report("fork", often.concurrency, figures);
    Ok(())
}

/// The same restore by two daemons: one resumes on load, the other one's escape hatch is closed.
pub fn two_step(open: &Ground, closed: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut clients = [open.client()?, closed.client()?];
    let grounds = [open, closed];
    for (ground, client) in grounds.iter().zip(&mut clients) {
        Source::boot(ground, client, "steps")?;
    }
    let mut took = [Samples::default(), Samples::default()];
    for round in 0..often.n + WARM_UP {
        for which in in_order(round) {
            grounds[which].calm()?;
            let taken = timed_restore(grounds[which], "steps")?;
            clients[which].post("/instances/steps/standby", None)?;
            if round >= WARM_UP {
                took[which].time(taken.took);
            }
        }
        often.tick("two steps", round)?;
    }
    for client in &mut clients {
        client.delete("/instances/steps")?;
    }
    let [one, two] = &took;
    figures.times("restore, resume on load", one);
    figures.times("restore, loaded and resumed in two steps", two);
    figures.ratio("two steps : resume on load", two, one);
    Ok(())
}

/// A fork whose source has written much to its disk, beside a restore of one that has not.
pub fn fork_of_a_dirty_overlay(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    Source::boot(ground, &mut client, "clean")?;
    ground.boot(&mut client, "dirty")?;
    let dirty = client.get("/instances/dirty")?.body;
    write_far_inside(&ground.instance_dir(text(&dirty, "id")?).join("disks/overlay.img"))?;
    client.post("/instances/dirty/standby", None)?;
    let (mut restores, mut forks) = (Samples::default(), Samples::default());
    for round in 0..often.n + WARM_UP {
        for which in in_order(round) {
            ground.calm()?;
            let (samples, taken) = match which {
                0 => (&mut restores, timed_restore(ground, "clean")?),
                _ => (&mut forks, timed_fork(ground, "dirty", "of-dirty")?),
            };
            match which {
                0 => drop(client.post("/instances/clean/standby", None)?),
                _ => drop(client.delete("/instances/of-dirty")?),
            }
            if round >= WARM_UP {
                samples.time(taken.took);
            }
        }
        often.tick("fork of a dirty overlay", round)?;
    }
    for name in ["clean", "dirty"] {
        client.delete(&format!("/instances/{name}"))?;
    }
    figures.times("restore, reflink", &restores);
    figures.times("fork, 64 MiB written to its overlay, reflink", &forks);
    let (restore, fork) = (restores.median(), forks.median());
    figures.target(
        "fork of a snapshot with a 64 MiB dirty overlay, reflink",
        format!("at most restore + {FORK_MS} ms"),
        format!("restore {:+.1} ms ({fork:.1} ms : {restore:.1} ms)", fork - restore),
        fork <= restore + FORK_MS,
    );
    Ok(())
}

/// How the product starts the VMM of a loaded instance; the source is in standby again.
pub fn arguments(ground: &Ground, client: &mut Client, source: &Source) -> Result<Arguments> {
    client.post(&format!("/instances/{}/restore", source.name), None)?;
    let arguments = Arguments::of(ground.vmm(&source.id)?)?;
    client.post(&format!("/instances/{}/standby", source.name), None)?;
    Ok(arguments)
}

/// What an operation took, and how long after its request the guest ran.
fn told(ground: &Ground, client: &mut Client, name: &str, answer: &Answer) -> Result<(Taken, Duration)> {
    let running = ground.resumed_after(text(&answer.body, "id")?, answer.sent)?;
    Ok((taken(client, name, answer.took)?, running))
}

/// A restore, by a daemon that may resume in a step of its own, and does not log it then.
fn timed_restore(ground: &Ground, name: &str) -> Result<Taken> {
    let mut client = ground.client()?;
    let answer = ask_to_restore(&mut client, name)?;
    taken(&mut client, name, answer.took)
}

fn timed_fork(ground: &Ground, source: &str, name: &str) -> Result<Taken> {
    let mut client = ground.client()?;
    let answer = ask_to_fork(&mut client, source, name)?;
    taken(&mut client, name, answer.took)
}

fn ask_to_restore(client: &mut Client, name: &str) -> Result<Answer> {
    client.post(&format!("/instances/{name}/restore"), None)
}

fn ask_to_fork(client: &mut Client, source: &str, name: &str) -> Result<Answer> {
    let request = json!({ "name": name, "target_state": "Running" });
    client.post(&format!("/instances/{source}/fork"), Some(&request))
}

fn floors(arguments: &Arguments, namespaces: &Namespaces, dirs: &[PathBuf]) -> Result<AtOnce<Moments>> {
    let places: Vec<(usize, &PathBuf)> = dirs.iter().enumerate().collect();
    // They live until all have loaded, as the product's do.
    let AtOnce { done, wall } = at_once(&places, |(number, dir)| {
        namespaces.enter(*number)?;
        Vmm::load(arguments, dir, LOAD).context("load a floor")
    })?;
    Ok(AtOnce { done: done.into_iter().map(|(_, moments)| moments).collect(), wall })
}

/// Both, the one or the other first: who comes second meets the first one's caches and remains.
fn in_turn<A, B>(
    ground: &Ground,
    round: usize,
    a: &mut impl FnMut() -> Result<A>,
    b: impl FnOnce() -> Result<B>,
) -> Result<(A, B)> {
    ground.calm()?;
    if round.is_multiple_of(2) {
        let first = a()?;
        ground.calm()?;
        return Ok((first, b()?));
    }
    let first = b()?;
    ground.calm()?;
    Ok((a()?, first))
}

pub fn in_order(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

/// Data in a disk's free space, where no guest of ours looks.
fn write_far_inside(disk: &Path) -> Result<()> {
    let mut bytes = vec![0; DIRTY_BYTES];
    File::open("/dev/urandom").and_then(|mut random| random.read_exact(&mut bytes)).context("draw bytes")?;
    let file = File::options().write(true).open(disk).with_context(|| format!("open {}", disk.display()))?;
    file.write_all_at(&bytes, 1 << 30)
        .and_then(|()| file.sync_all())
        .with_context(|| format!("fill {}", disk.display()))
}
