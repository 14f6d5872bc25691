//! `hearth rm`: removes instances, with their disks and their memory in standby.

use hearth_api::instances::{DeleteInstance, InstanceState};
use hearth_model::ErrorKind;

use super::on_each;
use crate::arguments::Instances;
use crate::context::Context;
use crate::error::CliError;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    instances: Instances,
    /// Also if it runs
    #[arg(short, long)]
    force: bool,
}

pub(crate) async fn rm(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let client = context.client()?;
    let names = arguments.instances.names;
    if !arguments.force {
        for name in &names {
            let instance = client.instance(name).await?;
            if matches!(instance.state, InstanceState::Running | InstanceState::Initializing) {
                let (name, state) = (instance.name, instance.state.as_str().to_lowercase());
                return Err(CliError::new(ErrorKind::WrongState, format!("instance {name} is {state}"))
                    .hint(format!("stop it first, or remove it as it is with `hearth rm -f {name}`")));
            }
        }
    }
    let delete = DeleteInstance::default();
    on_each(context, "removing", &names, async |name| client.delete_instance(&name, &delete).await.map(|()| name)).await
}
