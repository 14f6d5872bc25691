//! The bytes of every message of every version. They are never changed: a guest that was saved
//! years ago speaks them. What a new version adds gets files of its own in `golden/`.

use std::net::Ipv4Addr;

use hearth_agent_proto::*;
use serde::Serialize;
use serde::de::DeserializeOwned;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The message's bytes without framing: the frame's header, the checksum and the stuffing have a
/// test of their own below.
fn coded<M: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(message: &M) -> String {
    let bytes = postcard::to_allocvec(message).expect("coded");
    assert_eq!(&postcard::from_bytes::<M>(&bytes).expect("decoded"), message);
    hex(&bytes)
}

fn compare(kind: &str, seen: &[(&str, String)], golden: &str) {
    let text: String = seen.iter().map(|(name, bytes)| format!("{name} {bytes}\n")).collect();
    assert_eq!(text.trim(), golden.trim(), "{kind} changed:\n{text}");
}

fn s(text: &str) -> String {
    text.to_owned()
}

fn entry() -> CopyEntry {
    CopyEntry {
        path: s("a/b"),
        kind: FileKind::Symlink { target: s("../c") },
        mode: 0o644,
        size: 300,
        mtime_s: -1,
        uid: 1000,
        gid: 100,
    }
}

#[test]
fn to_guest() {
    use ToGuest::{
        Close, Configure, CopyEnd, CopyFrom, CopyTo, Credit, Data, Entry, EntryEnd, Exec, Hello, Ping, ProgramExitSeen,
        RefreshV1, Resize, Shutdown, Signal, Stat, Stats, Stdin, StdinEof,
    };
    let network = NetworkConfig {
        address: Ipv4Addr::new(10, 0, 2, 15),
        prefix: 24,
        gateway: Some(Ipv4Addr::new(10, 0, 2, 2)),
        mtu: Some(1400),
    };
    let program = Program { argv: vec![s("/x")], env: vec![s("A=1")], workdir: s("/w"), user: s("u") };
    let config = GuestConfig {
        hostname: s("h"),
        instance_id: s("i"),
        program,
        dns: vec![s("10.0.2.3")],
        network: Some(network),
    };
    let refresh = hearth_agent_proto::RefreshV1 {
        generation: 2,
        realtime_ns: 1_000_000_000,
        entropy: Entropy::new([7; 64]),
        hostname: s("h"),
        instance_id: s("i"),
    };
    let size = TtySize { rows: 24, cols: 80 };
    let exec = ExecStart {
        argv: vec![s("ls")],
        env: vec![s("B=2")],
        cwd: s("/"),
        user: s("0:0"),
        tty: Some(size),
        timeout_ms: 5000,
    };
    compare(
        "host to guest",
        &[
            ("hello", coded(&Hello { version: 1 })),
            ("configure", coded(&Configure(config))),
            ("refresh", coded(&RefreshV1(refresh))),
            ("ping", coded(&Ping)),
            ("shutdown", coded(&Shutdown { grace_ms: 10_000 })),
            ("stats", coded(&Stats)),
            ("program-exit-seen", coded(&ProgramExitSeen)),
            ("exec", coded(&Exec(exec))),
            ("stdin", coded(&Stdin)),
            ("stdin-eof", coded(&StdinEof)),
            ("resize", coded(&Resize(size))),
            ("signal", coded(&Signal(15))),
            ("stat", coded(&Stat(StatRequest { path: s("/etc"), follow: true }))),
            ("copy-to", coded(&CopyTo(CopyToStart { path: s("/t") }))),
            ("copy-from", coded(&CopyFrom(CopyFromStart { path: s("/t"), follow_links: false }))),
            ("entry", coded(&Entry(entry()))),
            ("data", coded(&Data)),
            ("entry-end", coded(&EntryEnd)),
            ("copy-end", coded(&CopyEnd)),
            ("credit", coded(&Credit(65_536))),
            ("close", coded(&Close)),
        ],
        include_str!("golden/v1-to-guest.txt"),
    );
}

#[test]
fn to_host() {
    use ToHost::{
        Configured, CopyDone, CopyReady, Credit, Data, Entry, EntryEnd, Error, ExecStarted, Exited, Pong,
        ProgramExited, ProgramStarted, RefreshedV1, Refused, ShuttingDown, Stat, Stats, Stderr, Stdout, Welcome,
    };
    let exit = ProgramExit { code: 137, signal: Some(9), message: s("killed") };
    let welcome = |program, boot_failure| hearth_agent_proto::Welcome {
        version: 1,
        boot_id: s("b"),
        agent_version: s("0.1.0"),
        configured: true,
        program,
        boot_failure,
    };
    let failure = |kind| Error(Failure { kind, text: s("t") });
    let stats = GuestStats {
        memory_total: 1 << 28,
        memory_available: 1 << 27,
        agent_resident: 1 << 20,
        uptime_ms: 1234,
        load1_milli: 50,
        tasks: 40,
        bad_frames: 1,
    };
    let stat = |kind| Stat(PathStat { kind, mode: 0o755, size: 4096, mtime_s: 1_700_000_000, uid: 0, gid: 0 });
    compare(
        "guest to host",
        &[
            ("welcome-new", coded(&Welcome(welcome(ProgramState::NotStarted, Some(s("no disk")))))),
            ("welcome-running", coded(&Welcome(welcome(ProgramState::Running { pid: 70 }, None)))),
            ("welcome-exited", coded(&Welcome(welcome(ProgramState::Exited(exit.clone()), None)))),
            ("refused", coded(&Refused { version: 1 })),
            ("program-started", coded(&ProgramStarted { pid: 70 })),
            ("program-exited", coded(&ProgramExited(exit))),
            ("error-not-found", coded(&failure(FailureKind::NotFound))),
            ("error-permission", coded(&failure(FailureKind::Permission))),
            ("error-invalid", coded(&failure(FailureKind::Invalid))),
            ("error-exhausted", coded(&failure(FailureKind::Exhausted))),
            ("error-failed", coded(&failure(FailureKind::Failed))),
            ("configured", coded(&Configured(hearth_agent_proto::Configured::Now))),
            ("configured-already", coded(&Configured(hearth_agent_proto::Configured::Already))),
            ("refreshed", coded(&RefreshedV1 { generation: 2 })),
            ("pong", coded(&Pong)),
            ("shutting-down", coded(&ShuttingDown)),
            ("stats", coded(&Stats(stats))),
            ("exec-started", coded(&ExecStarted { pid: 300 })),
            ("stdout", coded(&Stdout)),
            ("stderr", coded(&Stderr)),
            ("exited-code", coded(&Exited(ExitStatus::Code(3)))),
            ("exited-signal", coded(&Exited(ExitStatus::Signal(9)))),
            ("exited-timeout", coded(&Exited(ExitStatus::TimedOut))),
            ("stat-file", coded(&stat(FileKind::File))),
            ("stat-dir", coded(&stat(FileKind::Dir))),
            ("stat-other", coded(&stat(FileKind::Other))),
            ("copy-ready", coded(&CopyReady)),
            ("entry", coded(&Entry(entry()))),
            ("data", coded(&Data)),
            ("entry-end", coded(&EntryEnd)),
            ("copy-done", coded(&CopyDone(hearth_agent_proto::CopyDone { entries: 3, bytes: 1000, skipped: 1 }))),
            ("credit", coded(&Credit(65_536))),
        ],
        include_str!("golden/v1-to-host.txt"),
    );
}

#[test]
fn what_version_2_adds() {
    let refresh = Refresh {
        generation: 2,
        realtime_ns: 1_000_000_000,
        entropy: Entropy::new([7; 64]),
        hostname: s("h"),
        instance_id: s("i"),
        env: vec![s("A=1")],
        dns: vec![s("10.0.2.3")],
        hooks_ms: Some(5000),
    };
    let refreshed = Refreshed {
        generation: 2,
        forked: true,
        took_us: 900,
        minor_faults: 3,
        major_faults: 1,
        hooks: 2,
        complaints: vec![s("c")],
    };
    let refreshing = |part| coded(&ToHost::Refreshing(part));
    compare(
        "version 2",
        &[
            ("refresh", coded(&ToGuest::Refresh(refresh))),
            ("set-clock", coded(&ToGuest::SetClock { realtime_ns: 1_000_000_000 })),
            ("refreshing-keys", refreshing(RefreshPart::SshHostKeys)),
            ("refreshing-fork-hooks", refreshing(RefreshPart::ForkHooks)),
            ("refreshing-restore-hooks", refreshing(RefreshPart::RestoreHooks)),
            ("refreshed", coded(&ToHost::Refreshed(refreshed))),
            ("clock-set", coded(&ToHost::ClockSet)),
        ],
        include_str!("golden/v2.txt"),
    );
}

#[test]
fn a_whole_frame() {
    let mut out = Vec::new();
    Encoder::default().encode(&mut out, 0x0102_0304_0506_0708, 9, &ToGuest::Stdin, b"a\0b").expect("small");
    assert_eq!(hex(&out), include_str!("golden/v1-frame.txt").trim());
}
