//! `hearth timeline`: what an instance's operations did, step by step.

use hearth_api::timeline::{TimedOperation, Timeline};

use crate::context::Context;
use crate::error::CliError;
use crate::output::ago;

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name or id of the instance
    name: String,
    /// How many operations, the latest first
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10)]
    limit: u32,
}

pub(crate) async fn timeline(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let timeline = context.client()?.timeline(&arguments.name, Some(arguments.limit)).await?;
    let now = jiff::Timestamp::now();
    context.output.result(&timeline, |timeline| in_words(timeline, now))
}

/// ```text
/// restore  83.2 ms  5 s ago
///   +  0.0 ms     1.2 ms  open snapshot
///   +  1.2 ms    70.1 ms  load snapshot  (resume on load)
/// ```
fn in_words(timeline: &Timeline, now: jiff::Timestamp) -> String {
    timeline.operations.iter().map(|operation| one(operation, now)).collect::<Vec<_>>().join("\n")
}

fn one(operation: &TimedOperation, now: jiff::Timestamp) -> String {
    let when = ago(operation.started_at, now);
    let mut text = format!("{}  {:.1} ms  {when}\n", operation.op, operation.duration_ms);
    for step in &operation.steps {
        let said = step.note.as_ref().map(|note| format!("  ({note})")).unwrap_or_default();
        text += &format!("  +{:>8.1} ms  {:>8.1} ms  {}{said}\n", step.start_ms, step.duration_ms, step.step);
    }
    if let Some(error) = &operation.error {
        text += &format!("  failed: {error}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_operation_is_read_from_top_to_bottom() {
        let json = serde_json::json!({
            "instance_id": "a",
            "operations": [{
                "op": "restore", "started_at": "2026-01-01T00:00:00Z", "duration_ms": 83.21, "error": "the agent is silent",
                "steps": [
                    {"step": "open snapshot", "start_ms": 0.0, "duration_ms": 1.24},
                    {"step": "load snapshot", "start_ms": 1.24, "duration_ms": 70.0, "note": "resume on load"},
                ],
            }],
        });
        let timeline: Timeline = serde_json::from_value(json).expect("a timeline");
        let now = "2026-01-01T00:00:05Z".parse().expect("a time");
        let expected = "\
restore  83.2 ms  5 s ago
  +     0.0 ms       1.2 ms  open snapshot
  +     1.2 ms      70.0 ms  load snapshot  (resume on load)
  failed: the agent is silent
";
        assert_eq!(in_words(&timeline, now), expected);
    }
}
