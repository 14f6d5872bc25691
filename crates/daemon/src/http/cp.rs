//! `GET /instances/{id}/cp`: files into a guest and out of one, over a WebSocket.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt, StreamExt};
use hearth_agent_client::{Agent, CopyEntry, CopyItem, CopyToStart, FileKind};
use hearth_api::ErrorBody;
use hearth_api::cp::{CpFrame, CpHeader, CpRequest, Direction};
use hearth_model::ErrorKind;
use tracing::{Instrument, debug};

use super::error::Failure;
use super::exec::{close, first_text, ready_for_upgrade};
use super::input::Named;
use super::stat::AGENT_WAIT;
use crate::error::OpError;
use crate::handle::InstanceHandle;
use crate::serve::App;

/// What a client's directory or file is made with when it does not say.
const DIR_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

type Sink = SplitSink<WebSocket, Message>;
type Stream = SplitStream<WebSocket>;

/// Copy files into a guest, or out of one (WebSocket)
///
/// The client's first frame is text, a `CpRequest`; binary frames carry files' bytes, and text
/// frames a `CpFrame`.
#[utoipa::path(get, path = "/instances/{id}/cp", tag = "instances", operation_id = "cpInstance",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning.")), responses(
    (status = 101, description = "The frames of `CpRequest` and `CpFrame`."),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn cp(
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

async fn serve(app: Arc<App>, instance: InstanceHandle, socket: WebSocket) {
    let (mut sink, mut stream) = socket.split();
    let copied = tokio::select! {
        copied = copy(&instance, &mut sink, &mut stream) => copied,
        () = app.draining.cancelled() => {
            Err(Some(OpError::new(ErrorKind::Cancelled, "the daemon is shutting down").into()))
        }
    };
    match copied {
        Ok(()) => {}
        Err(None) => debug!("the client of a copy hung up"),
        Err(Some(Failure { error, .. })) => {
            debug!(%error, "copy failed");
            let frame = CpFrame::Error { message: error.message, path: None, code: Some(error.kind.as_str().into()) };
            send(&mut sink, &frame).await.ok();
        }
    }
    close(&mut sink, &mut stream).await;
}

/// Why a copy broke off: an error for the client, or `None` when there is no client any more.
type Broken = Option<Failure>;

async fn copy(instance: &InstanceHandle, sink: &mut Sink, stream: &mut Stream) -> Result<(), Broken> {
    let text = first_text(stream).await?;
    let request: CpRequest =
        serde_json::from_str(&text).map_err(|error| invalid(format!("the first frame: {error}")))?;
    if !request.guest_path.starts_with('/') {
        return Err(invalid(format!("{:?} is not an absolute path in the guest", request.guest_path)));
    }
    let agent = instance.agent(AGENT_WAIT).await.map_err(told)?;
    match request.direction {
        Direction::To => into_guest(&agent, request, sink, stream).await,
        Direction::From => out_of_guest(&agent, &request, sink, stream).await,
    }
}

async fn into_guest(agent: &Agent, request: CpRequest, sink: &mut Sink, stream: &mut Stream) -> Result<(), Broken> {
    let path = request.guest_path.clone();
    let mut copy = agent.copy_to(CopyToStart { path }).await.map_err(told)?;
    copy.entry(entry(request)?).await.map_err(told)?;
    loop {
        match stream.next().await {
            Some(Ok(Message::Binary(data))) => copy.data(&data).await.map_err(told)?,
            Some(Ok(Message::Text(text))) => match serde_json::from_str(&text) {
                Ok(CpFrame::End { .. }) => break,
                _ => return Err(invalid("a text frame that is not the end".into())),
            },
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            // Not told to have ended: what has come is not the whole file.
            Some(Ok(Message::Close(_)) | Err(_)) | None => return Err(None),
        }
    }
    copy.entry_end().await.map_err(told)?;
    let done = copy.finish().await.map_err(told)?;
    send(sink, &CpFrame::Result { success: true, error: None, bytes_written: done.bytes, code: None }).await
}

fn entry(request: CpRequest) -> Result<CopyEntry, Broken> {
    let (kind, mode) = match request.link_target {
        Some(_) if request.is_dir => return Err(invalid("a directory has no link_target".into())),
        Some(target) => (FileKind::Symlink { target }, FILE_MODE),
        None if request.is_dir => (FileKind::Dir, DIR_MODE),
        None => (FileKind::File, FILE_MODE),
    };
    Ok(CopyEntry {
        path: String::new(),
        kind,
        mode: request.mode.filter(|mode| *mode != 0).unwrap_or(mode) & 0o7777,
        size: 0,
        mtime_s: request.mtime.unwrap_or(0),
        uid: request.uid.unwrap_or(0),
        gid: request.gid.unwrap_or(0),
    })
}

async fn out_of_guest(agent: &Agent, request: &CpRequest, sink: &mut Sink, stream: &mut Stream) -> Result<(), Broken> {
    let mut copy = agent.copy_from(&request.guest_path, request.follow_links).await.map_err(told)?;
    let top = last_component(&request.guest_path);
    // Only the last entry's end says so, hence each is held back until it is known.
    let mut held_end = false;
    loop {
        let item = tokio::select! {
            item = copy.next() => item.map_err(told)?,
            () = gone(stream) => return Err(None),
        };
        match item {
            // The root directory has no name that a client could give it.
            Some(CopyItem::Entry(entry)) if entry.path.is_empty() && top.is_empty() => {}
            Some(CopyItem::Entry(entry)) => {
                if std::mem::take(&mut held_end) {
                    send(sink, &CpFrame::End { last: false }).await?;
                }
                send(sink, &CpFrame::Header(header(top, entry))).await?;
                held_end = true;
            }
            Some(CopyItem::Data(data)) => sink.send(Message::Binary(data)).await.map_err(|_| None)?,
            Some(CopyItem::EntryEnd) => {}
            None if held_end => return send(sink, &CpFrame::End { last: true }).await,
            None => return Err(invalid(format!("there is nothing to copy at {}", request.guest_path))),
        }
    }
}

/// The name that a copied tree has at its top; nothing for the root directory.
fn last_component(path: &str) -> &str {
    path.rsplit('/').find(|part| !matches!(*part, "" | ".")).filter(|part| *part != "..").unwrap_or_default()
}

fn header(top: &str, entry: CopyEntry) -> CpHeader {
    let path = match (top, entry.path) {
        ("", below) => below,
        (top, below) if below.is_empty() => top.to_owned(),
        (top, below) => format!("{top}/{below}"),
    };
    let is_dir = entry.kind == FileKind::Dir;
    let (is_symlink, link_target) = match entry.kind {
        FileKind::Symlink { target } => (true, target),
        FileKind::File | FileKind::Dir | FileKind::Other => (false, String::new()),
    };
    CpHeader {
        path,
        // Hypeman's clients refuse anything above.
        mode: entry.mode & 0o777,
        is_dir,
        is_symlink,
        link_target,
        size: if is_dir || is_symlink { 0 } else { entry.size },
        mtime: entry.mtime_s.max(0),
        uid: entry.uid,
        gid: entry.gid,
    }
}

/// Resolves when the client is gone; what it says meanwhile is passed over.
async fn gone(stream: &mut Stream) {
    while let Some(Ok(message)) = stream.next().await {
        if let Message::Close(_) = message {
            return;
        }
    }
}

async fn send(sink: &mut Sink, frame: &CpFrame) -> Result<(), Broken> {
    let text = serde_json::to_string(frame).map_err(|error| invalid(format!("a frame cannot be written: {error}")))?;
    sink.send(Message::Text(text.into())).await.map_err(|_| None)
}

fn invalid(what: String) -> Broken {
    Some(Failure::invalid(what))
}

fn told(error: impl Into<OpError>) -> Broken {
    Some(error.into().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_tree_is_called_as_what_was_asked_for() {
        for (path, top) in [("/a/b", "b"), ("/a/b/", "b"), ("/", ""), ("/a/..", ""), ("/a/.", "a")] {
            assert_eq!(last_component(path), top, "{path}");
        }
        let entry = |path: &str| CopyEntry {
            path: path.into(),
            kind: FileKind::Dir,
            mode: 0o1777,
            size: 4096,
            mtime_s: -1,
            uid: 1,
            gid: 2,
        };
        assert_eq!(header("b", entry("")).path, "b");
        assert_eq!(header("b", entry("c/d")).path, "b/c/d");
        assert_eq!(header("", entry("c/d")).path, "c/d");
        let seen = header("b", entry(""));
        assert_eq!((seen.mode, seen.size, seen.mtime), (0o777, 0, 0));
    }
}
