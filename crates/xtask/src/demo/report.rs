//! What the demo took: a list of steps, and ways to a running service side by side.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::demo::session::Counted;

/// Times, in the order in which they were taken.
#[derive(Debug, Default)]
pub struct Report {
    steps: Vec<(&'static str, Duration)>,
    ways: Vec<Way>,
}

/// One way to a running service.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    pub what: &'static str,
    /// From typing the command to its return.
    pub command: Duration,
    /// From typing it to the service's first answer.
    pub service: Duration,
    /// The operation alone, by the daemon's own clock.
    pub operation: Duration,
}

impl Report {
    /// Does a step and notes its time.
    pub fn step<T>(&mut self, name: &'static str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let began = Instant::now();
        let done = work()?;
        self.add(name, began.elapsed());
        Ok(done)
    }

    /// Notes a time.
    pub fn add(&mut self, name: &'static str, took: Duration) {
        self.steps.push((name, took));
    }

    /// Notes a way to a running service.
    pub fn way(&mut self, way: Way) {
        self.ways.push(way);
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wide = self.steps.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, took) in &self.steps {
            writeln!(f, "  {name:wide$}  {:>12}", time(*took))?;
        }
        let Some(first) = self.ways.first() else { return Ok(()) };
        writeln!(f)?;
        writeln!(f, "  {:22}{:>14}{:>18}{:>16}", "until", "it runs", "service answers", "daemon's time")?;
        for way in &self.ways {
            let Way { what, command, service, operation } = way;
            let [runs, answers, alone] = [command, service, operation].map(|took| time(*took));
            write!(f, "  {what:22}{runs:>14}{answers:>18}{alone:>16}")?;
            let times = first.command.as_secs_f64() / command.as_secs_f64().max(1e-6);
            writeln!(f, "{}", if times < 1.5 { String::new() } else { format!("   runs {times:.0} times sooner") })?;
        }
        Ok(())
    }
}

/// Who has counted how far.
pub fn answers(answers: &[Counted]) -> String {
    answers.iter().map(|answer| format!("  {:10}{:>4}\n", answer.hostname, answer.counter)).collect()
}

/// As people read it: `83 ms`, `3.41 s`, `2 min 5 s`.
pub fn time(took: Duration) -> String {
    let seconds = took.as_secs_f64();
    match seconds {
        ..0.01 => format!("{:.1} ms", seconds * 1000.0),
        ..1.0 => format!("{:.0} ms", seconds * 1000.0),
        ..60.0 => format!("{seconds:.2} s"),
        _ => format!("{} min {} s", took.as_secs() / 60, took.as_secs() % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_as_exact_as_they_are_of_use() {
        let says = [1.5, 83.0, 3412.0, 125_000.0].map(|ms| time(Duration::from_secs_f64(ms / 1000.0)));
        assert_eq!(says, ["1.5 ms", "83 ms", "3.41 s", "2 min 5 s"]);
    }

    #[test]
    fn ways_are_compared_with_the_first() {
        let mut report = Report::default();
        report.add("build", Duration::from_secs(90));
        for (what, ms) in [("cold boot", 4000), ("restore", 80)] {
            let took = Duration::from_millis(ms);
            report.way(Way { what, command: took, service: took, operation: took });
        }
        let text = report.to_string();
        assert!(text.contains("build") && text.contains("1 min 30 s"), "{text}");
        assert!(text.contains("runs 50 times sooner") && !text.contains(" 1 times"), "{text}");
    }
}
