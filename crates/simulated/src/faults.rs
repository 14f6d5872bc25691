//! Faults and delays on request.
//!
//! The command line is the real one's, so they are asked for in a file: `simulated.json` in the
//! VMM's working directory, or, where that is not there, beside its executable under the
//! executable's name with `.json` added. (Copy or link the binary into a directory of your own, and
//! all VMMs started from there do the same.) It is read again for every request.
//!
//! ```json
//! { "faults": [
//!     { "on": "start", "do": { "delay_ms": 200 } },
//!     { "on": "PUT /snapshot/load", "nth": 1, "when": "after", "do": "exit" },
//!     { "on": "PATCH /vm", "with": "Resumed", "do": { "error": 500 } } ],
//!   "stable_tsc": false, "boot_ms": 100 }
//! ```
//!
//! | `on` | |
//! | --- | --- |
//! | `start` | before the API socket appears |
//! | `listen` | the socket is there, and connects; nothing is answered yet |
//! | `METHOD /path` | a request; a `*` at the end stands for any rest |
//! | `vsock` | a connection to the guest has named its port; `drop`, `hang`, `delay_ms` and ends |
//!
//! `with` asks for a text in the request's body. `nth` counts from 1 what the rule's `on` and `with`
//! have met in this process; without it every one is meant. `when` is `before` the effect
//! (unless said otherwise) or `after` it. The first rule that fits is taken.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;
use std::{fs, io};

use serde::{Deserialize, Serialize};

/// The file's name in a working directory.
pub const FILE: &str = "simulated.json";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// What goes wrong, and when.
    pub faults: Vec<Fault>,
    /// Whether the host's clock is such that a snapshot can be loaded with `clock_realtime`.
    pub stable_tsc: bool,
    /// How many milliseconds a booted guest with an agent takes until that listens. In the first
    /// half of them callers wait, as there is no driver; in the second they are turned away.
    pub boot_ms: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self { faults: Vec::new(), stable_tsc: true, boot_ms: 0 }
    }
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// At what.
    pub on: String,
    /// Only where the body has this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub with: Option<String>,
    /// Only at that one, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nth: Option<u32>,
    /// Before or after its effect.
    #[serde(default)]
    pub when: When,
    /// What.
    #[serde(rename = "do")]
    pub effect: Effect,
}

/// Before or after the effect.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum When {
    /// Nothing has been done.
    #[default]
    Before,
    /// It was done, and not answered.
    After,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// It ends with code 1, and says nothing.
    Exit,
    /// It ends with this code.
    ExitWith(u8),
    /// It ends by SIGABRT, as Firecracker does when it panics.
    Abort,
    /// It ends by SIGKILL, as for want of memory.
    Kill,
    /// It is never answered, nor is any later request.
    Hang,
    /// The connection is closed without an answer.
    Drop,
    /// It takes so many milliseconds longer.
    DelayMs(u64),
    /// It is answered with this status.
    Error(u16),
}

/// How an answer is changed by a fault that lets the process live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Not at all.
    AsItIs,
    /// There is none.
    Dropped,
    /// Another one.
    Error(u16),
}

/// The rules of this process, and what they have met.
#[derive(Debug)]
pub(crate) struct Faults {
    files: [PathBuf; 2],
    met: Mutex<BTreeMap<(String, Option<String>), u32>>,
}

/// The rules that one request has met.
#[derive(Debug, Default)]
pub(crate) struct Met {
    rules: Vec<Fault>,
}

impl Faults {
    /// Looks into the working directory, and beside the program.
    pub(crate) fn new(program: &Path) -> Self {
        let mut beside = program.as_os_str().to_owned();
        beside.push(".json");
        Self { files: [FILE.into(), beside.into()], met: Mutex::default() }
    }

    /// What is asked for now.
    ///
    /// # Errors
    /// There is a file, and it is no plan: a test that asks for what cannot be must not pass.
    pub(crate) fn plan(&self) -> io::Result<Plan> {
        for file in &self.files {
            match fs::read(file) {
                Ok(text) => {
                    return serde_json::from_slice(&text).map_err(|error| {
                        io::Error::new(io::ErrorKind::InvalidData, format!("read {}: {error}", file.display()))
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(io::Error::new(error.kind(), format!("read {}: {error}", file.display()))),
            }
        }
        Ok(Plan::default())
    }

    /// Counts this event, and says which rules mean it.
    ///
    /// # Errors
    /// As [`Self::plan`].
    pub(crate) fn meet(&self, event: &str, body: &str) -> io::Result<Met> {
        let plan = self.plan()?;
        let mut met = self.met.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut counted = BTreeMap::new();
        let mut rules = Vec::new();
        for fault in plan.faults {
            let fits = match fault.on.strip_suffix('*') {
                Some(start) => event.starts_with(start),
                None => fault.on == event,
            };
            if !fits || fault.with.as_ref().is_some_and(|text| !body.contains(text)) {
                continue;
            }
            let key = (fault.on.clone(), fault.with.clone());
            let nth = *counted.entry(key.clone()).or_insert_with(|| {
                let count = met.entry(key).or_default();
                *count += 1;
                *count
            });
            if fault.nth.is_none_or(|wanted| wanted == nth) {
                rules.push(fault);
            }
        }
        Ok(Met { rules })
    }
}

impl Met {
    /// Lets happen what is asked for at this moment.
    pub(crate) async fn happen(&self, when: When) -> Answer {
        let Some(fault) = self.rules.iter().find(|fault| fault.when == when) else { return Answer::AsItIs };
        crate::log::say("simulated", format_args!("fault {when:?} {}: {:?}", fault.on, fault.effect));
        match fault.effect {
            Effect::Exit => std::process::exit(1),
            Effect::ExitWith(code) => std::process::exit(i32::from(code)),
            Effect::Abort => std::process::abort(),
            Effect::Kill => {
                let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
                std::future::pending().await
            }
            Effect::Hang => std::future::pending().await,
            Effect::Drop => Answer::Dropped,
            Effect::DelayMs(ms) => {
                tokio::time::sleep(Duration::from_millis(ms)).await;
                Answer::AsItIs
            }
            Effect::Error(status) => Answer::Error(status),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_by_what_they_mean_and_the_nth_is_taken() {
        let dir = tempfile::tempdir().expect("directory");
        let program = dir.path().join("vmm");
        let faults = Faults { files: [dir.path().join(FILE), dir.path().join("vmm.json")], ..Faults::new(&program) };
        assert_eq!(faults.plan().expect("none is a plan"), Plan::default());
        let plan = r#"{ "faults": [
            { "on": "PATCH /vm", "with": "Resumed", "nth": 2, "when": "after", "do": { "error": 500 } },
            { "on": "PUT /drives/*", "do": "exit" } ], "stable_tsc": false }"#;
        fs::write(dir.path().join("vmm.json"), plan).expect("plan");
        let count = |event, body| faults.meet(event, body).expect("plan").rules.len();
        assert_eq!(count("PATCH /vm", "Resumed"), 0);
        assert_eq!(count("PATCH /vm", "Paused"), 0);
        assert_eq!(count("PATCH /vm", "Resumed"), 1);
        assert_eq!(count("PATCH /vm", "Resumed"), 0);
        assert_eq!(count("PUT /drives/rootfs", ""), 1);
        fs::write(dir.path().join(FILE), r#"{ "fault": [] }"#).expect("plan");
        assert!(faults.meet("PATCH /vm", "").is_err(), "what is no plan is not passed over");
    }
}
