//! `GET /instances/{id}/exec`: the frames of the WebSocket that runs a command in a guest.
//!
//! The client's first frame is text, an [`ExecRequest`]. Then binary frames carry the streams and
//! text frames an [`ExecControl`], until the server's one text frame, an [`ExecEnd`].
//!
//! Without `streams` binary frames are raw: the command's input one way, stdout and stderr merged
//! the other way, and there is no end of input (Hypeman's protocol). With `streams` (ours) each
//! binary frame begins with a byte that says what follows: see [`STDIN`], [`STDOUT`], [`STDERR`].
//! A client may have [`WINDOW`] bytes of input under way that the command has not taken yet: so what
//! it says in text frames never stands behind input that nobody reads.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::error::ErrorBody;

/// First byte of a binary frame from the client; nothing behind it means end of input. From the
/// server: how many bytes of the input were taken, as four bytes, the highest first.
pub const STDIN: u8 = 0;
/// How much input a client may send before it is told that some was taken.
pub const WINDOW: u32 = 1 << 20;
/// First byte of a binary frame from the server: the command's output.
pub const STDOUT: u8 = 1;
/// First byte of a binary frame from the server: the command's error output.
pub const STDERR: u8 = 2;

/// What to run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecRequest {
    /// Command and arguments; `/bin/sh` if empty.
    #[serde(default)]
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    #[serde(default)]
    pub tty: bool,
    /// Variables on top of the guest program's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, String>>,
    /// Where it starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// Seconds after which it is killed; 0 or nothing means never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// Seconds to wait for the guest's agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait_for_agent: Option<u32>,
    /// Rows of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<u16>,
    /// Columns of the terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cols: Option<u16>,
    /// Ours: `user[:group]` to run it as; the image's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Ours: keep stdout and stderr apart, and let input end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub streams: bool,
}

/// What the client says while the command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecControl {
    /// The terminal has a new size.
    Resize {
        /// Rows.
        rows: u16,
        /// Columns.
        cols: u16,
    },
    /// Ours: send that signal, named without `SIG`: `INT`, `TERM`, …
    Signal(String),
}

/// The command has ended; the server's last frame.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExecEnd {
    /// What it exited with; 128 + the signal that killed it; 127 if it could not be run.
    #[serde(rename = "exitCode")]
    pub exit_code: i32,
    /// Ours, with `streams` only: why it could not be run, or why its end is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Box<ErrorBody>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn frames_as_hypemans_clients_write_them() {
        let request: ExecRequest =
            serde_json::from_str(r#"{"command":["ls"],"tty":true,"env":{"A":"1"},"rows":24,"cols":80}"#)
                .expect("the client's");
        assert_eq!(request.rows, Some(24));
        assert!(!request.streams);

        let resize: ExecControl = serde_json::from_value(json!({"resize": {"rows": 1, "cols": 2}})).expect("resize");
        assert_eq!(resize, ExecControl::Resize { rows: 1, cols: 2 });
        let signal = serde_json::to_value(ExecControl::Signal("INT".into())).expect("plain data");
        assert_eq!(signal, json!({"signal": "INT"}));
    }

    /// The Python client refuses any other key.
    #[test]
    fn the_last_frame_has_one_key() {
        let end = serde_json::to_string(&ExecEnd { exit_code: 3, error: None }).expect("plain data");
        assert_eq!(end, r#"{"exitCode":3}"#);
    }
}
