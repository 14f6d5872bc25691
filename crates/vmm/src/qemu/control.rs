//! QMP: commands to a QEMU process, one JSON object per line.
//!
//! Every wait also watches the process, so that a VMM that dies is an error at once and says why,
//! and ends at a deadline, after which the connection is not used again.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::answer::watched;
use crate::fault::ControlError;
use crate::process::Process;
use crate::socket;
use crate::spec::{QMP_SOCKET, RunState};

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
        let mut line = String::new();
        let read = async {
            match self.stream.read_line(&mut line).await? {
                0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                _ => Ok(()),
            }
        };
        watched(process, command, &self.socket, read).await?;
        serde_json::from_str(&line).map_err(|_| ControlError::Garbled { command, line })
    }
}
