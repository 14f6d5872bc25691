//! `hearth serve`: the daemon.

use std::path::PathBuf;

use crate::error::{CliError, said_by};

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Configuration file [default: /etc/hearth/config.toml if there]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where everything is kept [default: /var/lib/hearth]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where to listen [default: 127.0.0.1:4973]
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// When it is told to end, stop all instances; without this they run on
    #[arg(long)]
    stop_instances: bool,
}

pub(crate) async fn serve(arguments: Arguments) -> Result<(), CliError> {
    let Arguments { config, data_dir, listen, stop_instances } = arguments;
    let options = hearth_daemon::ServeOptions { config, data_dir, listen, stop_instances };
    // On the heap: it is everything the daemon is.
    Box::pin(hearth_daemon::serve(options)).await.map_err(|error| said_by(&error))
}
