//! Whether an instance that ended by itself boots again, when, and when no more.
//!
//! ```text
//!   runs ──ends by itself──► waiting (backoff) ──► boots ──► runs for stable_after: counts from 0 again
//!                              │      ▲               │
//!                              │      └──did not boot─┤
//!                     stop ────┤                      └──max_attempts──► given up
//!                              └──► stopped by hand
//! ```
//! In: the policy, where it was so far, how it ended, and what time it is. Out: where it is now.
//! Nothing here boots anything. Times are milliseconds since the Unix epoch.

use std::time::Duration;

use crate::state::Op;

/// What an instance's policy is when a time is left out of it.
pub const DEFAULT_BACKOFF: Duration = Duration::from_secs(5);
/// The same.
pub const DEFAULT_STABLE_AFTER: Duration = Duration::from_secs(600);

/// After which ends an instance boots again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartOn {
    /// After none.
    #[default]
    Never,
    /// Unless its program exited with 0.
    Failure,
    /// After every one.
    AnyEnd,
}

/// Whether and how an instance that ended by itself boots again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct RestartPolicy {
    /// After which ends.
    pub on: RestartOn,
    /// How long it waits before each attempt.
    pub backoff: Duration,
    /// So many attempts in a row; 0 is without limit.
    pub max_attempts: u32,
    /// One that has run for so long begins to count anew.
    pub stable_after: Duration,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { on: RestartOn::Never, backoff: DEFAULT_BACKOFF, max_attempts: 0, stable_after: DEFAULT_STABLE_AFTER }
    }
}

impl RestartPolicy {
    /// Whether no instance with it ever boots by itself.
    #[must_use]
    pub fn is_never(&self) -> bool {
        self.on == RestartOn::Never
    }

    fn wants(&self, end: End) -> bool {
        match (self.on, end) {
            (RestartOn::Never, _) | (RestartOn::Failure, End::Succeeded) => false,
            (RestartOn::Failure, End::Failed) | (RestartOn::AnyEnd, End::Succeeded | End::Failed) => true,
        }
    }
}

/// How an instance ended that nobody had asked to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its program exited with 0.
    Succeeded,
    /// Any other way, also one that nobody knows: another code, a signal, its VMM's end, a boot
    /// that did not come to its end.
    Failed,
}

/// Why nothing boots the instance although its policy would.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blocked {
    /// Somebody stopped it.
    ManualStop,
    /// As many attempts as the policy has were in vain.
    MaxAttemptsExceeded,
}

/// Who asked for an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// A user.
    Somebody,
    /// The instance's own policy.
    Policy,
}

/// What an operation on an instance led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Led {
    /// Where it should.
    There,
    /// Back to where it came from.
    Back,
    /// The same, because somebody told it to.
    CutShort,
    /// Nothing is known for certain any more.
    Astray,
}

/// Where an instance is with its policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestartStatus {
    /// Attempts in a row so far.
    pub attempts: u32,
    /// When the last one began.
    pub last_attempt_at_ms: Option<i64>,
    /// When the next one is due. It stays until that attempt has succeeded or failed, so that one
    /// which the daemon's end cut short is known.
    pub next_attempt_at_ms: Option<i64>,
    /// Why there is no next one.
    pub blocked: Option<Blocked>,
}

impl RestartStatus {
    /// It has ended by itself: boots it again, when, or no more?
    #[must_use]
    pub fn after_end(self, policy: &RestartPolicy, end: End, ran: Duration, now_ms: i64) -> Self {
        let so_far = if ran >= policy.stable_after { Self::default() } else { self };
        so_far.next(policy, end, now_ms)
    }

    /// An operation on it has ended.
    #[must_use]
    pub fn after_operation(self, policy: &RestartPolicy, (op, by): (Op, By), led: Led, now_ms: i64) -> Self {
        match (led, by) {
            (Led::There, By::Policy) => self.attempt_succeeded(),
            (Led::There, By::Somebody) => match op {
                Op::Stop => Self::stopped_by_hand(policy),
                // It is as it was.
                Op::Snapshot | Op::Import => self,
                Op::Create | Op::Fork | Op::Start | Op::Standby | Op::Restore | Op::Revert | Op::Delete => {
                    Self::default()
                }
            },
            (Led::Back, By::Policy) => self.after_failed_attempt(policy, now_ms),
            (Led::Back | Led::CutShort, By::Somebody) => self,
            (Led::CutShort, By::Policy) => Self::stopped_by_hand(policy),
            // Only delete leads on from there.
            (Led::Astray, By::Policy | By::Somebody) => Self { next_attempt_at_ms: None, ..self },
        }
    }

    /// An attempt did not lead to a running instance.
    #[must_use]
    pub fn after_failed_attempt(self, policy: &RestartPolicy, now_ms: i64) -> Self {
        self.next(policy, End::Failed, now_ms)
    }

    fn next(self, policy: &RestartPolicy, end: End, now_ms: i64) -> Self {
        let rests = Self { next_attempt_at_ms: None, blocked: None, ..self };
        if !policy.wants(end) {
            return rests;
        }
        if policy.max_attempts > 0 && self.attempts >= policy.max_attempts {
            return Self { blocked: Some(Blocked::MaxAttemptsExceeded), ..rests };
        }
        let backoff = i64::try_from(policy.backoff.as_millis()).unwrap_or(i64::MAX);
        Self { next_attempt_at_ms: Some(now_ms.saturating_add(backoff)), ..rests }
    }

    /// The attempt that was due begins.
    #[must_use]
    pub fn attempt_begins(self, now_ms: i64) -> Self {
        Self { attempts: self.attempts.saturating_add(1), last_attempt_at_ms: Some(now_ms), ..self }
    }

    /// The attempt led to a running instance. Whether it was worth it, its end will tell.
    #[must_use]
    pub fn attempt_succeeded(self) -> Self {
        Self { next_attempt_at_ms: None, ..self }
    }

    /// Somebody stopped it, while it ran or while it waited.
    #[must_use]
    pub fn stopped_by_hand(policy: &RestartPolicy) -> Self {
        Self { blocked: (!policy.is_never()).then_some(Blocked::ManualStop), ..Self::default() }
    }

    /// There is another policy now. What ran in vain was under the old one; an instance that waits
    /// goes on waiting if the new one boots any at all, and one that rests is not booted by it.
    #[must_use]
    pub fn under(self, policy: &RestartPolicy) -> Self {
        if policy.is_never() {
            return Self::default();
        }
        let blocked = self.blocked.filter(|blocked| *blocked == Blocked::ManualStop);
        Self { next_attempt_at_ms: self.next_attempt_at_ms, blocked, ..Self::default() }
    }

    /// As of now, of one that has been running for so long; `None` if it does not run.
    #[must_use]
    pub fn seen(self, policy: &RestartPolicy, running_for: Option<Duration>) -> Self {
        if running_for.is_some_and(|running| running >= policy.stable_after) { Self::default() } else { self }
    }

    /// How long until the next attempt; zero when it is overdue.
    #[must_use]
    pub fn waits(&self, now_ms: i64) -> Option<Duration> {
        let due = self.next_attempt_at_ms?;
        Some(Duration::from_millis(u64::try_from(due.saturating_sub(now_ms)).unwrap_or(0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: i64 = 1_700_000_000_000;
    const SHORT: Duration = Duration::from_secs(1);

    fn policy(on: RestartOn, max_attempts: u32) -> RestartPolicy {
        RestartPolicy { on, max_attempts, ..RestartPolicy::default() }
    }

    fn attempts(attempts: u32) -> RestartStatus {
        RestartStatus { attempts, last_attempt_at_ms: Some(NOW - 1), ..RestartStatus::default() }
    }

    /// ● waits, – rests, ✗ given up; columns: succeeded, failed.
    #[test]
    fn the_table() {
        use RestartOn::{AnyEnd, Failure, Never};
        for (on, max, so_far, row) in [
            (Never, 0, 0, "––"),
            (Never, 2, 2, "––"),
            (Failure, 0, 0, "–●"),
            (Failure, 0, 1_000_000, "–●"),
            (Failure, 2, 1, "–●"),
            (Failure, 2, 2, "–✗"),
            (AnyEnd, 0, 0, "●●"),
            (AnyEnd, 1, 0, "●●"),
            (AnyEnd, 1, 1, "✗✗"),
            // The policy was changed to fewer.
            (AnyEnd, 1, 7, "✗✗"),
        ] {
            let seen: String = [End::Succeeded, End::Failed]
                .map(|end| {
                    let after = attempts(so_far).after_end(&policy(on, max), end, SHORT, NOW);
                    match (after.next_attempt_at_ms, after.blocked) {
                        (Some(at), None) => {
                            assert_eq!(at, NOW + 5_000);
                            '●'
                        }
                        (None, Some(Blocked::MaxAttemptsExceeded)) => '✗',
                        (None, None) => '–',
                        other => panic!("{other:?}"),
                    }
                })
                .iter()
                .collect();
            assert_eq!(seen, row, "{on:?}, {so_far} of {max}");
        }
    }

    #[test]
    fn one_that_was_stable_counts_anew_and_one_that_was_not_does_not() {
        let twice = policy(RestartOn::Failure, 2);
        let stable = attempts(2).after_end(&twice, End::Failed, DEFAULT_STABLE_AFTER, NOW);
        assert_eq!((stable.attempts, stable.blocked), (0, None));
        assert!(stable.next_attempt_at_ms.is_some());
        let almost = DEFAULT_STABLE_AFTER.checked_sub(Duration::from_millis(1)).expect("longer");
        let given_up = attempts(2).after_end(&twice, End::Failed, almost, NOW);
        assert_eq!(given_up.blocked, Some(Blocked::MaxAttemptsExceeded));
        assert_eq!(attempts(2).seen(&twice, Some(DEFAULT_STABLE_AFTER)), RestartStatus::default());
        assert_eq!(attempts(2).seen(&twice, Some(almost)), attempts(2));
        assert_eq!(attempts(2).seen(&twice, None), attempts(2));
    }

    #[test]
    fn whoever_stops_it_wins_and_another_policy_does_not_boot_it() {
        let (always, never) = (policy(RestartOn::AnyEnd, 1), policy(RestartOn::Never, 0));
        let stopped = RestartStatus::stopped_by_hand(&always);
        assert_eq!(stopped.blocked, Some(Blocked::ManualStop));
        assert_eq!(stopped.waits(NOW), None);
        assert_eq!(stopped.under(&always), stopped);
        assert_eq!(RestartStatus::stopped_by_hand(&never), RestartStatus::default());

        let waiting = attempts(0).after_end(&always, End::Failed, SHORT, NOW);
        assert_eq!(waiting.under(&always).next_attempt_at_ms, waiting.next_attempt_at_ms);
        assert_eq!(waiting.under(&never), RestartStatus::default());
        let given_up = attempts(1).after_end(&always, End::Failed, SHORT, NOW);
        assert_eq!(given_up.under(&always), RestartStatus::default());
    }

    #[test]
    fn what_somebody_asks_for_is_not_undone_and_an_attempt_in_vain_is_followed_by_another() {
        let always = policy(RestartOn::AnyEnd, 2);
        let waiting = attempts(1).after_end(&always, End::Failed, SHORT, NOW);
        let after = |op, by, led| waiting.after_operation(&always, (op, by), led, NOW + 7);
        for op in Op::ALL {
            let done = after(op, By::Somebody, Led::There);
            match op {
                Op::Stop => assert_eq!(done.blocked, Some(Blocked::ManualStop)),
                Op::Snapshot | Op::Import => assert_eq!(done, waiting),
                _ => assert_eq!(done, RestartStatus::default(), "{op}"),
            }
            assert_eq!(after(op, By::Somebody, Led::Back), waiting, "{op}");
            assert_eq!(after(op, By::Somebody, Led::Astray).next_attempt_at_ms, None, "{op}");
        }
        let begun = waiting.attempt_begins(NOW);
        let attempt = |led| begun.after_operation(&always, (Op::Start, By::Policy), led, NOW + 7);
        assert_eq!(attempt(Led::There), RestartStatus { next_attempt_at_ms: None, ..begun });
        assert_eq!(attempt(Led::Back).blocked, Some(Blocked::MaxAttemptsExceeded), "it was the second of two");
        assert_eq!(attempt(Led::CutShort).blocked, Some(Blocked::ManualStop));
        assert_eq!(attempt(Led::Astray).next_attempt_at_ms, None);
    }

    #[test]
    fn what_is_overdue_is_due_now() {
        let due = |at| RestartStatus { next_attempt_at_ms: Some(at), ..RestartStatus::default() };
        assert_eq!(due(NOW + 250).waits(NOW), Some(Duration::from_millis(250)));
        assert_eq!(due(NOW - 250).waits(NOW), Some(Duration::ZERO));
        assert_eq!(due(i64::MIN).waits(NOW), Some(Duration::ZERO));
        assert_eq!(RestartStatus::default().waits(NOW), None);
    }

    proptest! {
        /// A program that always fails is booted exactly so often, in whatever way its attempts
        /// fail, with a pause before each; unless it was stable in between.
        #[test]
        fn a_crash_loop_ends_after_max_attempts(
            max in 1_u32..20,
            backoff_ms in 1_u64..100_000,
            boots in proptest::collection::vec(any::<bool>(), 25),
        ) {
            let policy = RestartPolicy {
                on: RestartOn::Failure,
                backoff: Duration::from_millis(backoff_ms),
                max_attempts: max,
                ..RestartPolicy::default()
            };
            let mut now = NOW;
            let mut status = RestartStatus::default().after_end(&policy, End::Failed, SHORT, now);
            let mut booted = 0;
            for it_runs in boots {
                let Some(wait) = status.waits(now) else { break };
                prop_assert_eq!(wait, policy.backoff);
                now += i64::try_from(wait.as_millis()).expect("short");
                status = status.attempt_begins(now);
                booted += 1;
                prop_assert_eq!((status.attempts, status.last_attempt_at_ms), (booted, Some(now)));
                status = if it_runs {
                    let ran = status.attempt_succeeded();
                    prop_assert_eq!(ran.next_attempt_at_ms, None);
                    ran.after_end(&policy, End::Failed, SHORT, now)
                } else {
                    status.after_failed_attempt(&policy, now)
                };
                // Waiting and blocked are never both said.
                prop_assert!(status.next_attempt_at_ms.is_none() || status.blocked.is_none());
            }
            prop_assert_eq!(booted, max);
            prop_assert_eq!(status.blocked, Some(Blocked::MaxAttemptsExceeded));
        }
    }
}
