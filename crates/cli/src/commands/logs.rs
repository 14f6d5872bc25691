//! `hearth logs`: lines of an instance's log.

use hearth_api::logs::{DEFAULT_TAIL, LogSource, LogsQuery};

use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
  hearth logs -f --tail 20 web          what its program prints
  hearth logs --source hearth web       what was done to it")]
pub(crate) struct Arguments {
    /// Name or id of the instance
    name: String,
    /// Go on with new lines as they are written
    #[arg(short, long)]
    follow: bool,
    /// How many lines from the end come first
    #[arg(short = 'n', long, value_name = "N", default_value_t = DEFAULT_TAIL)]
    tail: u64,
    /// Whose lines: the guest's console, the VMM's own, or what the daemon did with it
    #[arg(long, default_value = "app")]
    source: Source,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Source {
    App,
    Vmm,
    Hearth,
}

pub(crate) async fn logs(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let source = match arguments.source {
        Source::App => LogSource::App,
        Source::Vmm => LogSource::Vmm,
        Source::Hearth => LogSource::Hearth,
    };
    let query = LogsQuery { tail: Some(arguments.tail), follow: Some(arguments.follow), source: Some(source) };
    let mut lines = context.client()?.logs(&arguments.name, &query).await?;
    while let Some(line) = lines.next_line().await? {
        print(context, &line)?;
    }
    Ok(())
}

/// With `--json` each line is a JSON object on a line of its own.
pub(crate) fn print(context: &Context, line: &str) -> Result<(), CliError> {
    if context.output.json {
        context.output.text(&format!("{}\n", serde_json::json!({ "line": line })))
    } else {
        context.output.text(&format!("{line}\n"))
    }
}
