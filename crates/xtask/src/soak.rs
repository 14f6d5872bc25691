//! `cargo xtask soak`: thousands of random operations by several clients on simulated VMMs, with faults,
//! against a model.
//!
//! In: how long, how many clients, and a seed. Out: a line of figures, or the round in which the daemon
//! and the model did not agree. The soak itself is the test `soak` of the crate `e2e`; this builds what
//! it runs, and starts it.

use std::process::Command;

use anyhow::Result;

use crate::build;
use crate::ci::skips::Skips;
use crate::ci::steps::Outcome;
use crate::process;
use crate::workspace::Workspace;

/// How long it takes in `cargo xtask ci`, and from which seed.
const SHORT_S: u64 = 25;
const SHORT_SEED: u64 = 1;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Draw the same operations and faults as a run that has said this number.
    #[arg(long)]
    seed: Option<u64>,
    /// How long.
    #[arg(long, default_value_t = 10)]
    minutes: u64,
    /// How many clients ask at once.
    #[arg(long, default_value_t = 4)]
    clients: u64,
    /// End after so many rounds, if that is sooner.
    #[arg(long)]
    rounds: Option<u64>,
}

/// Runs it.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let mut soak = soak(workspace, arguments.minutes * 60)?;
    soak.env("HEARTH_SOAK_CLIENTS", arguments.clients.to_string());
    soak.envs(arguments.seed.map(|seed| ("HEARTH_TEST_SEED", seed.to_string())));
    soak.envs(arguments.rounds.map(|rounds| ("HEARTH_SOAK_ROUNDS", rounds.to_string())));
    process::run(&mut soak)
}

/// A short one, the same each time.
pub fn run_short(workspace: &Workspace, skips: &mut Skips) -> Result<Outcome> {
    let mut soak = soak(workspace, SHORT_S)?;
    soak.env("HEARTH_TEST_SEED", SHORT_SEED.to_string());
    process::run_and_look(&mut soak, |line| skips.look("soak", line))?;
    Ok(Outcome::Passed)
}

fn soak(workspace: &Workspace, seconds: u64) -> Result<Command> {
    let hearth = build::hearth(workspace, false)?;
    process::run(workspace.cargo().args(["build", "--package", "hearth-simulated"]))?;
    let mut soak = workspace.cargo();
    soak.args(["test", "--package", "hearth-e2e", "--test", "soak", "--", "--ignored", "--nocapture"]);
    soak.env("HEARTH_BIN", hearth);
    soak.env("HEARTH_SIMULATED_VMM", workspace.target.join("debug/hearth-simulated-vmm"));
    soak.env("HEARTH_SOAK_SECONDS", seconds.to_string());
    Ok(soak)
}
