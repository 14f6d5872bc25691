//! `hearth rm`: removes instances, with their disks and their memory in standby.

use hearth_api::instances::{DeleteInstance, InstanceState};
use hearth_model::ErrorKind;

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
    for name in &names {
        if !arguments.force {
            let instance = client.instance(name).await?;
            if matches!(instance.state, InstanceState::Running | InstanceState::Initializing) {
                let (name, state) = (instance.name, instance.state.as_str().to_lowercase());
                return Err(CliError::new(ErrorKind::WrongState, format!("instance {name} is {state}"))
                    .hint(format!("stop it first, or remove it as it is with `hearth rm -f {name}`")));
            }
        }
        let doing = format!("removing {name}");
        let delete = DeleteInstance::default();
        context.output.while_waiting(&doing, client.delete_instance(name, &delete)).await?;
        if !context.output.json {
            context.output.text(&format!("{name}\n"))?;
        }
    }
    if context.output.json { context.output.result(&names, |_| String::new()) } else { Ok(()) }
}
