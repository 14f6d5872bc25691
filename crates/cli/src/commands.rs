//! The commands: one file each, named for what is typed.

pub(crate) mod completion;
pub(crate) mod cp;
pub(crate) mod doctor;
pub(crate) mod exec;
pub(crate) mod fork;
pub(crate) mod image;
pub(crate) mod inspect;
pub(crate) mod logs;
pub(crate) mod ps;
pub(crate) mod restore;
pub(crate) mod rm;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod snapshot;
pub(crate) mod standby;
pub(crate) mod start;
pub(crate) mod stop;
pub(crate) mod timeline;
pub(crate) mod token;
pub(crate) mod wait;

use std::path::Path;

use hearth_api::client::ClientError;
use hearth_api::instances::Instance;
use hearth_model::ErrorKind;

use crate::arguments::Command;
use crate::context::Context;
use crate::error::CliError;

/// Carries out one command; what to exit with.
pub(crate) async fn carry_out(context: &Context, command: Command) -> Result<u8, CliError> {
    match command {
        Command::Serve(arguments) => serve::serve(arguments).await.map(done),
        Command::Doctor(arguments) => doctor::doctor(context, arguments).await,
        Command::Image(command) => image::image(context, command).await.map(done),
        Command::Run(arguments) => run::run(context, *arguments).await,
        Command::Ps(arguments) => ps::ps(context, arguments).await.map(done),
        Command::Inspect(arguments) => inspect::inspect(context, arguments).await.map(done),
        Command::Exec(arguments) => exec::exec(context, arguments).await,
        Command::Cp(arguments) => cp::cp(context, arguments).await.map(done),
        Command::Logs(arguments) => logs::logs(context, arguments).await.map(done),
        Command::Start(arguments) => start::start(context, arguments).await.map(done),
        Command::Stop(arguments) => stop::stop(context, arguments).await.map(done),
        Command::Standby(arguments) => standby::standby(context, arguments).await.map(done),
        Command::Restore(arguments) => restore::restore(context, arguments).await.map(done),
        Command::Fork(arguments) => fork::fork(context, arguments).await.map(done),
        Command::Rm(arguments) => rm::rm(context, arguments).await.map(done),
        Command::Wait(arguments) => wait::wait(context, arguments).await.map(done),
        Command::Timeline(arguments) => timeline::timeline(context, arguments).await.map(done),
        Command::Snapshot(command) => snapshot::snapshot(context, command).await.map(done),
        Command::Token(command) => token::token(context, command).map(done),
        Command::Completion(arguments) => completion::completion(context, &arguments).map(done),
    }
}

const fn done((): ()) -> u8 {
    0
}

/// A path as the daemon may read it, which works in another directory.
fn absolute(path: &Path) -> Result<String, CliError> {
    let absolute = std::fs::canonicalize(path)
        .or_else(|_| std::path::absolute(path))
        .map_err(|error| CliError::host(format!("look for {}", path.display()), &error))?;
    absolute
        .into_os_string()
        .into_string()
        .map_err(|path| CliError::new(ErrorKind::Invalid, format!("the path {} is not UTF-8", path.display())))
}

/// One verb on each of some instances, in order; the names of those that it was done to are printed
/// as it is done. The first failure ends it.
async fn on_each<T: Named>(
    context: &Context,
    doing: &str,
    names: &[String],
    verb: impl AsyncFn(String) -> Result<T, ClientError>,
) -> Result<(), CliError> {
    let mut all = Vec::new();
    for name in names {
        let done = context.output.while_waiting(&format!("{doing} {name}"), verb(name.clone())).await?;
        if !context.output.json {
            context.output.text(&format!("{}\n", done.name()))?;
        }
        all.push(done);
    }
    if context.output.json { context.output.result(&all, |_| String::new()) } else { Ok(()) }
}

/// What a verb answers: it is printed as JSON, or its name for people.
trait Named: serde::Serialize {
    fn name(&self) -> &str;
}

impl Named for Instance {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Of what is removed, the name that it was called by is all there is.
impl Named for String {
    fn name(&self) -> &str {
        self
    }
}
