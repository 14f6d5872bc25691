//! `GET /instances/{id}/exec`: a command in a guest, over a WebSocket.
//!
//! What can be refused before the upgrade is an ordinary error response; what goes wrong later is
//! told in the last frame.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hearth_agent_client::{ExecEvent, ExecInput, ExecOutput, ExecSession, TtySize};
use hearth_api::ErrorBody;
use hearth_api::exec::{ExecControl, ExecEnd, ExecRequest, STDERR, STDIN, STDOUT, WINDOW};
use hearth_model::{ErrorKind, InstanceState, Phase};
use tokio::sync::{Semaphore, mpsc};
use tracing::{Instrument, debug};

use super::error::{Failure, body};
use super::input::Named;
use super::stat::AGENT_WAIT;
use crate::error::OpError;
use crate::handle::InstanceHandle;
use crate::serve::App;

/// What a client may send at once.
pub(super) const LARGEST_MESSAGE: usize = 4 << 20;
/// How long a client may take to say what it wants.
pub(super) const FIRST_FRAME: Duration = Duration::from_secs(30);
/// How long a client that has been told the end has to close before it is hung up on.
const LINGER: Duration = Duration::from_secs(5);
/// As the shell gives it: the command could not be run.
const NOT_RUN: i32 = 127;
const SIGHUP: u8 = 1;
const TERMINAL: TtySize = TtySize { rows: 24, cols: 80 };

/// Run a command in a guest (WebSocket)
///
/// The client's first frame is text, an `ExecRequest`; then binary frames carry the streams, and
/// text frames an `ExecControl`; the server's one text frame is an `ExecEnd`.
#[utoipa::path(get, path = "/instances/{id}/exec", tag = "instances", operation_id = "execInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 101, description = "The frames of `ExecRequest`, `ExecControl` and `ExecEnd`."),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn exec(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, Failure> {
    let instance = app.registry.resolve(&id)?;
    let upgrade = ready_for_upgrade(&instance, upgrade).await?;
    let session = app.sessions.begin(&instance, &app.config.limits)?;
    let served = async move |socket| {
        serve(app, instance, socket).await;
        drop(session);
    };
    let span = tracing::Span::current();
    Ok(upgrade.on_upgrade(move |socket| served(socket).instrument(span)))
}

/// Refuses what is not a WebSocket, and an instance that has no guest and is not getting one.
pub(super) async fn ready_for_upgrade(
    instance: &InstanceHandle,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<WebSocketUpgrade, Failure> {
    let upgrade = upgrade
        .map_err(|error| Failure::invalid(format!("this route wants a WebSocket: {error}")))?
        .max_message_size(LARGEST_MESSAGE)
        .max_frame_size(LARGEST_MESSAGE);
    match &instance.view().record.phase {
        Phase::Resting(InstanceState::Running) | Phase::Busy { .. } => Ok(upgrade),
        Phase::Resting(_) => match instance.agent(Duration::ZERO).await {
            // It came up just now.
            Ok(_) => Ok(upgrade),
            Err(error) => Err(error.into()),
        },
    }
}

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

async fn serve(app: Arc<App>, instance: InstanceHandle, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    let request = match first_frame(&mut stream).await {
        Ok(request) => request,
        Err(None) => return,
        // The client has not said which way it is told; one that knows streams knows this too.
        Err(Some(error)) => {
            finish(&mut sink, NOT_RUN, Some(&error), true).await;
            return close(&mut sink, &mut stream).await;
        }
    };
    let streams = request.streams;
    let session = match run(&instance, request).await {
        Ok(session) => session,
        Err(error) => {
            finish(&mut sink, NOT_RUN, Some(&error), streams).await;
            return close(&mut sink, &mut stream).await;
        }
    };
    let (input, output) = session.split();
    let shutting_down = || OpError::new(ErrorKind::Cancelled, "the daemon is shutting down").into();
    let (tell_taken, taken) = mpsc::unbounded_channel();
    let ended = tokio::select! {
        ended = pump_out(&mut sink, output, taken, streams) => ended,
        () = pump_in(&mut stream, &input, tell_taken, streams) => Err(None),
        () = app.draining.cancelled() => Err(Some(shutting_down())),
    };
    match ended {
        Ok(code) => finish(&mut sink, code, None, streams).await,
        Err(Some(error)) => finish(&mut sink, NOT_RUN, Some(&error), streams).await,
        Err(None) => {
            debug!("the client of a command hung up");
            // As when a terminal's line drops. A command that has ended meanwhile is no error.
            input.signal(SIGHUP).ok();
            return;
        }
    }
    close(&mut sink, &mut stream).await;
}

/// What the client wants; `None` if it hung up.
async fn first_frame(stream: &mut Stream) -> Result<ExecRequest, Option<Failure>> {
    let text = first_text(stream).await?;
    serde_json::from_str(&text).map_err(|error| Some(Failure::invalid(format!("the first frame: {error}"))))
}

/// The client's first frame, which must be text; `None` if it hung up.
pub(super) async fn first_text(stream: &mut Stream) -> Result<String, Option<Failure>> {
    let invalid = |what: &str| Some(Failure::invalid(what));
    let first = async {
        loop {
            match stream.next().await {
                Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                Some(Ok(Message::Binary(_))) => return Err(invalid("the first frame must be text")),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(None),
            }
        }
    };
    tokio::time::timeout(FIRST_FRAME, first).await.unwrap_or_else(|_| Err(invalid("no first frame came")))
}

async fn run(instance: &InstanceHandle, request: ExecRequest) -> Result<ExecSession, Failure> {
    let wait = Duration::from_secs(request.wait_for_agent.unwrap_or(0).into()).max(AGENT_WAIT);
    let agent = instance.agent(wait).await?;
    let argv = if request.command.is_empty() { vec!["/bin/sh".into()] } else { request.command };
    debug!(instance = %instance.name(), program = argv[0], tty = request.tty, "exec");
    let start = hearth_agent_client::ExecRequest {
        argv,
        env: request.env.unwrap_or_default().into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
        cwd: request.cwd.unwrap_or_default(),
        user: request.user.unwrap_or_default(),
        tty: request.tty.then(|| TtySize {
            rows: request.rows.unwrap_or(TERMINAL.rows),
            cols: request.cols.unwrap_or(TERMINAL.cols),
        }),
        timeout_ms: request.timeout.unwrap_or(0).saturating_mul(1000),
    };
    Ok(agent.exec(start).await.map_err(OpError::from)?)
}

/// The command's output to the client, until it has ended: its exit code, an error, or `None` when
/// the client is gone.
async fn pump_out(
    sink: &mut Sink,
    mut output: ExecOutput,
    mut taken: mpsc::UnboundedReceiver<u32>,
    streams: bool,
) -> Result<i32, Option<Failure>> {
    loop {
        let event = tokio::select! {
            event = output.next() => event.map_err(|error| Some(OpError::from(error).into()))?,
            Some(bytes) = taken.recv(), if streams => {
                let frame = [&[STDIN], &bytes.to_be_bytes()[..]].concat();
                sink.send(Message::Binary(frame.into())).await.map_err(|_| None)?;
                continue;
            }
        };
        let (stream, data) = match event {
            ExecEvent::Stdout(data) => (STDOUT, data),
            ExecEvent::Stderr(data) => (STDERR, data),
            ExecEvent::Exited(status) => return Ok(status.code()),
        };
        let frame = if streams { [&[stream], &data[..]].concat().into() } else { data };
        sink.send(Message::Binary(frame)).await.map_err(|_| None)?;
    }
}

/// What the client says to the command, until the client is gone. Input waits aside for a command
/// that does not read, so that signals do not wait with it.
async fn pump_in(stream: &mut Stream, input: &ExecInput, tell_taken: mpsc::UnboundedSender<u32>, streams: bool) {
    let (queue, queued) = mpsc::unbounded_channel();
    // A client that knows `streams` keeps to it; others wait, and so does all that they say.
    let room = Semaphore::new(WINDOW as usize);
    let feed = async {
        feed(input, queued, &room, &tell_taken).await;
        // The command has ended and takes no more; its end is on its way out.
        room.close();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = hear(stream, input, queue, &room, streams) => {}
        () = feed => {}
    }
}

/// Writes what is queued, of which an empty piece is the end of input, until the command takes no more.
async fn feed(
    input: &ExecInput,
    mut queued: mpsc::UnboundedReceiver<Bytes>,
    room: &Semaphore,
    tell_taken: &mpsc::UnboundedSender<u32>,
) {
    while let Some(piece) = queued.recv().await {
        let taken = if piece.is_empty() { input.eof() } else { input.write(&piece).await };
        if taken.is_err() {
            return;
        }
        room.add_permits(permits(&piece) as usize);
        // Whoever is not there to be told has gone.
        tell_taken.send(u32::try_from(piece.len()).unwrap_or(u32::MAX)).ok();
    }
}

/// What a piece takes of the room: a large one takes it all.
fn permits(piece: &Bytes) -> u32 {
    u32::try_from(piece.len()).unwrap_or(u32::MAX).min(WINDOW)
}

/// Sorts what the client says, until it is gone.
async fn hear(
    stream: &mut Stream,
    input: &ExecInput,
    queue: mpsc::UnboundedSender<Bytes>,
    room: &Semaphore,
    streams: bool,
) {
    let enqueue = async |piece: Bytes| {
        // Closed when the command takes no more: then what is still said goes nowhere.
        if let Ok(permits) = room.acquire_many(permits(&piece)).await {
            permits.forget();
            queue.send(piece).ok();
        }
        Ok(())
    };
    while let Some(Ok(message)) = stream.next().await {
        let result = match message {
            // Only with `streams` has input an end.
            Message::Binary(data) if !streams && data.is_empty() => Ok(()),
            Message::Binary(data) if !streams => enqueue(data).await,
            Message::Binary(data) => match data.first() {
                Some(&STDIN) => enqueue(data.slice(1..)).await,
                // A stream that this version does not know.
                _ => Ok(()),
            },
            Message::Text(text) => match serde_json::from_str(&text) {
                Ok(ExecControl::Resize { rows, cols }) => input.resize(TtySize { rows, cols }),
                Ok(ExecControl::Signal(name)) => match signal_number(&name) {
                    Some(signal) => input.signal(signal),
                    None => Ok(()),
                },
                // Hypeman's server takes text for input too.
                Err(_) if !streams && !text.is_empty() => enqueue(text.into()).await,
                Err(_) => Ok(()),
            },
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) => Ok(()),
        };
        // Only a client that is gone ends the session: one whose command has ended is told so.
        if let Err(error) = result {
            debug!(%error, "a command was told something that it could not take");
        }
    }
}

/// Tells the end. Without `streams` a reason is output, as Hypeman's server does it.
async fn finish(sink: &mut Sink, code: i32, failure: Option<&Failure>, streams: bool) {
    let mut end = ExecEnd { exit_code: code, error: None };
    if let Some(Failure { error, .. }) = failure {
        debug!(%error, "exec failed");
        if streams {
            end.error = Some(Box::new(body(error)));
        } else {
            // The client's terminal may be raw.
            let text = format!("Error: {}\r\n", error.message);
            sink.send(Message::Binary(text.into())).await.ok();
        }
    }
    let Ok(text) = serde_json::to_string(&end) else { return };
    // A client that is gone needs no end.
    sink.send(Message::Text(text.into())).await.ok();
}

/// Closes once the client has: a socket that is closed with something unread in it is reset, and
/// what was last sent is lost with it.
pub(super) async fn close(sink: &mut Sink, stream: &mut Stream) {
    // A client that is gone needs no end.
    if sink.close().await.is_err() {
        return;
    }
    let its_close = async { while let Some(Ok(_)) = stream.next().await {} };
    tokio::time::timeout(LINGER, its_close).await.ok();
}

fn signal_number(name: &str) -> Option<u8> {
    Some(match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => 1,
        "INT" => 2,
        "QUIT" => 3,
        "ABRT" => 6,
        "KILL" => 9,
        "USR1" => 10,
        "USR2" => 12,
        "PIPE" => 13,
        "ALRM" => 14,
        "TERM" => 15,
        "CONT" => 18,
        "STOP" => 19,
        "TSTP" => 20,
        "WINCH" => 28,
        _ => return None,
    })
}
