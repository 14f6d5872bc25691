//! `GET /instances/{id}/logs`: a log's lines as server-sent events.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use hearth_api::ErrorBody;
use hearth_api::logs::{DEFAULT_TAIL, LogsQuery};
use hearth_model::ErrorKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::error::Failure;
use super::input::{Named, Query};
use super::sessions::Session;
use super::tail::{Follower, Lines};
use crate::error::OpError;
use crate::handle::{InstanceHandle, InstanceView, LogSource};
use crate::serve::App;

/// An instance's log
///
/// Server-sent events, each one a line as a JSON string. With `follow` they go on until the
/// instance is deleted.
#[utoipa::path(get, path = "/instances/{id}/logs", tag = "instances", operation_id = "getInstanceLogs",
    params(("id" = String, Path, description = "Id, name, or the id's unique beginning."), LogsQuery), responses(
    (status = 200, description = "Lines.", body = String, content_type = "text/event-stream"),
    (status = "default", description = "Why not.", body = ErrorBody)))]
pub(super) async fn logs(
    State(app): State<Arc<App>>,
    Named(id): Named<String>,
    Query { query, .. }: Query<LogsQuery>,
) -> Result<Response, Failure> {
    let instance = app.registry.resolve(&id)?;
    let source = match query.source.unwrap_or_default() {
        hearth_api::logs::LogSource::App => LogSource::App,
        hearth_api::logs::LogSource::Vmm => LogSource::Vmm,
        hearth_api::logs::LogSource::Hearth => LogSource::Hearth,
    };
    let tail = query.tail.unwrap_or(DEFAULT_TAIL);
    // What only shows what is there ends by itself.
    let follow = query.follow.unwrap_or(false);
    let session = follow.then(|| app.sessions.begin(&instance, &app.config.limits)).transpose()?;
    let reader = Reader::new(&instance, source, tail, session, app.draining.clone()).map_err(|error| {
        OpError::new(ErrorKind::HostFailed, format!("read the log of instance {}: {error}", instance.name()))
            .about("instance", instance.name().as_str())
    })?;
    let events = stream::unfold(reader, async |mut reader| {
        let events = reader.next().await?;
        Some((Ok::<_, Infallible>(events), reader))
    });
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-cache"),
        // A proxy must not hold lines back.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::from_stream(events)).into_response())
}

/// A log on its way to one client.
struct Reader {
    lines: Lines,
    /// What wakes it; without one it ends at the end.
    follow: Option<Follow>,
    ended: bool,
}

struct Follow {
    follower: Follower,
    view: watch::Receiver<InstanceView>,
    draining: CancellationToken,
    _session: Session,
}

impl Reader {
    fn new(
        instance: &InstanceHandle,
        source: LogSource,
        tail: u64,
        follow: Option<Session>,
        draining: CancellationToken,
    ) -> io::Result<Self> {
        // Watched before it is read: what is written in between is seen.
        let follow = match follow {
            None => None,
            Some(session) => match Follower::new(instance.dir().path()) {
                Ok(follower) => Some(Follow { follower, view: instance.watch(), draining, _session: session }),
                // It is being made or removed, and there is nothing to follow.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
        };
        let lines = Lines::open(instance.log_path(source), tail)?;
        Ok(Self { lines, follow, ended: false })
    }

    /// The next events; `None` when there are no more. Cancel safe.
    async fn next(&mut self) -> Option<Bytes> {
        while !self.ended {
            match self.lines.read() {
                Err(error) => {
                    warn!(%error, "a log could not be read on");
                    return None;
                }
                Ok(lines) if !lines.is_empty() => return Some(lines.iter().flat_map(|line| event(line)).collect()),
                Ok(_) => {}
            }
            let goes_on = match &mut self.follow {
                None => false,
                Some(follow) => follow.wait().await,
            };
            if !goes_on {
                self.ended = true;
                return self.lines.rest().map(|line| event(&line).into());
            }
        }
        None
    }
}

impl Follow {
    /// True when there may be more; false when there will not be.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            changed = self.follower.changed() => changed.is_ok(),
            _ = self.view.wait_for(|view| view.gone) => false,
            () = self.draining.cancelled() => false,
        }
    }
}

fn event(line: &str) -> Vec<u8> {
    let mut event = b"data: ".to_vec();
    // A text is always JSON.
    serde_json::to_writer(&mut event, line).unwrap_or_default();
    event.extend_from_slice(b"\n\n");
    event
}
