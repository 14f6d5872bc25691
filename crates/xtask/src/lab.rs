//! `cargo xtask lab`: stories on real Firecracker with Linux guests, on an emulated host.
//!
//! In: this workspace, and a Firecracker from `HEARTH_FIRECRACKER` or `PATH`. Out: how each story
//! ended. The host is a machine that QEMU translates, with hardware virtualisation that it
//! emulates: it needs neither KVM nor the network, and everything in it is some twenty times slower
//! than on hardware. It is gone when the lab ends; what is kept between runs is what it is made of.
//!
//! ```text
//!   this machine ─► QEMU (TCG, with SVM) ─► Debian's kernel, kvm-amd ─► hearth ─► Firecracker ─► guest
//! ```

mod images;
mod machine;
mod programs;
mod report;
mod stories;

use std::env;
use std::fs::{self, File, TryLockError};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::slice;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::ci::skips::Skips;
use crate::ci::steps::Outcome;
use crate::interrupt::Interrupt;
use crate::lab::images::Images;
use crate::lab::machine::{Ended, Job};
use crate::lab::report::Report;
use crate::lab::stories::Story;
use crate::setup;
use crate::workspace::Workspace;

/// What to do there.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Stories, by a part of their names; all of the lab's if none is given.
    #[arg(value_name = "STORY")]
    stories: Vec<String>,
    /// Tell each so many times.
    #[arg(long, value_name = "N", default_value_t = 1)]
    times: u32,
    /// Something more in the environment of what is run there, as `HEARTH_FIRECRACKER_RESUME_ON_LOAD=0`.
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// A shell on the lab's host instead of stories; ends with `exit`.
    #[arg(long, conflicts_with_all = ["stories", "times", "command"])]
    shell: bool,
    /// List the lab's stories.
    #[arg(long, conflicts_with_all = ["stories", "times", "command", "shell"])]
    list: bool,
    /// A command on the lab's host instead of stories.
    #[arg(last = true, value_name = "CMD")]
    command: Vec<String>,
}

/// What the lab is told of a host with no Firecracker.
const NO_FIRECRACKER: &str = "no Firecracker: put one on PATH or name it in HEARTH_FIRECRACKER";

/// A command on the lab's host may take this long.
const COMMAND_LIMIT: Duration = Duration::from_secs(3600);
/// How often a host that broke is started anew, for each time that stories are told.
const RESTARTS: u32 = 2;
/// The lab's host starts within this.
const START_LIMIT: Duration = Duration::from_secs(180);

/// As asked for by hand: a host with no Firecracker is an error.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    if arguments.list {
        stories::ALL.iter().for_each(|story| println!("{}{}", story.name, if story.quick { "  (ci)" } else { "" }));
        return Ok(());
    }
    let chosen = stories::matching(&arguments.stories)?;
    let firecracker = firecracker().context(NO_FIRECRACKER)?;
    let lab = Lab::prepare(workspace, &firecracker, &arguments.variables)?;
    if arguments.shell {
        ensure!(std::io::stdin().is_terminal(), "a shell needs a terminal");
        return lab.shell();
    }
    let interrupt = Interrupt::watch()?;
    let done = if arguments.command.is_empty() {
        lab.tell(&chosen, arguments.times, || interrupt.check())
    } else {
        lab.command(&arguments.command)
    };
    // Whatever failed, it failed because of that.
    interrupt.check()?;
    done
}

/// The short selection, for `ci`, which says loudly where there is no Firecracker.
pub fn run_quick(workspace: &Workspace, skips: &mut Skips) -> Result<Outcome> {
    let Some(firecracker) = firecracker() else {
        println!("SKIPPED: {NO_FIRECRACKER}");
        skips.add("lab", NO_FIRECRACKER);
        return Ok(Outcome::NotRun(NO_FIRECRACKER.to_owned()));
    };
    let quick: Vec<&Story> = stories::ALL.iter().filter(|story| story.quick).collect();
    let lab = Lab::prepare(workspace, &firecracker, &[])?;
    if let Err(error) = lab.tell(&quick, 1, || Ok(())) {
        // What runs on an emulated host may break with it. It is told again, and not kept quiet.
        println!("FAILED ONCE: {error:#}\nall of it is told once more");
        lab.tell(&quick, 1, || Ok(()))?;
        skips.failed_once("lab", &error.to_string());
    }
    Ok(Outcome::Passed)
}

/// The Firecracker to put into the lab.
fn firecracker() -> Option<PathBuf> {
    match env::var_os("HEARTH_FIRECRACKER") {
        Some(given) => Some(PathBuf::from(given)).filter(|path| path.is_file()),
        None => setup::in_path("firecracker"),
    }
}

/// A host that is ready to be started, and its directory: `target/lab`.
#[derive(Debug)]
struct Lab {
    images: Images,
    place: PathBuf,
    /// What a shell there runs before anything else.
    environment: String,
    _lock: File,
}

impl Lab {
    fn prepare(workspace: &Workspace, firecracker: &Path, variables: &[(String, String)]) -> Result<Self> {
        setup::ensure_packages(&[setup::RUN, setup::MAKE_IMAGES])?;
        let kernel = workspace.target.join("hearth-kernel");
        setup::ensure_kernel(&kernel)?;
        let place = workspace.target.join("lab");
        fs::create_dir_all(&place).with_context(|| format!("make {}", place.display()))?;
        let lock = lock(&place)?;
        let programs = programs::build(workspace, firecracker)?;
        let images = Images::ensure(&place, &kernel, &programs)?;
        let more = variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(slice::from_ref(value))));
        let environment = stories::ENVIRONMENT.to_owned() + &more.collect::<String>();
        Ok(Self { images, place, environment, _lock: lock })
    }

    fn logs(&self) -> PathBuf {
        self.place.join("logs")
    }

    /// `may_go_on` fails when somebody has asked for the end: then a host that broke stays as it is.
    fn tell(&self, stories: &[&Story], times: u32, may_go_on: impl Fn() -> Result<()>) -> Result<()> {
        let mut report = Report::new(stories, times);
        let all = stories.repeat(usize::try_from(times).unwrap_or(usize::MAX));
        let mut ended = self.tell_these(&all, &mut report);
        for _ in 0..RESTARTS.saturating_mul(times) {
            let Ok(Ended::Broke(how)) = &ended else { break };
            if may_go_on().is_err() {
                break;
            }
            println!("BROKE: the lab's host: {how}\nit is started once more for the stories that are left");
            ended = self.tell_these(&all[report.ended()..], &mut report);
        }
        print!("{report}");
        let told = ended.and_then(|ended| match ended {
            Ended::Done(status) => report.verdict(status),
            Ended::Broke(how) => bail!("the lab's host broke again: {how}"),
        });
        match told {
            Ok(()) => Ok(()),
            Err(error) => Err(error.context(format!("the lab's logs are in {}", self.logs().display()))),
        }
    }

    fn tell_these(&self, stories: &[&Story], report: &mut Report) -> Result<Ended> {
        let limit = START_LIMIT + stories.iter().map(|story| story.limit()).sum::<Duration>();
        let job = Job {
            script: stories::script(&self.environment, stories),
            terminal: false,
            limit,
            silence: Some(START_LIMIT),
        };
        machine::run(&self.images, &self.place, &job, |line| report.look(line))
    }

    fn command(&self, command: &[String]) -> Result<()> {
        let script = format!("{}exec {}\n", self.environment, quoted(command));
        let job = Job { script, terminal: false, limit: START_LIMIT + COMMAND_LIMIT, silence: None };
        let ended = machine::run(&self.images, &self.place, &job, |line| Some(line.to_owned()))?;
        ensure!(ended == Ended::Done(0), "`{}`: {ended:?}", command.join(" "));
        Ok(())
    }

    fn shell(&self) -> Result<()> {
        println!("a shell on the lab's host; `exit` ends it. Programs are in /lab/bin, data in /lab/data.");
        let size = rustix::termios::tcgetwinsize(std::io::stdin()).context("ask for the terminal's size")?;
        let script = format!(
            "stty sane rows {} cols {}\nexport TERM={}\n{}exec bash\n",
            size.ws_row,
            size.ws_col,
            quoted(&[env::var("TERM").unwrap_or_else(|_| "linux".into())]),
            self.environment,
        );
        let job = Job { script, terminal: true, limit: Duration::MAX, silence: None };
        machine::run(&self.images, &self.place, &job, |_| None).map(drop)
    }
}

/// One lab at a time in a place: they share what is made there.
fn lock(place: &Path) -> Result<File> {
    let path = place.join("lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => bail!("another lab runs: {} is locked", path.display()),
        Err(TryLockError::Error(error)) => Err(anyhow!(error).context(format!("lock {}", path.display()))),
    }
}

/// `NAME=VALUE`, as an option gives it.
fn variable(given: &str) -> Result<(String, String), String> {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match given.split_once('=') {
        Some((name, value)) if is_name(name) => Ok((name.to_owned(), value.to_owned())),
        _ => Err("it wants NAME=VALUE".into()),
    }
}

/// As a shell takes the words unchanged.
fn quoted(words: &[String]) -> String {
    words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_shell_takes_quoted_words_unchanged() {
        let words = ["it's".to_owned(), "$HOME `x` \"y\"".to_owned(), String::new(), "a\nb".to_owned()];
        let script = format!("printf '%s|' {}", quoted(&words));
        let output = Command::new("sh").args(["-c", &script]).output().expect("a shell");
        assert_eq!(String::from_utf8_lossy(&output.stdout), words.join("|") + "|");
    }

    #[test]
    fn a_variable_is_a_name_and_a_value() {
        assert_eq!(variable("A_1=b=c"), Ok(("A_1".into(), "b=c".into())));
        for wrong in ["", "A", "=b", "1A=b", "A;rm=b"] {
            assert!(variable(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn one_lab_at_a_time() {
        let place = tempfile::tempdir().expect("a directory");
        let lab = lock(place.path()).expect("free");
        assert!(lock(place.path()).is_err());
        drop(lab);
        lock(place.path()).expect("free again");
    }
}
