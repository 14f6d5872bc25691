//! Commands run in the guest: what starts one, and how one ends.

use serde::{Deserialize, Serialize};

/// Starts a command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecStart {
    /// Command and arguments; a command without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// Variables as `KEY=value`, over those of the guest's program.
    pub env: Vec<String>,
    /// Where it starts; empty is the program's directory.
    pub cwd: String,
    /// `user[:group]`, names or numbers; empty is the program's user.
    pub user: String,
    /// A terminal of that size, on which stdout and stderr are one.
    pub tty: Option<TtySize>,
    /// It is killed after that many milliseconds; 0 is never.
    pub timeout_ms: u32,
}

/// The size of a terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Lines.
    pub rows: u16,
    /// Columns.
    pub cols: u16,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It ended itself with this code.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
    /// It was killed because its time was over.
    TimedOut,
}

impl ExitStatus {
    /// The one number that shells give: the code, 128 + signal, or 124 for a timeout.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Code(code) => code as i32,
            Self::Signal(signal) => 128 + signal as i32,
            Self::TimedOut => 124,
        }
    }
}

/// How the guest's program ended, or why it could not start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgramExit {
    /// As Docker gives it: its code, 128 + signal, 127 not found, 126 not allowed, 125 else.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// The same in words.
    pub message: String,
}
