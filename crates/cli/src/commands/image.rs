//! `hearth image`: import, list, show and remove images.

use std::path::PathBuf;

use hearth_api::images::{Image, ImportImage};

use super::{absolute, on_each};
use crate::arguments::key_value;
use crate::context::Context;
use crate::error::CliError;
use crate::output::{ago, pairs, size, table, variables};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Make an image of a file or directory on the daemon's host
    ///
    /// Takes an OCI image layout (directory or tar), what `docker save` writes, or a root file
    /// system (directory or tar).
    Import(Import),
    /// List images
    #[command(visible_alias = "ls")]
    List(List),
    /// Show all about an image
    Inspect(Inspect),
    /// Remove images; instances made of them keep what they need
    Rm(Rm),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Import {
    /// File or directory
    path: PathBuf,
    /// What to call it, as in web or registry.example/team/web:1
    #[arg(long, value_name = "REF")]
    name: String,
    /// Tag to give it
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only those with this tag
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
    /// Print names alone
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Inspect {
    /// The image
    #[arg(value_name = "REF")]
    name: String,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rm {
    /// The images
    #[arg(value_name = "REF", required = true)]
    names: Vec<String>,
}

pub(crate) async fn image(context: &Context, command: Command) -> Result<(), CliError> {
    match command {
        Command::Import(arguments) => import(context, arguments).await,
        Command::List(arguments) => list(context, arguments).await,
        Command::Inspect(arguments) => {
            let image = context.client()?.image(&arguments.name).await?;
            context.output.result(&image, in_words)
        }
        Command::Rm(arguments) => rm(context, &arguments.names).await,
    }
}

async fn import(context: &Context, arguments: Import) -> Result<(), CliError> {
    let Import { path, name, tags } = arguments;
    let path = absolute(&path)?;
    let doing = format!("importing {path}");
    let request = ImportImage { path, name, tags: (!tags.is_empty()).then(|| tags.into_iter().collect()) };
    let client = context.client()?;
    let image = context.output.while_waiting(&doing, client.import_image(&request)).await?;
    context.output.result(&image, |image| format!("{}\n", image.name))
}

async fn list(context: &Context, arguments: List) -> Result<(), CliError> {
    let images = context.client()?.images(&arguments.tags.into_iter().collect()).await?;
    let now = jiff::Timestamp::now();
    context.output.result(&images, |images| {
        if arguments.quiet {
            return images.iter().map(|image| format!("{}\n", image.name)).collect();
        }
        let rows: Vec<_> = images
            .iter()
            .map(|image| {
                let digest = image.digest.strip_prefix("sha256:").unwrap_or(&image.digest);
                [
                    image.name.clone(),
                    digest.get(..12).unwrap_or(digest).to_owned(),
                    image.size_bytes.map(size).unwrap_or_default(),
                    ago(image.created_at, now),
                ]
            })
            .collect();
        table(["NAME", "DIGEST", "SIZE", "IMPORTED"], &rows)
    })
}

async fn rm(context: &Context, names: &[String]) -> Result<(), CliError> {
    let client = context.client()?;
    on_each(context, "removing", names, async |name| client.delete_image(&name).await.map(|()| name)).await
}

fn in_words(image: &Image) -> String {
    let words = |list: &Option<Vec<String>>| list.as_ref().map(|list| format!("{list:?}"));
    let text = pairs(&[
        ("name", Some(image.name.clone())),
        ("digest", Some(image.digest.clone())),
        ("imported", Some(image.created_at.to_string())),
        ("platform", image.platform.clone()),
        ("size", image.size_bytes.map(size)),
        ("entrypoint", words(&image.entrypoint)),
        ("cmd", words(&image.cmd)),
        ("working dir", image.working_dir.clone()),
        ("user", image.user.clone()),
        ("error", image.error.clone()),
    ]);
    text + &variables("env", image.env.as_ref()) + &variables("tag", image.tags.as_ref())
}
