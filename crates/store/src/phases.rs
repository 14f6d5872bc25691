//! How long an instance has been in each of its phases: the API's `phase_durations_ms`.
//!
//! Pure: times come from the caller, in milliseconds since the Unix epoch. A wall clock that steps
//! back counts as no time.

use std::collections::BTreeMap;

/// Time spent in each phase so far, and since when in the current one.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PhaseClock {
    /// Milliseconds in each phase that was left; the current one's earlier visits too.
    pub durations_ms: BTreeMap<String, u64>,
    /// The phase it is in.
    pub current: String,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_ms: i64,
}

impl PhaseClock {
    /// Begins in `phase`.
    #[must_use]
    pub fn start(phase: &str, now_ms: i64) -> Self {
        Self { durations_ms: BTreeMap::new(), current: phase.to_owned(), since_ms: now_ms }
    }

    /// Leaves the current phase for `phase`. Entering the phase it is in changes nothing.
    pub fn enter(&mut self, phase: &str, now_ms: i64) {
        if self.current == phase {
            return;
        }
        self.durations_ms = self.durations_at(now_ms);
        phase.clone_into(&mut self.current);
        self.since_ms = now_ms;
    }

    /// Milliseconds in each phase, with the time in the current one until now.
    #[must_use]
    pub fn durations_at(&self, now_ms: i64) -> BTreeMap<String, u64> {
        let mut durations = self.durations_ms.clone();
        let elapsed = u64::try_from(now_ms.saturating_sub(self.since_ms)).unwrap_or(0);
        let current = durations.entry(self.current.clone()).or_default();
        *current = current.saturating_add(elapsed);
        durations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn durations(clock: &PhaseClock, now_ms: i64) -> Vec<(String, u64)> {
        clock.durations_at(now_ms).into_iter().collect()
    }

    #[test]
    fn visits_to_a_phase_add_up_and_the_current_one_runs_on() {
        let mut clock = PhaseClock::start("initializing", 1_000);
        clock.enter("running", 1_400);
        clock.enter("standby", 2_400);
        clock.enter("running", 10_000);
        clock.enter("running", 10_500);
        assert_eq!(clock.since_ms, 10_000, "entering the phase it is in is no change");
        let expected = [("initializing", 400), ("running", 1_700), ("standby", 7_600)];
        assert_eq!(durations(&clock, 10_700), expected.map(|(name, ms)| (name.to_owned(), ms)));
    }

    #[test]
    fn a_clock_that_steps_back_counts_nothing() {
        let mut clock = PhaseClock::start("running", 5_000);
        clock.enter("stopped", 4_000);
        assert_eq!(durations(&clock, 3_000), [("running".to_owned(), 0), ("stopped".to_owned(), 0)]);
    }
}
