//! A daemon that answers as the contract says, from a table: so that these tests are of the command
//! line alone. Its one guest is a directory here.
#![allow(dead_code, reason = "each test file uses some")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path as Segment, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get, post};
use axum::{Json, Router};
use hearth_api::ErrorBody;
use hearth_model::ErrorKind;
use serde_json::{Value, json};

pub struct Daemon {
    pub address: SocketAddr,
    pub shared: Arc<Shared>,
    /// The guest's root directory.
    pub guest: tempfile::TempDir,
    home: tempfile::TempDir,
}

#[derive(Default)]
pub struct Shared {
    /// Requests, as method, path with query, and body.
    pub seen: Mutex<Vec<(String, String, Value)>>,
    /// `Authorization` headers.
    pub tokens: Mutex<Vec<String>>,
    /// How much input came for a command that does not read it.
    pub input: AtomicUsize,
    pub guest: PathBuf,
}

impl Daemon {
    pub fn start() -> Self {
        let guest = tempfile::tempdir().expect("a directory");
        let shared = Arc::new(Shared { guest: guest.path().to_owned(), ..Shared::default() });
        let router = Router::new()
            .route("/recovery", get(recovery))
            .route("/instances", get(list).post(create))
            .route("/instances/{id}", get(instance).delete(done))
            .route("/instances/{id}/{verb}", post(verb))
            .route("/snapshots", get(snapshots))
            .route("/snapshots/{id}/verify", post(verify))
            .route("/instances/{id}/wait", get(wait))
            .route("/instances/{id}/logs", get(logs))
            .route("/instances/{id}/stat", get(stat))
            .route("/instances/{id}/timeline", get(timeline))
            .route("/instances/{id}/exec", any(exec))
            .route("/instances/{id}/cp", any(cp))
            .layer(axum::middleware::from_fn_with_state(Arc::clone(&shared), remember))
            .with_state(Arc::clone(&shared));
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async move {
                let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
                sender.send(listener.local_addr().expect("an address")).expect("somebody waits");
                axum::serve(listener, router).await.expect("serves");
            });
        });
        let address = receiver.recv().expect("it starts");
        Self { address, shared, guest, home: tempfile::tempdir().expect("a directory") }
    }

    /// `hearth` with these arguments, in a directory and an environment of its own.
    pub fn hearth(&self, arguments: &[&str]) -> Command {
        let mut command = hearth(arguments, self.home.path());
        command.env("HEARTH_URL", format!("http://{}", self.address));
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.hearth(arguments).stdin(Stdio::null()).output().expect("runs"))
    }

    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// The body of the last request to that path.
    pub fn body_of(&self, path: &str) -> Value {
        let seen = self.shared.seen.lock().expect("no panic");
        let found = seen.iter().rev().find(|(_, seen, _)| seen == path);
        found.unwrap_or_else(|| panic!("no request to {path} in {seen:?}")).2.clone()
    }
}

pub fn hearth(arguments: &[&str], home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hearth"));
    command.args(arguments).env_clear().env("HOME", home).env("PATH", "/usr/bin:/bin").current_dir(home);
    command
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).expect("UTF-8"),
            stderr: String::from_utf8(output.stderr).expect("UTF-8"),
        }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

async fn remember(
    State(shared): State<Arc<Shared>>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let (parts, body) = request.into_parts();
    let bytes = axum::body::to_bytes(body, 1 << 20).await.expect("a body");
    let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
    let path = parts.uri.path_and_query().expect("a path").to_string();
    shared.seen.lock().expect("no panic").push((parts.method.to_string(), path, value));
    if let Some(token) = parts.headers.get("authorization") {
        shared.tokens.lock().expect("no panic").push(token.to_str().expect("text").to_owned());
    }
    next.run(axum::extract::Request::from_parts(parts, bytes.into())).await
}

fn an_instance(name: &str, state: &str) -> Value {
    json!({
        "id": format!("{name:a<24}"), "name": name, "state": state, "image": "docker.io/library/web:latest",
        "created_at": "2026-01-01T00:00:00Z", "size": "256 MB", "vcpus": 2, "hypervisor": "qemu-microvm",
    })
}

fn refused(status: u16, body: ErrorBody) -> Response {
    (StatusCode::from_u16(status).expect("a status"), Json(body)).into_response()
}

fn not_found(name: &str) -> Response {
    let body = ErrorBody::new(ErrorKind::NotFound, format!("no instance is named {name:?}"))
        .with_hint("did you mean web?")
        .about("instance", name);
    refused(404, body)
}

async fn list(headers: HeaderMap) -> Response {
    if headers.get("authorization").is_some_and(|token| token == "Bearer expired") {
        return refused(401, ErrorBody::new(ErrorKind::Unauthorized, "the token has expired"));
    }
    let mut ended = an_instance("job", "Stopped");
    ended["exit_code"] = json!(3);
    Json(json!([an_instance("web", "Running"), ended])).into_response()
}

async fn recovery() -> Response {
    Json(json!({
        "started_at": "2026-01-01T00:00:00Z", "duration_ms": 12.0, "outcomes": {"adopted": 1}, "unlisted": 0,
        "instances": [{
            "id": "w", "name": "web", "found": "Running", "cut_off": "standby", "vmm": "alive", "outcome": "adopted",
            "state": "Running", "looks": 0,
        }],
        "swept": {
            "bundles": 1, "withdrawn_records": 0, "unpublished_records": 0, "directories": 0,
            "imports": 0, "images": 0, "drafts": 0, "cgroups": 0, "slots": 0,
            "left": [], "failed": [], "unlisted": 0,
        },
    }))
    .into_response()
}

async fn create(Json(body): Json<Value>) -> Response {
    let name = body["name"].as_str().unwrap_or_default();
    (StatusCode::CREATED, Json(an_instance(name, "Initializing"))).into_response()
}

async fn instance(Segment(id): Segment<String>) -> Response {
    match id.trim_end_matches('a') {
        name @ ("web" | "new") => Json(an_instance(name, "Running")).into_response(),
        "job" => {
            let mut ended = an_instance("job", "Stopped");
            (ended["exit_code"], ended["exit_message"]) = (json!(7), json!("exited with code 7"));
            Json(ended).into_response()
        }
        _ => not_found(&id),
    }
}

async fn done() -> StatusCode {
    StatusCode::NO_CONTENT
}

async fn verb(Segment((id, verb)): Segment<(String, String)>, Json(body): Json<Value>) -> Response {
    match verb.as_str() {
        "fork" if body["count"].as_u64() > Some(1) => {
            let full = ErrorBody::new(ErrorKind::Exhausted, "no memory is left").with_hint("stop another instance");
            Json(json!({
                "instances": [an_instance("copy-1", "Running"), an_instance("copy-2", "Running")],
                "errors": [{"name": "copy-3", "error": full}],
            }))
            .into_response()
        }
        "fork" => Json(an_instance(body["name"].as_str().unwrap_or_default(), "Running")).into_response(),
        _ => not_found(&id),
    }
}

async fn snapshots() -> Response {
    let snapshot = |name: &str| {
        json!({
            "id": format!("{name:s<24}"), "name": name, "kind": "Standby", "created_at": "2026-01-01T00:00:00Z",
            "size_bytes": 1, "source_hypervisor": "qemu-microvm", "source_instance_id": "i",
            "source_instance_name": "web",
        })
    };
    Json(json!([snapshot("rotten"), snapshot("new"), snapshot("well")])).into_response()
}

async fn verify(Segment(id): Segment<String>) -> Response {
    match id.trim_end_matches('s') {
        "well" => {
            let at = "2026-01-01T00:00:00Z";
            Json(json!({"id": id, "name": "well", "bytes": 268_435_456, "verified_at": at})).into_response()
        }
        "new" => refused(409, ErrorBody::new(ErrorKind::WrongState, "snapshot new has no checksums yet")),
        _ => {
            let body = ErrorBody::new(ErrorKind::Corrupt, format!("memory of snapshot {id} has changed"));
            refused(500, body.with_hint("put memory back"))
        }
    }
}

async fn wait(Segment(id): Segment<String>, Query(query): Query<Value>) -> Response {
    let state = if id.starts_with("job") { "Stopped" } else { "Running" };
    Json(json!({"state": state, "timed_out": query["state"] != state})).into_response()
}

async fn logs() -> Response {
    let events = "data: \"one\"\n\ndata: \"two \\\"2\\\"\"\n\n";
    ([("content-type", "text/event-stream")], events).into_response()
}

async fn timeline(Segment(id): Segment<String>) -> Response {
    let steps = json!([{"step": "load snapshot", "start_ms": 0.0, "duration_ms": 70.04, "note": "resume on load"}]);
    let operation = json!({"op": "restore", "started_at": "2026-01-01T00:00:00Z", "duration_ms": 80.0, "steps": steps});
    Json(json!({"instance_id": id, "operations": [operation]})).into_response()
}

async fn exec(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| run_command(socket, shared)).into_response()
}

/// Programs that show one thing each.
async fn run_command(mut socket: WebSocket, shared: Arc<Shared>) {
    let Some(Ok(Message::Text(first))) = socket.recv().await else { return };
    let request: Value = serde_json::from_str(&first).expect("a request");
    assert_eq!(request["streams"], true);
    let said = |stream: u8, text: &str| {
        let mut frame = vec![stream];
        frame.extend_from_slice(text.as_bytes());
        Message::binary(frame)
    };
    let mut end = json!({"exitCode": 0});
    match request["command"][0].as_str().unwrap_or("sh") {
        "both" => {
            socket.send(said(1, "out\n")).await.expect("sends");
            socket.send(said(2, "err\n")).await.expect("sends");
            end = json!({"exitCode": 3});
        }
        "missing" => {
            let body = ErrorBody::new(ErrorKind::NotFound, "missing: no such command").with_hint("see what is in /bin");
            end = json!({"exitCode": 127, "error": body});
        }
        "env" => socket.send(said(1, &request.to_string())).await.expect("sends"),
        "signal" => {
            socket.send(said(1, "ready\n")).await.expect("sends");
            while let Some(Ok(message)) = socket.recv().await {
                match message {
                    Message::Text(text) => {
                        socket.send(said(1, &text)).await.expect("sends");
                        end = json!({"exitCode": 130});
                        break;
                    }
                    other => drop(shared.input.fetch_add(other.into_data().len(), Ordering::Relaxed)),
                }
            }
        }
        // Everything else echoes its input until its end, or until a "q".
        _ => {
            while let Some(Ok(message)) = socket.recv().await {
                let Message::Binary(data) = message else { continue };
                assert_eq!(data[0], 0);
                if data.len() == 1 {
                    break;
                }
                let text = String::from_utf8_lossy(&data[1..]).into_owned();
                let taken = u32::try_from(data.len() - 1).expect("a window's worth at most");
                socket.send(Message::binary([&[0], &taken.to_be_bytes()[..]].concat())).await.expect("sends");
                socket.send(said(1, &text.replace('\u{3}', "^C"))).await.expect("sends");
                if text.contains('q') {
                    break;
                }
            }
        }
    }
    socket.send(Message::text(end.to_string())).await.ok();
    // Until the client has read it.
    while let Some(Ok(_)) = socket.recv().await {}
}

fn in_guest(shared: &Shared, path: &str) -> PathBuf {
    shared.guest.join(path.trim_start_matches('/'))
}

async fn stat(State(shared): State<Arc<Shared>>, Query(query): Query<Value>) -> Response {
    let path = query["path"].as_str().expect("a path");
    let answer = match std::fs::metadata(in_guest(&shared, path)) {
        Ok(meta) => json!({"exists": true, "is_dir": meta.is_dir(), "is_file": meta.is_file()}),
        Err(_) => json!({"exists": false}),
    };
    Json(answer).into_response()
}

async fn cp(State(shared): State<Arc<Shared>>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(|socket| copy(socket, shared)).into_response()
}

async fn copy(mut socket: WebSocket, shared: Arc<Shared>) {
    let Some(Ok(Message::Text(first))) = socket.recv().await else { return };
    let request: Value = serde_json::from_str(&first).expect("a request");
    let path = in_guest(&shared, request["guest_path"].as_str().expect("a path"));
    if request["direction"] == "to" {
        let mut content = Vec::new();
        while let Some(Ok(Message::Binary(data))) = socket.recv().await {
            content.extend_from_slice(&data);
        }
        let written = if request["is_dir"] == true {
            std::fs::create_dir_all(&path)
        } else if let Some(target) = request["link_target"].as_str() {
            std::os::unix::fs::symlink(target, &path)
        } else {
            std::fs::write(&path, &content)
        };
        let result = match written {
            Ok(()) => json!({"type": "result", "success": true, "bytes_written": content.len()}),
            Err(error) => json!({"type": "result", "success": false, "code": "not_found",
                "error": format!("write {}: {error}", request["guest_path"].as_str().unwrap_or_default())}),
        };
        socket.send(Message::text(result.to_string())).await.ok();
    } else {
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let mut frames = Vec::new();
        if request["guest_path"] == "/" {
            for entry in std::fs::read_dir(&path).expect("lists") {
                let entry = entry.expect("an entry");
                tree(&entry.path(), &entry.file_name().to_string_lossy(), &mut frames);
            }
        } else {
            tree(&path, &name, &mut frames);
        }
        if frames.is_empty() {
            let message = format!("look at {}: no such file", request["guest_path"].as_str().unwrap_or_default());
            frames.push(Message::text(json!({"type": "error", "message": message, "code": "not_found"}).to_string()));
        } else {
            frames.pop();
            frames.push(Message::text(json!({"type": "end", "final": true}).to_string()));
        }
        for frame in frames {
            if socket.send(frame).await.is_err() {
                return;
            }
        }
    }
    while let Some(Ok(_)) = socket.recv().await {}
}

fn tree(path: &Path, name: &str, frames: &mut Vec<Message>) {
    use std::os::unix::fs::MetadataExt;
    let Ok(meta) = std::fs::symlink_metadata(path) else { return };
    let mut header = json!({"type": "header", "path": name, "mode": meta.mode() & 0o777, "is_dir": meta.is_dir(),
        "size": if meta.is_file() { meta.len() } else { 0 }, "mtime": meta.mtime()});
    if meta.is_symlink() {
        header["is_symlink"] = json!(true);
        header["link_target"] = json!(std::fs::read_link(path).expect("a link"));
    }
    frames.push(Message::text(header.to_string()));
    if meta.is_file() {
        frames.push(Message::binary(std::fs::read(path).expect("reads")));
    }
    frames.push(Message::text(json!({"type": "end", "final": false}).to_string()));
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).expect("lists") {
            let entry = entry.expect("an entry");
            tree(&entry.path(), &format!("{name}/{}", entry.file_name().to_string_lossy()), frames);
        }
    }
}
