//! `hearth start`.

use super::on_each;
use crate::arguments::Instances;
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    instances: Instances,
}

/// Boot stopped instances.
pub(crate) async fn start(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "starting", &arguments.instances.names, async |name| client.start(&name).await).await
}
