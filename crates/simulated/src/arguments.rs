//! Firecracker's command line, as far as somebody who starts a VMM uses it.

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arguments {
    /// `--version`
    Version,
    /// `--snapshot-version`
    SnapshotVersion,
    /// Serve the API.
    Serve {
        /// `--api-sock`
        api_sock: String,
        /// `--id`
        id: String,
        /// `--log-path`, `--level`
        log: LogTo,
    },
}

/// Where it logs, and what.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LogTo {
    /// A file; else standard output.
    pub(crate) path: Option<String>,
    /// What matters less is left out.
    pub(crate) level: Option<String>,
}

/// Options with a value that change nothing here.
const IGNORED_WITH_VALUE: [&str; 5] =
    ["--module", "--metrics-path", "--seccomp-filter", "--start-time-us", "--start-time-cpu-us"];
/// Options without a value that change nothing here.
const IGNORED: [&str; 4] = ["--no-seccomp", "--show-level", "--show-log-origin", "--boot-timer"];

/// Reads the arguments after the program's name.
///
/// # Errors
/// Firecracker's words about the first one that it does not take.
pub(crate) fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Arguments, String> {
    let mut api_sock = "/run/firecracker.socket".to_owned();
    let mut id = "anonymous-instance".to_owned();
    let mut log = LogTo::default();
    let mut only = None;
    while let Some(argument) = arguments.next() {
        let mut value = || {
            let name = argument.trim_start_matches("--");
            arguments.next().ok_or_else(|| format!("The argument '{name}' requires a value, but none was supplied."))
        };
        match argument.as_str() {
            "--version" => only = Some(Arguments::Version),
            "--snapshot-version" => only = Some(Arguments::SnapshotVersion),
            "--api-sock" => api_sock = value()?,
            "--id" => id = value()?,
            "--log-path" => log.path = Some(value()?),
            "--level" => log.level = Some(value()?),
            ignored if IGNORED_WITH_VALUE.contains(&ignored) => drop(value()?),
            ignored if IGNORED.contains(&ignored) => {}
            other => {
                let name = other.trim_start_matches("--");
                return Err(format!("Found argument '{name}' which wasn't expected, or isn't valid in this context."));
            }
        }
    }
    Ok(only.unwrap_or(Arguments::Serve { api_sock, id, log }))
}

/// Whether Firecracker takes an id; it dies of one that it does not.
pub(crate) fn is_valid_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.chars().all(|c| c == '-' || c.is_alphanumeric())
}
