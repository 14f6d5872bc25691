//! Ends that nobody asked for, as a record holds them, and what its restart policy makes of them.
//!
//! The decisions are `hearth_model::restart`'s; the driver carries them out.

#[cfg(test)]
mod tests;

use std::time::Duration;

use hearth_model::restart::{Blocked, End};
use hearth_store::{Ending, InstanceRecord, ProgramExit};
use hearth_vmm::{Ended, Exit};

use crate::agents;

/// The end of a VMM whose guest's program had not ended.
pub(crate) fn vmm_exit(exit: &Exit) -> ProgramExit {
    let signal = match exit.ended {
        Ended::Signal(signal) => Some(signal),
        Ended::Code(_) | Ended::Unknown => None,
    };
    ProgramExit {
        code: -1,
        message: format!("the VMM ended: {}", agents::exit_text(exit)),
        of: Ending::Vmm,
        signal,
        out_of_memory: exit.out_of_memory,
        console: Vec::new(),
    }
}

/// The end of a VMM that nobody saw.
pub(crate) fn unseen_exit() -> ProgramExit {
    ProgramExit {
        code: -1,
        message: "the VMM ended while no daemon ran".into(),
        of: Ending::Vmm,
        ..ProgramExit::default()
    }
}

/// The instance has ended by itself, as its record says: notes what its policy makes of that.
pub(crate) fn after_end(record: &mut InstanceRecord, now_ms: i64) {
    let end = match &record.exit {
        Some(exit) if exit.of == Ending::Program && exit.code == 0 => End::Succeeded,
        _ => End::Failed,
    };
    let ran = running_for(record, now_ms).unwrap_or_default();
    record.restart = record.restart.after_end(&record.spec.restart, end, ran, now_ms);
}

/// How long it has been running since it was last started or restored.
pub(crate) fn running_for(record: &InstanceRecord, now_ms: i64) -> Option<Duration> {
    let since = now_ms.saturating_sub(record.started_at_ms?);
    Some(Duration::from_millis(u64::try_from(since).unwrap_or(0)))
}

/// What comes next, for the instance's log; nothing where its policy has no say.
pub(crate) fn in_words(record: &InstanceRecord, now_ms: i64) -> Option<String> {
    let (policy, status) = (&record.spec.restart, &record.restart);
    let of = match policy.max_attempts {
        0 => String::new(),
        max => format!(" of {max}"),
    };
    if let Some(wait) = status.waits(now_ms) {
        return Some(format!("restarts in {} ms, attempt {}{of}", wait.as_millis(), status.attempts.saturating_add(1)));
    }
    match status.blocked? {
        Blocked::MaxAttemptsExceeded => Some(format!("restarts no more: {} attempts were in vain", status.attempts)),
        Blocked::ManualStop => None,
    }
}
