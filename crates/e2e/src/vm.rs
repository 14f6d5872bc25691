//! One instance, as a story handles it.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hearth_api::client::{ExecEvent, ExecOutput, ExecSession};
use hearth_api::exec::{ExecEnd, ExecRequest};
use hearth_api::instances::{DeleteInstance, Instance, InstanceState, WaitQuery};
use hearth_api::logs::LogsQuery;
use hearth_api::snapshots::{CreateSnapshot, RestoreSnapshot, Snapshot, SnapshotKind};

use crate::host::wait_limit;
use crate::{TestHost, traces};

/// An instance of a [`TestHost`]; dropping it changes nothing.
#[derive(Debug, Clone)]
pub struct Vm<'h> {
    pub(crate) host: &'h TestHost,
    /// Its name.
    pub name: String,
}

/// How a command in a guest ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// What it exited with.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
    /// Why it could not be run.
    pub error: Option<String>,
}

/// What the counter says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// Made by the counter when it was started.
    pub nonce: String,
    /// How far it is.
    pub count: u64,
}

impl Vm<'_> {
    /// What the API says of it.
    pub async fn info(&self) -> Result<Instance> {
        Ok(self.host.client().instance(&self.name).await?)
    }

    /// Fails unless it is in that state.
    pub async fn is(&self, state: InstanceState) -> Result<()> {
        let info = self.info().await?;
        ensure!(info.state == state, "{} is {}, not {state}: {:?}", self.name, info.state, info.state_error);
        Ok(())
    }

    /// Starts a command with everything said.
    pub async fn exec(&self, request: &ExecRequest) -> Result<ExecSession> {
        Ok(self.host.client().exec(&self.name, request).await?)
    }

    /// Runs a command to its end.
    pub async fn run(&self, command: &[&str]) -> Result<Ran> {
        self.run_with(command, b"").await
    }

    /// Runs a command that gets this input.
    pub async fn run_with(&self, command: &[&str], input: &[u8]) -> Result<Ran> {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        let ExecSession { input: mut to, output } =
            self.exec(&ExecRequest { command, ..ExecRequest::default() }).await?;
        let write = async {
            // A command may end before it has read it all; how it ended is told by its output.
            if to.write(input).await.is_ok() {
                to.end().await.ok();
            }
        };
        // Side by side: how much of the input was taken is told with the output.
        tokio::join!(collect(output), write).0
    }

    /// Runs a shell script, which must succeed, and returns what it printed, without the last
    /// line's end.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let ran = self.run(&["/bin/sh", "-c", script]).await?;
        ensure!(ran.code == 0, "{}: {script}: {ran:?}", self.name);
        Ok(ran.stdout.trim_end().to_owned())
    }

    /// Runs a command, which must succeed, and returns the bytes that it wrote.
    pub async fn bytes(&self, command: &[&str]) -> Result<Vec<u8>> {
        let command: Vec<String> = command.iter().map(|word| (*word).to_owned()).collect();
        let mut session = self.exec(&ExecRequest { command, ..ExecRequest::default() }).await?;
        let mut stdout = Vec::new();
        loop {
            match session.output.next().await? {
                ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecEvent::Stderr(_) => {}
                ExecEvent::End(end) => {
                    ensure!(end.exit_code == 0, "{}: {end:?}", self.name);
                    return Ok(stdout);
                }
            }
        }
    }

    /// Has the counter count on by `add`.
    pub async fn count(&self, add: u64) -> Result<Count> {
        let answer = self.sh(&format!("count {add}")).await?;
        let (nonce, count) = answer.split_once(' ').with_context(|| format!("the counter says {answer:?}"))?;
        Ok(Count { nonce: nonce.into(), count: count.parse()? })
    }

    /// Brings it to standby.
    pub async fn standby(&self) -> Result<()> {
        self.host.client().standby(&self.name).await?;
        self.is(InstanceState::Standby).await?;
        ensure!(self.vmm_pid().await?.is_none(), "{} is in standby and has a VMM", self.name);
        Ok(())
    }

    /// Brings it back.
    pub async fn restore(&self) -> Result<()> {
        self.host.client().restore(&self.name).await?;
        self.is(InstanceState::Running).await
    }

    /// Shuts it down.
    pub async fn stop(&self) -> Result<()> {
        self.host.client().stop(&self.name).await?;
        self.is(InstanceState::Stopped).await?;
        ensure!(self.vmm_pid().await?.is_none(), "{} is stopped and has a VMM", self.name);
        Ok(())
    }

    /// Boots it again.
    pub async fn start(&self) -> Result<()> {
        self.host.client().start(&self.name).await?;
        self.wait(InstanceState::Running).await
    }

    /// Waits until it is in that state.
    pub async fn wait(&self, state: InstanceState) -> Result<()> {
        let query = WaitQuery { state, timeout: Some(wait_limit()) };
        let waited = self.host.client().wait(&self.name, &query).await?;
        ensure!(waited.state == state && !waited.timed_out, "{}: {waited:?} instead of {state}", self.name);
        Ok(())
    }

    /// Takes a snapshot with memory.
    pub async fn snapshot(&self, name: &str) -> Result<Snapshot> {
        let request = CreateSnapshot { kind: SnapshotKind::Standby, name: Some(name.into()), tags: None };
        Ok(self.host.client().create_snapshot(&self.name, &request).await?)
    }

    /// Puts a snapshot in its place.
    pub async fn revert(&self, snapshot: &str) -> Result<()> {
        self.host.client().restore_snapshot(&self.name, snapshot, &RestoreSnapshot::default()).await?;
        Ok(())
    }

    /// Makes one instance of it as it is now, and has it running.
    pub async fn fork(&self, name: &str) -> Result<Vm<'_>> {
        let mut forks = self.host.fork(&self.name, name, 1).await?;
        forks.pop().context("one fork")
    }

    /// Removes it.
    pub async fn delete(&self) -> Result<()> {
        Ok(self.host.client().delete_instance(&self.name, &DeleteInstance::default()).await?)
    }

    /// The last lines of its console.
    pub async fn console(&self) -> Result<String> {
        let mut stream = self.host.client().logs(&self.name, &LogsQuery::default()).await?;
        let mut lines = Vec::new();
        while let Some(line) = stream.next_line().await? {
            lines.push(line);
        }
        Ok(lines.join("\n"))
    }

    /// Its directory. Only a story that looks behind the scenes needs it.
    pub async fn dir(&self) -> Result<PathBuf> {
        Ok(self.host.data().join("instances").join(self.info().await?.id))
    }

    /// Its VMM's process, found by its working directory; `None` without one.
    pub async fn vmm_pid(&self) -> Result<Option<i32>> {
        Ok(traces::vmms(&self.dir().await?).first().map(|(pid, _)| *pid))
    }
}

/// Reads a command's output to its end.
pub async fn finish(session: ExecSession) -> Result<Ran> {
    collect(session.output).await
}

async fn collect(mut from: ExecOutput) -> Result<Ran> {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    loop {
        match from.next().await? {
            ExecEvent::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            ExecEvent::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            ExecEvent::End(ExecEnd { exit_code, error }) => {
                return Ok(Ran {
                    code: exit_code,
                    stdout: String::from_utf8_lossy(&stdout).into_owned(),
                    stderr: String::from_utf8_lossy(&stderr).into_owned(),
                    error: error.map(|body| body.message),
                });
            }
        }
    }
}
