//! Logs, exec and cp: what goes on while a request is open.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use hearth_api::client::{CpEvent, ExecEvent, ExecSession};
use hearth_api::cp::CpRequest;
use hearth_api::exec::{ExecEnd, ExecRequest};
use hearth_api::instances::DeleteInstance;
use hearth_api::logs::{LogSource, LogsQuery};
use hearth_model::{ErrorKind, Kind};
use tokio_tungstenite::tungstenite::Message;

use super::server::Server;

fn serial(server: &Server, name: &str) -> PathBuf {
    server.app.registry.resolve(name).expect("there").log_path(crate::handle::LogSource::App)
}

fn append(path: &PathBuf, text: &str) {
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("opened");
    file.write_all(text.as_bytes()).expect("written");
}

#[tokio::test]
async fn a_log_is_shown_from_its_end_and_followed_until_the_instance_is_gone() {
    let server = Server::new().await;
    server.create("web").await;
    let path = serial(&server, "web");
    std::fs::write(&path, "").expect("emptied");
    append(&path, "one\r\ntwo \"quoted\"\nthree\n");

    let query = LogsQuery { tail: Some(2), ..LogsQuery::default() };
    let mut lines = server.client.logs("web", &query).await.expect("a log");
    assert_eq!(lines.next_line().await.expect("a line").as_deref(), Some("two \"quoted\""));
    assert_eq!(lines.next_line().await.expect("a line").as_deref(), Some("three"));
    assert_eq!(lines.next_line().await.expect("the end"), None);

    let query = LogsQuery { tail: Some(1), follow: Some(true), source: Some(LogSource::App) };
    let mut lines = server.client.logs("web", &query).await.expect("a log");
    assert_eq!(lines.next_line().await.expect("a line").as_deref(), Some("three"));
    append(&path, "fo");
    append(&path, "ur\n");
    assert_eq!(lines.next_line().await.expect("a line").as_deref(), Some("four"));

    // A stop is not the end: it may be started again.
    server.client.stop("web").await.expect("stopped");
    assert!(tokio::time::timeout(Duration::from_millis(100), lines.next_line()).await.is_err());
    server.client.delete_instance("web", &DeleteInstance::default()).await.expect("deleted");
    assert_eq!(lines.next_line().await.expect("the end"), None);
}

#[tokio::test]
async fn a_log_that_nobody_wrote_is_empty() {
    let server = Server::new().await;
    server.create("web").await;
    std::fs::remove_file(serial(&server, "web")).ok();
    let mut lines = server.client.logs("web", &LogsQuery::default()).await.expect("a log");
    assert_eq!(lines.next_line().await.expect("the end"), None);
}

/// Everything that a command does.
async fn run(server: &Server, command: &[&str], input: &[u8]) -> (String, String, ExecEnd) {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let request = ExecRequest { command, ..ExecRequest::default() };
    let mut session = server.client.exec("web", &request).await.expect("run");
    session.input.write(input).await.ok();
    session.input.end().await.ok();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match session.output.next().await.expect("an event") {
            ExecEvent::Stdout(data) => out.extend_from_slice(&data),
            ExecEvent::Stderr(data) => err.extend_from_slice(&data),
            ExecEvent::End(end) => {
                let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
                return (text(out), text(err), end);
            }
        }
    }
}

#[tokio::test]
async fn a_command_has_its_own_input_output_errors_and_exit_code() {
    let server = Server::new().await;
    server.create("web").await;
    let (out, err, end) = run(&server, &["echo", "hello"], b"").await;
    assert_eq!((out.as_str(), err.as_str(), end.exit_code), ("hello\n", "", 0));
    let (out, _, end) = run(&server, &["cat"], b"to and fro").await;
    assert_eq!((out.as_str(), end.exit_code), ("to and fro", 0));
    let (out, err, end) = run(&server, &["fail", "oh"], b"").await;
    assert_eq!((out.as_str(), err.trim(), end.exit_code), ("", "oh", 1));
    assert_eq!(run(&server, &["exit", "42"], b"").await.2.exit_code, 42);

    let (.., end) = run(&server, &["no-such-command"], b"").await;
    let error = end.error.expect("a reason");
    assert_eq!((end.exit_code, error.kind()), (127, ErrorKind::NotFound));
    assert!(error.message.contains("no-such-command"), "{}", error.message);
}

/// `sleep` takes no input: what the window lets through waits, and the signal does not wait behind it.
#[tokio::test]
async fn a_signal_passes_input_that_the_command_does_not_read() {
    let server = Server::new().await;
    server.create("web").await;
    let request = ExecRequest { command: vec!["sleep".into(), "1000".into()], ..ExecRequest::default() };
    let mut session = server.client.exec("web", &request).await.expect("run");
    let more = vec![b'x'; 8 << 20];
    let blocked = tokio::time::timeout(Duration::from_millis(300), session.input.write(&more)).await;
    assert!(blocked.is_err(), "all was taken");
    session.input.signal("TERM").await.expect("sent");
    let end = tokio::time::timeout(Duration::from_secs(20), session.output.next()).await.expect("in time");
    assert_eq!(end.expect("an event"), ExecEvent::End(ExecEnd { exit_code: 128 + 15, error: None }));
}

#[tokio::test]
async fn input_of_many_windows_arrives_whole() {
    let server = Server::new().await;
    server.create("web").await;
    let request = ExecRequest { command: vec!["cat".into()], ..ExecRequest::default() };
    let ExecSession { mut input, mut output } = server.client.exec("web", &request).await.expect("run");
    let sent: Vec<u8> = (0..5_u32 << 20).map(|at| at.to_le_bytes()[usize::from(at % 3 == 0)]).collect();
    let write = async {
        input.write(&sent).await.expect("written");
        input.end().await.expect("ended");
    };
    let read = async {
        let mut came = Vec::new();
        loop {
            match output.next().await.expect("an event") {
                ExecEvent::Stdout(data) => came.extend_from_slice(&data),
                ExecEvent::Stderr(data) => panic!("{data:?}"),
                ExecEvent::End(end) => return (came, end.exit_code),
            }
        }
    };
    let ((), (came, code)) = tokio::join!(write, read);
    assert_eq!(code, 0);
    assert!(came == sent, "{} of {} bytes came", came.len(), sent.len());
}

#[tokio::test]
async fn a_guest_that_is_not_running_refuses_before_the_upgrade() {
    let server = Server::new().await;
    server.create("web").await;
    server.client.standby("web").await.expect("standby");
    let request = ExecRequest { command: vec!["true".into()], ..ExecRequest::default() };
    assert_eq!(server.client.exec("web", &request).await.expect_err("asleep").kind(), ErrorKind::WrongState);
    assert_eq!(server.client.exec("nobody", &request).await.expect_err("nobody").kind(), ErrorKind::NotFound);
    let from = server.client.cp_from("web", &CpRequest::from("/x")).await;
    assert_eq!(from.expect_err("asleep").kind(), ErrorKind::WrongState);
}

/// As Hypeman's own clients do it: raw frames, everything merged, one text frame at the end.
#[tokio::test]
async fn exec_without_streams_is_hypemans() {
    let server = Server::new().await;
    server.create("web").await;
    for (first, output, code) in [
        (r#"{"command":["echo","hi"],"tty":false}"#, "hi\n", 0),
        (r#"{"command":["fail","oh"],"tty":false}"#, "oh\n", 1),
        (r#"{"command":["missing"],"tty":false}"#, "Error: ", 127),
    ] {
        let url = server.client.url().replace("http://", "ws://") + "/instances/web/exec";
        let stream = tokio::net::TcpStream::connect(url.trim_start_matches("ws://").split('/').next().expect("a host"))
            .await
            .expect("connected");
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("upgraded");
        socket.send(Message::text(first)).await.expect("sent");
        let mut seen = String::new();
        let end = loop {
            match socket.next().await.expect("a frame").expect("readable") {
                Message::Binary(data) => seen.push_str(&String::from_utf8_lossy(&data)),
                Message::Text(text) => break text,
                other => panic!("{other:?}"),
            }
        };
        assert!(seen.starts_with(output), "{first}: {seen:?}");
        assert_eq!(end.as_str(), format!(r#"{{"exitCode":{code}}}"#));
    }
}

#[tokio::test]
async fn files_go_in_and_trees_come_out() {
    let server = Server::new().await;
    server.create("web").await;
    let content = vec![7_u8; 300_000];
    let request = CpRequest { mode: Some(0o600), ..CpRequest::to("/srv/data/a") };
    assert_eq!(server.client.cp_to("web", &request, &content[..]).await.expect("copied"), 300_000);
    server.client.cp_to("web", &CpRequest::to("/srv/data/b"), &b"bee"[..]).await.expect("copied");

    let mut download = server.client.cp_from("web", &CpRequest::from("/srv/data")).await.expect("begun");
    let mut files: Vec<(String, Vec<u8>)> = Vec::new();
    while let Some(event) = download.next().await.expect("an event") {
        match event {
            CpEvent::Entry(header) => files.push((header.path, Vec::new())),
            CpEvent::Data(data) => files.last_mut().expect("an entry came first").1.extend_from_slice(&data),
            CpEvent::EntryEnd => {}
        }
    }
    let wanted = [("data", Vec::new()), ("data/a", content), ("data/b", b"bee".to_vec())];
    assert!(files == wanted.map(|(path, data)| (path.to_owned(), data)), "{:?}", files.iter().map(|file| &file.0));

    let error = server.client.cp_from("web", &CpRequest::from("/no/such")).await.expect("begun").next().await;
    assert_eq!(error.expect_err("nothing is there").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn sessions_are_counted_and_the_one_too_many_is_refused_until_another_ends() {
    let server = Server::configured(None, |config| {
        config.limits.sessions_per_instance = 2;
        config.limits.sessions = 3;
    })
    .await;
    server.import(super::server::IMAGE).await.expect("imported");
    for name in ["a", "b"] {
        server.create(name).await;
    }
    let follow = LogsQuery { follow: Some(true), ..LogsQuery::default() };
    let (one, two) = (server.client.logs("a", &follow).await, server.client.logs("a", &follow).await);
    let _one = one.expect("the first");
    let refused = server.client.exec("a", &ExecRequest::default()).await.expect_err("the third");
    assert_eq!(refused.kind(), ErrorKind::Exhausted);
    let text = format!("{refused} {:?}", refused.hint());
    assert!(text.contains("instance a: 2 commands") && text.contains("limits.sessions_per_instance"), "{text}");

    let _three = server.client.logs("b", &follow).await.expect("another's first");
    let refused = server.client.logs("b", &follow).await.expect_err("the fourth of all");
    assert!(refused.hint().is_some_and(|hint| hint.contains("raise limits.sessions in")), "{refused}");
    // What does not stay is not counted.
    server.client.logs("b", &LogsQuery::default()).await.expect("shown");

    drop(two);
    let again = async {
        while server.client.logs("a", &follow).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), again).await.expect("its place is free again");
}

#[tokio::test]
async fn a_first_frame_that_is_too_long_ends_the_session_and_nothing_else() {
    let server = Server::new().await;
    server.create("web").await;
    let url = server.client.url().replace("http://", "ws://") + "/instances/web/exec";
    let host = url.trim_start_matches("ws://").split('/').next().expect("a host").to_owned();
    let stream = tokio::net::TcpStream::connect(host).await.expect("connected");
    let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.expect("upgraded");
    let long = format!(r#"{{"command":["echo","{}"],"tty":false}}"#, "x".repeat(5 << 20));
    // It may be hung up on before it has said all of it.
    socket.send(Message::text(long)).await.ok();
    while let Some(Ok(message)) = socket.next().await {
        assert!(!matches!(message, Message::Binary(_)), "it was run");
    }
    server
        .client
        .exec("web", &ExecRequest { command: vec!["echo".into()], ..ExecRequest::default() })
        .await
        .expect("another");
}
