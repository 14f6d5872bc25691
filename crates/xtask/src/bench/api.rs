//! The daemon with 200 stopped instances: its answers, its memory, and the command line's.

use std::fs;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::ground::{Ground, text};

const INSTANCES: usize = 200;
/// Requests are quick: more of them.
const REQUESTS_EACH: usize = 50;

pub fn with_many_instances(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    ground.boot(&mut client, "stopped-source")?;
    client.post("/instances/stopped-source/stop", None)?;
    let snapshot = json!({ "kind": "Stopped", "name": "disks" });
    let snapshot = client.post("/instances/stopped-source/snapshots", Some(&snapshot))?.body;
    client.delete("/instances/stopped-source")?;
    eprintln!("api: making {INSTANCES} stopped instances");
    let request = json!({ "name": "many", "target_state": "Stopped", "count": INSTANCES });
    let made = client.post(&format!("/snapshots/{}/fork", text(&snapshot, "id")?), Some(&request))?.body;
    let there = made["instances"].as_array().map_or(0, Vec::len);
    ensure!(there == INSTANCES, "{there} of {INSTANCES} instances were made: {}", made["errors"]);

    let (mut one, mut all) = (Samples::default(), Samples::default());
    for number in 0..often.n * REQUESTS_EACH {
        one.time(client.get(&format!("/instances/many-{}", number % INSTANCES + 1))?.took);
    }
    for _ in 0..often.n {
        all.time(client.get("/instances")?.took);
    }
    let (mut inspect, mut ps) = (Samples::default(), Samples::default());
    for done in 1..=often.n {
        for (samples, arguments) in [(&mut inspect, ["inspect", "many-7"].as_slice()), (&mut ps, &["ps"])] {
            let mut command = ground.daemon().hearth();
            command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
            let began = Instant::now();
            let status = command.status().context("start hearth")?;
            samples.time(began.elapsed());
            ensure!(status.success(), "hearth {} failed", arguments.join(" "));
        }
        often.tick("api", done)?;
    }
    let resident = resident(ground.daemon().pid())?;
    eprintln!("api: removing {INSTANCES} instances");
    for number in 1..=INSTANCES {
        client.delete(&format!("/instances/many-{number}"))?;
    }
    client.delete(&format!("/snapshots/{}", text(&snapshot, "id")?))?;

    figures.times("GET /instances/{id}, 200 instances", &one);
    figures.times("GET /instances, 200 instances", &all);
    figures.times("hearth inspect, start to end", &inspect);
    figures.times("hearth ps of 200, start to end", &ps);
    let mut memory = Samples::default();
    memory.push(resident);
    figures.sizes("daemon, resident, 200 stopped instances", &memory);
    let median = one.median();
    figures.target("GET /instances/{id} at 200 instances", "under 1 ms", format!("{median:.2} ms"), median < 1.0);
    let median = inspect.median().max(ps.median());
    figures.target("command line, start to answer", "under 30 ms", format!("{median:.1} ms"), median < 30.0);
    figures.target(
        "daemon with 200 stopped instances",
        "under 40 MiB resident",
        format!("{resident:.1} MiB"),
        resident < 40.0,
    );
    Ok(())
}

/// In MiB.
fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<u32>().ok());
    Ok(f64::from(kib.context("a process has a resident size")?) / 1024.0)
}
