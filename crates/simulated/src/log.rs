//! What a VMM has to say, in Firecracker's form, so that a reader of `vmm.log` finds the same lines:
//! every request with its body, and how it was answered. On standard output, or in the file that
//! `--log-path` names, which is written from its beginning, as Firecracker does; `--level` leaves
//! out what is no warning.

use std::fmt::Display;
use std::fs::File;
use std::io::Write;
use std::sync::{Mutex, OnceLock};

static LOG: OnceLock<Log> = OnceLock::new();

#[derive(Debug)]
struct Log {
    instance: String,
    file: Option<Mutex<File>>,
    only_complaints: bool,
}

/// Whose log it is, where it goes and what is left out, from now on.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn begin(instance: &str, path: Option<&str>, level: Option<&str>) -> std::io::Result<()> {
    let open = |path| File::options().read(true).write(true).create(true).truncate(false).open(path);
    let file = path.map(open).transpose()?.map(Mutex::new);
    let only_complaints = level.is_some_and(|level| !matches!(&*level.to_lowercase(), "info" | "debug" | "trace"));
    let _ = LOG.set(Log { instance: instance.to_owned(), file, only_complaints });
    Ok(())
}

/// Says it. Nobody may be listening any more; that is not our concern.
pub(crate) fn say(thread: &str, message: impl Display) {
    if LOG.get().is_none_or(|log| !log.only_complaints) {
        write(thread, message);
    }
}

/// Says what went wrong.
pub(crate) fn complain(thread: &str, message: impl Display) {
    write(thread, message);
}

fn write(thread: &str, message: impl Display) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9f").to_string();
    let log = LOG.get();
    let id = log.map_or("anonymous-instance", |log| &log.instance);
    let line = format!("{now} [{id}:{thread}] {message}\n");
    let _ = match log.and_then(|log| log.file.as_ref()) {
        Some(file) => match file.lock() {
            Ok(mut file) => file.write_all(line.as_bytes()),
            Err(_) => Ok(()),
        },
        None => std::io::stdout().write_all(line.as_bytes()),
    };
}
