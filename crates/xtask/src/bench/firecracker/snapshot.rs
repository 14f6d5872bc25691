//! The first snapshot of a guest just booted: the product's, which saves what was touched, beside a
//! bare VMM's that saves everything.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::floor::Vmm;
use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::ground::{Ground, text};

const MIB: u32 = 1024;
/// A whole snapshot takes seconds and writes all of it: a few tell enough.
const FULLS: usize = 5;
const FASTER: f64 = 20.0;
const TOUCHED_MIB: f64 = 16.0;
/// File systems round up, and Firecracker saves what it touched itself.
const SLACK_MIB: f64 = 1.0;

pub fn first_of_a_booted_guest(ground: &Ground, kernel: &Path, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let (mut product, mut save) = (Samples::default(), Samples::default());
    let (mut touched, mut on_disk) = (Samples::default(), Samples::default());
    let (mut full, mut diff) = (Samples::default(), Samples::default());
    for done in 1..=often.n {
        let arguments = ground.boot(&mut client, "booted")?;
        let id = text(&client.get("/instances/booted")?.body, "id")?.to_owned();
        touched_all(&ground.instance_dir(&id))?;
        let request = json!({ "kind": "Standby", "name": "first" });
        let answer = client.post("/instances/booted/snapshots", Some(&request))?;
        product.time(answer.took);
        let timeline = client.get("/instances/booted/timeline?limit=1")?.body;
        let steps = timeline["operations"][0]["steps"].as_array().context("a timeline has steps")?;
        let saved = steps.iter().find(|step| step["step"] == "save guest").context("a snapshot saves the guest")?;
        save.push(saved["duration_ms"].as_f64().context("a step takes time")?);
        // Looked at afterwards: the guest goes on touching the pages that it has touched.
        touched.push(guest_memory(ground.vmm(&id)?)?);
        on_disk.push(allocated(&ground.bundle_of(&id)?.join("memory"))?);
        client.delete("/instances/booted")?;
        client.delete(&format!("/snapshots/{}", text(&answer.body, "id")?))?;

        let dir = ground.place("bare")?;
        let mut bare = Vmm::boot(&arguments, &dir, kernel, MIB)?;
        touched_all(&dir)?;
        diff.time(bare.save("Diff", "diff")?);
        if full.len() < FULLS {
            full.time(bare.save("Full", "full")?);
        }
        often.tick("snapshot", done)?;
    }
    figures.times("first snapshot, 1 GiB just booted: product, request to answer", &product);
    figures.times("first snapshot, 1 GiB just booted:   step save guest", &save);
    figures.times("first snapshot, 1 GiB just booted: bare VMM, Diff", &diff);
    figures.times("first snapshot, 1 GiB just booted: bare VMM, Full", &full);
    figures.sizes("  what the guest had touched", &touched);
    figures.sizes("  its memory file on disk", &on_disk);
    let (product, whole) = (product.median(), full.median());
    let ratio = whole / product.max(0.001);
    figures.target(
        "first snapshot of a booted 1 GiB instance",
        format!("at least {FASTER:.0} × faster than Full"),
        format!("{ratio:.0} × ({product:.1} ms : {whole:.0} ms)"),
        ratio >= FASTER,
    );
    let (had, has) = (touched.percentile(100), on_disk.percentile(100));
    figures.target(
        "  as small on disk as what was touched",
        format!("at most {SLACK_MIB:.0} MiB more, of under {TOUCHED_MIB:.0} MiB"),
        format!("{has:.1} MiB of {had:.1} MiB"),
        had < TOUCHED_MIB && has <= had + SLACK_MIB,
    );
    Ok(())
}

/// Waits until the guest has touched its pages: then it begins to count.
fn touched_all(dir: &Path) -> Result<()> {
    let log = dir.join("serial.log");
    let until = Instant::now() + Duration::from_secs(30);
    while !fs::read(&log).unwrap_or_default().windows(4).any(|word| word == b"tick") {
        ensure!(Instant::now() < until, "the guest does not count in {}", log.display());
        thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// How much of its guest's memory a VMM has in memory, in MiB: of its largest mapping.
fn guest_memory(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/smaps");
    let maps = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = |line: &str, field| line.strip_prefix(field)?.split_whitespace().next()?.parse::<u32>().ok();
    let sizes = maps.lines().filter_map(|line| kib(line, "Size:"));
    let resident = maps.lines().filter_map(|line| kib(line, "Rss:"));
    let largest = sizes.zip(resident).max_by_key(|(size, _)| *size);
    let (_, resident) = largest.with_context(|| format!("there is no mapping in {path}"))?;
    Ok(f64::from(resident) / 1024.0)
}

/// What a file takes on disk, in MiB.
fn allocated(file: &Path) -> Result<f64> {
    let blocks = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?.blocks();
    Ok(f64::from(u32::try_from(blocks).context("a file of a sane size")?) / 2048.0)
}
