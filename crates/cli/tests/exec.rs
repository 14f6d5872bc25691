//! A command in a guest behaves as one here: streams, exit code, signals, terminal.

#[path = "support/daemon.rs"]
mod daemon;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::atomic::Ordering;

use daemon::{Daemon, Ran};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

#[test]
fn streams_stay_apart_and_the_exit_code_is_passed_on() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["exec", "web", "--", "both"]);
    assert_eq!((ran.code, ran.stdout.as_str(), ran.stderr.as_str()), (Some(3), "out\n", "err\n"));
    let ran = daemon.run(&["exec", "web", "both", "--json"]);
    assert_eq!(ran.stdout, "out\n", "what stands behind the command is the command's: {ran:?}");
    let ran = daemon.run(&["--json", "exec", "web", "both"]);
    assert_eq!(ran.json(), serde_json::json!({"exit_code": 3, "stdout": "out\n", "stderr": "err\n"}));
    assert_eq!(ran.code, Some(3));
}

#[test]
fn a_command_that_cannot_be_run_says_why() {
    let daemon = Daemon::start();
    let ran = daemon.run(&["exec", "web", "missing"]);
    assert_eq!(ran.code, Some(127));
    assert_eq!(ran.stderr, "error: missing: no such command\nhint: see what is in /bin\n");
}

#[test]
fn options_go_to_the_guest() {
    let daemon = Daemon::start();
    let arguments =
        ["exec", "-e", "A=1", "-w", "/srv", "-u", "app", "--timeout", "1m", "--wait", "10", "web", "env", "-x"];
    let request: serde_json::Value = serde_json::from_str(&daemon.run(&arguments).stdout).expect("the request");
    let expected = serde_json::json!({
        "command": ["env", "-x"], "tty": false, "env": {"A": "1"}, "cwd": "/srv", "user": "app", "timeout": 60,
        "wait_for_agent": 10, "streams": true,
    });
    assert_eq!(request, expected);
}

#[test]
fn stdin_is_passed_on_to_its_end() {
    let daemon = Daemon::start();
    let mut command = daemon.hearth(&["exec", "-i", "web", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("runs");
    let big = "0123456789abcdef".repeat(256 << 10);
    let mut stdin = child.stdin.take().expect("piped");
    let writer = std::thread::spawn({
        let big = big.clone();
        move || stdin.write_all(big.as_bytes()).expect("is read")
    });
    let ran = Ran::of(child.wait_with_output().expect("ends"));
    writer.join().expect("writes");
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout == big, "{} of {} bytes came back", ran.stdout.len(), big.len());
}

#[test]
fn without_i_the_command_has_no_input() {
    let daemon = Daemon::start();
    // Its own stdin stays open: were it passed on, this would not end.
    let mut child =
        daemon.hearth(&["exec", "web", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let open = child.stdin.take();
    assert_eq!(Ran::of(child.wait_with_output().expect("ends")).code, Some(0));
    drop(open);
}

#[test]
fn signals_go_to_the_command() {
    let daemon = Daemon::start();
    let mut child = daemon.hearth(&["exec", "web", "signal"]).stdout(Stdio::piped()).spawn().expect("runs");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("reads");
    assert_eq!(line, "ready\n");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kills");
    line.clear();
    stdout.read_to_string(&mut line).expect("reads");
    assert_eq!(line, r#"{"signal":"TERM"}"#);
    assert_eq!(child.wait().expect("ends").code(), Some(130));
}

#[test]
fn signals_pass_input_that_the_command_does_not_read() {
    let daemon = Daemon::start();
    let mut command = daemon.hearth(&["exec", "-i", "web", "signal"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("runs");
    let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
    let mut line = String::new();
    stdout.read_line(&mut line).expect("reads");
    let mut stdin = child.stdin.take().expect("piped");
    let piece = [b'x'; 64 << 10];
    // More than may be under way. It is not taken, and the end of the command ends this.
    let typing = std::thread::spawn(move || while stdin.write_all(&piece).is_ok() {});
    // Only when nothing more is taken has the signal something to pass.
    let mut before = 0;
    loop {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = daemon.shared.input.load(Ordering::Relaxed);
        if now > 0 && now == before {
            break;
        }
        before = now;
    }
    // Each frame has a first byte that is not input.
    assert!((1 << 19..(1 << 20) + 4096).contains(&before), "{before} bytes are under way");
    kill_process(Pid::from_child(&child), Signal::TERM).expect("kills");
    line.clear();
    stdout.read_to_string(&mut line).expect("reads");
    assert_eq!(line, r#"{"signal":"TERM"}"#);
    assert_eq!(child.wait().expect("ends").code(), Some(130));
    typing.join().expect("ends");
}

#[test]
fn a_terminal_is_passed_through_and_restored() {
    let daemon = Daemon::start();
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudo-terminal");
    grantpt(&master).and_then(|()| unlockpt(&master)).expect("is ours");
    let name = ptsname(&master, Vec::new()).expect("has a name");
    let slave: OwnedFd = rustix::fs::open(&name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).expect("opens");
    tcsetwinsize(&slave, Winsize { ws_row: 33, ws_col: 99, ws_xpixel: 0, ws_ypixel: 0 }).expect("sets its size");
    let before = tcgetattr(&slave).expect("has modes").local_modes;
    assert!(before.contains(LocalModes::ICANON));

    let end = || Stdio::from(slave.try_clone().expect("clones"));
    let mut command = daemon.hearth(&["exec", "-it", "web", "echo"]);
    let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().expect("runs");
    let mut terminal = std::fs::File::from(master);
    // A terminal that is not raw would take ^C for itself, and wait for the end of the line.
    let mut screen = String::new();
    for (typed, shown) in [("a", "a"), ("\u{3}", "^C"), ("q", "q")] {
        // Not before it is raw: what is typed earlier is echoed by the terminal.
        while tcgetattr(&slave).expect("has modes").local_modes.contains(LocalModes::ICANON) {
            std::thread::yield_now();
        }
        terminal.write_all(typed.as_bytes()).expect("types");
        while !screen.ends_with(shown) {
            let mut buffer = [0; 64];
            let read = terminal.read(&mut buffer).expect("reads");
            screen += &String::from_utf8_lossy(&buffer[..read]);
        }
    }
    assert_eq!(child.wait().expect("ends").code(), Some(0));
    assert_eq!(screen, "a^Cq");
    assert_eq!(tcgetattr(&slave).expect("has modes").local_modes, before);
}
