//! QMP for the floor: blocking, and no more than it needs.

use std::io::{BufRead, BufReader, IoSlice, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};

/// A QEMU that does not answer for this long is stuck.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that was greeted and negotiated.
#[derive(Debug)]
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Waits for the greeting, and negotiates.
    pub fn greet(stream: UnixStream) -> Result<Self> {
        stream.set_read_timeout(Some(PATIENCE)).context("set a time limit")?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        let greeting = qmp.line()?;
        ensure!(greeting.get("QMP").is_some(), "no greeting: {greeting}");
        qmp.run("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Runs a command, and forgets the events that come before its answer.
    pub fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        self.send(command, arguments)?;
        self.answer(command)
    }

    /// Gives QEMU an open file, under a name.
    pub fn give_file(&mut self, name: &str, file: BorrowedFd<'_>) -> Result<()> {
        let request = request("getfd", json!({ "fdname": name }));
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with_it = SendAncillaryBuffer::new(&mut space);
        let files = [file];
        ensure!(with_it.push(SendAncillaryMessage::ScmRights(&files)), "no room for a descriptor");
        let stream = self.stream.get_ref();
        let sent = sendmsg(stream.as_fd(), &[IoSlice::new(request.as_bytes())], &mut with_it, SendFlags::empty());
        ensure!(sent.context("send a descriptor")? == request.len(), "a request was sent in part");
        self.answer("getfd").map(drop)
    }

    /// Waits until a migration, in or out, is complete.
    pub fn migrated(&mut self) -> Result<()> {
        loop {
            let line = self.line()?;
            if line["event"] == "MIGRATION" {
                match line["data"]["status"].as_str() {
                    Some("completed") => return Ok(()),
                    Some("failed") => bail!("the migration failed"),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, command: &str, arguments: Value) -> Result<()> {
        let request = request(command, arguments);
        self.stream.get_mut().write_all(request.as_bytes()).with_context(|| format!("send {command}"))
    }

    fn answer(&mut self, command: &str) -> Result<Value> {
        loop {
            let mut line = self.line()?;
            if let Some(error) = line.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            if let Some(value) = line.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line).context("hear from QEMU")? > 0, "QEMU hung up");
        serde_json::from_str(&line).with_context(|| format!("read {line:?}"))
    }
}

fn request(command: &str, arguments: Value) -> String {
    let mut request = json!({ "execute": command });
    if !arguments.is_null() {
        request["arguments"] = arguments;
    }
    format!("{request}\n")
}
