//! What ways of loading cost, on the bare VMM: being told of the socket or polling for it, and
//! tracking dirty pages or not.

use std::time::Duration;

use anyhow::Result;

use super::TRACK_DIRTY_PAGES;
use super::floor::{Load, Vmm, Wait};
use super::race::{arguments, in_order};
use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::ground::Ground;
use crate::bench::restore::{Source, WARM_UP};

/// Between two looks, as is common.
const POLL: Duration = Duration::from_millis(50);

pub fn waiting_and_tracking(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let source = Source::boot(ground, &mut client, "loads")?;
    let arguments = arguments(ground, &mut client, &source)?;
    let dir = ground.floor_of_bundle("loads", &ground.bundle_of(&source.id)?)?;

    let told = Load { wait: Wait::Inotify, track_dirty_pages: TRACK_DIRTY_PAGES };
    let polled = Load { wait: Wait::Poll(POLL), ..told };
    let [told, polled] = race(ground, &[told, polled], often, "waiting", |how| {
        Vmm::load(&arguments, &dir, how).map(|(_, moments)| moments.loaded)
    })?;
    figures.times("bare load, told of the socket by inotify", &told);
    figures.times("bare load, polling for the socket every 50 ms", &polled);
    figures.ratio("polling : inotify", &polled, &told);

    let track = |track_dirty_pages| Load { wait: Wait::Inotify, track_dirty_pages };
    let [on, off] = race(ground, &[track(true), track(false)], often, "tracking", |how| {
        Vmm::load(&arguments, &dir, how).map(|(_, moments)| moments.loaded - moments.up)
    })?;
    figures.times("PUT /snapshot/load, dirty pages tracked", &on);
    figures.times("PUT /snapshot/load, not tracked", &off);
    figures.ratio("tracked : not tracked", &on, &off);
    client.delete("/instances/loads").map(drop)
}

/// Both in turns.
fn race(
    ground: &Ground,
    ways: &[Load; 2],
    often: Often<'_>,
    what: &str,
    load: impl Fn(Load) -> Result<Duration>,
) -> Result<[Samples; 2]> {
    let mut took = [Samples::default(), Samples::default()];
    for round in 0..often.n + WARM_UP {
        for which in in_order(round) {
            ground.calm()?;
            let lasted = load(ways[which])?;
            if round >= WARM_UP {
                took[which].time(lasted);
            }
        }
        often.tick(what, round)?;
    }
    Ok(took)
}
