//! The API socket: HTTP/1.1 with kept-alive connections, one request at a time.
//!
//! As Firecracker's, which has one thread for all of its connections: a request that hangs keeps
//! every later one waiting.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderValue, SERVER};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, mpsc};
use tokio_util::task::TaskTracker;

use crate::faults::{Answer, Faults, When};
use crate::log::{complain, say};
use crate::machine::{Done, Machine};
use crate::request;

/// The largest body, in bytes.
const MAX_BODY: usize = 51200;
/// How many connections are served at once.
const MAX_CONNECTIONS: usize = 10;
/// What one more is told.
const FULL: &[u8] = b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n\
                      { \"error\": \"Too many open connections\" }";
const THREAD: &str = "fc_api";

/// What all connections share.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    pub(crate) machine: Arc<Mutex<Machine>>,
    pub(crate) faults: Arc<Faults>,
    /// Told the code with which the process is to end, once what is answered was sent.
    pub(crate) exit: mpsc::UnboundedSender<u8>,
    /// Connections that are served.
    pub(crate) connections: TaskTracker,
    pub(crate) closing: tokio_util::sync::CancellationToken,
}

/// There is no answer: the connection is closed.
#[derive(Debug, thiserror::Error)]
#[error("dropped, as was asked for")]
struct Dropped;

impl Server {
    /// Serves the socket until the process ends.
    pub(crate) async fn serve(self, listener: UnixListener) {
        say(THREAD, "API server started.");
        loop {
            match listener.accept().await {
                Ok((mut stream, _)) if self.connections.len() >= MAX_CONNECTIONS => {
                    // Whoever does not read it has gone already.
                    let _ = stream.write_all(FULL).await;
                }
                Ok((stream, _)) => {
                    self.connections.spawn(self.clone().connection(stream));
                }
                Err(error) => {
                    complain(THREAD, format_args!("API Server error on retrieving incoming request: {error}"));
                }
            }
        }
    }

    async fn connection(self, stream: UnixStream) {
        let closing = self.closing.clone();
        let service = service_fn(move |request| {
            let server = self.clone();
            async move { server.answer(request).await }
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        let connection =
            http.auto_date_header(false).title_case_headers(true).serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            complain(THREAD, format_args!("connection: {error}"));
        }
    }

    async fn answer(self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Dropped> {
        let (method, path) = (request.method().to_string(), request.uri().path().to_owned());
        if !["GET", "PUT", "PATCH", "DELETE"].contains(&method.as_str()) {
            return Ok(malformed("Invalid HTTP Method: Unsupported HTTP method."));
        }
        let body = request.into_body().collect().await.map_err(|_| Dropped)?.to_bytes();
        if body.len() > MAX_BODY {
            let len = body.len();
            return Ok(malformed(&format!(
                "Request payload with size {len} is larger than the limit of {MAX_BODY} allowed by server."
            )));
        }
        // In a task of its own: a caller that hangs up stops nothing, and frees nobody from a hang.
        tokio::spawn(self.process(method, path, body)).await.map_err(|_| Dropped)?
    }

    async fn process(self, method: String, path: String, body: Bytes) -> Result<Response<Full<Bytes>>, Dropped> {
        let text = String::from_utf8_lossy(&body).into_owned();
        say(THREAD, received(&method, &path, &text));

        let mut machine = self.machine.lock().await;
        let met = match self.faults.meet(&format!("{method} {path}"), &text) {
            Ok(met) => met,
            Err(error) => return Ok(fault(StatusCode::NOT_IMPLEMENTED, &error.to_string())),
        };
        match met.happen(When::Before).await {
            Answer::AsItIs => {}
            Answer::Dropped => return Err(Dropped),
            Answer::Error(status) => return Ok(demanded(status)),
        }
        let answer = match request::parse(&method, &path, &body) {
            Err(why) => {
                complain(THREAD, &why);
                fault(StatusCode::BAD_REQUEST, &why)
            }
            Ok(request) => {
                let mut answer = match machine.handle(request.action) {
                    Ok(Done::Nothing) => {
                        say(THREAD, "The request was executed successfully. Status code: 204 No Content.");
                        with_headers(StatusCode::NO_CONTENT, None)
                    }
                    Ok(Done::Told(value)) => {
                        say(THREAD, "The request was executed successfully. Status code: 200 OK.");
                        with_headers(StatusCode::OK, Some(value))
                    }
                    Err(refused) => {
                        let why = &refused.why;
                        complain(THREAD, format_args!("Received Error. Status code: 400 Bad Request. Message: {why}"));
                        if refused.fatal {
                            let _ = self.exit.send(1);
                        }
                        fault(StatusCode::BAD_REQUEST, why)
                    }
                };
                if request.deprecated {
                    answer.headers_mut().insert("Deprecation", HeaderValue::from_static("true"));
                }
                answer
            }
        };
        match met.happen(When::After).await {
            Answer::AsItIs => Ok(answer),
            Answer::Dropped => Err(Dropped),
            Answer::Error(status) => Ok(demanded(status)),
        }
    }
}

fn received(method: &str, path: &str, body: &str) -> String {
    let mut method = method.to_lowercase();
    method[..1].make_ascii_uppercase();
    match body {
        "" => format!("The API server received a {method} request on {path:?}."),
        body => format!("The API server received a {method} request on {path:?} with body {body:?}."),
    }
}

fn fault(status: StatusCode, message: &str) -> Response<Full<Bytes>> {
    with_headers(status, Some(json!({ "fault_message": message }).to_string()))
}

fn demanded(status: u16) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    fault(status, "a fault that was asked for")
}

/// What Firecracker's HTTP server says before the API sees a request.
fn malformed(why: &str) -> Response<Full<Bytes>> {
    let body = format!("{{ \"error\": \"{why}\nAll previous unanswered requests will be dropped.\" }}");
    with_headers(StatusCode::BAD_REQUEST, Some(body))
}

fn with_headers(status: StatusCode, body: Option<String>) -> Response<Full<Bytes>> {
    let has_body = body.is_some();
    let mut response = Response::new(Full::from(body.unwrap_or_default()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(SERVER, HeaderValue::from_static("Firecracker API"));
    headers.insert(CONNECTION, HeaderValue::from_static("keep-alive"));
    if has_body {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    response
}
