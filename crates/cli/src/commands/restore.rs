//! `hearth restore`.

use super::on_each;
use crate::arguments::Instances;
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    instances: Instances,
}

/// Bring instances back from standby.
pub(crate) async fn restore(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "restoring", &arguments.instances.names, async |name| client.restore(&name).await).await
}
