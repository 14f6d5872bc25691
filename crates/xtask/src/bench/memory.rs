//! What ten idle forks have of memory for themselves, beside ten floors.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::json;

use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::floor::{Arguments, Floor};
use crate::bench::ground::{Ground, text};
use crate::bench::restore::Source;

const FORKS: usize = 10;
/// How long they are left alone before they are looked at.
const IDLE: Duration = Duration::from_secs(5);

/// Ten forks of one bundle; then, with those gone, ten floors of it.
pub fn of_forks(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let source = Source::boot(ground, &mut client, "memory-source")?;
    let request = json!({ "name": "idle", "target_state": "Running", "count": FORKS });
    let forked = client.post(&format!("/instances/{}/fork", source.name), Some(&request))?.body;
    let mut pids = Vec::new();
    for fork in forked["instances"].as_array().context("ten forks are a list")? {
        pids.push(ground.vmm(text(fork, "id")?)?);
    }
    eprintln!("memory: ten forks idle for {} s", IDLE.as_secs());
    thread::sleep(IDLE);
    often.interrupt.check()?;
    let product = private(&pids)?;
    let arguments = Arguments::of(*pids.first().context("there are ten")?)?;
    for number in 1..=FORKS {
        client.delete(&format!("/instances/idle-{number}"))?;
    }

    let mut floors = Vec::new();
    for number in 0..FORKS {
        let dir = ground.floor_of_bundle(&format!("idle-{number}"), &source.bundle)?;
        floors.push(Floor::load(&arguments, &dir)?.0);
    }
    eprintln!("memory: ten floors idle for {} s", IDLE.as_secs());
    thread::sleep(IDLE);
    let floor = private(&floors.iter().map(Floor::pid).collect::<Vec<_>>())?;
    drop(floors);
    client.delete(&format!("/instances/{}", source.name))?;

    figures.sizes("private memory of an idle fork", &product);
    figures.sizes("private memory of an idle floor", &floor);
    let ratio = product.median() / floor.median().max(0.001);
    figures.target(
        "private memory of ten idle forks",
        "within 10 % of ten floors",
        format!("{ratio:.2} × ({:.1} MiB : {:.1} MiB)", product.median(), floor.median()),
        ratio <= 1.1,
    );
    Ok(())
}

/// `Private_Clean` and `Private_Dirty` of each process, in MiB.
fn private(pids: &[u32]) -> Result<Samples> {
    let mut samples = Samples::default();
    for pid in pids {
        let path = format!("/proc/{pid}/smaps_rollup");
        let rollup = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        let kib: u32 = rollup
            .lines()
            .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u32>().ok())
            .sum();
        samples.push(f64::from(kib) / 1024.0);
    }
    Ok(samples)
}
