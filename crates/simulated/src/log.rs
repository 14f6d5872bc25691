//! What a VMM says on its standard output, in Firecracker's form, so that a reader of `vmm.log`
//! finds the same lines: every request with its body, and how it was answered.

use std::fmt::Display;
use std::io::Write;
use std::sync::OnceLock;

static INSTANCE: OnceLock<String> = OnceLock::new();

/// Whose log it is, from now on.
pub(crate) fn set_instance(id: &str) {
    let _ = INSTANCE.set(id.to_owned());
}

/// Says it. Nobody may be listening any more; that is not our concern.
pub(crate) fn say(thread: &str, message: impl Display) {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%9f").to_string();
    let id = INSTANCE.get().map_or("anonymous-instance", String::as_str);
    let _ = writeln!(std::io::stdout(), "{now} [{id}:{thread}] {message}");
}
