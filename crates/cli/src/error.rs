//! What a failed command says, and its exit code.
//!
//! An error has a kind, one sentence, its causes, hints, and what an operation left behind; with
//! `--json` it is the API's error body. Exit codes are the model's.

use std::error::Error;
use std::io::{self, Write};

use hearth_api::ErrorBody;
use hearth_api::client::{ApiError, ClientError, CpToError};
use hearth_model::{ErrorKind, Kind};

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum CliError {
    /// With words to say.
    Said(Box<Said>),
    /// Whoever read our output has gone: nobody is left to tell.
    PipeClosed,
}

/// What is said, and the code to exit with.
#[derive(Debug)]
pub(crate) struct Said {
    body: ErrorBody,
    code: u8,
}

/// What a shell makes of a process that SIGPIPE ended.
const PIPE_CLOSED: u8 = 128 + 13;

impl CliError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::from(ErrorBody::new(kind, message))
    }

    /// What was tried on what with this host's files or terminal.
    pub(crate) fn host(what: impl Into<String>, error: &io::Error) -> Self {
        Self::new(hearth_model::error::io_kind(error), what).because(error)
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Said(said) = &mut self {
            said.body.hint = Some(hint.into());
        }
        self
    }

    /// Adds the cause, and what caused that.
    pub(crate) fn because(mut self, cause: &dyn Error) -> Self {
        if let Self::Said(said) = &mut self {
            let mut next = Some(cause);
            while let Some(cause) = next {
                said.body.causes.push(cause.to_string());
                next = cause.source();
            }
        }
        self
    }

    /// The same, with another exit code: that of a program in a guest.
    pub(crate) fn exiting(mut self, code: u8) -> Self {
        if let Self::Said(said) = &mut self {
            said.code = code;
        }
        self
    }

    /// Says it on stderr; the exit code.
    pub(crate) fn report(&self, json: bool) -> u8 {
        let Self::Said(said) = self else { return PIPE_CLOSED };
        let text = if json {
            serde_json::to_string(&said.body).unwrap_or_else(|_| said.body.message.clone()) + "\n"
        } else {
            in_words(&said.body)
        };
        // If stderr is closed too, the exit code is all that is left to say.
        io::stderr().write_all(text.as_bytes()).ok();
        said.code
    }
}

/// ```text
/// error: create web: no memory left
///   because: 4 GB are asked for
///   left behind: tap tap7
/// hint: stop another instance
/// ```
fn in_words(body: &ErrorBody) -> String {
    let mut text = format!("error: {}\n", body.message);
    for cause in body.causes.iter().filter(|cause| !body.message.contains(cause.as_str())) {
        text += &format!("  because: {cause}\n");
    }
    for leak in &body.left_behind {
        text += &format!("  left behind: {leak}\n");
    }
    if body.kind() == ErrorKind::Internal
        && let Some(request) = &body.request_id
    {
        text += &format!("  request: {request} (the daemon's log says more)\n");
    }
    for hint in body.hint.iter().flat_map(|hint| hint.lines()) {
        text += &format!("hint: {hint}\n");
    }
    text
}

impl From<ErrorBody> for CliError {
    fn from(body: ErrorBody) -> Self {
        let code = body.kind().exit_code();
        Self::Said(Box::new(Said { body, code }))
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Api(ApiError { body, .. }) => Self::from(*body),
            ClientError::NotReachable { url, source } => {
                // What lies between is the client's own: only the kernel's word says anything.
                let mut cause: &dyn Error = source.as_ref();
                while let Some(deeper) = cause.source() {
                    cause = deeper;
                }
                Self::new(ErrorKind::HostFailed, format!("no daemon answers at {url}"))
                    .because(cause)
                    .hint("start it with `hearth serve`, or say where it is with HEARTH_URL or --url")
            }
            other => {
                let mut said = Self::new(other.kind(), other.to_string());
                if let Some(hint) = other.hint() {
                    said = said.hint(hint);
                }
                match other.source() {
                    Some(cause) => said.because(cause),
                    None => said,
                }
            }
        }
    }
}

impl From<CpToError> for CliError {
    fn from(error: CpToError) -> Self {
        match error {
            CpToError::Client(error) => error.into(),
            CpToError::Source(cause) => Self::host("read what is to be copied", &cause),
        }
    }
}

/// Of any adapter of the daemon.
pub(crate) fn said_by(error: &impl Kind) -> CliError {
    let mut said = CliError::new(error.kind(), error.to_string());
    if let Some(hint) = error.hint() {
        said = said.hint(hint);
    }
    match error.source() {
        Some(cause) => said.because(cause),
        None => said,
    }
}

/// Of writing to our own stdout.
pub(crate) fn stdout_failed(error: &io::Error) -> CliError {
    match error.kind() {
        io::ErrorKind::BrokenPipe => CliError::PipeClosed,
        _ => CliError::host("write the result", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_said_with_all_that_is_known() {
        let mut body =
            ErrorBody::new(ErrorKind::Exhausted, "create web: no space left").with_hint("free space\nor less");
        body.causes = vec!["no space left".into(), "write overlay.img".into()];
        body.left_behind = vec!["disks/overlay.img".into()];
        let expected = "error: create web: no space left\n  because: write overlay.img\n  \
                        left behind: disks/overlay.img\nhint: free space\nhint: or less\n";
        assert_eq!(in_words(&body), expected);
        assert!(matches!(CliError::from(body), CliError::Said(said) if said.code == 9));
    }
}
