//! `hearth doctor`: what Hearth needs of this host. Needs no daemon, but for what one did when it started.

mod recovery;

use std::path::PathBuf;

use hearth_daemon::{Check, Verdict};
use hearth_model::ErrorKind;

use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Install what is missing, where Debian has it
    #[arg(long)]
    fix: bool,
    /// Configuration file, as for `hearth serve`
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Data directory, as for `hearth serve`
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// What the daemon that runs found when it started, and what it did about it
    #[arg(long, conflicts_with_all = ["fix", "config", "data_dir"])]
    recovery: bool,
}

pub(crate) async fn doctor(context: &Context, arguments: Arguments) -> Result<u8, CliError> {
    let Arguments { fix, config, data_dir, recovery } = arguments;
    if recovery {
        return recovery::recovery(context).await.map(|()| 0);
    }
    let options = hearth_daemon::DoctorOptions { config, data_dir, fix };
    let output = context.output;
    let look = hearth_daemon::doctor(options, move |line| output.note(line));
    let checks = if fix { look.await } else { output.while_waiting("looking at this host", look).await };
    output.result(checks.as_slice(), in_words)?;
    let failed = checks.iter().any(|check| check.verdict == Verdict::Fail);
    Ok(if failed { ErrorKind::Unsupported.exit_code() } else { 0 })
}

/// One line each, and the remedy below.
fn in_words(checks: &[Check]) -> String {
    let wide = checks.iter().map(|check| check.name.chars().count()).max().unwrap_or(0);
    let line = |check: &Check| {
        let verdict = match check.verdict {
            Verdict::Ok => "ok  ",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        let remedy = check.remedy.iter().map(|remedy| format!("{:wide$}        → {remedy}\n", "")).collect::<String>();
        format!("{verdict}  {:wide$}  {}\n{remedy}", check.name, check.detail)
    };
    checks.iter().map(line).collect()
}
