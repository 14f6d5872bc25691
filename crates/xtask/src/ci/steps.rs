//! Runs steps one after another and remembers how each ended and how long it took.
//!
//! In: names and functions. Out: headings while they run, a table and a verdict afterwards.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How a step ended that did not fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It did what it is for.
    Passed,
    /// There was nothing to do it with.
    NotRun(String),
}

/// The steps so far.
#[derive(Debug)]
pub struct Steps<'a> {
    only: &'a [String],
    done: Vec<Step>,
    left_out: Vec<&'static str>,
}

#[derive(Debug)]
struct Step {
    name: &'static str,
    took: Duration,
    outcome: Result<Outcome>,
}

impl<'a> Steps<'a> {
    /// With `only` these, or all if it is empty.
    pub fn new(only: &'a [String]) -> Self {
        Self { only, done: Vec::new(), left_out: Vec::new() }
    }

    /// Runs a step under its heading, if it is wanted.
    pub fn run(&mut self, name: &'static str, step: impl FnOnce() -> Result<Outcome>) {
        if !self.only.is_empty() && !self.only.iter().any(|wanted| wanted == name) {
            self.left_out.push(name);
            return;
        }
        println!("\n=== {name} ===");
        let start = Instant::now();
        let outcome = step();
        let took = start.elapsed();
        match &outcome {
            Ok(Outcome::Passed) => println!("--- {name}: passed in {}", seconds(took)),
            Ok(Outcome::NotRun(reason)) => println!("--- {name}: NOT RUN: {reason}"),
            Err(error) => println!("--- {name}: FAILED after {}: {error:#}", seconds(took)),
        }
        self.done.push(Step { name, took, outcome });
    }

    /// One line for each step.
    pub fn table(&self) -> String {
        let mut table = "\n=== summary ===\n".to_owned();
        for Step { name, took, outcome } in &self.done {
            let (word, remark) = match outcome {
                Ok(Outcome::Passed) => ("passed", String::new()),
                Ok(Outcome::NotRun(reason)) => ("NOT RUN", reason.clone()),
                Err(error) => ("FAILED", format!("{error:#}")),
            };
            let remark = remark.lines().next().unwrap_or_default();
            let row = format!("{name:<12} {word:<8} {:>9}  {remark}", seconds(*took));
            let _infallible = writeln!(table, "{}", row.trim_end());
        }
        table
    }

    /// Fails if a step failed, or if a name that was asked for is none.
    pub fn verdict(&self) -> Result<()> {
        let unknown: Vec<&str> = self
            .only
            .iter()
            .filter(|name| !self.done.iter().any(|step| step.name == name.as_str()))
            .map(String::as_str)
            .collect();
        if !unknown.is_empty() {
            bail!("there is no step {}; there are {}", unknown.join(", "), self.left_out.join(", "));
        }
        let failed: Vec<&str> = self.done.iter().filter(|step| step.outcome.is_err()).map(|step| step.name).collect();
        if !failed.is_empty() {
            bail!("{} of {} steps failed: {}", failed.len(), self.done.len(), failed.join(", "));
        }
        println!("\nno step failed");
        Ok(())
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn a_failed_step_does_not_stop_the_others_but_fails_the_run() {
        let mut steps = Steps::new(&[]);
        let mut ran = 0;
        steps.run("one", || Err(anyhow!("broken\nhint: mend it")));
        steps.run("two", || Ok(Outcome::NotRun("nothing there".to_owned())));
        steps.run("three", || {
            ran += 1;
            Ok(Outcome::Passed)
        });
        assert_eq!(ran, 1);
        let table = steps.table();
        let rows: Vec<Vec<&str>> = table.lines().skip(2).map(|row| row.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["one", "FAILED", "0.0", "s", "broken"]);
        assert_eq!(rows[1], ["two", "NOT", "RUN", "0.0", "s", "nothing", "there"]);
        assert_eq!(rows[2], ["three", "passed", "0.0", "s"]);
        assert_eq!(steps.verdict().expect_err("one failed").to_string(), "1 of 3 steps failed: one");
    }

    #[test]
    fn only_the_steps_that_were_asked_for_run() {
        let only = ["two".to_owned()];
        let mut steps = Steps::new(&only);
        steps.run("one", || unreachable!("not asked for"));
        steps.run("two", || Ok(Outcome::Passed));
        steps.verdict().expect("two passed");

        let only = ["tow".to_owned()];
        assert!(Steps::new(&only).verdict().is_err());
    }
}
