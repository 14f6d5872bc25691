//! The two text formats that Prometheus reads, and which of them a request wants.
//!
//! The library writes OpenMetrics. The older format differs in the comments alone: in it a counter
//! is called by its whole name, `_total` included, and there are no units and no end mark.

use std::collections::HashSet;

/// How metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// What Prometheus asks for first.
    OpenMetrics,
    /// What everybody else reads: curl, `promtool check metrics`, older collectors.
    Plain,
}

impl Format {
    /// The format that an `Accept` header asks for.
    pub(crate) fn wanted(accept: Option<&str>) -> Self {
        if accept.is_some_and(|accept| accept.contains("application/openmetrics-text")) {
            Self::OpenMetrics
        } else {
            Self::Plain
        }
    }

    /// For the `Content-Type` header.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Plain => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// OpenMetrics in the older format.
pub(super) fn plain(open_metrics: &str) -> String {
    let counters: HashSet<&str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.strip_suffix(" counter")).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let comment = line.strip_prefix("# ").and_then(|comment| comment.split_once(' '));
        match comment {
            Some((keyword @ ("HELP" | "TYPE"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let total = if counters.contains(name) { "_total" } else { "" };
                text.push_str(&format!("# {keyword} {name}{total} {rest}\n"));
            }
            Some(("UNIT", _)) => {}
            None if line == "# EOF" => {}
            Some(_) | None => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_gets_what_it_asks_for_and_everybody_else_the_older_format() {
        let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, format) in [
            (Some(prometheus), Format::OpenMetrics),
            (Some("text/plain"), Format::Plain),
            (Some("*/*"), Format::Plain),
            (None, Format::Plain),
        ] {
            assert_eq!(Format::wanted(accept), format, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_calls_counters_by_their_whole_name_and_changes_no_sample() {
        let open = "# HELP ops Operations.\n# TYPE ops counter\nops_total{a=\"# EOF\"} 1\n\
                    # HELP wait_seconds Waits.\n# TYPE wait_seconds histogram\n# UNIT wait_seconds seconds\n\
                    wait_seconds_sum 0.5\n# EOF\n";
        let wanted = "# HELP ops_total Operations.\n# TYPE ops_total counter\nops_total{a=\"# EOF\"} 1\n\
                      # HELP wait_seconds Waits.\n# TYPE wait_seconds histogram\nwait_seconds_sum 0.5\n";
        assert_eq!(plain(open), wanted);
    }
}
