//! Restore and fork, to an agent that answered; product and floor take turns on the same bundle.
//!
//! The product's time is that of its HTTP request, the agent's refresh included. The floor's is
//! from the start of QEMU to the answer to a ping; its directory is made beforehand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};

use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::floor::{Arguments, Floor, Moments};
use crate::bench::ground::{Ground, text};
use crate::bench::http::Client;

/// Rounds that are not counted: caches fill, TCG's and the kernel's.
pub const WARM_UP: usize = 2;

/// What both sides took.
#[derive(Debug, Default)]
struct Race {
    product: Samples,
    /// Ends of the timeline's steps, by name, in the order of the first sample.
    order: Vec<String>,
    steps: BTreeMap<String, Samples>,
    /// What the guest says of its refresh.
    refresh: Refresh,
    floor: Samples,
    moments: [Samples; 4],
}

/// What guests say that their refreshes took.
#[derive(Debug, Default)]
pub struct Refresh {
    page_faults: Samples,
    in_the_guest: Samples,
}

impl Refresh {
    /// Takes it out of an operation's timeline: "generation 3, 2 page faults, 0.9 ms in the guest, …".
    pub fn take(&mut self, operation: &Value) -> Result<()> {
        let steps = operation["steps"].as_array().context("a timeline has steps")?;
        let step = steps.iter().find(|step| step["step"] == "refresh identity").context("the guest is refreshed")?;
        let note = text(step, "note")?;
        let number = |unit: &str| -> Option<f64> {
            note.split(", ").find_map(|part| part.strip_suffix(unit))?.trim().parse().ok()
        };
        let told = || format!("a refresh's note says no more what it took: {note}");
        self.page_faults.push(number("page faults").with_context(told)?);
        self.in_the_guest.push(number("ms in the guest").with_context(told)?);
        Ok(())
    }

    pub fn report(&self, verb: &str, figures: &mut Figures) {
        figures.times(&format!("{verb}:   refresh, in the guest"), &self.in_the_guest);
        figures.counts(&format!("{verb}:   refresh, page faults of the agent"), &self.page_faults);
    }
}

/// One product's sample.
#[derive(Debug)]
pub struct Taken {
    pub took: Duration,
    pub operation: Value,
}

impl Race {
    fn product(&mut self, taken: &Taken) -> Result<()> {
        self.product.time(taken.took);
        for step in taken.operation["steps"].as_array().context("a timeline has steps")? {
            let name = text(step, "step")?;
            let took = step["duration_ms"].as_f64().context("a step takes time")?;
            if !self.steps.contains_key(name) {
                self.order.push(name.to_owned());
            }
            self.steps.entry(name.to_owned()).or_default().push(took);
        }
        self.refresh.take(&taken.operation)?;
        let total = taken.operation["duration_ms"].as_f64().context("an operation takes time")?;
        self.steps.entry("(whole operation)".into()).or_default().push(total);
        Ok(())
    }

    fn floor(&mut self, moments: Moments) {
        self.floor.time(moments.answered);
        let Moments { up, loaded, resumed, answered } = moments;
        for (samples, took) in self.moments.iter_mut().zip([up, loaded - up, resumed - loaded, answered - resumed]) {
            samples.time(took);
        }
    }

    fn report(&self, verb: &str, figures: &mut Figures) {
        figures.times(&format!("{verb}: product, request to answer"), &self.product);
        for name in self.order.iter().map(String::as_str).chain(["(whole operation)"]) {
            if let Some(samples) = self.steps.get(name) {
                figures.times(&format!("{verb}:   step {name}"), samples);
            }
        }
        self.refresh.report(verb, figures);
        figures.times(&format!("{verb}: floor, QEMU started to ping answered"), &self.floor);
        let parts = ["QEMU greets", "state is loaded", "vCPUs run", "agent answers"];
        for (name, samples) in parts.iter().zip(&self.moments) {
            figures.times(&format!("{verb}:   until {name}"), samples);
        }
        let (product, floor) = (self.product.median(), self.floor.median());
        let ratio = product / floor.max(0.001);
        figures.target(
            &format!("{verb} to agent answered"),
            "at most 1.25 × floor",
            format!("{ratio:.2} × ({product:.1} ms : {floor:.1} ms)"),
            ratio <= 1.25,
        );
    }
}

/// An instance in standby, restored and put back again and again.
pub fn restore(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let sources = (0..often.concurrency)
        .map(|number| Source::boot(ground, &mut client, &format!("restore-{number}")))
        .collect::<Result<Vec<_>>>()?;
    let mut arguments = None;
    let mut race = Race::default();
    let mut done = 0;
    for round in 0.. {
        let count = round >= WARM_UP;
        // Linked before: a restored instance drops its bundle.
        let dirs = sources
            .iter()
            .map(|source| ground.floor_of_bundle(&source.name, &ground.bundle_of(&source.id)?))
            .collect::<Result<Vec<_>>>()?;
        let answers = at_once(&sources, |source| {
            let answer = ground.client()?.post(&format!("/instances/{}/restore", source.name), None)?;
            Ok((source.name.as_str(), answer.took))
        })?
        .done;
        let taken = all_taken(&mut client, answers)?;
        if arguments.is_none() {
            arguments = Some(Arguments::of(ground.vmm(&sources[0].id)?)?);
        }
        for source in &sources {
            client.post(&format!("/instances/{}/standby", source.name), None)?;
        }
        let floors = floors(arguments.as_ref().context("a VMM that runs has arguments")?, &dirs)?;
        if count {
            taken.iter().try_for_each(|taken| race.product(taken))?;
            floors.into_iter().for_each(|moments| race.floor(moments));
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
    race.report("restore", figures);
    Ok(())
}

/// New instances of an instance in standby.
pub fn fork(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let source = Source::boot(ground, &mut client, "fork-source")?;
    let names: Vec<String> = (0..often.concurrency).map(|number| format!("fork-{number}")).collect();
    let dirs =
        names.iter().map(|name| ground.floor_of_bundle(name, &source.bundle)).collect::<Result<Vec<PathBuf>>>()?;
    let mut arguments = None;
    let mut race = Race::default();
    let mut done = 0;
    for round in 0.. {
        let count = round >= WARM_UP;
        let answers = at_once(&names, |name| {
            let request = json!({ "name": name, "target_state": "Running" });
            let answer = ground.client()?.post(&format!("/instances/{}/fork", source.name), Some(&request))?;
            Ok((name.as_str(), answer.took))
        })?
        .done;
        let taken = all_taken(&mut client, answers)?;
        if arguments.is_none() {
            let fork = client.get(&format!("/instances/{}", names[0]))?.body;
            arguments = Some(Arguments::of(ground.vmm(text(&fork, "id")?)?)?);
        }
        for name in &names {
            client.delete(&format!("/instances/{name}"))?;
        }
        let floors = floors(arguments.as_ref().context("a VMM that runs has arguments")?, &dirs)?;
        if count {
            taken.iter().try_for_each(|taken| race.product(taken))?;
            floors.into_iter().for_each(|moments| race.floor(moments));
            done += names.len();
            often.tick("fork", done)?;
        }
        if done >= often.n {
            break;
        }
    }
    client.delete(&format!("/instances/{}", source.name))?;
    race.report("fork", figures);
    Ok(())
}

/// An instance in standby, and the bundle that it rested in first.
#[derive(Debug)]
pub struct Source {
    pub id: String,
    pub name: String,
    pub bundle: PathBuf,
}

impl Source {
    /// Boots one and puts it into standby.
    pub fn boot(ground: &Ground, client: &mut Client, name: &str) -> Result<Self> {
        ground.boot(client, name)?;
        let rests = client.post(&format!("/instances/{name}/standby"), None)?.body;
        let id = text(&rests, "id")?.to_owned();
        let bundle = ground.bundle_of(&id)?;
        Ok(Self { id, name: name.to_owned(), bundle })
    }
}

/// What the daemon's own clock says of an instance's last operation.
pub fn taken(client: &mut Client, name: &str, took: Duration) -> Result<Taken> {
    let mut timeline = client.get(&format!("/instances/{name}/timeline?limit=1"))?.body;
    Ok(Taken { took, operation: timeline["operations"][0].take() })
}

/// The same of several that ran side by side: asked when all have ended, for to ask takes time.
fn all_taken(client: &mut Client, answers: Vec<(&str, Duration)>) -> Result<Vec<Taken>> {
    answers.into_iter().map(|(name, took)| taken(client, name, took)).collect()
}

fn floors(arguments: &Arguments, dirs: &[PathBuf]) -> Result<Vec<Moments>> {
    // They live until all have answered, as the product's do.
    let loaded = at_once(dirs, |dir| Floor::load(arguments, dir).context("load a floor"))?.done;
    Ok(loaded.into_iter().map(|(_, moments)| moments).collect())
}

/// What was done at the same time.
#[derive(Debug)]
pub struct AtOnce<R> {
    pub done: Vec<R>,
    /// From the first's begin until the last's end.
    pub wall: Duration,
}

/// Does it for all, at the same time. Whatever `work` does counts for the others too.
pub fn at_once<'a, T: Sync, R: Send>(items: &'a [T], work: impl Fn(&'a T) -> Result<R> + Sync) -> Result<AtOnce<R>> {
    let began = Instant::now();
    let done: Result<Vec<R>> = thread::scope(|scope| {
        let threads: Vec<_> = items
            .iter()
            .map(|item| {
                scope.spawn({
                    let work = &work;
                    move || work(item)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a measurement panicked"))?).collect()
    });
    let wall = began.elapsed();
    Ok(AtOnce { done: done?, wall })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_refresh_took_is_in_its_note() {
        let note = "generation 1, 2 page faults, 0.9 ms in the guest, clock within 0.4 ms, a fork, 2 hooks";
        let operation = json!({ "steps": [{ "step": "reach agent" }, { "step": "refresh identity", "note": note }] });
        let mut refresh = Refresh::default();
        refresh.take(&operation).expect("it is told");
        assert_eq!((refresh.page_faults.median(), refresh.in_the_guest.median()), (2.0, 0.9));
        refresh.take(&json!({ "steps": [] })).expect_err("a guest that was not refreshed");
    }
}
