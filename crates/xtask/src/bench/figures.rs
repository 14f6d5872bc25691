//! Numbers: what was measured, how often, and what is asked of it.
//!
//! In: samples. Out: medians and percentiles, the table for people, JSON for programs.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// Samples of one thing, smallest first.
#[derive(Debug, Clone, Default)]
pub struct Samples {
    sorted: Vec<f64>,
}

/// One row: what was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    pub what: String,
    pub unit: &'static str,
    pub n: usize,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
}

/// What is asked, and what was found.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    pub what: String,
    pub asked: String,
    pub found: String,
    pub holds: bool,
}

/// How the medians of two figures compare.
#[derive(Debug, Clone, Serialize)]
pub struct Ratio {
    pub what: String,
    pub found: f64,
    pub of: String,
}

/// Everything that a run found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Figures {
    pub figures: Vec<Figure>,
    pub targets: Vec<Target>,
    pub ratios: Vec<Ratio>,
    /// What could not be measured here, and why.
    pub skipped: Vec<String>,
}

impl Samples {
    pub fn push(&mut self, value: f64) {
        let at = self.sorted.partition_point(|known| *known <= value);
        self.sorted.insert(at, value);
    }

    pub fn time(&mut self, took: Duration) {
        self.push(took.as_secs_f64() * 1000.0);
    }

    pub fn len(&self) -> usize {
        self.sorted.len()
    }

    pub fn median(&self) -> f64 {
        self.percentile(50)
    }

    /// The smallest sample that is not below `percent` percent of all; 0 of none.
    pub fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.sorted.len() * percent).div_ceil(100).max(1);
        self.sorted.get(rank - 1).copied().unwrap_or(0.0)
    }

    fn figure(&self, what: &str, unit: &'static str) -> Figure {
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        Figure {
            what: what.to_owned(),
            unit,
            n: self.len(),
            p50: round(self.percentile(50)),
            p90: round(self.percentile(90)),
            p99: round(self.percentile(99)),
        }
    }
}

impl Figures {
    /// Times, in milliseconds.
    pub fn times(&mut self, what: &str, samples: &Samples) {
        self.figures.push(samples.figure(what, "ms"));
    }

    /// Sizes, in MiB.
    pub fn sizes(&mut self, what: &str, samples: &Samples) {
        self.figures.push(samples.figure(what, "MiB"));
    }

    /// How many.
    pub fn counts(&mut self, what: &str, samples: &Samples) {
        self.figures.push(samples.figure(what, "×"));
    }

    pub fn target(&mut self, what: &str, asked: impl Into<String>, found: impl Into<String>, holds: bool) {
        self.targets.push(Target { what: what.to_owned(), asked: asked.into(), found: found.into(), holds });
    }

    /// How the medians of two things compare: nothing is asked of them.
    pub fn ratio(&mut self, what: &str, dividend: &Samples, divisor: &Samples) {
        let (over, under) = (dividend.median(), divisor.median());
        let found = over / under.max(0.001);
        self.ratios.push(Ratio { what: what.to_owned(), found, of: format!("{over:.1} : {under:.1} ms") });
    }

    pub fn skip(&mut self, what: &str, why: &str) {
        eprintln!("SKIPPED: {what}: {why}");
        self.skipped.push(format!("{what}: {why}"));
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = self.figures.iter().map(|figure| figure.what.chars().count()).max().unwrap_or(0);
        writeln!(f, "| {:wide$} |   n | median |    p90 |    p99 | unit |", "measured")?;
        writeln!(f, "| {} | --: | -----: | -----: | -----: | ---- |", "-".repeat(wide))?;
        for figure in &self.figures {
            let Figure { what, unit, n, p50, p90, p99 } = figure;
            let number = |value: &f64| if *value < 9.995 { format!("{value:.2}") } else { format!("{value:.1}") };
            let [p50, p90, p99] = [p50, p90, p99].map(number);
            writeln!(f, "| {what:wide$} | {n:3} | {p50:>6} | {p90:>6} | {p99:>6} | {unit:4} |")?;
        }
        if !self.targets.is_empty() {
            let column = |of: fn(&Target) -> &String| {
                self.targets.iter().map(|target| of(target).chars().count()).max().unwrap_or(0)
            };
            let (what, asked, found) = (column(|t| &t.what), column(|t| &t.asked), column(|t| &t.found));
            writeln!(f, "\n| {:what$} | {:asked$} | {:found$} | holds |", "target", "asked", "found")?;
            writeln!(f, "| {} | {} | {} | ----- |", "-".repeat(what), "-".repeat(asked), "-".repeat(found))?;
            for target in &self.targets {
                let holds = if target.holds { "yes" } else { "NO" };
                writeln!(
                    f,
                    "| {:what$} | {:asked$} | {:found$} | {holds:5} |",
                    target.what, target.asked, target.found
                )?;
            }
        }
        if !self.ratios.is_empty() {
            let wide = self.ratios.iter().map(|ratio| ratio.what.chars().count()).max().unwrap_or(0);
            writeln!(f, "\n| {:wide$} | ratio | of medians |", "compared")?;
            writeln!(f, "| {} | ----: | ---------- |", "-".repeat(wide))?;
            for Ratio { what, found, of } in &self.ratios {
                writeln!(f, "| {what:wide$} | {found:5.2} | {of} |")?;
            }
        }
        for skipped in &self.skipped {
            writeln!(f, "\nnot measured: {skipped}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        for value in [5.0, 1.0, 4.0, 2.0, 3.0] {
            samples.push(value);
        }
        assert_eq!([0, 50, 90, 99].map(|percent| samples.percentile(percent)), [1.0, 3.0, 5.0, 5.0]);
        assert_eq!(Samples::default().median(), 0.0);
        let mut hundred = Samples::default();
        (1..=100).for_each(|value| hundred.push(f64::from(value)));
        assert_eq!([50, 90, 99].map(|percent| hundred.percentile(percent)), [50.0, 90.0, 99.0]);
    }
}
