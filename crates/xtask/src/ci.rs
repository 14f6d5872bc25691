//! `cargo xtask ci`: every check and test, in order, with a table of the outcome.
//!
//! In: a clean clone on a Debian machine with a Rust toolchain. Out: success only if every step
//! succeeded. A failed step does not keep the later ones from running, so that one run shows
//! everything there is to repair.

mod monitoring;
mod schemathesis;
mod sdk;
pub mod skips;
pub mod steps;

use std::process::Command;

use anyhow::{Context, Result};

use crate::build;
use crate::ci::skips::Skips;
use crate::ci::steps::{Outcome, Steps};
use crate::deps;
use crate::lab;
use crate::process;
use crate::setup::{self, TestRunner};
use crate::soak;
use crate::workspace::Workspace;

/// What to run.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Only the steps with these names (see the table at the end of a run).
    #[arg(value_name = "STEP")]
    only: Vec<String>,
}

/// The name under which tests find the unpacked guest kernel.
const KERNEL_VARIABLE: &str = "HEARTH_TEST_KERNEL_DIR";

/// The name under which tests find Prometheus' tool.
const PROMTOOL_VARIABLE: &str = "HEARTH_PROMTOOL";

/// Runs the steps and reports.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let mut steps = Steps::new(&arguments.only);
    let mut skips = Skips::default();
    let kernel = workspace.target.join("hearth-kernel");

    steps.run("packages", || setup::ensure_packages(&[setup::RUN, setup::MAKE_IMAGES, setup::TEST]).map(passed));
    steps.run("kernel", || setup::ensure_kernel(&kernel).map(passed));
    steps.run("toolchain", || setup::ensure_cargo_parts(workspace).map(passed));
    let promtool = workspace.target.join("promtool");
    steps.run("monitoring", || match setup::ensure_promtool(&promtool) {
        Ok(promtool) => monitoring::run(workspace, &promtool).map(passed),
        Err(error) => {
            let reason = format!("promtool cannot be had: {error:#}");
            skips.add("monitoring", &reason);
            Ok(Outcome::NotRun(reason))
        }
    });
    let cargo = || workspace.cargo();
    steps.run("fmt", || process::run(cargo().args(["fmt", "--all", "--check"])).map(passed));
    steps.run("clippy", || {
        process::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])).map(passed)
    });
    steps.run("deps", || deps::run(workspace).map(passed));
    steps.run("doc", || {
        process::run(cargo().env("RUSTDOCFLAGS", "-D warnings").args(["doc", "--workspace", "--no-deps"])).map(passed)
    });
    steps.run("doctest", || process::run(cargo().args(["test", "--workspace", "--doc"])).map(passed));
    // Without a kernel, tests skip what needs one and say so.
    let kernel = Some(kernel).filter(|kernel| kernel.is_dir());
    let with_kernel = |mut command: Command| {
        command.envs(kernel.as_ref().map(|kernel| (KERNEL_VARIABLE, kernel)));
        command
    };
    let promtool = setup::promtool_in(&promtool);
    steps.run("test", || {
        let with_promtool = |mut command: Command| {
            command.envs(promtool.as_ref().map(|promtool| (PROMTOOL_VARIABLE, promtool)));
            with_kernel(command)
        };
        tests(workspace, with_promtool, &mut skips).map(passed)
    });
    steps.run("build", || build::hearth(workspace, false).map(|_| Outcome::Passed));
    steps.run("soak", || soak::run_short(workspace, &mut skips));
    steps.run("lab", || lab::run_quick(workspace, &mut skips));
    steps.run("sdk-python", || sdk::python(workspace, with_kernel, &mut skips));
    steps.run("sdk-node", || sdk::node(workspace, with_kernel, &mut skips));
    steps.run("schemathesis", || schemathesis::run(workspace, &mut skips));

    print!("{}{}", steps.table(), skips);
    steps.verdict()
}

fn passed((): ()) -> Outcome {
    Outcome::Passed
}

/// The Rust tests. Both runners hide what passing tests print, where skips are announced: nextest
/// keeps it in its report, cargo shows it on request.
fn tests(workspace: &Workspace, with_kernel: impl Fn(Command) -> Command, skips: &mut Skips) -> Result<()> {
    let mut cargo = with_kernel(workspace.cargo());
    match setup::test_runner(workspace) {
        TestRunner::Nextest => {
            let report = workspace.target.join("nextest/ci/junit.xml");
            if report.exists() {
                std::fs::remove_file(&report).with_context(|| format!("remove the old {}", report.display()))?;
            }
            let tested =
                process::run(cargo.args(["nextest", "run", "--workspace", "--profile", "ci", "--no-fail-fast"]));
            if let Ok(xml) = std::fs::read_to_string(&report) {
                skips.add_junit(&xml);
            } else if tested.is_ok() {
                skips.add("rust", &format!("nobody knows what was skipped: there is no {}", report.display()));
            }
            tested
        }
        TestRunner::Cargo => {
            let arguments = ["test", "--workspace", "--all-targets", "--no-fail-fast", "--", "--show-output"];
            process::run_and_look(cargo.args(arguments), |line| skips.look("rust", line))
        }
    }
}
