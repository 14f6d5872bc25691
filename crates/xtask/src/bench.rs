//! `cargo xtask bench`: what Hearth takes beside what the bare VMM takes, in one run.
//!
//! In: what to measure, and how often. Out: a table with medians and percentiles, the targets and
//! whether they hold, and JSON for programs. Product and floor take turns, so that both meet the
//! same host; believe the ratios more than the times. Everything that it starts or makes is gone
//! when it ends.

mod api;
mod figures;
mod firecracker;
mod floor;
mod ground;
mod guest;
mod http;
mod memory;
mod qmp;
mod restore;
mod snapshot;

use std::env;
use std::fs::{self, File, TryLockError};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::bench::figures::Figures;
use crate::bench::ground::{FileSystem, Ground, Wanted};
use crate::build;
use crate::interrupt::Interrupt;
use crate::process;
use crate::setup;
use crate::workspace::Workspace;

/// What to measure, and how.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// What to measure.
    #[arg(value_enum, default_value_t = What::All)]
    what: What,
    /// How often.
    #[arg(short, default_value_t = NonZeroUsize::new(20).expect("not zero"))]
    n: NonZeroUsize,
    /// How many restores or forks at a time.
    #[arg(short, default_value_t = NonZeroUsize::MIN)]
    concurrency: NonZeroUsize,
    /// What runs the guests.
    #[arg(long, default_value = "qemu-microvm", value_parser = ["qemu-microvm", "qemu", firecracker::BACKEND])]
    backend: String,
    /// Write the figures there, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// From standby to an agent that answered, and where the time goes.
    Restore,
    /// The same for a new instance of a bundle, and the private memory of ten.
    Fork,
    /// Standby and snapshots, of a booted guest and of a fork.
    Snapshot,
    /// The daemon with 200 instances, and how fast the command line answers.
    Api,
    /// All of it.
    All,
}

/// What all measurements are told.
#[derive(Debug, Clone, Copy)]
struct Often<'a> {
    n: usize,
    concurrency: usize,
    interrupt: &'a Interrupt,
}

/// On what it was measured.
#[derive(Debug, Serialize)]
struct Machine {
    cpus: usize,
    cpu: String,
    kernel: String,
    /// Name and version.
    vmm: String,
    accel: String,
    backend: String,
    /// Of the last minute before; more than a little makes all figures worthless.
    load: String,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    machine: &'a Machine,
    #[serde(flatten)]
    figures: &'a Figures,
}

/// Measures.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let interrupt = Interrupt::watch()?;
    let _alone = alone(&workspace.target)?;
    setup::ensure_packages(&[setup::RUN, setup::BENCH])?;
    let bare = arguments.backend == firecracker::BACKEND;
    if bare {
        setup::ensure_packages(&[setup::GUEST])?;
    } else {
        setup::ensure_kernel(&workspace.target.join("hearth-kernel"))?;
    }
    let hearth = match env::var_os("HEARTH_BIN") {
        Some(another) => PathBuf::from(another),
        None => build::hearth(workspace, true)?,
    };
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();

    let mut figures = Figures::default();
    let often = Often { n: arguments.n.get(), concurrency: arguments.concurrency.get(), interrupt: &interrupt };
    let measured = match bare {
        true => firecracker::measure(workspace, arguments.what, &hearth, often, &mut figures),
        false => measure(workspace, arguments, &hearth, often, &mut figures).map(|accel| (qemu_version(), accel)),
    };
    interrupt.check()?;
    let (vmm, accel) = measured?;

    let machine = Machine::this(&arguments.backend, vmm, accel, &load)?;
    println!("\n{machine}\n\n{figures}");
    if let Some(path) = &arguments.json {
        let json = serde_json::to_string_pretty(&Report { machine: &machine, figures: &figures })?;
        fs::write(path, json + "\n").with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

/// Held while a bench runs: two would take each other's time, and each other's directory.
fn alone(target: &Path) -> Result<File> {
    fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
    let path = target.join("bench.lock");
    let lock = File::create(&path).with_context(|| format!("make {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            bail!(
                "another bench runs ({} is locked), and two would measure each other; wait for its end",
                path.display()
            )
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}

/// Takes the measurements that are asked for; how vCPUs were executed.
fn measure(
    workspace: &Workspace,
    arguments: &Arguments,
    hearth: &Path,
    often: Often<'_>,
    figures: &mut Figures,
) -> Result<String> {
    let wanted = |what| arguments.what == What::All || arguments.what == what;
    let plain = Ground::new(workspace, hearth, Wanted::usual(FileSystem::Plain, &arguments.backend))?;
    let accel = plain.accel()?;
    if wanted(What::Restore) {
        restore::restore(&plain, often, figures).context("measure restore")?;
    }
    if wanted(What::Fork) {
        restore::fork(&plain, often, figures).context("measure fork")?;
        memory::of_forks(&plain, often, figures).context("measure the memory of forks")?;
    }
    if wanted(What::Snapshot) {
        snapshot::of_a_booted_guest(&plain, often, figures).context("measure snapshots")?;
        snapshot::of_a_fork(&plain, FileSystem::Plain, often, figures).context("measure standby of a fork")?;
    }
    if wanted(What::Api) {
        api::with_many_instances(&plain, often, figures).context("measure the API")?;
    }
    drop(plain);
    if wanted(What::Snapshot) {
        match Ground::new(workspace, hearth, Wanted::usual(FileSystem::Reflink, &arguments.backend)) {
            Ok(reflink) => {
                snapshot::of_a_fork(&reflink, FileSystem::Reflink, often, figures).context("measure on XFS")?;
            }
            Err(error) => figures.skip("standby with reflink", &format!("there is no XFS to be had: {error:#}")),
        }
    }
    Ok(accel)
}

fn qemu_version() -> String {
    let said = process::stdout_of(Command::new("qemu-system-x86_64").arg("--version")).unwrap_or_default();
    format!("QEMU {}", said.split_whitespace().nth(3).unwrap_or("of unknown version"))
}

impl Often<'_> {
    /// Says how far it is, and whether to go on.
    fn tick(&self, what: &str, done: usize) -> Result<()> {
        self.interrupt.check()?;
        if done.is_multiple_of(5) {
            eprintln!("{what}: {done} of {}", self.n);
        }
        Ok(())
    }
}

impl Machine {
    fn this(backend: &str, vmm: String, accel: String, load: &str) -> Result<Self> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").context("read /proc/cpuinfo")?;
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        Ok(Self {
            cpus: std::thread::available_parallelism().context("count the processors")?.get(),
            cpu: model.map_or("unknown", |(_, name)| name).to_owned(),
            kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
            vmm,
            accel,
            backend: backend.to_owned(),
            load: load.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cpus, cpu, kernel, vmm, accel, backend, load } = self;
        write!(f, "{cpus} CPUs ({cpu}), Linux {kernel}, {vmm}, {backend} under {accel}, load before: {load}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_bench_is_refused_until_the_first_has_ended() {
        let target = tempfile::tempdir().expect("a directory");
        let first = alone(target.path()).expect("nobody else is there");
        let refused = alone(target.path()).expect_err("the first runs").to_string();
        assert!(refused.contains("another bench runs"), "{refused}");
        drop(first);
        alone(target.path()).expect("the first has ended");
    }
}
