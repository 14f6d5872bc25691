//! The process: arguments, sockets, ends.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Output;

use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{Lab, names};

const SIGABRT: i32 = 6;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

pub async fn it_says_its_version(lab: Lab) {
    let output = run(&lab, &lab.instance("new"), &["--version"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).starts_with("Firecracker v1.16.1\n\n"), "{}", said(&output));
    let output = run(&lab, &lab.instance("new"), &["--snapshot-version"]).await;
    assert_eq!(output.status.code(), Some(0));
    assert!(said(&output).starts_with("v10.0.0\n"), "{}", said(&output));
}

pub async fn what_it_does_not_know_ends_it_at_once(lab: Lab) {
    let dir = lab.instance("new");
    let output = run(&lab, &dir, &["--api-sock", "api.sock", "--faults", "file"]).await;
    assert_eq!(output.status.code(), Some(153));
    assert!(said(&output).contains("Found argument 'faults' which wasn't expected"), "{}", said(&output));
    assert_eq!(names(&dir), ["disks"]);
}

pub async fn an_invalid_id_aborts_it(lab: Lab) {
    let dir = lab.instance("new");
    for id in ["a_b", "", &"x".repeat(65)] {
        let output = run(&lab, &dir, &["--api-sock", "api.sock", "--id", id]).await;
        assert_eq!(output.status.signal(), Some(SIGABRT), "{id:?}: {}", said(&output));
        assert!(said(&output).contains("Invalid instance ID"), "{}", said(&output));
    }
    assert_eq!(names(&dir), ["disks"]);
}

pub async fn a_socket_that_is_taken_or_cannot_be_ends_it(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let output = run(&lab, &vmm.dir, &["--api-sock", "api.sock"]).await;
    assert_eq!(output.status.code(), Some(1));
    let taken = "Failed to open the API socket at: api.sock. Check that it is not already used.";
    assert!(said(&output).contains(taken), "{}", said(&output));
    vmm.lives();
    assert_eq!(vmm.state().await, "Not started");
    let output = run(&lab, &vmm.dir, &["--api-sock", "no/where.sock"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(said(&output).contains("No such file or directory (os error 2)"), "{}", said(&output));
}

pub async fn killed_it_leaves_its_sockets(lab: Lab) {
    for (signal, name) in [(SIGTERM, "term"), (SIGKILL, "kill")] {
        let mut vmm = lab.boot(name).await;
        let status = std::process::Command::new("kill").arg(format!("-{signal}")).arg(vmm.pid().to_string()).status();
        assert!(status.expect("kill").success());
        assert_eq!(vmm.exit().await.signal(), Some(signal));
        assert_eq!(names(&vmm.dir), ["api.sock", "disks", "serial.log", "vmm.log", "vsock.sock"]);
        assert!(UnixStream::connect(vmm.dir.join("api.sock")).await.is_err());
    }
}

pub async fn a_request_that_is_too_large_is_refused_and_the_next_is_served(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let answer = vmm.request("PUT", "/drives/d", " ".repeat(51201)).await;
    assert_eq!(answer.status, 400);
    let why = "Request payload with size 51201 is larger than the limit of 51200 allowed by server.";
    let body = format!("{{ \"error\": \"{why}\nAll previous unanswered requests will be dropped.\" }}");
    assert_eq!(answer.body, body);
    let mut other = lab.launch("other").await;
    let answer = other.request("POST", "/", String::new()).await;
    assert_eq!(answer.status, 400);
    let why = "Invalid HTTP Method: Unsupported HTTP method.";
    assert_eq!(answer.body, format!("{{ \"error\": \"{why}\nAll previous unanswered requests will be dropped.\" }}"));
    vmm.lives();
    other.lives();
}

pub async fn it_takes_several_connections(lab: Lab) {
    let mut vmm = lab.boot("web").await;
    for _ in 0..3 {
        let stream = UnixStream::connect(vmm.dir.join("api.sock")).await.expect("it listens");
        let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
        let connection = tokio::spawn(connection);
        let request = Request::get("/version").header("Host", "localhost").body(Empty::<bytes::Bytes>::new());
        let response = client.send_request(request.expect("a request")).await.expect("answered");
        assert_eq!(response.collect().await.expect("a body").to_bytes(), r#"{"firecracker_version":"1.16.1"}"#);
        drop(client);
        connection.await.expect("ends").expect("cleanly");
    }
    assert_eq!(vmm.state().await, "Running");
}

pub async fn the_eleventh_connection_is_refused(lab: Lab) {
    let mut vmm = lab.launch("new").await;
    let socket = vmm.dir.join("api.sock");
    let mut others = Vec::new();
    for _ in 0..9 {
        let mut stream = UnixStream::connect(&socket).await.expect("it listens");
        stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("taken");
        assert_eq!(stream.read_u8().await.expect("served"), b'H');
        others.push(stream);
    }
    let mut refusal = String::new();
    let mut one_more = UnixStream::connect(&socket).await.expect("it listens");
    let read = one_more.read_to_string(&mut refusal);
    tokio::time::timeout(crate::host::PATIENCE, read).await.expect("an end").expect("text");
    assert!(refusal.starts_with("HTTP/1.1 503"), "{refusal}");
    assert!(refusal.ends_with(r#"{ "error": "Too many open connections" }"#), "{refusal}");
    assert_eq!(vmm.state().await, "Not started");
    drop(others);
    crate::host::until("room for another", async || {
        let mut stream = UnixStream::connect(&socket).await.expect("it listens");
        stream.write_all(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n").await.ok()?;
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.ok()?;
        line.ends_with(b"200").then_some(())
    })
    .await;
}

async fn run(lab: &Lab, dir: &Path, arguments: &[&str]) -> Output {
    let output = lab.command(dir, arguments).output();
    tokio::time::timeout(crate::host::PATIENCE, output).await.expect("it ends").expect("it starts")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
