//! `hearth doctor --recovery`: what the daemon found when it started, and what it did about it.

use hearth_api::recovery::{RecoveredInstance, Recovery, Swept, Unswept};

use crate::context::Context;
use crate::error::CliError;
use crate::output::{ago, table};

pub(super) async fn recovery(context: &Context) -> Result<(), CliError> {
    let recovery = context.client()?.recovery().await?;
    let now = jiff::Timestamp::now();
    context.output.result(&recovery, |recovery| in_words(recovery, now))
}

/// ```text
/// the daemon started 5 s ago and took 52.1 ms: adopted 1, undone 1
/// NAME  FOUND                  VMM    OUTCOME  NOW      WHY
/// job   Stopped (snapshot)     gone   undone   Stopped
/// web   Running                alive  adopted  Running
/// swept: 2 bundles, 1 import
/// left: /var/lib/hearth/snapshots/x: a bundle without a record
/// ```
fn in_words(recovery: &Recovery, now: jiff::Timestamp) -> String {
    let counts: Vec<_> = recovery.outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
    let counts = if counts.is_empty() { "no instances".to_owned() } else { counts.join(", ") };
    let (when, took) = (ago(recovery.started_at, now), recovery.duration_ms);
    let mut text = format!("the daemon started {when} and took {took:.1} ms: {counts}\n");
    if !recovery.instances.is_empty() {
        let rows: Vec<_> = recovery.instances.iter().map(row).collect();
        text += &table(["NAME", "FOUND", "VMM", "OUTCOME", "NOW", "WHY"], &rows);
    }
    if recovery.unlisted > 0 {
        text += &format!("and {} more\n", recovery.unlisted);
    }
    text + &swept(&recovery.swept)
}

fn row(instance: &RecoveredInstance) -> [String; 6] {
    let found = match &instance.cut_off {
        Some(op) => format!("{} ({op})", instance.found),
        None => instance.found.to_string(),
    };
    let looks = if instance.looks > 0 { format!("; looked for {} times more", instance.looks) } else { String::new() };
    let why = instance.reason.clone().unwrap_or_default() + &looks;
    [
        instance.name.clone(),
        found,
        instance.vmm.as_str().to_owned(),
        instance.outcome.as_str().to_owned(),
        instance.state.map(|state| state.to_string()).unwrap_or_default(),
        why.trim_start_matches("; ").to_owned(),
    ]
}

fn swept(swept: &Swept) -> String {
    let counts = [
        (swept.directories, "unfinished instance"),
        (swept.bundles, "bundle"),
        (swept.withdrawn_records + swept.unpublished_records, "snapshot record"),
        (swept.imports, "import"),
        (swept.images, "image"),
        (swept.drafts, "draft"),
        (swept.cgroups, "cgroup"),
        (swept.slots, "slot"),
    ];
    let counts: Vec<_> = counts
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, what)| format!("{count} {what}{}", if *count == 1 { "" } else { "s" }))
        .collect();
    let mut text = String::new();
    if !counts.is_empty() {
        text += &format!("swept: {}\n", counts.join(", "));
    }
    for (said, list) in [("left", &swept.left), ("not swept", &swept.failed)] {
        text += &list.iter().map(|Unswept { what, why }| format!("{said}: {what}: {why}\n")).collect::<String>();
    }
    if swept.unlisted > 0 {
        text += &format!("and {} more that were left or not swept\n", swept.unlisted);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_from_what_was_done_to_what_was_left() {
        let json = serde_json::json!({
            "started_at": "2026-01-01T00:00:00Z", "duration_ms": 52.13, "unlisted": 4,
            "outcomes": {"adopted": 5, "failed": 1, "undone": 1},
            "instances": [
                {"id": "a", "name": "bad", "found": "Running", "vmm": "unknown", "outcome": "failed",
                 "state": "Unknown", "reason": "no descriptors", "looks": 5},
                {"id": "b", "name": "job", "found": "Initializing", "cut_off": "start", "vmm": "alive",
                 "outcome": "undone", "state": "Stopped", "looks": 0},
                {"id": "c", "name": "web", "found": "Running", "vmm": "alive", "outcome": "adopted",
                 "state": "Running", "looks": 0},
            ],
            "swept": {
                "bundles": 2, "withdrawn_records": 1, "unpublished_records": 0, "directories": 1, "imports": 0,
                "images": 1, "drafts": 0, "cgroups": 1, "slots": 0,
                "left": [{"what": "snapshots/x", "why": "a bundle without a record"}],
                "failed": [{"what": "imports/y", "why": "Read-only file system"}], "unlisted": 1,
            },
        });
        let recovery: Recovery = serde_json::from_value(json).expect("a report");
        let now = "2026-01-01T00:00:05Z".parse().expect("a time");
        let expected = "\
the daemon started 5 s ago and took 52.1 ms: adopted 5, failed 1, undone 1
NAME  FOUND                 VMM      OUTCOME  NOW      WHY
bad   Running               unknown  failed   Unknown  no descriptors; looked for 5 times more
job   Initializing (start)  alive    undone   Stopped
web   Running               alive    adopted  Running
and 4 more
swept: 1 unfinished instance, 2 bundles, 1 snapshot record, 1 image, 1 cgroup
left: snapshots/x: a bundle without a record
not swept: imports/y: Read-only file system
and 1 more that were left or not swept
";
        assert_eq!(in_words(&recovery, now), expected);
    }
}
