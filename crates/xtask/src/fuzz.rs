//! `cargo xtask fuzz`: what strangers may send, made up by libFuzzer from `fuzz/corpus`.
//!
//! In: a target, or none for all. Out: an error at the first input that is not borne; the input is in
//! `target/fuzz/artifacts`. What is found new meanwhile is kept in `target/fuzz/corpus`, so that the next
//! run goes on there. Nothing is installed: what is missing is said.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

/// What to run, and for how long.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// One of `fuzz/fuzz_targets`; all of them if left out.
    target: Option<String>,
    /// For each of them.
    #[arg(long, value_name = "N", default_value_t = 300)]
    seconds: u32,
}

/// As large as what is kept in the corpus may be.
const LONGEST_INPUT: u64 = 4095;

/// Runs the targets, one after another.
pub fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let all = targets(&workspace.root)?;
    let wanted = match &arguments.target {
        None => all,
        Some(target) if all.contains(target) => vec![target.clone()],
        Some(target) => bail!("there is no fuzz target {target:?}, only {}", all.join(", ")),
    };
    if !process::works(workspace.cargo().args(["fuzz", "--version"])) {
        bail!("cargo-fuzz is missing: run `cargo install cargo-fuzz`");
    }
    if !process::works(Command::new("c++").arg("--version")) {
        bail!("a C++ compiler, for libFuzzer, is missing: run `apt-get install g++`");
    }
    for target in wanted {
        run_one(workspace, &target, arguments.seconds)?;
    }
    Ok(())
}

fn run_one(workspace: &Workspace, target: &str, seconds: u32) -> Result<()> {
    let place = workspace.target.join("fuzz");
    let (found, artifacts) = (place.join("corpus").join(target), place.join("artifacts").join(target));
    for dir in [&found, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    let mut cargo = workspace.cargo();
    // Coverage counters are unstable flags of the stable compiler. The guest's binary, which the daemon
    // carries, is not what is looked at.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("HEARTH_AGENT", "/dev/null");
    cargo.args(["fuzz", "run", "--sanitizer", "none", "--codegen-units", "16", "--target-dir"]).arg(&place);
    cargo.arg(target).arg(&found).arg(workspace.root.join("fuzz/corpus").join(target)).arg("--");
    cargo.args([format!("-max_total_time={seconds}"), format!("-max_len={LONGEST_INPUT}")]);
    cargo.args(["-timeout=10", "-rss_limit_mb=2048", "-print_final_stats=1"]);
    cargo.arg(format!("-artifact_prefix={}/", artifacts.display()));
    process::run(&mut cargo).with_context(|| {
        format!(
            "{target} did not bear what is in {}: mend it, and put the input under a name that says what it is \
             into fuzz/corpus/{target}, where ordinary tests replay it",
            artifacts.display()
        )
    })
}

/// The names of all targets.
fn targets(root: &Path) -> Result<Vec<String>> {
    let dir = root.join("fuzz/fuzz_targets");
    let files = fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))?;
    let mut names = Vec::new();
    for file in files {
        let path = file.with_context(|| format!("list {}", dir.display()))?.path();
        names.extend(path.file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_target_can_be_run_and_has_a_small_corpus_that_tests_replay() {
        let workspace = Workspace::load().expect("ours");
        let manifest = fs::read_to_string(workspace.root.join("fuzz/Cargo.toml")).expect("a manifest");
        let targets = targets(&workspace.root).expect("some");
        assert!(targets.len() >= 7, "{targets:?}");
        let mut all = 0;
        for target in &targets {
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target} is not in fuzz/Cargo.toml");
            let corpus = workspace.root.join("fuzz/corpus").join(target);
            for file in fs::read_dir(&corpus).expect("a corpus") {
                let file = file.expect("listed");
                let bytes = file.metadata().expect("looked at").len();
                assert!(bytes <= LONGEST_INPUT, "{}: {bytes} bytes", file.path().display());
                all += bytes;
            }
        }
        assert!(all < 300 << 10, "the corpora have {all} bytes");
    }
}
