//! `hearth exec`: runs a command in an instance as if it ran here.
//!
//! In: our stdin (with `-i`), signals and the terminal's size. Out: the command's stdout on ours,
//! its stderr on ours, its exit code as ours.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use hearth_api::client::{ClientError, ExecEvent, ExecInput, ExecOutput, ExecSession};
use hearth_api::exec::{ExecEnd, ExecRequest};
use hearth_model::ErrorKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Stdin};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::arguments::variable;
use crate::context::Context;
use crate::error::{CliError, stdout_failed};
use crate::terminal::{self, Raw, Size};

/// How much of stdin goes into one frame.
const CHUNK: usize = 32 << 10;

/// How often a command may ignore Ctrl-C until we leave it alone.
const INTERRUPTS: u32 = 3;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
  hearth exec -it web -- /bin/sh                          a shell
  hearth exec -i web -- tar -xf - -C /srv < files.tar     with our input")]
pub(crate) struct Arguments {
    /// Pass our stdin on
    #[arg(short, long)]
    interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Variable on top of the image's; KEY alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Where it starts [default: the image's working directory]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Who it runs as, as in app, 1000 or 1000:1000 [default: the image's user]
    #[arg(short, long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Kill it after this time
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    timeout: Option<Duration>,
    /// Wait so long for a guest that is still booting
    #[arg(long, value_name = "TIME", value_parser = crate::duration::parse)]
    wait: Option<Duration>,
    /// Name or id of the instance
    name: String,
    /// Command and arguments [default, with -i: /bin/sh]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

#[derive(serde::Serialize)]
struct Collected {
    exit_code: i32,
    stdout: String,
    stderr: String,
}

pub(crate) async fn exec(context: &Context, arguments: Arguments) -> Result<u8, CliError> {
    if arguments.command.is_empty() && !arguments.interactive {
        return Err(CliError::new(ErrorKind::Invalid, "there is no command to run, and a shell would have no input")
            .hint(format!("`hearth exec -it {}` gives a shell", arguments.name)));
    }
    let size = arguments.tty.then(terminal::size).flatten();
    let env: BTreeMap<_, _> = arguments.env.into_iter().collect();
    let request = ExecRequest {
        command: arguments.command,
        tty: arguments.tty,
        env: (!env.is_empty()).then_some(env),
        cwd: arguments.workdir,
        timeout: arguments.timeout.map(whole_seconds),
        wait_for_agent: arguments.wait.map(whole_seconds),
        rows: size.map(|size| size.rows),
        cols: size.map(|size| size.cols),
        user: arguments.user,
        streams: true,
    };
    let client = context.client()?;
    let ExecSession { input, output } = client.exec(&arguments.name, &request).await?;
    // Only now that there is somebody to pass them on to.
    let signals = Signals::catch().map_err(|error| CliError::host("catch signals", &error))?;

    // Restored on every way out of here.
    let raw = if arguments.tty && arguments.interactive {
        Raw::enter().map_err(|error| CliError::host("change the terminal's mode", &error))?
    } else {
        None
    };
    let stdin = arguments.interactive.then(tokio::io::stdin);
    let collect = context.output.json && !arguments.interactive && !arguments.tty;
    // Side by side: a command that does not read must not keep us from showing what it writes.
    let end = tokio::select! {
        end = show(output, collect) => end?,
        () = feed(input, stdin, signals, size) => {
            return Err(CliError::new(ErrorKind::Cancelled, "hung up: the command did not end when interrupted").exiting(130));
        }
    };
    drop(raw);

    let code = exit_code(end.0.exit_code);
    if let Some(error) = end.0.error {
        return Err(CliError::from(*error).exiting(code));
    }
    if let Some((stdout, stderr)) = end.1 {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let collected = Collected { exit_code: end.0.exit_code, stdout: text(stdout), stderr: text(stderr) };
        context.output.result(&collected, |_| String::new())?;
    }
    Ok(code)
}

type CollectedBytes = Option<(Vec<u8>, Vec<u8>)>;

/// Shows what the command writes, or collects it, until it ends.
async fn show(mut from: ExecOutput, collect: bool) -> Result<(ExecEnd, CollectedBytes), CliError> {
    let (mut stdout, mut stderr) = (tokio::io::stdout(), tokio::io::stderr());
    let mut collected = collect.then(Default::default);
    loop {
        match (from.next().await?, &mut collected) {
            (ExecEvent::Stdout(data), None) => {
                let written = async {
                    stdout.write_all(&data).await?;
                    stdout.flush().await
                };
                written.await.map_err(|error| stdout_failed(&error))?;
            }
            (ExecEvent::Stderr(data), None) => {
                // Nobody reads it: the command goes on, as it would here.
                stderr.write_all(&data).await.ok();
                stderr.flush().await.ok();
            }
            (ExecEvent::Stdout(data), Some((stdout, _))) => Vec::extend_from_slice(stdout, &data),
            (ExecEvent::Stderr(data), Some((_, stderr))) => Vec::extend_from_slice(stderr, &data),
            (ExecEvent::End(end), _) => return Ok((end, collected)),
        }
    }
}

/// Passes on what happens here. That the command has ended is told by its output; this ends only
/// when somebody has interrupted it [`INTERRUPTS`] times in vain.
async fn feed(mut to: ExecInput, mut stdin: Option<Stdin>, mut signals: Signals, mut size: Option<Size>) {
    let mut buffer = BytesMut::with_capacity(CHUNK);
    if stdin.is_none() && to.end().await.is_err() {
        return std::future::pending().await;
    }
    let mut interrupts = 0;
    while interrupts < INTERRUPTS {
        let passed = tokio::select! {
            read = read_some(&mut stdin, &mut buffer, &to) => match read {
                0 => {
                    stdin = None;
                    to.end().await
                }
                _ => to.write(&buffer.split()).await,
            },
            caught = signals.next() => match (caught, terminal::size()) {
                (Caught::Signal(name), _) => {
                    interrupts += u32::from(name == "INT");
                    to.signal(name).await
                }
                (Caught::Resized, Some(now)) if size.is_some_and(|before| before != now) => {
                    size = Some(now);
                    to.resize(now.rows, now.cols).await
                }
                (Caught::Resized, _) => Ok(()),
            },
        };
        // The connection is gone, and the output says why.
        if let Err(ClientError::Lost { .. }) = passed {
            return std::future::pending().await;
        }
    }
}

/// The number of bytes read; 0 at the end, or if stdin cannot be read. Only what can be passed on
/// at once: while a command does not read, signals still reach it.
async fn read_some(stdin: &mut Option<Stdin>, buffer: &mut BytesMut, to: &ExecInput) -> usize {
    match stdin {
        Some(stdin) => {
            let room = to.room().await.min(CHUNK);
            buffer.reserve(room);
            stdin.read_buf(&mut buffer.limit(room)).await.unwrap_or(0)
        }
        None => std::future::pending().await,
    }
}

/// What was meant for the command, not for us.
enum Caught {
    /// By its name, without `SIG`.
    Signal(&'static str),
    /// The terminal has a new size.
    Resized,
}

/// The signals that say so.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
    quit: Signal,
    resize: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    async fn next(&mut self) -> Caught {
        tokio::select! {
            _ = self.interrupt.recv() => Caught::Signal("INT"),
            _ = self.terminate.recv() => Caught::Signal("TERM"),
            _ = self.hangup.recv() => Caught::Signal("HUP"),
            _ = self.quit.recv() => Caught::Signal("QUIT"),
            _ = self.resize.recv() => Caught::Resized,
        }
    }
}

/// At least one second: none would mean no limit.
fn whole_seconds(time: Duration) -> u32 {
    u32::try_from(time.as_secs().max(1)).unwrap_or(u32::MAX)
}

/// As a shell would see it: the low eight bits.
pub(crate) fn exit_code(code: i32) -> u8 {
    code.to_le_bytes()[0]
}
