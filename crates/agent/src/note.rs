//! The agent's own words. The console is the program's: what is written there is the app's log.
//!
//! In: what went wrong although the guest goes on. Out: a line in the kernel's log, which `dmesg`
//! shows. Only an agent that cannot go on speaks on the console, which no program has then.

use std::fs::File;
use std::io::Write;

/// A warning, to the kernel's log. It stays off the console: the kernel is told `loglevel=1`.
const WARNING: &str = "<4>";

/// Notes it; not in a guest, on standard error.
pub fn note(text: impl std::fmt::Display) {
    let written = rustix::process::getpid().is_init()
        && File::options()
            .write(true)
            .open("/dev/kmsg")
            // One write is one line.
            .and_then(|mut log| log.write_all(format!("{WARNING}hearth-agent: {text}\n").as_bytes()))
            .is_ok();
    if !written {
        eprintln!("hearth-agent: {text}");
    }
}
