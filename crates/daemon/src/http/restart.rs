//! Restart policies as the API has them, to and from those of records.

use std::time::Duration;

use hearth_api::restart::{BlockedReason, Ended, InstanceEnd, RestartMode, RestartPolicy, RestartStatus};
use hearth_model::restart::{Blocked, DEFAULT_BACKOFF, DEFAULT_STABLE_AFTER, RestartOn};
use hearth_model::{ErrorKind, InstanceState, Phase};
use hearth_store::{Ending, InstanceRecord};

use super::error::Failure;
use super::input::parse_duration;
use super::view::time;
use crate::clock::now_ms;
use crate::error::OpError;
use crate::restart::running_for;

/// The policy that is asked for; one that says nothing is `never`.
pub(super) fn asked(request: Option<RestartPolicy>) -> Result<hearth_model::RestartPolicy, Failure> {
    let RestartPolicy { policy, backoff, max_attempts, stable_after } = request.unwrap_or_default();
    let backoff = length("restart_policy.backoff", backoff.as_deref(), DEFAULT_BACKOFF)?;
    let stable_after = length("restart_policy.stable_after", stable_after.as_deref(), DEFAULT_STABLE_AFTER)?;
    let on = match policy {
        None | Some(RestartMode::Never) => return Ok(hearth_model::RestartPolicy::default()),
        Some(RestartMode::Always) => RestartOn::AnyEnd,
        Some(RestartMode::OnFailure) => RestartOn::Failure,
    };
    Ok(hearth_model::RestartPolicy { on, backoff, max_attempts: max_attempts.unwrap_or(0), stable_after })
}

/// Refuses to boot again what cannot boot at all.
pub(super) fn can_be_had(record: &InstanceRecord, policy: &hearth_model::RestartPolicy) -> Result<(), Failure> {
    if policy.is_never() || record.spec.foreign.is_none() {
        return Ok(());
    }
    let name = record.spec.name.as_str();
    let message = format!("instance {name} was imported with its memory: it has no image to boot again from");
    Err(OpError::new(ErrorKind::Unsupported, message)
        .hinted("leave \"restart_policy\" out of the request")
        .about("instance", name)
        .into())
}

fn length(field: &str, text: Option<&str>, default: Duration) -> Result<Duration, Failure> {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return Ok(default) };
    let length = parse_duration(&format!("field {field:?}:"), text)?;
    if length.as_millis() == 0 {
        return Err(Failure::invalid(format!("field {field:?}: {text:?} must be at least 1ms")));
    }
    Ok(length)
}

/// Shown unless it is `never`.
pub(super) fn policy(record: &InstanceRecord) -> Option<RestartPolicy> {
    let policy = &record.spec.restart;
    let mode = match policy.on {
        RestartOn::Never => return None,
        RestartOn::Failure => RestartMode::OnFailure,
        RestartOn::AnyEnd => RestartMode::Always,
    };
    Some(RestartPolicy {
        policy: Some(mode),
        backoff: Some(as_go_writes(policy.backoff)),
        max_attempts: Some(policy.max_attempts),
        stable_after: Some(as_go_writes(policy.stable_after)),
    })
}

/// Shown where there is a policy.
pub(super) fn status(record: &InstanceRecord) -> Option<RestartStatus> {
    let policy = &record.spec.restart;
    if policy.is_never() {
        return None;
    }
    let runs = matches!(record.phase, Phase::Resting(InstanceState::Running));
    let running_for = runs.then(|| running_for(record, now_ms())).flatten();
    let status = record.restart.seen(policy, running_for);
    Some(RestartStatus {
        attempts: Some(status.attempts),
        blocked_reason: status.blocked.map(|blocked| match blocked {
            Blocked::ManualStop => BlockedReason::ManualStop,
            Blocked::MaxAttemptsExceeded => BlockedReason::MaxAttemptsExceeded,
        }),
        last_attempt_at: status.last_attempt_at_ms.map(time),
        next_attempt_at: status.next_attempt_at_ms.map(time),
    })
}

/// How it ended.
pub(super) fn end(record: &InstanceRecord) -> Option<InstanceEnd> {
    record.exit.as_ref().map(|exit| InstanceEnd {
        of: match exit.of {
            Ending::Program => Ended::Program,
            Ending::Vmm => Ended::Vmm,
        },
        signal: exit.signal,
        out_of_memory: exit.out_of_memory,
        console: exit.console.clone(),
    })
}

/// "5s", "10m0s", "1h30m0s", "250ms"; to the millisecond.
fn as_go_writes(length: Duration) -> String {
    let ms = length.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1000 % 60);
    let fraction = match ms % 1000 {
        0 => String::new(),
        ms => format!(".{ms:03}").trim_end_matches('0').to_owned(),
    };
    match (hours, minutes) {
        (0, 0) => format!("{seconds}{fraction}s"),
        (0, minutes) => format!("{minutes}m{seconds}{fraction}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}{fraction}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_written_as_they_are_read() {
        for (ms, text) in [
            (1, "1ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1500, "1.5s"),
            (90_000, "1m30s"),
            (600_000, "10m0s"),
            (5_400_050, "1h30m0.05s"),
        ] {
            let length = Duration::from_millis(ms);
            assert_eq!(as_go_writes(length), text);
            assert_eq!(parse_duration("it", text).ok(), Some(length), "{text}");
        }
    }

    #[test]
    fn a_policy_is_parsed_with_defaults_and_refused_by_field() {
        let never = hearth_model::RestartPolicy::default();
        assert_eq!(asked(None).ok(), Some(never));
        let of = |policy| RestartPolicy { policy, ..RestartPolicy::default() };
        for nothing in [None, Some(RestartMode::Never)] {
            assert_eq!(asked(Some(of(nothing))).ok(), Some(never));
        }
        let full = RestartPolicy {
            backoff: Some("250ms".into()),
            max_attempts: Some(3),
            stable_after: Some("1m".into()),
            ..of(Some(RestartMode::OnFailure))
        };
        let parsed = asked(Some(full)).expect("valid");
        assert_eq!((parsed.on, parsed.max_attempts), (RestartOn::Failure, 3));
        assert_eq!((parsed.backoff, parsed.stable_after), (Duration::from_millis(250), Duration::from_secs(60)));
        assert_eq!(asked(Some(of(Some(RestartMode::Always)))).expect("valid").backoff, DEFAULT_BACKOFF);
        for wrong in ["soon", "0s", "-1s", "1ns"] {
            let with = RestartPolicy { backoff: Some(wrong.into()), ..of(Some(RestartMode::Always)) };
            let error = asked(Some(with)).expect_err(wrong).error;
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.message.contains("restart_policy.backoff"), "{}", error.message);
        }
        let with = RestartPolicy { stable_after: Some("long".into()), ..of(None) };
        assert!(asked(Some(with)).expect_err("no length").error.message.contains("stable_after"));
    }
}
