//! The guest behind vsock port 52.

use std::fs;
use std::time::Duration;

use hearth_agent_client::{
    Agent, Configured, Entropy, Event, EventReceiver, ExecEvent, ExecRequest, GuestConfig, Program, ProgramState,
    Refresh, VSOCK_PORT, Welcome,
};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{PATIENCE, Vmm, names, on_disk};
use crate::{boot, bundle, lab};

/// Long enough for what should come, where nothing should.
const A_WHILE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn a_guest_is_configured_runs_its_program_and_ends_with_it() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    let (agent, welcome, mut events) = meet(&vmm).await;
    assert_eq!((welcome.configured, welcome.program), (false, ProgramState::NotStarted));
    assert_eq!(agent.configure(&config()).await.expect("taken"), Configured::Now);
    assert!(matches!(events.next().await, Some(Event::ProgramStarted { .. })));
    agent.refresh(&refresh(3), PATIENCE).await.expect("refreshed");
    assert_eq!(run(&agent, &["generation"]).await, "3\n");
    run(&agent, &["write", "/etc/motd", "hello"]).await;
    assert_eq!(run(&agent, &["cat", "/etc/motd"]).await, "hello");
    assert_eq!(agent.stat("/etc/motd", true).await.expect("answered").expect("there").size, 5);
    agent.shutdown(Duration::from_secs(1)).await.expect("begun");
    assert!(matches!(events.next().await, Some(Event::ProgramExited(exit)) if exit.code == 143));
    assert_eq!(vmm.exit().await.code(), Some(0));
    assert_eq!(names(&vmm.dir), ["api.sock", "disks", "serial.log", "vmm.log", "vsock.sock"]);

    let mut vmm = boot(&lab, "by-itself").await;
    let (agent, _, mut events) = meet(&vmm).await;
    run(&agent, &["end", "7"]).await;
    assert!(matches!(events.next().await, Some(Event::ProgramExited(exit)) if exit.code == 7));
    assert_eq!(vmm.exit().await.code(), Some(0));

    let mut vmm = boot(&lab, "by-keys").await;
    vmm.put("/actions", json!({ "action_type": "SendCtrlAltDel" })).await.done();
    assert_eq!(vmm.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_snapshot_carries_the_guest_and_forks_go_different_ways() {
    let lab = lab();
    let mut vmm = boot(&lab, "source").await;
    let (agent, welcome, _events) = meet(&vmm).await;
    agent.configure(&config()).await.expect("taken");
    run(&agent, &["write", "/past", "what-all-forks-remember"]).await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    let memory = fs::read(bundle.memory()).expect("there");
    assert!(has(&memory, "what-all-forks-remember"), "what the guest has is in its memory");
    assert!(on_disk(&bundle.memory()) < 1 << 20);

    let (a, b) = (lab.restore("a", &bundle).await, lab.restore("b", &bundle).await);
    let ((in_a, of_a, _), (in_b, of_b, _)) = (meet(&a).await, meet(&b).await);
    assert_eq!((&of_a.boot_id, of_a.configured), (&welcome.boot_id, true), "restored, not booted");
    assert_eq!((&of_b.boot_id, &of_b.program), (&welcome.boot_id, &of_a.program));
    assert_eq!(run(&in_a, &["cat", "/past"]).await, "what-all-forks-remember");
    run(&in_a, &["write", "/own", "a"]).await;
    run(&in_b, &["write", "/own", "b"]).await;
    assert_eq!(run(&in_a, &["cat", "/own"]).await, "a");
    assert_eq!(run(&in_b, &["cat", "/own"]).await, "b");
    assert!(fs::read(bundle.memory()).expect("there") == memory, "the bundle was written to");

    vmm.resume().await.done();
    let (agent, ..) = meet(&vmm).await;
    assert_eq!(run(&agent, &["cat", "/past"]).await, "what-all-forks-remember");
}

#[tokio::test]
async fn a_tracked_fork_saves_what_it_changed() {
    let lab = lab();
    let bundle = bundle(&lab).await;
    let more = json!({ "resume_vm": true, "track_dirty_pages": true });
    let (mut fork, answer) = lab.load("fork", &bundle, more).await;
    answer.done();
    let (agent, ..) = meet(&fork).await;
    run(&agent, &["write", "/own", "of the fork"]).await;
    drop(agent);
    let dir = lab.path("clone");
    fs::create_dir(&dir).expect("made");
    fs::copy(bundle.memory(), dir.join("memory")).expect("copied");
    let changes = lab.save(&mut fork, "changes", "Diff").await;
    assert_eq!(on_disk(&changes.memory()), 4096);
    fork.resume().await.done();
    let (agent, ..) = meet(&fork).await;
    run(&agent, &["write", "/own", "of the fork, later"]).await;
    let whole = lab.save(&mut fork, "clone", "Diff").await;
    let fork = lab.restore("grandchild", &whole).await;
    assert_eq!(run(&meet(&fork).await.0, &["cat", "/own"]).await, "of the fork, later");
}

#[tokio::test]
async fn connections_end_with_a_snapshot() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    let (agent, ..) = meet(&vmm).await;
    agent.ping(PATIENCE).await.expect("answers");
    let _bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    assert!(agent.ping(A_WHILE).await.is_err(), "a paused guest is silent");
    vmm.resume().await.done();
    assert!(agent.ping(PATIENCE).await.is_err(), "and knows no connection of before");
    let (agent, ..) = meet(&vmm).await;
    agent.ping(PATIENCE).await.expect("answers");
}

#[tokio::test]
async fn a_bare_pause_and_resume_hangs_the_vsock_and_a_snapshot_heals_it() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    meet(&vmm).await;
    vmm.pause().await.done();
    vmm.resume().await.done();
    assert!(hangs(&vmm).await);
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.resume().await.done();
    meet(&vmm).await;
    // A resume of a guest that runs is no less bare.
    vmm.resume().await.done();
    assert!(hangs(&vmm).await);

    let mut fork = lab.restore("fork", &bundle).await;
    meet(&fork).await;
    fork.resume().await.done();
    assert!(hangs(&fork).await, "a second resume after resume_vm");
    let (mut paused, answer) = lab.load("paused", &bundle, json!({})).await;
    answer.done();
    paused.resume().await.done();
    meet(&paused).await;
}

#[tokio::test]
async fn the_door_leads_to_the_agent_only() {
    let lab = lab();
    let vmm = boot(&lab, "web").await;
    for line in ["CONNECT 53\n", "GREETINGS 52\n", "CONNECT fifty-two\n"] {
        let mut stream = knock(&vmm, line).await;
        let answer = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 16])).await.expect("an end");
        assert!(matches!(answer, Ok(0) | Err(_)), "{line:?}: {answer:?}");
    }
    let mut stream = knock(&vmm, "connect 52\n").await;
    let mut answer = [0; 14];
    stream.read_exact(&mut answer).await.expect("answered");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let port = answer.strip_prefix("OK ").and_then(|rest| rest.strip_suffix('\n')).map(str::parse::<u32>);
    assert!(matches!(port, Some(Ok(port)) if port >= 1 << 30), "{answer:?}");
}

#[tokio::test]
async fn an_agent_of_two_moments_says_nothing() {
    let lab = lab();
    let mut vmm = boot(&lab, "web").await;
    let one = lab.save(&mut vmm, "one", "Diff").await;
    vmm.resume().await.done();
    run(&meet(&vmm).await.0, &["write", "/later", "x"]).await;
    let two = lab.save(&mut vmm, "two", "Diff").await;
    let mut body = two.body(json!({ "resume_vm": true }));
    body["snapshot_path"] = json!(one.vmstate());
    let (fork, answer) = lab.load("fork", &two, body).await;
    answer.done();
    assert!(hangs(&fork).await);
}

async fn meet(vmm: &Vmm) -> (Agent, Welcome, EventReceiver) {
    let mut stream = knock(vmm, &format!("CONNECT {VSOCK_PORT}\n")).await;
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        line.push(tokio::time::timeout(PATIENCE, stream.read_u8()).await.expect("an answer").expect("no end"));
    }
    assert!(line.starts_with(b"OK "));
    Agent::connect(stream, PATIENCE).await.expect("welcomed")
}

async fn knock(vmm: &Vmm, line: &str) -> UnixStream {
    let mut stream = UnixStream::connect(vmm.dir.join("vsock.sock")).await.expect("the door is there");
    stream.write_all(line.as_bytes()).await.expect("taken");
    stream
}

/// Whether a new connection is neither answered nor refused.
async fn hangs(vmm: &Vmm) -> bool {
    let mut stream = knock(vmm, &format!("CONNECT {VSOCK_PORT}\n")).await;
    tokio::time::timeout(A_WHILE, stream.read_u8()).await.is_err()
}

/// What a command prints.
async fn run(agent: &Agent, words: &[&str]) -> String {
    let argv = words.iter().map(|&word| word.to_owned()).collect();
    let mut session = agent.exec(ExecRequest { argv, ..ExecRequest::default() }).await.expect("starts");
    let mut printed = String::new();
    loop {
        match session.next().await.expect("lasts") {
            ExecEvent::Stdout(bytes) => printed.push_str(&String::from_utf8_lossy(&bytes)),
            ExecEvent::Stderr(bytes) => panic!("{}", String::from_utf8_lossy(&bytes)),
            ExecEvent::Exited(_) => return printed,
        }
    }
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn config() -> GuestConfig {
    GuestConfig {
        hostname: "web".into(),
        instance_id: "i-1".into(),
        program: Program { argv: vec!["/app".into()], ..Program::default() },
        dns: vec![],
        network: None,
    }
}

fn refresh(generation: u64) -> Refresh {
    let entropy = Entropy::new([1; 64]);
    Refresh {
        generation,
        realtime_ns: 1,
        entropy,
        hostname: "web".into(),
        instance_id: "i-1".into(),
        env: Vec::new(),
        dns: Vec::new(),
        hooks_ms: None,
    }
}
