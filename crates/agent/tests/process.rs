//! The agent as an ordinary process, over a Unix socket: everything of the protocol that needs no
//! guest, in milliseconds.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hearth_agent_client::{
    Agent, AgentError, Configured, CopyEntry, CopyItem, CopyToStart, Event, EventReceiver, ExecEvent, ExecRequest,
    ExecSession, ExitStatus, FileKind, GuestConfig, Program, ProgramState, TtySize, Welcome,
};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(20);

/// A running agent, and a directory for its socket and files.
struct Serving {
    dir: TempDir,
    process: Child,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Serving {
    async fn start() -> Self {
        let dir = TempDir::new().expect("a directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_hearth-agent"));
        command.arg("--serve").arg(dir.path().join("socket")).stdout(Stdio::null()).stderr(Stdio::null());
        let serving = Self { process: command.spawn().expect("started"), dir };
        let give_up = Instant::now() + PATIENCE;
        while UnixStream::connect(serving.path("socket")).await.is_err() {
            assert!(Instant::now() < give_up, "the agent does not listen");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        serving
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().expect("UTF-8").to_owned()
    }

    async fn connect(&self) -> (Agent, Welcome, EventReceiver) {
        let stream = UnixStream::connect(self.path("socket")).await.expect("connected");
        Agent::connect(stream, PATIENCE).await.expect("welcomed")
    }
}

fn sh(script: &str) -> ExecRequest {
    ExecRequest { argv: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(), ..ExecRequest::default() }
}

/// All that a command writes, until its end.
async fn outcome(mut session: ExecSession) -> (String, String, ExitStatus) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match timeout(PATIENCE, session.next()).await.expect("in time").expect("no error") {
            ExecEvent::Stdout(data) => out.extend_from_slice(&data),
            ExecEvent::Stderr(data) => err.extend_from_slice(&data),
            ExecEvent::Exited(status) => {
                let text = |bytes| String::from_utf8(bytes).expect("text");
                return (text(out), text(err), status);
            }
        }
    }
}

async fn run(agent: &Agent, request: ExecRequest) -> (String, String, ExitStatus) {
    outcome(agent.exec(request).await.expect("started")).await
}

#[tokio::test]
async fn stdout_and_stderr_stay_apart_and_the_code_is_passed_on() {
    let serving = Serving::start().await;
    let (agent, welcome, _events) = serving.connect().await;
    assert_eq!((welcome.configured, welcome.program), (false, ProgramState::NotStarted));
    let seen = run(&agent, sh("echo out; echo err >&2; exit 3")).await;
    assert_eq!(seen, ("out\n".into(), "err\n".into(), ExitStatus::Code(3)));
}

#[tokio::test]
async fn stdin_arrives_whole_whatever_its_size() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let (input, mut output) = agent.exec(sh("cksum")).await.expect("started").split();
    let data: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[usize::try_from(n % 3).expect("small")]).collect();
    let file = serving.path("reference");
    std::fs::write(&file, &data).expect("written");
    input.write(&data).await.expect("sent");
    input.eof().expect("sent");
    let expected = Command::new("/bin/sh").args(["-c", &format!("cksum <{file}")]).output().expect("run").stdout;
    assert_eq!(output.next().await.expect("output"), ExecEvent::Stdout(expected.into()));
    assert_eq!(output.next().await.expect("end"), ExecEvent::Exited(ExitStatus::Code(0)));
}

#[tokio::test]
async fn all_output_comes_before_the_end_and_a_flood_stops_nobody() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    // Nobody reads this one: it must stop by itself, and stop only itself.
    let _flood = agent.exec(sh("yes flood")).await.expect("started");
    let begun = Instant::now();
    for _ in 0..20 {
        agent.ping(PATIENCE).await.expect("an answer");
    }
    let (out, _, status) = run(&agent, sh("head -c 2000000 /dev/zero | tr '\\0' x")).await;
    assert_eq!((out.len(), status), (2_000_000, ExitStatus::Code(0)));
    assert!(begun.elapsed() < PATIENCE);
}

#[tokio::test]
async fn there_are_no_more_than_256_sessions_and_the_next_is_told_so() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let cat = || ExecRequest { argv: vec!["/bin/cat".into()], ..ExecRequest::default() };
    let mut open = Vec::new();
    for nth in 0..256 {
        open.push(agent.exec(cat()).await.unwrap_or_else(|error| panic!("session {nth}: {error}")));
    }
    let error = agent.exec(cat()).await.expect_err("one too many");
    let text = format!("{error:?}");
    assert!(text.contains("256 commands and copies are open") && text.contains("Exhausted"), "{text}");
    // One that ends makes room, and so does one whose host is gone.
    let (input, mut output) = open.pop().expect("one").split();
    input.eof().expect("sent");
    assert_eq!(output.next().await.expect("end"), ExecEvent::Exited(ExitStatus::Code(0)));
    run(&agent, sh("exit 0")).await;
}

#[tokio::test]
async fn a_background_process_does_not_hold_the_session_open() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let seen = run(&agent, sh("sleep 30 & echo $!")).await;
    assert_eq!(seen.2, ExitStatus::Code(0));
    let pid = seen.0.trim().to_owned();
    assert!(Path::new("/proc").join(&pid).exists(), "it goes on");
    run(&agent, sh(&format!("kill {pid}"))).await;
}

#[tokio::test]
async fn commands_that_cannot_run_say_why() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let not_executable = serving.path("plain");
    std::fs::write(&not_executable, "text").expect("written");
    let cases = [
        (vec!["no-such-command"], "", "", "command not found: no-such-command"),
        (vec![not_executable.as_str()], "", "", "permission denied"),
        (vec!["true"], "/no/such/dir", "", "cannot start in directory /no/such/dir"),
        (vec!["true"], "", "no-such-user", "user no-such-user is not in the image's /etc/passwd"),
        (vec![], "", "", "no command given"),
    ];
    for (argv, cwd, user, expected) in cases {
        let argv = argv.into_iter().map(str::to_owned).collect();
        let request = ExecRequest { argv, cwd: cwd.into(), user: user.into(), ..ExecRequest::default() };
        let error = agent.exec(request).await.expect_err("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[tokio::test]
async fn a_terminal_has_a_size_that_changes_and_one_stream() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let script = "trap 'stty size; exit 7' WINCH; stty size; tty >&2; while :; do sleep 0.01; done";
    let (input, mut output) = agent.exec(ExecRequest { tty, ..sh(script) }).await.expect("started").split();
    let mut seen = String::new();
    let status = loop {
        match timeout(PATIENCE, output.next()).await.expect("in time").expect("no error") {
            ExecEvent::Stdout(data) => seen += &String::from_utf8_lossy(&data),
            ExecEvent::Stderr(_) => panic!("a terminal has no stderr of its own"),
            ExecEvent::Exited(status) => break status,
        }
        if seen.contains("/dev/pts/") {
            input.resize(TtySize { rows: 50, cols: 132 }).expect("sent");
        }
    };
    assert!(seen.contains("24 80") && seen.contains("50 132"), "{seen}");
    assert_eq!(status, ExitStatus::Code(7));
}

#[tokio::test]
async fn signals_reach_the_whole_group_and_time_runs_out() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let session = agent.exec(sh("sleep 60; echo not reached")).await.expect("started");
    session.input().signal(15).expect("sent");
    assert_eq!(outcome(session).await, (String::new(), String::new(), ExitStatus::Signal(15)));

    let begun = Instant::now();
    let seen = run(&agent, ExecRequest { timeout_ms: 100, ..sh("echo begun; sleep 60") }).await;
    assert_eq!(seen, ("begun\n".into(), String::new(), ExitStatus::TimedOut));
    assert!(begun.elapsed() >= Duration::from_millis(100));
}

#[tokio::test]
async fn the_lost_host_leaves_commands_running_but_takes_their_terminals() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let (plain, on_terminal) = (serving.path("plain"), serving.path("terminal"));
    // It reads its input to the end, which is the host's, writes more than a pipe holds, and goes on.
    let script = format!("cat >/dev/null; head -c 1000000 /dev/zero; echo went on >{plain}");
    let first = agent.exec(sh(&script)).await.expect("started");
    let tty = Some(TtySize { rows: 24, cols: 80 });
    let script = format!("trap 'echo hung up >{on_terminal}; exit' HUP; echo ready; while :; do sleep 0.01; done");
    let mut second = agent.exec(ExecRequest { tty, ..sh(&script) }).await.expect("started");
    second.next().await.expect("ready");
    drop((first, second, agent));
    let (_agent, ..) = serving.connect().await;
    let give_up = Instant::now() + PATIENCE;
    for (path, expected) in [(plain, "went on\n"), (on_terminal, "hung up\n")] {
        while std::fs::read_to_string(&path).unwrap_or_default() != expected {
            assert!(Instant::now() < give_up, "{path} is not written");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test]
async fn a_new_hello_ends_the_old_epoch_though_nobody_saw_its_end() {
    let serving = Serving::start().await;
    let (old, ..) = serving.connect().await;
    let mut flood = old.exec(sh("yes")).await.expect("started");
    flood.next().await.expect("output");
    let (new, ..) = serving.connect().await;
    new.ping(PATIENCE).await.expect("an answer");
    timeout(PATIENCE, old.closed()).await.expect("the old connection ends");
    let left = loop {
        match flood.next().await {
            Ok(ExecEvent::Stdout(_)) => {}
            other => break other,
        }
    };
    assert!(matches!(left, Err(AgentError::Lost { .. })), "{left:?}");
    assert_eq!(run(&new, sh("echo anew")).await.0, "anew\n");
}

#[tokio::test]
async fn directories_go_in_and_come_out_as_they_were() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let target = serving.path("deep/er/tree");
    let entry = |path: &str, kind, mode| CopyEntry {
        path: path.into(),
        kind,
        mode,
        size: 0,
        mtime_s: 1_600_000_000,
        uid: 0,
        gid: 0,
    };
    let big = vec![42; 1_000_000];
    let link = FileKind::Symlink { target: "sub/big".into() };
    let mut copy = agent.copy_to(CopyToStart { path: target.clone() }).await.expect("begun");
    for (path, kind, mode, content) in [
        ("", FileKind::Dir, 0o755, None),
        ("sub", FileKind::Dir, 0o700, None),
        ("sub/big", FileKind::File, 0o4750, Some(&big)),
        ("empty", FileKind::File, 0o600, Some(&Vec::new())),
        ("link", link.clone(), 0o777, None),
    ] {
        copy.entry(entry(path, kind, mode)).await.expect("sent");
        if let Some(content) = content {
            copy.data(content).await.expect("sent");
        }
        copy.entry_end().await.expect("sent");
    }
    let done = copy.finish().await.expect("complete");
    assert_eq!((done.entries, done.bytes), (5, 1_000_000));

    let (seen, contents) = copied(&agent, &target, false).await.expect("copied");
    let find = |path: &str| seen.iter().find(|entry| entry.path == path).expect("there").clone();
    assert_eq!(seen.len(), 5);
    assert_eq!(find("link").kind, link);
    assert_eq!((find("sub/big").mode, find("sub/big").size), (0o4750, 1_000_000));
    assert_eq!((find("sub").mode, find("sub").mtime_s), (0o700, 1_600_000_000));
    assert_eq!(contents, 1_000_000);
    let (seen, contents) = copied(&agent, &target, true).await.expect("copied");
    assert!(seen.iter().all(|entry| !matches!(entry.kind, FileKind::Symlink { .. })));
    assert_eq!(contents, 2_000_000);

    let stat = agent.stat(&format!("{target}/link"), false).await.expect("asked").expect("there");
    assert_eq!(stat.kind, link);
    let stat = agent.stat(&format!("{target}/link"), true).await.expect("asked").expect("there");
    assert_eq!((stat.kind, stat.size), (FileKind::File, 1_000_000));
    assert_eq!(agent.stat(&format!("{target}/nothing"), true).await.expect("asked"), None);
}

async fn copied(agent: &Agent, path: &str, follow: bool) -> Result<(Vec<CopyEntry>, usize), AgentError> {
    let mut copy = agent.copy_from(path, follow).await?;
    let (mut entries, mut bytes) = (Vec::new(), 0);
    while let Some(item) = timeout(PATIENCE, copy.next()).await.expect("in time")? {
        match item {
            CopyItem::Entry(entry) => entries.push(entry),
            CopyItem::Data(data) => bytes += data.len(),
            CopyItem::EntryEnd => {}
        }
    }
    Ok((entries, bytes))
}

#[tokio::test]
async fn copies_that_cannot_be_say_why() {
    let serving = Serving::start().await;
    let (agent, ..) = serving.connect().await;
    let error = copied(&agent, &serving.path("nothing"), false).await.expect_err("refused").to_string();
    assert!(error.contains("No such file"), "{error}");
    let error = copied(&agent, "/dev/null", false).await.expect_err("refused").to_string();
    assert!(error.contains("no file, directory or link"), "{error}");

    let file = |path: &str| CopyEntry {
        path: path.into(),
        kind: FileKind::File,
        mode: 0o644,
        size: 0,
        mtime_s: 0,
        uid: 0,
        gid: 0,
    };
    for path in ["../out", "a/../../out", "/etc/out"] {
        let mut copy = agent.copy_to(CopyToStart { path: serving.path("in") }).await.expect("begun");
        copy.entry(file(path)).await.expect("sent");
        let error = copy.finish().await.expect_err("refused").to_string();
        assert!(error.contains("leads out of the copy"), "{error}");
    }
    // The sender goes on and on: it is told while it does.
    let mut copy = agent.copy_to(CopyToStart { path: serving.path("socket") }).await.expect("begun");
    copy.entry(file("")).await.expect("sent");
    let error = loop {
        if let Err(error) = copy.data(&[0; 60_000]).await {
            break error.to_string();
        }
    };
    assert!(error.contains("write") && error.contains("socket"), "{error}");
}

#[tokio::test]
async fn the_program_starts_once_and_its_end_is_told() {
    let serving = Serving::start().await;
    let (agent, _, mut events) = serving.connect().await;
    let argv = ["/bin/sh", "-c", "exec 2>&-; sleep 0.2; exit 5"].map(str::to_owned).to_vec();
    let config = GuestConfig {
        hostname: "h".into(),
        instance_id: "i".into(),
        program: Program { argv, workdir: serving.path("work/dir"), ..Program::default() },
        dns: vec![],
        network: None,
    };
    assert_eq!(agent.configure(&config).await.expect("taken"), Configured::Now);
    assert_eq!(agent.configure(&config).await.expect("ignored"), Configured::Already);
    assert!(Path::new(&config.program.workdir).is_dir());
    assert!(matches!(events.next().await, Some(Event::ProgramStarted { .. })));
    // A command begins where the program does.
    assert_eq!(run(&agent, sh("pwd")).await.0.trim(), config.program.workdir);
    let exit = events.next().await;
    let Some(Event::ProgramExited(exit)) = exit else { panic!("{exit:?}") };
    assert_eq!((exit.code, exit.signal, exit.message.as_str()), (5, None, "exited with code 5"));
    timeout(Duration::from_secs(1), agent.closed()).await.expect("it ends once its host knows");
}

#[tokio::test]
async fn programs_that_cannot_start_end_as_docker_says() {
    for (argv, user, code, message) in [
        ("/no/such/program", "", 127, "command not found: /no/such/program"),
        ("/etc/passwd", "", 126, "permission denied: /etc/passwd"),
        ("/bin/true", "nobody-here", 125, "user nobody-here is not in the image's /etc/passwd"),
    ] {
        let serving = Serving::start().await;
        let (agent, _, mut events) = serving.connect().await;
        let program = Program { argv: vec![argv.into()], user: user.into(), ..Program::default() };
        let config = GuestConfig { hostname: "h".into(), instance_id: "i".into(), program, dns: vec![], network: None };
        agent.configure(&config).await.expect("taken");
        let Some(Event::ProgramExited(exit)) = events.next().await else { panic!("no exit") };
        assert_eq!((exit.code, exit.message.as_str()), (code, message));
    }
}

#[tokio::test]
async fn a_shutdown_asks_first_and_insists_later() {
    for (script, grace, code) in [
        ("trap 'exit 9' TERM; while :; do sleep 0.01; done", 10_000, 9),
        ("trap '' TERM; while :; do sleep 0.01; done", 100, 137),
    ] {
        let serving = Serving::start().await;
        let (agent, _, mut events) = serving.connect().await;
        let argv = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let program = Program { argv, ..Program::default() };
        let config = GuestConfig { hostname: "h".into(), instance_id: "i".into(), program, dns: vec![], network: None };
        agent.configure(&config).await.expect("taken");
        events.next().await.expect("started");
        tokio::time::sleep(Duration::from_millis(100)).await;
        agent.shutdown(Duration::from_millis(grace)).await.expect("begun");
        let Some(Event::ProgramExited(exit)) = events.next().await else { panic!("no exit") };
        assert_eq!(exit.code, code);
        timeout(Duration::from_secs(3), agent.closed()).await.expect("it ends");
    }
}
