//! What is kept and shown when a story fails: logs and timelines.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::{TestHost, binary};

/// Logs of an instance, in the order in which they help.
const LOGS: [&str; 3] = ["hearth.log", "vmm.log", "serial.log"];
/// How much of each is shown; all of it is kept.
const SHOWN_LINES: usize = 40;

/// Keeps everything in `target/…/e2e/<story>`, or below `HEARTH_TEST_EVIDENCE_DIR`, and prints the ends.
pub(crate) async fn keep(host: &TestHost, story: &str) {
    let kept = match directory(story) {
        Ok(dir) => dir,
        Err(error) => {
            eprintln!("nothing can be kept: {error:#}");
            return;
        }
    };
    show(&kept, "daemon.log", &host.log.lines().join("\n"));
    let instances = fs::read_dir(host.data().join("instances")).into_iter().flatten().filter_map(Result::ok);
    for instance in instances {
        let id = instance.file_name().to_string_lossy().into_owned();
        for log in LOGS {
            if let Ok(bytes) = fs::read(instance.path().join(log)) {
                show(&kept, &format!("{id}.{log}"), &String::from_utf8_lossy(&bytes));
            }
        }
        if host.daemon_runs()
            && let Ok(timeline) = host.client().timeline(&id, None).await
        {
            show(&kept, &format!("{id}.timeline.json"), &serde_json::to_string_pretty(&timeline).unwrap_or_default());
        }
    }
    eprintln!("all of it is kept in {}", kept.display());
}

fn directory(story: &str) -> Result<PathBuf> {
    let evidence = match std::env::var_os("HEARTH_TEST_EVIDENCE_DIR") {
        Some(given) => PathBuf::from(given),
        None => binary::profile_dir()?.join("e2e"),
    };
    let dir = evidence.join(story.replace("::", "."));
    // Only the last failure is of interest.
    fs::remove_dir_all(&dir).ok();
    fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    Ok(dir)
}

fn show(kept: &Path, name: &str, text: &str) {
    if let Err(error) = fs::write(kept.join(name), text) {
        eprintln!("{name} is not kept: {error}");
    }
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("---- {name} ----");
    for line in &lines[lines.len().saturating_sub(SHOWN_LINES)..] {
        eprintln!("{line}");
    }
}
