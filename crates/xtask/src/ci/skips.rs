//! Collects which tests were skipped and why, and what had to be told twice, so that a green run does
//! not hide it.
//!
//! In: what tests print (`SKIPPED: reason`; pytest's `SKIPPED [n] place: reason`) and nextest's
//! JUnit report. Out: one block, each reason once with the number of tests.

use std::collections::BTreeMap;
use std::fmt;

/// Reasons, with who gave them.
#[derive(Debug, Default)]
pub struct Skips {
    by_reason: BTreeMap<String, Vec<String>>,
    failed_once: Vec<String>,
}

impl Skips {
    /// Notes that `who` skipped something.
    pub fn add(&mut self, who: &str, reason: &str) {
        self.by_reason.entry(reason.trim().to_owned()).or_default().push(who.to_owned());
    }

    /// Notes that `who` failed, and is told again.
    pub fn failed_once(&mut self, who: &str, error: &str) {
        self.failed_once.push(format!("{who}: {error}"));
    }

    /// Notes the skip that this line of output announces, if it does.
    pub fn look(&mut self, who: &str, line: &str) {
        if let Some((_, reason)) = line.split_once("SKIPPED:") {
            self.add(who, reason);
        } else if let Some(rest) = line.trim_start().strip_prefix("SKIPPED [") {
            self.add(who, rest.split_once("] ").map_or(rest, |(_, reason)| reason));
        }
    }

    /// Notes the skips that tests announced in nextest's report.
    pub fn add_junit(&mut self, xml: &str) {
        let mut test = String::new();
        for line in xml.lines() {
            if let Some(name) = line.split_once("<testcase name=\"").and_then(|(_, rest)| rest.split('"').next()) {
                name.clone_into(&mut test);
            }
            self.look(&test, &plain(line));
        }
    }
}

/// Undoes what XML does to text, and drops the tag that ends it.
fn plain(line: &str) -> String {
    let text = line.split("</system-").next().unwrap_or(line);
    text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&apos;", "'").replace("&amp;", "&")
}

impl fmt::Display for Skips {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failure in &self.failed_once {
            writeln!(f, "\n!!! FAILED ONCE, and passed when it was told again: {failure} !!!")?;
        }
        if self.by_reason.is_empty() {
            return writeln!(f, "\nno test said that it was skipped");
        }
        let tests: usize = self.by_reason.values().map(Vec::len).sum();
        writeln!(f, "\n!!! {tests} SKIPPED on this machine !!!")?;
        for (reason, who) in &self.by_reason {
            writeln!(f, "{:>4} x {reason}  ({}{})", who.len(), who[0], if who.len() > 1 { ", …" } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skips_are_counted_by_reason() {
        let mut skips = Skips::default();
        skips.look("rust", "test a ... ok");
        skips.look("rust", "SKIPPED: no kernel");
        skips.look("python", "SKIPPED [1] test_life.py:12: no QEMU");
        skips.add_junit(concat!(
            "<testcase name=\"boots\" classname=\"hearth-e2e::life\">\n",
            "<system-err>note\nSKIPPED: no kernel</system-err>\n",
            "</testcase>\n<testcase name=\"quick\" time=\"0.1\">\n</testcase>\n<testcase name=\"forks\">\n",
            "<system-err>SKIPPED: &quot;kvm&quot; &amp; co are &lt;off&gt;</system-err>\n",
        ));
        assert_eq!(
            skips.to_string(),
            "\n!!! 4 SKIPPED on this machine !!!\n   1 x \"kvm\" & co are <off>  (forks)\n   2 x no kernel  (rust, …)\n   \
             1 x test_life.py:12: no QEMU  (python)\n"
        );
    }

    #[test]
    fn what_was_told_twice_is_said_first() {
        let mut skips = Skips::default();
        skips.failed_once("lab", "1 of 5 stories failed");
        let said = skips.to_string();
        assert!(said.starts_with("\n!!! FAILED ONCE") && said.contains("lab: 1 of 5 stories failed"), "{said}");
    }

    #[test]
    fn that_nothing_was_skipped_is_said() {
        assert_eq!(Skips::default().to_string(), "\nno test said that it was skipped\n");
    }
}
