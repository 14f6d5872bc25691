//! `hearth stop`.

use super::on_each;
use crate::arguments::Instances;
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    instances: Instances,
}

/// Shut instances down.
pub(crate) async fn stop(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "stopping", &arguments.instances.names, async |name| client.stop(&name).await).await
}
