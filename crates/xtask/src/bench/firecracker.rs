//! Firecracker on this host's own KVM: restore, fork and snapshot of a guest without a kernel.
//!
//! ```text
//!   product  POST …/restore ─► [start vmm, open, files, await vmm, load] ─► answer
//!   floor                           spawn ─► socket ─► PUT /snapshot/load ─► 204
//! ```
//! The guest writes to its serial port and touches its pages at a timer's tick: it runs wherever
//! `/dev/kvm` opens, and has no agent. So a restore ends where the guest runs again: end points A
//! (the load has returned) and B (resumed), and no C or D.

mod floor;
mod loads;
mod netns;
mod race;
mod readiness;
mod snapshot;

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use hearth_simulated::guest::{self, After, Params};

use crate::bench::figures::Figures;
use crate::bench::ground::{FileSystem, Ground, Wanted};
use crate::bench::{Often, What};
use crate::process;
use crate::workspace::Workspace;

/// Its name for the API.
pub const BACKEND: &str = "firecracker";

/// 4 MiB: with what the VMM itself writes, far below the 16 MiB that a guest just booted may have
/// touched. It goes on touching one of them at a time, and takes next to nothing of a CPU.
const GUEST: Params = Params { pages: 1024, stride: 1, step: 1, per_tick: 1, hz: 20, after: After::Count };

/// `network.pool` of a daemon that is told nothing.
const POOL: usize = 8;

/// As the product does by itself. The floor is told the same.
const TRACK_DIRTY_PAGES: bool = true;

/// What the grounds of one run have in common.
#[derive(Debug)]
struct Setting<'a> {
    workspace: &'a Workspace,
    hearth: &'a Path,
    program: PathBuf,
    kernel: PathBuf,
    /// How many slots of the network wait: as many as are taken at a time, and no fewer than by default.
    pool: usize,
}

/// Takes the measurements that are asked for; Firecracker's version, and how vCPUs are executed.
pub fn measure(
    workspace: &Workspace,
    what: What,
    hearth: &Path,
    often: Often<'_>,
    figures: &mut Figures,
) -> Result<(String, String)> {
    let dir = workspace.target.join("bench-guest");
    std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
    let kernel = guest::assemble(&dir, &GUEST).context("make the guest")?;
    let program = env::var_os("HEARTH_FIRECRACKER").map_or_else(|| BACKEND.into(), PathBuf::from);
    let version = process::stdout_of(Command::new(&program).arg("--version"))
        .context("there is no Firecracker: put one on PATH or name it in HEARTH_FIRECRACKER")?;
    let version = version.lines().next().unwrap_or_default().replace(" v", " ");
    let setting = Setting { workspace, hearth, program, kernel, pool: often.concurrency.max(POOL) };

    let wanted = |one| what == What::All || what == one;
    let plain = setting.ground("bench", FileSystem::Plain, "256MB", &[])?;
    // Says why, where it cannot be used.
    plain.accel()?;
    if wanted(What::Restore) {
        race::restore(&plain, often, figures).context("measure restore")?;
        readiness::after_listening(&plain, &workspace.target.join("bench-tracefs"), often, figures)
            .context("measure readiness")?;
        loads::waiting_and_tracking(&plain, often, figures).context("measure loads")?;
        let closed = setting.ground("bench-two-step", FileSystem::Plain, "256MB", &[TWO_STEP])?;
        race::two_step(&plain, &closed, often, figures).context("measure loads in two steps")?;
    }
    if wanted(What::Fork) {
        race::fork(&plain, often, figures).context("measure fork")?;
    }
    drop(plain);
    if wanted(What::Fork) {
        match setting.ground("bench", FileSystem::Reflink, "256MB", &[]) {
            Ok(xfs) => race::fork_of_a_dirty_overlay(&xfs, often, figures).context("measure forks on XFS")?,
            Err(error) => figures.skip("fork with reflink", &format!("there is no XFS to be had: {error:#}")),
        }
    }
    if wanted(What::Snapshot) {
        let large = setting.ground("bench", FileSystem::Plain, "1GB", &[])?;
        snapshot::first_of_a_booted_guest(&large, &setting.kernel, often, figures).context("measure snapshots")?;
    }
    if what == What::Api {
        figures.skip("the API", "it is the same for every backend: measure it without --backend");
    }
    Ok((version, "KVM".to_owned()))
}

/// The escape hatch, closed.
const TWO_STEP: (&str, &str) = ("HEARTH_FIRECRACKER_RESUME_ON_LOAD", "0");

impl Setting<'_> {
    fn ground(
        &self,
        name: &'static str,
        on: FileSystem,
        size: &'static str,
        more: &[(&'static str, &str)],
    ) -> Result<Ground> {
        let mut settings = vec![
            ("HEARTH_KERNEL_IMAGE", self.kernel.clone().into_os_string()),
            ("HEARTH_KERNEL_INITRD", "none".into()),
            ("HEARTH_FIRECRACKER_PATH", self.program.clone().into_os_string()),
            // Whether this KVM runs Linux guests does not matter here.
            ("HEARTH_FIRECRACKER_KVM", "trust".into()),
            ("HEARTH_FIRECRACKER_TRACK_DIRTY_PAGES", TRACK_DIRTY_PAGES.to_string().into()),
            ("HEARTH_NETWORK_POOL", self.pool.to_string().into()),
        ];
        settings.extend(more.iter().map(|(name, value)| (*name, (*value).into())));
        let backend = BACKEND.to_owned();
        let wanted = Wanted { name, on, backend, settings, size, agent: false, pool: Some(self.pool) };
        Ground::new(self.workspace, self.hearth, wanted)
    }
}
