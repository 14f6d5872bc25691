//! The vsock, with a guest that sends back what it is sent. `CONNECT 52`, `OK <port>`, bytes; what a
//! snapshot does to connections; and the defect of 1.16.0 and 1.16.1.

use std::time::Duration;

use hearth_simulated::guest::{After, Params};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::host::{Lab, PATIENCE, Vmm, until};

/// Long enough for what should come, where nothing should.
const A_WHILE: Duration = Duration::from_millis(300);
const FIRST_PORT: u32 = 1 << 30;

pub async fn a_guest_that_listens_is_called_on_its_port_only(lab: Lab) {
    let lab = listening(lab);
    let vmm = lab.boot("web").await;
    assert!(vmm.serial().contains("listening\n"), "{}", vmm.serial());
    let mut first = Call::dial(&vmm, "CONNECT 52\n").await;
    assert_eq!(first.answered().await, Some(FIRST_PORT));
    let mut second = Call::dial(&vmm, "connect 52 please\n").await;
    assert_eq!(second.answered().await, Some(FIRST_PORT + 1));
    assert!(second.echoes("two").await && first.echoes("one").await);
    for line in ["CONNECT 53\n", "GREETINGS 52\n", "CONNECT fifty-two\n"] {
        assert_eq!(Call::dial(&vmm, line).await.answered().await, None, "{line:?}");
    }
    assert!(first.echoes("still there").await);
}

pub async fn connections_do_not_outlast_a_snapshot_and_learn_it_when_they_speak(lab: Lab) {
    let lab = listening(lab);
    let mut vmm = lab.boot("web").await;
    let mut before = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(before.answered().await.is_some() && before.echoes("hello").await);
    let _bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    let mut meanwhile = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(meanwhile.is_silent().await, "a paused guest answers nothing");
    vmm.resume().await.done();
    until("the guest to be reset", async || vmm.serial().contains("reset\n").then_some(())).await;
    assert!(before.is_silent().await, "nobody tells");
    assert!(!before.echoes("hello?").await, "until it speaks");
    assert!(meanwhile.answered().await.is_some() && meanwhile.echoes("hello").await, "who waited is answered");
    let mut after = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(after.answered().await.is_some() && after.echoes("hello").await);
}

pub async fn a_loaded_guest_is_called_anew(lab: Lab) {
    let lab = listening(lab);
    let mut vmm = lab.boot("source").await;
    let mut call = Call::dial(&vmm, "CONNECT 52\n").await;
    assert_eq!(call.answered().await, Some(FIRST_PORT));
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    let fork = lab.restore("fork", &bundle).await;
    let mut call = Call::dial(&fork, "CONNECT 52\n").await;
    assert_eq!(call.answered().await, Some(FIRST_PORT + 1), "the count of ports goes on");
    assert!(call.echoes("fork").await);
    until("the guest to be reset", async || fork.serial().contains("reset\n").then_some(())).await;
}

/// The request reaches a guest that has yet to find that all its connections are gone: it answers,
/// and then may forget this one, too. So nobody should call before the resume.
pub async fn a_caller_between_load_and_resume_is_answered_and_may_be_lost(lab: Lab) {
    let lab = listening(lab);
    let mut vmm = lab.boot("source").await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    let (mut paused, answer) = lab.load("paused", &bundle, json!({})).await;
    answer.done();
    let mut early = Call::dial(&paused, "CONNECT 52\n").await;
    assert!(early.is_silent().await);
    paused.resume().await.done();
    assert!(early.answered().await.is_some());
    until("the guest to be reset", async || paused.serial().contains("reset\n").then_some(())).await;
    let lost = !early.echoes("early").await;
    assert!(lost || !lab.simulated, "the double shows the worst that may be");
    let mut call = Call::dial(&paused, "CONNECT 52\n").await;
    assert!(call.answered().await.is_some() && call.echoes("late").await);
}

pub async fn a_bare_pause_and_resume_hangs_it_and_a_snapshot_heals_it(lab: Lab) {
    let lab = listening(lab);
    let mut vmm = lab.boot("web").await;
    let mut before = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(before.answered().await.is_some() && before.echoes("hello").await);
    vmm.pause().await.done();
    vmm.resume().await.done();
    let mut hung = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(hung.is_silent().await);
    before.say("hello?").await;
    assert!(before.is_silent().await, "connections of before hang, too");
    let _bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.resume().await.done();
    assert!(hung.answered().await.is_some(), "who hung is answered");
    let mut after = Call::dial(&vmm, "CONNECT 52\n").await;
    assert!(after.answered().await.is_some() && after.echoes("hello").await);
}

pub async fn a_resume_of_a_guest_that_runs_hangs_it(lab: Lab) {
    let lab = listening(lab);
    let mut vmm = lab.boot("source").await;
    let bundle = lab.save(&mut vmm, "bundle", "Diff").await;
    vmm.kill().await;
    let mut fork = lab.restore("fork", &bundle).await;
    let mut call = Call::dial(&fork, "CONNECT 52\n").await;
    assert!(call.answered().await.is_some() && call.echoes("hello").await);
    fork.resume().await.done();
    let mut hung = Call::dial(&fork, "CONNECT 52\n").await;
    assert!(hung.is_silent().await, "204 and no error, but nobody is heard any more");
    let tick = fork.tick();
    fork.ticks_beyond(tick).await;
}

fn listening(lab: Lab) -> Lab {
    let params = Params { after: After::Listen, ..lab.params };
    lab.with_guest(params)
}

/// A connection to the guest.
struct Call {
    stream: UnixStream,
}

impl Call {
    async fn dial(vmm: &Vmm, line: &str) -> Self {
        let mut stream = UnixStream::connect(vmm.dir.join("vsock.sock")).await.expect("the door is there");
        stream.write_all(line.as_bytes()).await.expect("taken");
        Self { stream }
    }

    /// The port that it was answered with; `None` when it was closed instead.
    async fn answered(&mut self) -> Option<u32> {
        let mut line = String::new();
        while !line.ends_with('\n') {
            let byte = tokio::time::timeout(PATIENCE, self.stream.read_u8()).await;
            line.push(byte.unwrap_or_else(|_| panic!("no answer after {line:?}")).ok()?.into());
        }
        let port = line.strip_prefix("OK ").and_then(|rest| rest.trim_end().parse().ok());
        Some(port.unwrap_or_else(|| panic!("{line:?}")))
    }

    async fn say(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.expect("taken");
    }

    /// Whether it is sent back what it says; it is closed if not.
    async fn echoes(&mut self, text: &str) -> bool {
        self.say(text).await;
        let mut back = vec![0; text.len()];
        let read = tokio::time::timeout(PATIENCE, self.stream.read_exact(&mut back)).await;
        match read.unwrap_or_else(|_| panic!("nothing comes of {text:?}")) {
            Ok(_) => {
                assert_eq!(back, text.as_bytes());
                true
            }
            Err(_) => false,
        }
    }

    /// Whether nothing comes, not even an end.
    async fn is_silent(&mut self) -> bool {
        tokio::time::timeout(A_WHILE, self.stream.read_u8()).await.is_err()
    }
}
