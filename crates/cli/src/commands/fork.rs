//! `hearth fork`: new instances that go on from where another one is.

use std::collections::BTreeMap;

use hearth_api::instances::{ForkInstance, Forked, TargetState};

use crate::arguments::{key_value, variable};
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
#[command(after_help = "  hearth fork web try --count 10     try-1 to try-10, each going on from where web is")]
pub(crate) struct Arguments {
    /// Name or id of the instance to fork; it is not changed, and goes on if it runs
    source: String,
    /// Name of the new instance; with --count, what their names begin with
    name: String,
    /// How many; above 1 their names end in -1, -2, …
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Where they shall rest [default: as the source]
    #[arg(long)]
    state: Option<Target>,
    #[command(flatten)]
    own: Own,
}

/// What a fork has of its own.
#[derive(Debug, clap::Args)]
pub(crate) struct Own {
    /// Variable over the source's; without a value, the one that it has here. Commands and hooks
    /// have it, and a program that is started anew
    #[arg(long = "env", short = 'e', value_name = "KEY[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Tag to give it, instead of the source's
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
}

impl Own {
    pub(crate) fn env(&self) -> Option<BTreeMap<String, String>> {
        (!self.env.is_empty()).then(|| self.env.iter().cloned().collect())
    }

    pub(crate) fn tags(&self) -> Option<BTreeMap<String, String>> {
        (!self.tags.is_empty()).then(|| self.tags.iter().cloned().collect())
    }
}

/// Where a new or restored instance shall rest.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum Target {
    Running,
    Standby,
    Stopped,
}

impl From<Target> for TargetState {
    fn from(target: Target) -> Self {
        match target {
            Target::Running => Self::Running,
            Target::Standby => Self::Standby,
            Target::Stopped => Self::Stopped,
        }
    }
}

pub(crate) async fn fork(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let doing = format!("forking {}", arguments.source);
    let request = ForkInstance {
        name: arguments.name,
        // Whoever types this wants it forked, whatever it does.
        from_running: Some(true),
        target_state: arguments.state.map(Into::into),
        count: arguments.count,
        env: arguments.own.env(),
        tags: arguments.own.tags(),
    };
    let client = context.client()?;
    let forked = context.output.while_waiting(&doing, client.fork(&arguments.source, &request)).await?;
    print(context, forked)
}

/// The names of those that were made; if some were not, the first reason why is the error.
pub(crate) fn print(context: &Context, forked: Forked) -> Result<(), CliError> {
    context
        .output
        .result(&forked, |forked| forked.instances.iter().map(|instance| format!("{}\n", instance.name)).collect())?;
    let mut failed = forked.errors.into_iter();
    let Some(first) = failed.next() else { return Ok(()) };
    for other in failed {
        context.output.note(&format!("{} was not made: {}", other.name, other.error.message));
    }
    let mut body = first.error;
    body.message = format!("{} was not made: {}", first.name, body.message);
    Err(body.into())
}
