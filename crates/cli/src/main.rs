//! `hearth`: the command line, and the daemon (`hearth serve`).
//!
//! In: arguments, environment, the user's terminal. Out: results on stdout, talk on stderr, an exit
//! code. Every command but `serve`, `doctor`, `completion` and `token` asks a daemon over its REST
//! API and does nothing else: what is true of an instance is the daemon's to say.

mod arguments;
mod commands;
mod context;
mod duration;
mod error;
mod output;
mod terminal;

use std::io::Write;

use clap::Parser;

use crate::arguments::{Cli, Command};
use crate::context::Context;
use crate::error::CliError;

fn main() {
    let cli = Cli::parse();
    let json = cli.json;
    let code = match start(cli) {
        Ok(code) => code,
        Err(error) => error.report(json),
    };
    // Not a return: a thread that waits for stdin would be waited for.
    std::io::stdout().flush().ok();
    std::process::exit(code.into());
}

fn start(cli: Cli) -> Result<u8, CliError> {
    // A daemon works on all processors; a command starts faster on one thread.
    let mut runtime = match cli.command {
        Command::Serve(_) => {
            // Its threads inherit it. A system that filters the call has a daemon that works without.
            hearth_daemon::answer_promptly().ok();
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime
        .enable_all()
        .build()
        .map_err(|error| CliError::new(hearth_model::ErrorKind::HostFailed, "start the runtime").because(&error))?;
    let context = Context::new(cli.url, cli.json);
    let code = runtime.block_on(commands::carry_out(&context, cli.command));
    runtime.shutdown_background();
    code
}
