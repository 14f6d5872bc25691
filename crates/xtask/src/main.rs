//! `cargo xtask`: everything that is done *to* this repository rather than with Hearth.
//!
//! In: a command. Out: its exit code. One file per command; to add one, add a file with
//! `pub fn run` and a variant here. Nothing of Hearth itself may depend on this crate.

mod apt;
mod bench;
mod build;
mod ci;
mod daemon;
mod debian;
mod demo;
mod deps;
mod fuzz;
mod interrupt;
mod lab;
mod oci;
mod process;
mod setup;
mod soak;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::workspace::Workspace;

/// Build, check and try out Hearth.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure restore, fork, snapshot and the API beside the bare VMM.
    Bench(bench::Arguments),
    /// Build `hearth` complete, with the guest agent in it.
    Build(build::Arguments),
    /// Run every check and test, as `.ci/run` does.
    Ci(ci::Arguments),
    /// Show one service from an OCI image to ten forks; installs what is missing.
    Demo,
    /// Check who depends on whom, where `unsafe` is, and that each file says what it is for.
    Deps,
    /// Make up what strangers may send, and see that it is borne.
    Fuzz(fuzz::Arguments),
    /// Tell stories on real Firecracker with Linux guests, on an emulated host.
    Lab(lab::Arguments),
    /// Random operations by several clients on simulated VMMs, with faults, against a model.
    Soak(soak::Arguments),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = Workspace::load().and_then(|workspace| match arguments.command {
        Command::Bench(arguments) => bench::run(&workspace, &arguments),
        Command::Build(arguments) => build::run(&workspace, &arguments),
        Command::Ci(arguments) => ci::run(&workspace, &arguments),
        Command::Demo => demo::run(&workspace),
        Command::Deps => deps::run(&workspace),
        Command::Fuzz(arguments) => fuzz::run(&workspace, &arguments),
        Command::Lab(arguments) => lab::run(&workspace, &arguments),
        Command::Soak(arguments) => soak::run(&workspace, &arguments),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
