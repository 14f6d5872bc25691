//! The user's terminal, while a program in a guest has it.

use std::io::{IsTerminal, Stdin, stdin, stdout};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) rows: u16,
    pub(crate) cols: u16,
}

/// What the terminal shows now; `None` if there is none.
pub(crate) fn size() -> Option<Size> {
    let now = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (now.ws_row > 0 && now.ws_col > 0).then_some(Size { rows: now.ws_row, cols: now.ws_col })
}

/// Keys go through as they are typed, until it is dropped.
///
/// Every way out of a command drops it, a panic too; signals that would end the process are caught
/// while it lives.
#[derive(Debug)]
pub(crate) struct Raw {
    terminal: Stdin,
    before: Termios,
}

impl Raw {
    /// `None` if stdin is no terminal: then there is nothing to change.
    pub(crate) fn enter() -> std::io::Result<Option<Self>> {
        let terminal = stdin();
        if !terminal.is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(&terminal, OptionalActions::Now, &raw)?;
        Ok(Some(Self { terminal, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // The terminal may be gone: then there is nothing to restore.
        tcsetattr(&self.terminal, OptionalActions::Now, &self.before).ok();
    }
}
