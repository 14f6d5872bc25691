//! Printing: results to stdout, as text for people or as JSON; notes and progress to stderr.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{CliError, stdout_failed};

/// Work that takes longer than this says so.
const PATIENCE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
}

impl Output {
    /// The command's result: `value` as JSON, or what `words` makes of it.
    pub(crate) fn result<T: Serialize + ?Sized>(
        self,
        value: &T,
        words: impl FnOnce(&T) -> String,
    ) -> Result<(), CliError> {
        if self.json {
            let text = serde_json::to_string_pretty(value).map_err(|error| {
                CliError::new(hearth_model::ErrorKind::Internal, "write the result as JSON").because(&error)
            })?;
            return self.text(&(text + "\n"));
        }
        self.text(&words(value))
    }

    /// Text to stdout, as it is.
    pub(crate) fn text(self, text: &str) -> Result<(), CliError> {
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).map_err(|error| stdout_failed(&error))
    }

    /// A line for the person who waits; none for a program that reads JSON.
    pub(crate) fn note(self, text: &str) {
        if !self.json {
            // Nobody reads it: nothing is lost.
            writeln!(std::io::stderr(), "{text}").ok();
        }
    }

    /// Does work that may take a while, and says that it does.
    pub(crate) async fn while_waiting<T>(self, what: &str, work: impl Future<Output = T>) -> T {
        if self.json {
            return work.await;
        }
        let began = Instant::now();
        let mut ticks = tokio::time::interval_at((began + PATIENCE).into(), PATIENCE);
        let live = std::io::stderr().is_terminal();
        let mut said = false;
        let mut work = std::pin::pin!(work);
        let result = loop {
            tokio::select! {
                biased;
                result = &mut work => break result,
                _ = ticks.tick() => {
                    if live {
                        write!(std::io::stderr(), "\r{what} … {} s", began.elapsed().as_secs()).ok();
                    } else if !said {
                        self.note(&format!("{what} …"));
                    }
                    said = true;
                }
            }
        };
        if said && live {
            write!(std::io::stderr(), "\r\x1b[K").ok();
        }
        result
    }
}

/// Columns as wide as their widest cell, two spaces apart, with a line of headings.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = headings.map(width);
    for row in rows {
        for (known, cell) in widths.iter_mut().zip(row) {
            *known = (*known).max(width(cell));
        }
    }
    let line = |cells: [&str; N]| {
        let mut line = String::new();
        for (cell, wide) in cells.iter().zip(widths) {
            line += cell;
            line += &" ".repeat(wide - width(cell) + 2);
        }
        line.truncate(line.trim_end().len());
        line + "\n"
    };
    let mut text = line(headings);
    for row in rows {
        text += &line(row.each_ref().map(String::as_str));
    }
    text
}

/// `key:  value` lines, the values aligned; those with no value are left out.
pub(crate) fn pairs(pairs: &[(&str, Option<String>)]) -> String {
    let wide = pairs.iter().filter(|(_, value)| value.is_some()).map(|(key, _)| width(key)).max().unwrap_or(0);
    pairs
        .iter()
        .filter_map(|(key, value)| {
            let value = value.as_ref()?;
            Some(format!("{key}:{}  {value}\n", " ".repeat(wide - width(key))))
        })
        .collect()
}

/// A line `what:  KEY=VALUE` for each.
pub(crate) fn variables(what: &str, map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(key, value)| format!("{what}:  {key}={value}\n")).collect()
}

/// How long ago that was: "5 s ago", "3 min ago", "2 h ago", "4 d ago".
pub(crate) fn ago(then: jiff::Timestamp, now: jiff::Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    match seconds {
        ..1 => "now".into(),
        1..120 => format!("{seconds} s ago"),
        120..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// `512 MB`, of bytes.
pub(crate) fn size(bytes: u64) -> String {
    hearth_model::ByteSize(bytes).to_string()
}

fn width(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let rows = [["web".to_owned(), "Running".to_owned()], ["a-long-name".to_owned(), String::new()]];
        assert_eq!(table(["NAME", "STATE"], &rows), "NAME         STATE\nweb          Running\na-long-name\n");
        assert_eq!(
            pairs(&[("id", Some("x".into())), ("image", None), ("name", Some("y".into()))]),
            "id:    x\nname:  y\n"
        );
    }

    #[test]
    fn ages_have_one_unit() {
        let now = jiff::Timestamp::from_second(1_000_000).expect("a time");
        for (seconds, says) in
            [(-5, "now"), (0, "now"), (90, "90 s ago"), (150, "2 min ago"), (8000, "2 h ago"), (900_000, "10 d ago")]
        {
            let then = jiff::Timestamp::from_second(1_000_000 - seconds).expect("a time");
            assert_eq!(ago(then, now), says);
        }
    }
}
