//! QMP: commands to a QEMU process, one JSON object per line.
//!
//! Every wait also watches the process, so that a VMM that dies is an error at once and says why,
//! and ends at a deadline, after which the connection is not used again.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::answer::watched;
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::{QMP_SOCKET, RunState};

/// Far more than QEMU says at once.
const LONGEST: usize = 4 << 20;

/// A connection that has been greeted and negotiated.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    socket: PathBuf,
}

impl Qmp {
    /// Connects; waits for a VMM that is just starting.
    pub(crate) async fn connect(dir: &Path, process: &Process) -> Result<Self, ControlError> {
        let socket = dir.join(QMP_SOCKET);
        let connected = watched(process, "connect", &socket, socket::connect(dir, QMP_SOCKET)).await?;
        let mut qmp = Self { stream: BufReader::new(connected), socket };
        let greeting = qmp.line(process, "connect").await?;
        if greeting.get("QMP").is_none() {
            return Err(ControlError::Garbled { command: "connect", line: greeting.to_string() });
        }
        qmp.run(process, "qmp_capabilities", None).await?;
        Ok(qmp)
    }

    /// Runs a command; events that come before its answer are dropped.
    pub(crate) async fn run(
        &mut self,
        process: &Process,
        command: &'static str,
        arguments: Option<Value>,
    ) -> Result<Value, ControlError> {
        let mut request = json!({ "execute": command });
        if let Some(arguments) = arguments {
            request["arguments"] = arguments;
        }
        let line = format!("{request}\n");
        watched(process, command, &self.socket, self.stream.get_mut().write_all(line.as_bytes())).await?;
        loop {
            let mut answer = self.line(process, command).await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let answer = error["desc"].as_str().map_or_else(|| error.to_string(), str::to_owned);
                return Err(ControlError::Refused { command, answer });
            }
        }
    }

    /// The data of the next event of that name.
    pub(crate) async fn event(&mut self, process: &Process, name: &'static str) -> Result<Value, ControlError> {
        loop {
            let mut event = self.line(process, name).await?;
            if event["event"] == name {
                return Ok(event["data"].take());
            }
        }
    }

    pub(crate) async fn run_state(&mut self, process: &Process) -> Result<RunState, ControlError> {
        let status = self.run(process, "query-status", None).await?;
        match status["running"].as_bool() {
            Some(true) => Ok(RunState::Running),
            Some(false) => Ok(RunState::Paused),
            None => Err(ControlError::Garbled { command: "query-status", line: status.to_string() }),
        }
    }

    async fn line(&mut self, process: &Process, command: &'static str) -> Result<Value, ControlError> {
        let line = watched(process, command, &self.socket, one_line(&mut self.stream)).await?;
        serde_json::from_str(&line).map_err(|_| ControlError::Garbled { command, line })
    }
}

async fn one_line(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut line = String::new();
    match stream.take(LONGEST as u64).read_line(&mut line).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ if line.ends_with('\n') => Ok(line),
        LONGEST => Err(io::Error::other(format!("a line of more than {LONGEST} bytes"))),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_without_end_is_not_read_to_its_end() {
        let mut lines = BufReader::new(&b"{\"return\": {}}\nrest"[..]);
        assert_eq!(one_line(&mut lines).await.expect("a line"), "{\"return\": {}}\n");
        assert_eq!(one_line(&mut lines).await.expect_err("cut off").kind(), io::ErrorKind::UnexpectedEof);
        let error = one_line(&mut BufReader::new(tokio::io::repeat(b'x'))).await.expect_err("too long");
        assert!(error.to_string().contains("4194304 bytes"), "{error}");
    }
}
