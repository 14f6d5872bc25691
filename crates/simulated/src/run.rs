//! The process: from its arguments to its exit code, as Firecracker's.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::{Mutex, mpsc};

use crate::arguments::{self, Arguments, LogTo};
use crate::faults::{Answer, Faults, When};
use crate::log::{begin, complain, say};
use crate::machine::{Machine, VERSION};
use crate::server::Server;
use crate::vmstate;

/// How long answers that are under way have to be sent when the process ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
const MAIN: &str = "main";
const GENERIC_ERROR: u8 = 1;
const ARGUMENT_ERROR: u8 = 153;

/// Runs a simulated VMM with this process's arguments.
#[must_use]
pub fn run() -> ExitCode {
    let code = match arguments::parse(std::env::args().skip(1)) {
        Ok(Arguments::Version) => {
            let _ = writeln!(io::stdout(), "Firecracker v{VERSION}\n");
            0
        }
        Ok(Arguments::SnapshotVersion) => {
            let _ = writeln!(io::stdout(), "v{}", vmstate::VERSION);
            0
        }
        Ok(Arguments::Serve { api_sock, id, log }) => serve_until_the_end(&api_sock, id, &log),
        Err(why) => {
            complain(MAIN, format_args!("Arguments parsing error: {why} \\n\\nFor more information try --help."));
            ARGUMENT_ERROR
        }
    };
    if code == 0 {
        say(MAIN, "Firecracker exiting successfully. exit_code=0");
    } else {
        complain(MAIN, format_args!("Firecracker exiting with error. exit_code={code}"));
    }
    ExitCode::from(code)
}

fn serve_until_the_end(api_sock: &str, id: String, log: &LogTo) -> u8 {
    if !arguments::is_valid_id(&id) {
        complain(MAIN, "Firecracker panicked: Invalid instance ID");
        std::process::abort();
    }
    if let Err(error) = begin(&id, log.path.as_deref(), log.level.as_deref()) {
        complain(MAIN, format_args!("Failed to open target file: {error}"));
        return GENERIC_ERROR;
    }
    say(MAIN, format_args!("Running Firecracker v{VERSION} (simulated)"));
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(MAIN, format_args!("start a runtime: {error}"));
            return GENERIC_ERROR;
        }
    };
    let code = runtime.block_on(serve(api_sock, id));
    // What hangs on request is not waited for.
    runtime.shutdown_background();
    code
}

async fn serve(api_sock: &str, id: String) -> u8 {
    let faults = Arc::new(Faults::new(&own_path()));
    if let Err(error) = moment(&faults, "start").await {
        complain(MAIN, error);
        return GENERIC_ERROR;
    }
    let listener = match UnixListener::bind(api_sock) {
        Ok(listener) => listener,
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let why = format!("Failed to open the API socket at: {api_sock}. Check that it is not already used.");
            complain(MAIN, format_args!("RunWithApiError error: {why}"));
            eprintln!("Error: RunWithApi(FailedToBindSocket({api_sock:?}))");
            return GENERIC_ERROR;
        }
        Err(error) => {
            let why = format!("Failed to bind and run the HTTP server: IO error: {error}");
            complain(MAIN, format_args!("RunWithApiError error: {why}"));
            eprintln!("Error: RunWithApi(FailedToBindAndRunHttpServer(IOError({error:?})))");
            return GENERIC_ERROR;
        }
    };
    say(MAIN, format_args!("Listening on API socket ({api_sock:?})."));
    if let Err(error) = moment(&faults, "listen").await {
        complain(MAIN, error);
        return GENERIC_ERROR;
    }

    let (exit, mut exited) = mpsc::unbounded_channel();
    let machine = Machine::new(id, Arc::clone(&faults), exit.clone());
    let machine = Arc::new(Mutex::new(machine));
    let server = Server { machine, faults, exit, connections: Default::default(), closing: Default::default() };
    let (connections, closing) = (server.connections.clone(), server.closing.clone());
    let serving = tokio::spawn(server.serve(listener));

    let code = exited.recv().await.unwrap_or(GENERIC_ERROR);
    if code == 0 {
        say(MAIN, "Vmm is stopping.");
    } else {
        complain(MAIN, "RunWithApiError error: Failed to build MicroVM: Loading snapshot failed..");
        eprintln!("Error: RunWithApi(BuildMicroVmError(Restore))");
    }
    serving.abort();
    closing.cancel();
    connections.close();
    let _ = tokio::time::timeout(LAST_WORDS, connections.wait()).await;
    code
}

/// Lets happen what is asked for at this moment of the start.
async fn moment(faults: &Faults, event: &str) -> io::Result<()> {
    match faults.meet(event, "")?.happen(When::Before).await {
        Answer::AsItIs => Ok(()),
        Answer::Dropped | Answer::Error(_) => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, format!("nothing is answered at {event}")))
        }
    }
}

/// What it was started as: by a path, which may be a link of somebody's own; else what it is.
fn own_path() -> PathBuf {
    let named = std::env::args_os().next().map(PathBuf::from).filter(|path| path.components().count() > 1);
    named.or_else(|| std::env::current_exe().ok()).unwrap_or_default()
}
