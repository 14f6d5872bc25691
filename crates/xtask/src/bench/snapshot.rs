//! Standby and snapshots, beside what QEMU takes to save its devices.

use std::path::Path;

use anyhow::Result;
use serde_json::json;

use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::floor::Floor;
use crate::bench::ground::{FileSystem, Ground, text};
use crate::bench::restore::Source;

const MEMORY: u64 = 256 << 20;
/// What a guest of 256 MiB may take on top of the floor.
const ON_TOP_MS: f64 = 20.0;
const FORK_MS: f64 = 100.0;
/// What the fork writes: less than the 4 MiB that are allowed, with what it writes by itself.
const WRITES: &str = "dd if=/dev/urandom of=/dev/shm/x bs=1024 count=1024 2>/dev/null || dd if=/dev/urandom of=/tmp/x bs=1024 count=1024";

/// A booted guest: its standby, and snapshots of it while it goes on.
pub fn of_a_booted_guest(ground: &Ground, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let arguments = ground.boot(&mut client, "snapshot-source")?;
    let source = client.get("/instances/snapshot-source")?.body;
    let dir = ground.floor_of_instance("booted", text(&source, "id")?)?;
    let mut floor = Floor::boot(&arguments, &dir, MEMORY)?;

    let (mut standby, mut running, mut floors) = (Samples::default(), Samples::default(), Samples::default());
    for done in 1..=often.n {
        floors.time(floor.save(&dir.join("vmstate"))?);

        let request = json!({ "kind": "Standby", "name": "taken" });
        let answer = client.post("/instances/snapshot-source/snapshots", Some(&request))?;
        running.time(answer.took);
        client.delete(&format!("/snapshots/{}", text(&answer.body, "id")?))?;

        // Only a guest that was booted has its memory in a file of its own.
        ground.boot(&mut client, "standby-source")?;
        standby.time(client.post("/instances/standby-source/standby", None)?.took);
        client.delete("/instances/standby-source")?;
        often.tick("snapshot", done)?;
    }
    client.delete("/instances/snapshot-source")?;
    figures.times("snapshot, booted 256 MiB: floor (stop, migrate)", &floors);
    figures.times("snapshot, booted 256 MiB: product's standby", &standby);
    figures.times("snapshot, booted 256 MiB: product's, it goes on, no reflink", &running);
    let (product, floor) = (standby.median(), floors.median());
    figures.target(
        "snapshot of a booted 256 MiB instance (standby)",
        format!("at most floor + {ON_TOP_MS:.0} ms"),
        format!("floor + {:.1} ms ({product:.1} ms : {floor:.1} ms)", product - floor),
        product <= floor + ON_TOP_MS,
    );
    Ok(())
}

/// A fork that changed little goes to standby: a clone of its base with its own pages on top.
pub fn of_a_fork(ground: &Ground, on: FileSystem, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let mut client = ground.client()?;
    let source = Source::boot(ground, &mut client, "base")?;
    let (mut standby, mut running) = (Samples::default(), Samples::default());
    let mut written = Samples::default();
    for done in 1..=often.n {
        let request = json!({ "name": "changed", "target_state": "Running" });
        let fork = client.post(&format!("/instances/{}/fork", source.name), Some(&request))?.body;
        crate::process::stdout_of(ground.daemon().hearth().args(["exec", "changed", "--", "/bin/sh", "-c", WRITES]))?;

        let request = json!({ "kind": "Standby", "name": "taken" });
        let answer = client.post("/instances/changed/snapshots", Some(&request))?;
        running.time(answer.took);
        let snapshot = text(&answer.body, "id")?.to_owned();
        client.delete(&format!("/snapshots/{snapshot}"))?;

        standby.time(client.post("/instances/changed/standby", None)?.took);
        written.push(changed(&source.bundle, &ground.bundle_of(text(&fork, "id")?)?)?);
        client.delete("/instances/changed")?;
        often.tick("standby of a fork", done)?;
    }
    client.delete(&format!("/instances/{}", source.name))?;
    let place = match on {
        FileSystem::Plain => "no reflink",
        FileSystem::Reflink => "reflink",
    };
    figures.times(&format!("standby of a fork, {place}"), &standby);
    figures.times(&format!("snapshot of a running fork, {place}"), &running);
    figures.sizes(&format!("  what the fork had changed, {place}"), &written);
    if on == FileSystem::Reflink {
        let (median, most) = (standby.median(), written.percentile(100));
        figures.target(
            "standby of a fork that changed under 4 MiB, reflink",
            format!("under {FORK_MS:.0} ms"),
            format!("{median:.1} ms ({most:.1} MiB changed)"),
            median < FORK_MS && most < 4.0,
        );
    }
    Ok(())
}

/// In how many MiB two bundles' memory differs, by 4 KiB pages.
fn changed(base: &Path, bundle: &Path) -> Result<f64> {
    use std::io::Read;
    let mut files = [std::fs::File::open(base.join("memory"))?, std::fs::File::open(bundle.join("memory"))?];
    let (mut pages, mut buffers) = (0_u32, [vec![0; 1 << 20], vec![0; 1 << 20]]);
    for _ in 0..MEMORY >> 20 {
        for (file, buffer) in files.iter_mut().zip(&mut buffers) {
            file.read_exact(buffer)?;
        }
        if buffers[0] != buffers[1] {
            let differs = buffers[0].chunks(4096).zip(buffers[1].chunks(4096)).filter(|(a, b)| a != b);
            pages += u32::try_from(differs.count())?;
        }
    }
    Ok(f64::from(pages) / 256.0)
}
