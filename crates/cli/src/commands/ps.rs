//! `hearth ps`: the instances.

use hearth_api::instances::{Instance, InstanceState};

use crate::arguments::{key_value, state};
use crate::context::Context;
use crate::error::CliError;
use crate::output::{ago, table};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Only those in this state: running, standby, stopped, initializing, unknown
    #[arg(long, value_parser = state)]
    state: Option<InstanceState>,
    /// Only those with this tag
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
    /// Print names alone
    #[arg(short, long)]
    quiet: bool,
}

pub(crate) async fn ps(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let instances = context.client()?.instances(arguments.state, &arguments.tags.into_iter().collect()).await?;
    let now = jiff::Timestamp::now();
    context.output.result(&instances, |instances| {
        if arguments.quiet {
            return instances.iter().map(|instance| format!("{}\n", instance.name)).collect();
        }
        let rows: Vec<_> = instances.iter().map(|instance| row(instance, now)).collect();
        table(["NAME", "STATE", "IMAGE", "MEMORY", "VCPUS", "CREATED", "ID"], &rows)
    })
}

fn row(instance: &Instance, now: jiff::Timestamp) -> [String; 7] {
    [
        instance.name.clone(),
        shown_state(instance),
        instance.image.clone(),
        instance.size.clone().unwrap_or_default(),
        instance.vcpus.map(|vcpus| vcpus.to_string()).unwrap_or_default(),
        ago(instance.created_at, now),
        instance.id.get(..12).unwrap_or(&instance.id).to_owned(),
    ]
}

/// `Running`, `Running (standby)` while that is under way, `Stopped (exit 3)`, `Stopped (exit 3,
/// restarts)`.
fn shown_state(instance: &Instance) -> String {
    let state = instance.state;
    let waits = instance.restart_status.as_ref().is_some_and(|status| status.next_attempt_at.is_some());
    match (&instance.busy, instance.exit_code) {
        (Some(busy), _) => format!("{state} ({})", busy.op),
        (None, Some(code)) if state == InstanceState::Stopped && waits => format!("{state} (exit {code}, restarts)"),
        (None, Some(code)) if state == InstanceState::Stopped => format!("{state} (exit {code})"),
        _ => state.to_string(),
    }
}
