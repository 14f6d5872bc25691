//! The client against the guest's double: both must keep the same promises as with a real agent
//! (`hearth-agent`'s tests have that half).

use std::time::{Duration, Instant};

use hearth_agent_client::fake::{AtRefresh, FakeGuest, PROGRAM_PID};
use hearth_agent_client::{
    Agent, AgentError, Configured, CopyEntry, CopyItem, CopyToStart, Entropy, Event, EventReceiver, ExecEvent,
    ExecRequest, ExecSession, ExitStatus, FileKind, GuestConfig, Program, ProgramExit, ProgramState, Refresh,
    RefreshPart, Welcome,
};
use hearth_agent_proto::{Decoder, Encoder, ToGuest, ToHost};
use hearth_model::{ErrorKind, Kind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(10);

async fn connect(guest: &FakeGuest) -> (Agent, Welcome, EventReceiver) {
    let (host, theirs) = tokio::io::duplex(4096);
    guest.serve(theirs);
    Agent::connect(host, PATIENCE).await.expect("welcomed")
}

fn config() -> GuestConfig {
    GuestConfig {
        hostname: "h".into(),
        instance_id: "i".into(),
        program: Program { argv: vec!["/app".into()], ..Program::default() },
        dns: vec![],
        network: None,
    }
}

fn refresh(generation: u64) -> Refresh {
    Refresh {
        generation,
        realtime_ns: 1,
        entropy: Entropy::new([1; 64]),
        hostname: "h".into(),
        instance_id: "i".into(),
        env: vec!["A=1".into()],
        dns: Vec::new(),
        hooks_ms: None,
    }
}

fn command(words: &[&str]) -> ExecRequest {
    ExecRequest { argv: words.iter().map(|&s| s.to_owned()).collect(), ..ExecRequest::default() }
}

#[tokio::test]
async fn a_guest_is_configured_refreshed_and_ended() {
    let guest = FakeGuest::new();
    let (agent, welcome, mut events) = connect(&guest).await;
    assert!(!welcome.configured);
    assert_eq!(agent.configure(&config()).await.expect("taken"), Configured::Now);
    assert_eq!(events.next().await, Some(Event::ProgramStarted { pid: PROGRAM_PID }));
    agent.refresh(&refresh(4), PATIENCE).await.expect("refreshed");
    assert_eq!(guest.refreshes().last().map(|r| r.generation), Some(4));
    agent.shutdown(Duration::ZERO).await.expect("begun");
    let Some(Event::ProgramExited(exit)) = events.next().await else { panic!("no exit") };
    assert_eq!(exit.code, 143);
    agent.ping(PATIENCE).await.expect("an answer");
    assert!(guest.exit_was_seen() && guest.has_ended());
}

#[tokio::test]
async fn a_fork_remembers_and_goes_its_own_way() {
    let guest = FakeGuest::new();
    let (agent, before, _events) = connect(&guest).await;
    agent.configure(&config()).await.expect("taken");
    guest.write_file("/counter", b"1");
    let fork = guest.fork();
    fork.write_file("/counter", b"2");
    let (_agent, after, mut events) = connect(&fork).await;
    assert!(after.configured && after.program == ProgramState::Running { pid: PROGRAM_PID });
    assert_eq!(before.boot_id, after.boot_id);
    assert_eq!(guest.file("/counter").as_deref(), Some(&b"1"[..]));
    fork.exit_program(ProgramExit { code: 3, signal: None, message: "exited with code 3".into() });
    assert!(matches!(events.next().await, Some(Event::ProgramExited(exit)) if exit.code == 3));
    assert!(!guest.has_ended());
}

#[tokio::test]
async fn commands_run_and_fail_as_in_a_guest() {
    let guest = FakeGuest::new();
    let (agent, ..) = connect(&guest).await;
    let mut session = agent.exec(command(&["echo", "a", "b"])).await.expect("started");
    assert_eq!(session.next().await.expect("output"), ExecEvent::Stdout("a b\n".into()));
    assert_eq!(session.next().await.expect("end"), ExecEvent::Exited(ExitStatus::Code(0)));
    let (input, mut output) = agent.exec(command(&["cat"])).await.expect("started").split();
    let feed = tokio::spawn(async move {
        input.write(&vec![7; 2_000_000]).await.expect("sent");
        input.eof().expect("sent");
    });
    let mut bytes = 0;
    while let ExecEvent::Stdout(data) = output.next().await.expect("no error") {
        bytes += data.len();
    }
    feed.await.expect("fed");
    assert_eq!(bytes, 2_000_000);
    let error = agent.exec(command(&["nothing"])).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(error.to_string(), "run nothing in the guest: command not found: nothing");
}

#[tokio::test]
async fn files_go_in_and_out() {
    let guest = FakeGuest::new();
    let (agent, ..) = connect(&guest).await;
    let mut copy = agent.copy_to(CopyToStart { path: "/dir".into() }).await.expect("begun");
    let kind = FileKind::File;
    copy.entry(CopyEntry { path: "f".into(), kind, mode: 0o644, size: 3, mtime_s: 0, uid: 0, gid: 0 })
        .await
        .expect("sent");
    copy.data(b"abc").await.expect("sent");
    copy.entry_end().await.expect("sent");
    assert_eq!(copy.finish().await.expect("complete").bytes, 3);
    assert_eq!(guest.file("/dir/f").as_deref(), Some(&b"abc"[..]));
    assert!(agent.stat("/dir", true).await.expect("asked").is_some_and(|stat| stat.kind == FileKind::Dir));
    assert_eq!(agent.stat("/none", true).await.expect("asked"), None);
    let mut copy = agent.copy_from("/dir", false).await.expect("begun");
    let mut paths = Vec::new();
    while let Some(item) = copy.next().await.expect("no error") {
        if let CopyItem::Entry(entry) = item {
            paths.push(entry.path);
        }
    }
    assert_eq!(paths, ["", "f"]);
}

#[tokio::test]
async fn silence_and_loss_are_two_errors_and_neither_hangs() {
    let guest = FakeGuest::new();
    let (agent, ..) = connect(&guest).await;
    guest.set_silent(true);
    let begun = Instant::now();
    let error = agent.refresh(&refresh(1), Duration::from_millis(50)).await.expect_err("silent");
    assert!(
        matches!(error, AgentError::NotRefreshed { .. }) && error.kind() == ErrorKind::GuestUnresponsive,
        "{error}"
    );
    assert!(begun.elapsed() < PATIENCE);
    let (host, theirs) = tokio::io::duplex(64);
    drop(theirs);
    let error = Agent::connect(host, PATIENCE).await.expect_err("lost");
    assert!(matches!(error, AgentError::Lost { .. }), "{error}");
    guest.set_silent(false);
    let session = agent.exec(command(&["sleep", "100"])).await.expect("started");
    let (_input, mut output) = session.split();
    agent.close();
    assert!(matches!(output.next().await, Err(AgentError::Lost { .. })));
    agent.closed().await;
}

#[tokio::test]
async fn a_refused_refresh_says_why() {
    let guest = FakeGuest::new();
    let (agent, ..) = connect(&guest).await;
    guest.at_refresh(AtRefresh::Fails("set the clock: Operation not permitted".into()));
    let error = agent.refresh(&refresh(1), PATIENCE).await.expect_err("refused");
    assert_eq!(error.to_string(), "refresh the guest: set the clock: Operation not permitted");
    assert!(guest.refreshes().is_empty());
}

#[tokio::test]
async fn a_refresh_that_is_not_acknowledged_as_it_was_asked_says_what_came_of_it() {
    let soon = Duration::from_millis(50);
    let files = "its clock, randomness, names or files";
    let hooks = "hooks in /etc/hearth/on-fork.d";
    for (at_refresh, told) in [
        (AtRefresh::IsStuckAt(None), format!("did not answer within 50ms; it had come to {files}")),
        (AtRefresh::IsStuckAt(Some(RefreshPart::ForkHooks)), format!("within 50ms; it had come to {hooks}")),
        (AtRefresh::IsSlow(2 * soon), "did not answer within 50ms".to_owned()),
        (AtRefresh::Lies, "acknowledges generation 6, not 7".to_owned()),
        (AtRefresh::Dies, "connection to the guest's agent is lost".to_owned()),
    ] {
        let guest = FakeGuest::new();
        let (agent, ..) = connect(&guest).await;
        guest.at_refresh(at_refresh.clone());
        let error = agent.refresh(&refresh(7), soon).await.expect_err("not refreshed");
        assert!(error.to_string().contains(&told), "{at_refresh:?}: {error}");
        assert_eq!(error.kind(), ErrorKind::GuestUnresponsive);
    }
    let guest = FakeGuest::new();
    let (agent, ..) = connect(&guest).await;
    guest.at_refresh(AtRefresh::IsSlow(soon));
    agent.refresh(&refresh(7), PATIENCE).await.expect("slow is not late");
}

/// A guest that was saved by an older Hearth.
#[tokio::test]
async fn a_guest_of_version_1_is_refreshed_in_its_words() {
    let guest = FakeGuest::new();
    guest.set_version(1);
    let (agent, welcome, _events) = connect(&guest).await;
    assert_eq!((welcome.version, agent.can_fork()), (1, false));
    let refreshed = agent.refresh(&refresh(3), PATIENCE).await.expect("refreshed");
    assert_eq!((refreshed.generation, refreshed.forked), (3, false));
    let seen = guest.refreshes().pop().expect("one");
    assert_eq!((seen.generation, seen.instance_id.as_str(), seen.env.len()), (3, "i", 0));
    assert_eq!(agent.set_clock(1, PATIENCE).await.expect_err("not in version 1").kind(), ErrorKind::Invalid);
}

#[tokio::test]
async fn a_guest_of_another_version_is_told_apart() {
    let (host, mut guest) = tokio::io::duplex(4096);
    let answer = tokio::spawn(async move {
        let mut input = [0; 512];
        let bytes = guest.read(&mut input).await.expect("hello");
        let mut decoder = Decoder::default();
        let epoch = decoder.next(&mut &input[..bytes]).expect("a frame").epoch;
        let mut out = Vec::new();
        Encoder::default().encode(&mut out, epoch, 0, &ToHost::Refused { version: 9 }, &[]).expect("small");
        guest.write_all(&out).await.expect("sent");
        guest
    });
    let error = Agent::connect(host, PATIENCE).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Incompatible);
    assert_eq!(error.to_string(), "the guest's agent speaks version 9 of the protocol, this host up to 2");
    drop(answer);
}

#[tokio::test]
async fn a_guest_that_floods_against_the_rules_loses_the_session_and_takes_no_memory() {
    let (host, guest) = tokio::io::duplex(1 << 16);
    let (mut read, mut write) = tokio::io::split(guest);
    tokio::spawn(async move {
        let (mut decoder, mut input) = (Decoder::default(), [0; 4096]);
        let welcome = hearth_agent_proto::Welcome {
            version: 1,
            boot_id: "b".into(),
            agent_version: "evil".into(),
            configured: true,
            program: ProgramState::NotStarted,
            boot_failure: None,
        };
        loop {
            let bytes = read.read(&mut input).await.expect("read");
            let mut rest = &input[..bytes];
            while let Some(frame) = decoder.next(&mut rest) {
                let (epoch, channel) = (frame.epoch, frame.channel);
                let mut out = Vec::new();
                let mut encoder = Encoder::default();
                let mut say = |message: &ToHost, data: &[u8]| {
                    encoder.encode(&mut out, epoch, channel, message, data).expect("small");
                };
                match frame.message::<ToGuest>().expect("known").0 {
                    ToGuest::Hello { .. } => say(&ToHost::Welcome(welcome.clone()), &[]),
                    ToGuest::Exec(_) => {
                        say(&ToHost::ExecStarted { pid: 1 }, &[]);
                        (0..100).for_each(|_| say(&ToHost::Stdout, &[0; 60_000]));
                    }
                    ToGuest::Ping => (0..1000).for_each(|_| say(&ToHost::Pong, &[])),
                    _ => {}
                }
                write.write_all(&out).await.expect("sent");
            }
        }
    });
    let (agent, ..) = Agent::connect(host, PATIENCE).await.expect("welcomed");
    let mut session = agent.exec(command(&["anything"])).await.expect("started");
    // The flood is in before the first piece is taken.
    agent.ping(PATIENCE).await.expect("an answer");
    let mut taken = 0;
    let error = loop {
        match session.next().await {
            Ok(ExecEvent::Stdout(data)) => taken += data.len(),
            Ok(other) => panic!("{other:?}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AgentError::Protocol { .. }), "{error}");
    assert!(taken < 400_000, "{taken} bytes were kept");
}

#[tokio::test]
async fn a_saved_guest_comes_back_as_it_was_and_goes_its_own_way() {
    let guest = FakeGuest::new();
    guest.write_file("/kept", b"content");
    let saved = guest.save();
    assert!(saved.windows(7).any(|bytes| bytes == b"content"), "a file is in memory as it is");
    guest.write_file("/kept", b"changed");
    let restored = FakeGuest::restore(&saved).expect("a guest");
    assert_eq!(restored.file("/kept").as_deref(), Some(&b"content"[..]));
    assert!(FakeGuest::restore(&saved[..saved.len() / 2]).is_err());

    let (agent, welcome, mut events) = connect(&restored).await;
    assert_eq!(welcome.boot_id, connect(&guest).await.1.boot_id, "restored, not booted");
    let mut session = agent.exec(command(&["write", "/kept", "by", "exec"])).await.expect("starts");
    assert_eq!(session.next().await.expect("lasts"), ExecEvent::Exited(ExitStatus::Code(0)));
    assert_eq!(restored.file("/kept").as_deref(), Some(&b"by exec"[..]));
    assert_eq!(guest.file("/kept").as_deref(), Some(&b"changed"[..]));

    agent.exec(command(&["end", "3"])).await.expect("starts");
    assert_eq!(
        events.next().await.map(|event| matches!(event, Event::ProgramExited(exit) if exit.code == 3)),
        Some(true)
    );
    restored.ended().await;
    assert!(restored.exit_was_seen() && !guest.has_ended());
}

/// A guest that welcomes, and lets its first command start; then it is the caller's, epoch and all.
async fn evil() -> (Agent, ExecSession, tokio::io::DuplexStream, u64) {
    let (host, mut guest) = tokio::io::duplex(1 << 16);
    let served = tokio::spawn(async move {
        let (mut decoder, mut input) = (Decoder::default(), [0; 4096]);
        loop {
            let bytes = guest.read(&mut input).await.expect("read");
            let mut rest = &input[..bytes];
            while let Some(frame) = decoder.next(&mut rest) {
                let (epoch, channel) = (frame.epoch, frame.channel);
                let asked = frame.message::<ToGuest>().expect("known").0;
                let answer = match asked {
                    ToGuest::Hello { .. } => ToHost::Welcome(hearth_agent_proto::Welcome {
                        version: 2,
                        boot_id: "b".into(),
                        agent_version: "evil".into(),
                        configured: true,
                        program: ProgramState::NotStarted,
                        boot_failure: None,
                    }),
                    _ => ToHost::ExecStarted { pid: 1 },
                };
                let mut out = Vec::new();
                Encoder::default().encode(&mut out, epoch, channel, &answer, &[]).expect("small");
                guest.write_all(&out).await.expect("sent");
                if let ToGuest::Exec(_) = asked {
                    return (guest, epoch);
                }
            }
        }
    });
    let (agent, ..) = Agent::connect(host, PATIENCE).await.expect("welcomed");
    let session = agent.exec(command(&["anything"])).await.expect("started");
    let (guest, epoch) = served.await.expect("served");
    (agent, session, guest, epoch)
}

#[tokio::test]
async fn a_guest_that_makes_noise_is_read_slowly_and_others_are_served_meanwhile() {
    let frame = |epoch, channel, message: &ToHost| {
        let mut out = Vec::new();
        Encoder::default().encode(&mut out, epoch, channel, message, &[]).expect("small");
        out
    };
    let (_agent, _session, mut guest, epoch) = evil().await;
    let exit = ToHost::ProgramExited(ProgramExit { code: 1, message: "again".into(), signal: None });
    let noise = [
        frame(epoch, 0, &exit),
        frame(epoch, 0, &ToHost::Pong),
        frame(epoch, 999, &ToHost::Stdout),
        frame(epoch.wrapping_add(1), 1, &ToHost::Pong),
        b"\0no frame\0\0".to_vec(),
    ]
    .concat()
    .repeat(1000);
    let flood = tokio::spawn(async move {
        let (began, mut said) = (Instant::now(), 0_usize);
        while began.elapsed() < Duration::from_millis(2500) {
            // What it is told is not read: that is part of the attack.
            match tokio::time::timeout(Duration::from_millis(100), guest.write_all(&noise)).await {
                Ok(Ok(())) => said += noise.len(),
                Ok(Err(_)) => break,
                Err(_) => {}
            }
        }
        said
    });
    let good = FakeGuest::new();
    let (other, ..) = connect(&good).await;
    while !flood.is_finished() {
        other.ping(PATIENCE).await.expect("served all the while");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let said = flood.await.expect("ends");
    // Three seconds have begun, with 4 MiB each; what was cut off in the middle was not counted.
    assert!((1 << 20..20 << 20).contains(&said), "{said} bytes");
}

#[tokio::test]
async fn a_guest_that_reads_nothing_loses_its_connection_before_it_fills_the_memory() {
    let (agent, _session, _guest, _) = evil().await;
    let large = "x".repeat(128 << 10);
    let mut told = 0;
    while told < 1000 && tokio::time::timeout(Duration::ZERO, agent.closed()).await.is_err() {
        // Sent, and given up at once: nobody answers.
        drop(tokio::time::timeout(Duration::ZERO, agent.exec(command(&[&large]))).await);
        told += 1;
    }
    // 16 MiB may lie here.
    assert!((100..200).contains(&told), "{told} requests of 128 KiB were queued");
    assert!(matches!(agent.ping(PATIENCE).await, Err(AgentError::Lost { .. })));
}
