//! `hearth inspect`: all about an instance.

use hearth_api::instances::{Instance, InstanceNetwork, Outbound};

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
