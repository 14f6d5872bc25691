//! `hearth standby`.

use super::on_each;
use crate::arguments::Instances;
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    instances: Instances,
}

/// Save instances' memory and end their VMMs.
pub(crate) async fn standby(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "saving", &arguments.instances.names, async |name| client.standby(&name).await).await
}
