//! The power goes, at any moment, and comes back: what is there then can be used or says why not.
//!
//! The data directory's disk is cut off in the middle of operations: what the kernel had not given
//! to it is lost. On simulated VMMs, whose guests know what was written to them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hearth_api::images::Image;
use hearth_api::instances::InstanceState;
use hearth_e2e::{Cli, TestHost, Vm};

use crate::firecracker::simulated;

/// What was acknowledged so long before the power went is there: a bundle waits six seconds, then it
/// is written to the disk; a record five. The rest is for a busy machine.
const LASTS_AFTER: Duration = Duration::from_secs(15);
/// What a bundle says of itself that had not reached the disk.
const NOT_YET: &str = "was not yet on disk when the host went down";

/// What was promised until the power went.
#[derive(Debug, Clone, Default)]
struct Promised {
    /// Snapshots by name: what their guests know, and when that was acknowledged.
    snapshots: BTreeMap<String, (String, Instant)>,
}

/// The disk of one moment, and what was promised then.
#[derive(Debug)]
struct Cut {
    disk: PathBuf,
    during: String,
    promised: Promised,
    at: Instant,
}

/// How it went with everything that was there after a cut.
#[derive(Debug, Default)]
struct Found {
    loaded: usize,
    not_yet: usize,
    /// Directories of instances whose record went with the power.
    removed: u32,
}

/// 6 cuts; `HEARTH_TEST_CUTS` for more.
#[test]
fn what_is_there_after_the_power_was_cut_can_be_used_or_says_why_not() {
    let cuts: u32 = std::env::var("HEARTH_TEST_CUTS").ok().and_then(|n| n.parse().ok()).unwrap_or(6);
    let setup = simulated().disk_that_loses_power(2048).limit_s(250 + 20 * u64::from(cuts));
    // The daemon tells of whatever it finds cut off.
    setup.expect_log("").story(async |host| {
        let web = host.boot_with("web", |request| request.network = None).await?;
        let images = images(host)?;
        let mut promised = Promised::default();
        let mut taken = Vec::new();
        for round in 0..cuts {
            let content = format!("round {round}");
            web.run(&["write", "/file", &content]).await?;
            let snapshot = format!("warm-{round}");
            let fork = format!("fork-{round}");
            // Every other one goes again: the rest is promised for long.
            let goes = format!("warm-{}", round - round % 2);
            for (nth, command) in [
                vec!["snapshot", "create", "web", "--name", &snapshot],
                vec!["fork", "web", &fork],
                vec!["standby", &fork],
                vec!["restore", &fork],
                vec!["standby", "web"],
                vec!["restore", "web"],
                vec!["rm", "--force", &fork],
                vec!["snapshot", "rm", &goes],
            ]
            .into_iter()
            .enumerate()
            {
                if nth == 7 {
                    if round % 2 == 0 {
                        continue;
                    }
                    promised.snapshots.remove(&goes);
                }
                let running = host
                    .hearth_command(&command)
                    .stdout(Stdio::null())
                    .stderr(Stdio::piped())
                    .spawn()
                    .context("begin an operation")?;
                if nth == (round as usize * 3) % 8 {
                    // Somewhere in it; where exactly is left to the machine.
                    tokio::time::sleep(Duration::from_millis(u64::from(round * 13 % 41))).await;
                    let (disk, during) = (host.cut_power(&format!("cut-{round}.img"))?, command.join(" "));
                    taken.push(Cut { disk, during, promised: promised.clone(), at: Instant::now() });
                }
                let ended = running.wait_with_output()?;
                ensure!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
                if nth == 0 {
                    promised.snapshots.insert(snapshot.clone(), (content.clone(), Instant::now()));
                }
            }
            // So that some of what is promised is old enough.
            tokio::time::sleep(LASTS_AFTER / 4).await;
        }
        let mut all = Found::default();
        for cut in &taken {
            let found = look(host, cut, &images).await.with_context(|| format!("cut off during {:?}", cut.during))?;
            eprintln!("cut off during {:?}: {found:?}", cut.during);
            (all.loaded, all.not_yet) = (all.loaded + found.loaded, all.not_yet + found.not_yet);
            all.removed += found.removed;
        }
        eprintln!("{cuts} cuts: {all:?}");
        ensure!(all.loaded > 0, "nothing was there to be loaded");
        Ok(())
    });
}

/// Comes back after a cut, and uses everything that is there.
async fn look(host: &TestHost, cut: &Cut, images: &[(String, u64)]) -> Result<Found> {
    host.come_back(&cut.disk)?;
    let swept = host.client().recovery().await?.swept;
    ensure!(swept.failed.is_empty(), "not swept: {:?}", swept.failed);
    // Of whatever was made in the last seconds all is there, or nothing.
    let nobodys = swept.left.iter().find(|left| left.why.contains("without a record"));
    ensure!(nobodys.is_none(), "left of what was lost: {nobodys:?}");
    let mut found = Found { removed: swept.directories, ..Found::default() };
    let there = self::images(host)?;
    ensure!(there == images, "an image is not what it was: {there:?}, not {images:?}");
    let snapshots = host.snapshots().await?;
    for (name, (content, at)) in &cut.promised.snapshots {
        if cut.at.duration_since(*at) < LASTS_AFTER {
            continue;
        }
        let snapshot = snapshots.iter().find(|one| one.name.as_ref() == Some(name));
        let snapshot = snapshot.with_context(|| format!("snapshot {name} is lost"))?;
        let fork = host.fork_snapshot(&snapshot.id, &format!("old-{name}"), 1).await?.remove(0);
        knows(&fork, content).await?;
        fork.delete().await?;
    }
    for snapshot in &snapshots {
        let name = snapshot.name.clone().unwrap_or_default();
        let forked = host.hearth(&["snapshot", "fork", &snapshot.id, "probe"])?;
        if refused_in_time(&forked, &name)? {
            found.not_yet += 1;
            continue;
        }
        let probe = host.vm("probe");
        let round = name.strip_prefix("warm-").context("a snapshot of ours")?;
        knows(&probe, &format!("round {round}")).await?;
        probe.delete().await?;
        found.loaded += 1;
    }
    for instance in host.instances().await? {
        let vm = host.vm(&instance.name);
        match instance.state {
            InstanceState::Standby => {
                let restored = host.hearth(&["restore", &instance.name])?;
                if refused_in_time(&restored, &instance.name)? {
                    found.not_yet += 1;
                } else {
                    ensure!(vm.run(&["cat", "/file"]).await?.stdout.contains("round "), "{} knows nothing", vm.name);
                    found.loaded += 1;
                }
            }
            InstanceState::Stopped => vm.start().await?,
            state => anyhow::bail!("{} is {state:?} after the power was gone", instance.name),
        }
        vm.delete().await?;
    }
    Ok(found)
}

async fn knows(vm: &Vm<'_>, content: &str) -> Result<()> {
    let told = vm.run(&["cat", "/file"]).await?.stdout;
    ensure!(told.trim() == content, "{} knows {told:?}, not {content:?}", vm.name);
    Ok(())
}

/// True if it was refused because the disk had not got all of it; any other failure is one.
fn refused_in_time(ended: &Cli, name: &str) -> Result<bool> {
    if ended.code == 0 {
        return Ok(false);
    }
    ensure!(ended.stderr.contains(NOT_YET), "{name}: {}", ended.stderr);
    Ok(true)
}

/// Names of the images, and how much their files take.
fn images(host: &TestHost) -> Result<Vec<(String, u64)>> {
    let list = host.hearth(&["--json", "image", "ls"])?.json()?;
    let list: Vec<Image> = serde_json::from_value(list["images"].clone()).or_else(|_| serde_json::from_value(list))?;
    Ok(list.into_iter().map(|image| (image.name, size(&host.data().join("images")))).collect())
}

fn size(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.metadata().map_or(0, |meta| if meta.is_dir() { size(&entry.path()) } else { meta.len() }))
        .sum()
}
