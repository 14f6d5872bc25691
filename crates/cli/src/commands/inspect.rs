//! `hearth inspect`: all about an instance.

use hearth_api::instances::{Instance, InstanceNetwork, Outbound};
use hearth_api::restart::{BlockedReason, RestartMode, RestartPolicy, RestartStatus};

use crate::context::Context;
use crate::error::CliError;
use crate::output::{pairs, variables};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name or id of the instance
    name: String,
}

pub(crate) async fn inspect(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let instance = context.client()?.instance(&arguments.name).await?;
    context.output.result(&instance, in_words)
}

/// What it may reach, if that is not everything.
fn outbound(network: &InstanceNetwork) -> Option<String> {
    match network.outbound? {
        Outbound::Open => None,
        Outbound::None => Some("none".into()),
        Outbound::List => Some(network.allow.iter().flatten().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// What its console said last, when nobody had asked it to end.
fn last_words(instance: &Instance) -> Option<String> {
    let console = &instance.end.as_ref()?.console;
    (!console.is_empty()).then(|| console.join(" | "))
}

/// `on_failure, at most 3 times, after 5s, counted anew after 10m0s`.
fn restart(policy: &RestartPolicy) -> String {
    let mut words = vec![policy.policy.map_or("never", RestartMode::as_str).to_owned()];
    if let Some(most) = policy.max_attempts.filter(|most| *most > 0) {
        words.push(format!("at most {most} times"));
    }
    words.extend(policy.backoff.iter().map(|backoff| format!("after {backoff}")));
    words.extend(policy.stable_after.iter().map(|stable| format!("counted anew after {stable}")));
    words.join(", ")
}

/// `2, the next one at …`, `3, no more: max_attempts were in vain`.
fn restarts(status: &RestartStatus) -> String {
    let attempts = status.attempts.unwrap_or(0);
    let next = status.next_attempt_at.map(|at| format!(", the next one at {at}"));
    let blocked = status.blocked_reason.map(|reason| match reason {
        BlockedReason::ManualStop => ", none: it was stopped",
        BlockedReason::MaxAttemptsExceeded => ", no more: they were in vain",
    });
    format!("{attempts}{}{}", next.unwrap_or_default(), blocked.unwrap_or_default())
}

fn in_words(instance: &Instance) -> String {
    let network = instance.network.as_ref();
    let forked = instance.forked_from.as_ref().map(|from| {
        let parts = [("instance", &from.instance_id), ("snapshot", &from.snapshot_id)];
        let known = parts.iter().filter_map(|(what, id)| id.as_ref().map(|id| format!("{what} {id}")));
        known.collect::<Vec<_>>().join(", ")
    });
    let exit = instance.exit_code.map(|code| match &instance.exit_message {
        Some(message) => format!("{code} ({message})"),
        None => code.to_string(),
    });
    let mut text = pairs(&[
        ("name", Some(instance.name.clone())),
        ("id", Some(instance.id.clone())),
        ("state", Some(instance.state.to_string())),
        ("reason", instance.state_error.clone()),
        ("under way", instance.busy.as_ref().map(|busy| busy.op.clone())),
        ("exit", exit),
        ("console", last_words(instance)),
        ("restart", instance.restart_policy.as_ref().map(restart)),
        ("restarts", instance.restart_status.as_ref().map(restarts)),
        ("image", Some(instance.image.clone())),
        ("platform", instance.platform.clone()),
        ("hypervisor", instance.hypervisor.clone()),
        ("memory", instance.size.clone()),
        ("vcpus", instance.vcpus.map(|vcpus| vcpus.to_string())),
        ("overlay", instance.overlay_size.clone()),
        ("address", network.and_then(|network| network.ip.clone())),
        ("mac", network.and_then(|network| network.mac.clone())),
        ("ports", network.and_then(|network| network.ports.as_ref()).map(|ports| ports.join(", "))),
        ("outbound", network.and_then(outbound)),
        ("download", network.and_then(|network| network.bandwidth_download.clone())),
        ("upload", network.and_then(|network| network.bandwidth_upload.clone())),
        ("created", Some(instance.created_at.to_string())),
        ("started", instance.started_at.map(|at| at.to_string())),
        ("stopped", instance.stopped_at.map(|at| at.to_string())),
        ("forked from", forked),
        ("generation", instance.generation.map(|generation| generation.to_string())),
    ]);
    for (phase, ms) in instance.phase_durations_ms.iter().flatten() {
        text += &format!("phase:  {phase} {ms} ms\n");
    }
    text + &variables("env", instance.env.as_ref()) + &variables("tag", instance.tags.as_ref())
}
