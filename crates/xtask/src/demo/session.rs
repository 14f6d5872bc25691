//! A user at a terminal: types `hearth` commands, reads what they print, and has a watch.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::daemon::Daemon;
use crate::demo::report::{self, Report};
use crate::interrupt::Interrupt;
use crate::process;
use crate::workspace::Workspace;

/// The user.
#[derive(Debug)]
pub struct Session<'a> {
    pub daemon: &'a Daemon,
    pub workspace: &'a Workspace,
    pub interrupt: &'a Interrupt,
    pub report: &'a mut Report,
}

/// What the service answers.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Counted {
    pub counter: u64,
    pub hostname: String,
}

/// An answer of the service.
#[derive(Debug)]
pub struct Answer {
    pub counted: Counted,
    /// From typing to reading.
    pub took: Duration,
}

/// What `hearth timeline --json` prints, as far as it is read here.
#[derive(Debug, Deserialize)]
struct Timeline {
    operations: Vec<Operation>,
}

#[derive(Debug, Deserialize)]
struct Operation {
    duration_ms: Option<f64>,
}

impl Session<'_> {
    /// Types a command, shows what it prints and how long it took.
    pub fn hearth(&self, arguments: &[&str]) -> Result<Duration> {
        println!("$ hearth {}", arguments.join(" "));
        let (printed, took) = self.quietly(arguments)?;
        print!("{printed}");
        println!("  ({})", report::time(took));
        Ok(took)
    }

    /// As [`Self::hearth`], and puts it into the report.
    pub fn step(&mut self, name: &'static str, arguments: &[&str]) -> Result<Duration> {
        let took = self.hearth(arguments)?;
        self.report.add(name, took);
        Ok(took)
    }

    /// Asks the service in that instance `times` times, and puts it into the report.
    pub fn ask(&mut self, name: &'static str, instance: &str, times: u64) -> Result<Answer> {
        let answer = self.ask_quietly(instance, times)?;
        self.report.add(name, answer.took);
        Ok(answer)
    }

    /// Asks the service in that instance `times` times; the last answer. Guests have no address
    /// that the host could reach, so it is asked from inside.
    pub fn ask_quietly(&self, instance: &str, times: u64) -> Result<Answer> {
        let times = times.to_string();
        let arguments = ["exec", instance, "--", "ask", &times];
        println!("$ hearth {}", arguments.join(" "));
        let (printed, took) = self.quietly(&arguments)?;
        println!("{}  ({})", printed.trim_end(), report::time(took));
        let counted = serde_json::from_str(&printed)
            .with_context(|| format!("read what the service in {instance} answered: {printed:?}"))?;
        Ok(Answer { counted, took })
    }

    /// How long the instance's last operation took, as the daemon measured it.
    pub fn operation(&self, instance: &str) -> Result<Duration> {
        let (printed, _) = self.quietly(&["timeline", instance, "--limit", "1", "--json"])?;
        let timeline: Timeline =
            serde_json::from_str(&printed).with_context(|| format!("read the timeline of {instance}"))?;
        let took = timeline.operations.first().and_then(|operation| operation.duration_ms);
        let took = took.with_context(|| format!("{instance} has no operation that ended"))?;
        Ok(Duration::from_secs_f64(took / 1000.0))
    }

    /// Runs a command; what it printed, and how long it took. What it says on stderr, its progress
    /// among it, is shown by itself.
    fn quietly(&self, arguments: &[&str]) -> Result<(String, Duration)> {
        self.interrupt.check()?;
        let began = Instant::now();
        let mut command: Command = self.daemon.hearth();
        let output = command
            .args(arguments)
            .current_dir(&self.workspace.root)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("start `{}`", process::line(&command)))?;
        let took = began.elapsed();
        self.interrupt.check()?;
        if !output.status.success() {
            bail!("`hearth {}` failed ({})", arguments.join(" "), output.status);
        }
        let printed = String::from_utf8(output.stdout).context("read what it printed")?;
        Ok((printed, took))
    }
}
