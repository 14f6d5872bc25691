//! `hearth snapshot`: save instances, and make others of what was saved.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hearth_api::ErrorBody;
use hearth_api::client::ClientError;
use hearth_api::instances::InstanceState;
use hearth_api::snapshots::{
    CreateSnapshot, Damage, ForkSnapshot, ImportSnapshot, ListSnapshots, RestoreSnapshot, Snapshot, SnapshotKind,
    VerifiedSnapshot,
};
use hearth_model::ErrorKind;
use serde::Serialize;

use super::fork::{Own, Target, print};
use super::{absolute, on_each};
use crate::arguments::key_value;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{ago, pairs, size, table, variables};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Save an instance; it stays as it is
    Create(Create),
    /// List snapshots
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all about a snapshot
    Inspect(Inspect),
    /// Put a snapshot in the place of the instance that it was taken of
    Restore(Restore),
    /// Make new instances of a snapshot
    Fork(Fork),
    /// Make a snapshot of a guest that plain Firecracker saved
    ///
    /// Takes a directory on the daemon's host with the state and the memory that Firecracker
    /// wrote, and a copy of every drive that the state names. Nothing of it is changed. The drives
    /// must stay where they are: Firecracker opens them at each fork before they are replaced.
    Import(Import),
    /// Compare snapshots with their checksums
    ///
    /// Reads every file of each. One that is damaged is not loaded from then on, until its file is
    /// put back and it is verified again. An instance's standby memory is verified by its id.
    Verify(Verify),
    /// Remove snapshots; instances made of them stay
    Rm(Rm),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// The directory
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// What to call the snapshot
    #[arg(long)]
    name: String,
    /// The state in it [default: the one file that begins as a state does]
    #[arg(long, value_name = "FILE")]
    vmstate: Option<String>,
    /// The memory in it [default: the one file whose name or length says so]
    #[arg(long, value_name = "FILE")]
    memory: Option<String>,
    /// Hearth's agent does not run in the guest: it is running when its vCPUs are
    #[arg(long)]
    no_agent: bool,
    /// Tag to give it
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name or id of the instance
    instance: String,
    /// What to call it; unique among the instance's snapshots
    #[arg(long)]
    name: Option<String>,
    /// What to save: all of it, or the disks of a stopped instance [default: as its state allows]
    #[arg(long)]
    kind: Option<Kind>,
    /// Tag to give it
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Kind {
    Standby,
    Stopped,
}

impl From<Kind> for SnapshotKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Standby => Self::Standby,
            Kind::Stopped => Self::Stopped,
        }
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only those of this instance
    #[arg(long, value_name = "NAME")]
    instance: Option<String>,
    /// Only those of this kind
    #[arg(long)]
    kind: Option<Kind>,
    /// Only those with this tag
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
    /// Print ids alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// Name or id of the snapshot
    snapshot: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Restore {
    /// Name or id of the snapshot
    snapshot: String,
    /// Where the instance shall rest [default: running if the snapshot has memory]
    #[arg(long)]
    state: Option<Target>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Fork {
    /// Name or id of the snapshot
    snapshot: String,
    /// Name of the new instance; with --count, what their names begin with
    name: String,
    /// How many; above 1 their names end in -1, -2, …
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    count: Option<u32>,
    /// Where they shall rest [default: running if the snapshot has memory]
    #[arg(long)]
    state: Option<Target>,
    #[command(flatten)]
    own: Own,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Verify {
    /// Names or ids of snapshots [default: all]
    #[arg(value_name = "SNAPSHOT")]
    snapshots: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// Names or ids of snapshots
    #[arg(value_name = "SNAPSHOT", required = true)]
    snapshots: Vec<String>,
}

pub(crate) async fn snapshot(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Create(arguments) => create(context, arguments).await,
        Command::List(arguments) => list(context, arguments).await,
        Command::Inspect(arguments) => {
            let snapshot = context.client()?.snapshot(&arguments.snapshot).await?;
            context.output.result(&snapshot, in_words)
        }
        Command::Restore(arguments) => restore(context, arguments).await,
        Command::Fork(arguments) => fork(context, arguments).await,
        Command::Import(arguments) => import(context, arguments).await,
        Command::Verify(arguments) => verify(context, arguments.snapshots).await,
        Command::Rm(arguments) => rm(context, &arguments.snapshots).await,
    }
}

async fn create(context: &Context, arguments: Create) -> Result<(), CliError> {
    let client = context.client()?;
    let kind = match arguments.kind {
        Some(kind) => kind.into(),
        None => match client.instance(&arguments.instance).await?.state {
            InstanceState::Stopped => SnapshotKind::Stopped,
            _ => SnapshotKind::Standby,
        },
    };
    let tags = (!arguments.tags.is_empty()).then(|| arguments.tags.into_iter().collect());
    let request = CreateSnapshot { kind, name: arguments.name, tags };
    let doing = format!("saving {}", arguments.instance);
    let snapshot = context.output.while_waiting(&doing, client.create_snapshot(&arguments.instance, &request)).await?;
    context.output.result(&snapshot, |snapshot| format!("{}\n", snapshot.id))
}

async fn import(context: &Context, arguments: Import) -> Result<(), CliError> {
    let Import { dir, name, vmstate, memory, no_agent, tags } = arguments;
    let request = ImportSnapshot {
        path: absolute(&dir)?,
        name,
        vmstate,
        memory,
        agent: no_agent.then_some(false),
        tags: (!tags.is_empty()).then(|| tags.into_iter().collect()),
    };
    let client = context.client()?;
    let doing = format!("importing {}", request.path);
    let snapshot = context.output.while_waiting(&doing, client.import_snapshot(&request)).await?;
    context.output.result(&snapshot, |snapshot| format!("{}\n", snapshot.id))
}

async fn list(context: &Context, arguments: List) -> Result<(), CliError> {
    let client = context.client()?;
    let source_instance_id = match &arguments.instance {
        Some(name) => Some(client.instance(name).await?.id),
        None => None,
    };
    let request = ListSnapshots { kind: arguments.kind.map(Into::into), name: None, source_instance_id };
    let snapshots = client.snapshots(&request, &arguments.tags.into_iter().collect()).await?;
    let now = jiff::Timestamp::now();
    context.output.result(&snapshots, |snapshots| {
        if arguments.quiet {
            return snapshots.iter().map(|snapshot| format!("{}\n", snapshot.id)).collect();
        }
        let rows: Vec<_> = snapshots
            .iter()
            .map(|snapshot| {
                [
                    snapshot.id.clone(),
                    snapshot.name.clone().unwrap_or_default(),
                    format!("{:?}", snapshot.kind),
                    snapshot.source_instance_name.clone(),
                    size(snapshot.size_bytes),
                    ago(snapshot.created_at, now),
                    snapshot.damage.as_ref().map(|damage| damage.file.clone()).unwrap_or_default(),
                ]
            })
            .collect();
        table(["ID", "NAME", "KIND", "INSTANCE", "SIZE", "TAKEN", "DAMAGED"], &rows)
    })
}

async fn restore(context: &Context, arguments: Restore) -> Result<(), CliError> {
    let client = context.client()?;
    let snapshot = client.snapshot(&arguments.snapshot).await?;
    let request = RestoreSnapshot { target_hypervisor: None, target_state: arguments.state.map(Into::into) };
    let doing = format!("restoring {}", snapshot.source_instance_name);
    let work = client.restore_snapshot(&snapshot.source_instance_id, &snapshot.id, &request);
    let instance = context.output.while_waiting(&doing, work).await?;
    context.output.result(&instance, |instance| format!("{}\n", instance.name))
}

async fn fork(context: &Context, arguments: Fork) -> Result<(), CliError> {
    let client = context.client()?;
    let request = ForkSnapshot {
        name: arguments.name,
        target_hypervisor: None,
        target_state: arguments.state.map(Into::into),
        count: arguments.count,
        env: arguments.own.env(),
        tags: arguments.own.tags(),
    };
    let doing = format!("forking snapshot {}", arguments.snapshot);
    let forked = context.output.while_waiting(&doing, client.fork_snapshot(&arguments.snapshot, &request)).await?;
    print(context, forked)
}

/// What came of one, with `--json`.
#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Verdict {
    Verified(VerifiedSnapshot),
    Failed { id: String, error: Box<ErrorBody> },
}

/// Looks at all of them, also when one is damaged; the first error is the command's.
async fn verify(context: &Context, named: Vec<String>) -> Result<(), CliError> {
    let client = context.client()?;
    let all = named.is_empty();
    let snapshots = if all {
        let listed = client.snapshots(&ListSnapshots::default(), &BTreeMap::new()).await?;
        listed.into_iter().map(|snapshot| snapshot.id).collect()
    } else {
        named
    };
    let (mut verdicts, mut failed) = (Vec::new(), None);
    for snapshot in snapshots {
        let doing = format!("verifying {snapshot}");
        match context.output.while_waiting(&doing, client.verify_snapshot(&snapshot)).await {
            Ok(verified) => {
                if !context.output.json {
                    let name = verified.name.as_ref().map(|name| format!("  {name}")).unwrap_or_default();
                    context.output.text(&format!("{}{name}  ok  {}\n", verified.id, size(verified.bytes)))?;
                }
                verdicts.push(Verdict::Verified(verified));
            }
            Err(ClientError::Api(error)) => {
                // Of those that nobody named, one that was taken a moment ago, or removed meanwhile,
                // is nothing to complain of.
                let said = error.body.kind();
                let excused = all && matches!(said, ErrorKind::WrongState | ErrorKind::NotFound);
                context.output.note(&format!("{snapshot}  {}", error.body.message));
                let body = error.body.clone();
                verdicts.push(Verdict::Failed { id: snapshot, error: body });
                if !excused && failed.is_none() {
                    failed = Some(CliError::from(ClientError::Api(error)));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    if context.output.json {
        context.output.result(&verdicts, |_| String::new())?;
    }
    failed.map_or(Ok(()), Err)
}

async fn rm(context: &Context, snapshots: &[String]) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "removing", snapshots, async |name| client.delete_snapshot(&name).await.map(|()| name)).await
}

fn in_words(snapshot: &Snapshot) -> String {
    let damaged = snapshot
        .damage
        .as_ref()
        .map(|Damage { file, problem, found_at }| format!("{file} {problem}; found {found_at}, and not loaded since"));
    let text = pairs(&[
        ("id", Some(snapshot.id.clone())),
        ("name", snapshot.name.clone()),
        ("kind", Some(format!("{:?}", snapshot.kind))),
        ("taken", Some(snapshot.created_at.to_string())),
        ("instance", Some(format!("{} ({})", snapshot.source_instance_name, snapshot.source_instance_id))),
        ("hypervisor", Some(snapshot.source_hypervisor.clone())),
        ("size", Some(size(snapshot.size_bytes))),
        ("memory", snapshot.memory_bytes.map(size)),
        ("damaged", damaged),
    ]);
    text + &variables("tag", snapshot.tags.as_ref())
}
