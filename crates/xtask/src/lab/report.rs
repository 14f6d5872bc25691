//! How the lab's stories ended: told while they run, and in a table at the end.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::lab::stories::{self, Mark, Story};

/// What libtest says when it has found the test that it was asked for.
const FOUND: &str = "running 1 test";

/// What is known so far.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    times: u32,
    /// When the host was started; then, when the first story began.
    started: Instant,
    up_after: Option<Duration>,
    told: Option<Told>,
    wanted: usize,
    ended: usize,
}

/// One story, over all the times that it is told.
#[derive(Debug)]
struct Row {
    name: &'static str,
    took: Vec<Duration>,
    failed: Vec<String>,
}

/// The story that is being told.
#[derive(Debug)]
struct Told {
    name: String,
    began: Instant,
    found: bool,
}

impl Report {
    /// Nothing is told yet.
    pub fn new(stories: &[&Story], times: u32) -> Self {
        let row = |story: &&Story| Row { name: story.name, took: Vec::new(), failed: Vec::new() };
        let wanted = stories.len() * usize::try_from(times).unwrap_or(usize::MAX);
        let rows = stories.iter().map(row).collect();
        Self { rows, times, started: Instant::now(), up_after: None, told: None, wanted, ended: 0 }
    }

    /// Takes a line that the lab's host printed; what to show of it.
    pub fn look(&mut self, line: &str) -> Option<String> {
        if let Some((before, after)) = line.split_once(stories::ALIVE) {
            let rest = format!("{before}{after}");
            return if rest.is_empty() { None } else { self.look(&rest) };
        }
        match stories::mark(line) {
            Some(Mark::Begin(name)) => {
                let up = *self.up_after.get_or_insert_with(|| self.started.elapsed());
                let host = if self.ended == 0 {
                    format!("the lab's host is up after {}\n", seconds(up))
                } else {
                    String::new()
                };
                self.told = Some(Told { name: name.to_owned(), began: Instant::now(), found: false });
                Some(format!("{host}[{}/{}] {name}", self.ended + 1, self.wanted))
            }
            Some(Mark::End(name, status)) => Some(self.end(name, status)),
            None => {
                if let Some(told) = self.told.as_mut().filter(|_| line.starts_with(FOUND)) {
                    told.found = true;
                }
                // The frame that libtest puts around one test says nothing.
                let frame = line.is_empty() || line.starts_with(FOUND) || line.starts_with("test result: ok");
                (!frame).then(|| format!("    {line}"))
            }
        }
    }

    fn end(&mut self, name: &str, status: i32) -> String {
        self.ended += 1;
        let Some(told) = self.told.take().filter(|told| told.name == name) else {
            return format!("    {name} ended without having begun");
        };
        let took = told.began.elapsed();
        let reason = match (status, told.found) {
            (0, true) => None,
            (0, false) => Some("there is no such story".to_owned()),
            (124 | 137, _) => Some("it did not end in time".to_owned()),
            (status, _) => Some(format!("exit status {status}")),
        };
        let word = reason.as_ref().map_or_else(|| "ok".to_owned(), |reason| format!("FAILED: {reason}"));
        if let Some(row) = self.rows.iter_mut().find(|row| row.name == name) {
            row.took.push(took);
            row.failed.extend(reason);
        }
        format!("    {word}, {}", seconds(took))
    }

    /// How many stories were told to the end.
    pub fn ended(&self) -> usize {
        self.ended
    }

    /// Fails unless every story was told as often as it should, and well.
    pub fn verdict(&self, status: i32) -> Result<()> {
        let failed: Vec<&str> = self.rows.iter().filter(|row| !row.failed.is_empty()).map(|row| row.name).collect();
        if !failed.is_empty() {
            bail!("{} of {} stories failed in the lab: {}", failed.len(), self.rows.len(), failed.join(", "));
        }
        if self.ended < self.wanted {
            bail!("only {} of {} stories were told (exit status {status})", self.ended, self.wanted);
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n=== lab ===")?;
        let wide = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        for Row { name, took, failed } in &self.rows {
            let told = u32::try_from(took.len()).unwrap_or(u32::MAX);
            let well = took.len() - failed.len();
            let average = took.iter().sum::<Duration>().checked_div(told).map(seconds).unwrap_or_default();
            let word = if told == 0 {
                "NOT TOLD"
            } else if failed.is_empty() {
                "ok"
            } else {
                "FAILED"
            };
            let remark = failed.first().map_or("", String::as_str);
            let row = format!("{name:wide$}  {word:<8}  {well:>3}/{:<3} {average:>9}  {remark}", self.times);
            writeln!(f, "{}", row.trim_end())?;
        }
        Ok(())
    }
}

fn seconds(took: Duration) -> String {
    format!("{:.1} s", took.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORIES: [Story; 2] = [
        Story { name: "a::one", program: "stories", quick: true },
        Story { name: "a::two", program: "stories", quick: false },
    ];

    fn after(lines: &[&str]) -> Report {
        let mut report = Report::new(&STORIES.iter().collect::<Vec<_>>(), 1);
        for line in lines {
            report.look(line);
        }
        report
    }

    #[test]
    fn all_told_and_well_is_success() {
        let one = ["@lab begin a::one", "running 1 test", "test a::one ... ok", "@lab end a::one 0"];
        let two = ["@lab begin a::two", "running 1 test", "test a::two ... ok", "@lab end a::two 0"];
        after(&[one, two].concat()).verdict(0).expect("both were told");
        let error = after(&one).verdict(0).expect_err("one was not told");
        assert!(error.to_string().contains("only 1 of 2"), "{error}");
        assert!(after(&one).to_string().contains("a::two  NOT TOLD"), "{}", after(&one));
    }

    #[test]
    fn that_the_host_lives_is_not_shown() {
        let mut report = after(&["@lab begin a::one"]);
        assert_eq!(report.look("@lab alive"), None);
        assert_eq!(report.look("test a::one ... @lab alive").as_deref(), Some("    test a::one ... "));
    }

    #[test]
    fn a_story_that_fails_hangs_or_is_none_is_a_failure() {
        for (end, found, reason) in
            [(101, true, "exit status 101"), (124, true, "in time"), (0, false, "no such story")]
        {
            let lines = [
                "@lab begin a::one".to_owned(),
                if found { FOUND.into() } else { String::new() },
                format!("@lab end a::one {end}"),
            ];
            let report = after(&lines.iter().map(String::as_str).collect::<Vec<_>>());
            assert!(report.to_string().contains(reason), "{report}");
            let error = report.verdict(0).expect_err("it failed");
            assert!(error.to_string().contains("a::one"), "{error}");
        }
    }
}
