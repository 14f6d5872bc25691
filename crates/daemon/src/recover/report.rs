//! What the last start found and did, for whoever asks: in memory, as long as this daemon runs.
//!
//! In: what recovery says as it goes, and later the drivers of instances that could not be seen. Out:
//! a copy of it. It is bounded: with more instances than it has room for, those to which nothing was
//! done are counted, and not listed.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_model::recovery::{Observed, Outcome};
use hearth_model::{InstanceId, InstanceName, InstanceState, Phase};
use hearth_store::InstanceRecord;

/// How many instances are listed.
const INSTANCES: usize = 1000;
/// How many things that were not removed are listed, of each sort.
const UNSWEPT: usize = 100;
/// How long a reason may be: a VMM's last words may be in it.
const REASON: usize = 2000;

/// The report of the last start.
#[derive(Debug, Default)]
pub(crate) struct Report(Mutex<Told>);

/// What it says.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) began_at_ms: i64,
    pub(crate) took: Duration,
    pub(crate) outcomes: BTreeMap<Outcome, u32>,
    pub(crate) instances: Vec<Entry>,
    /// How many more there were.
    pub(crate) unlisted: u32,
    pub(crate) swept: Swept,
}

/// One recorded instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) id: InstanceId,
    pub(crate) name: InstanceName,
    pub(crate) found: Phase,
    pub(crate) observed: Observed,
    pub(crate) outcome: Outcome,
    /// Where it rests since; none if it is no more, or nothing is decided.
    pub(crate) state: Option<InstanceState>,
    /// Why it is held or has failed.
    pub(crate) reason: Option<String>,
    /// How often it was looked for again.
    pub(crate) looks: u32,
}

/// What was removed that nobody owns, and what was not.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Swept {
    pub(crate) bundles: u32,
    pub(crate) withdrawn_records: u32,
    pub(crate) unpublished_records: u32,
    pub(crate) directories: u32,
    pub(crate) imports: u32,
    pub(crate) images: u32,
    pub(crate) drafts: u32,
    pub(crate) cgroups: u32,
    pub(crate) slots: u32,
    /// Left as it is, and why.
    pub(crate) left: Vec<(String, String)>,
    /// It should have been removed, and why it was not.
    pub(crate) failed: Vec<(String, String)>,
    /// How many more of either there were.
    pub(crate) unlisted: u32,
}

impl Entry {
    /// Of an instance as its record was found.
    pub(crate) fn of(record: &InstanceRecord, observed: Observed, outcome: Outcome) -> Self {
        Self {
            id: record.id.clone(),
            name: record.spec.name.clone(),
            found: record.phase.clone(),
            observed,
            outcome,
            state: None,
            reason: None,
            looks: 0,
        }
    }

    #[must_use]
    pub(crate) fn rests(self, state: InstanceState) -> Self {
        Self { state: Some(state), ..self }
    }

    #[must_use]
    pub(crate) fn because(self, reason: &str) -> Self {
        Self { reason: Some(reason.chars().take(REASON).collect()), ..self }
    }

    /// It was found so when it was looked for again.
    #[must_use]
    pub(crate) fn after(self, looks: usize) -> Self {
        Self { looks: u32::try_from(looks).unwrap_or(u32::MAX), ..self }
    }
}

impl Swept {
    /// Something stays because nobody knows of it, or is not there though somebody does.
    pub(crate) fn left(&mut self, what: impl Into<String>, why: impl Into<String>) {
        list(&mut self.left, &mut self.unlisted, what.into(), why.into());
    }

    /// Something stays though it should not.
    pub(crate) fn failed(&mut self, what: impl Into<String>, why: impl Into<String>) {
        list(&mut self.failed, &mut self.unlisted, what.into(), why.into());
    }
}

fn list(list: &mut Vec<(String, String)>, unlisted: &mut u32, what: String, why: String) {
    if list.len() < UNSWEPT {
        list.push((what, why.chars().take(REASON).collect()));
    } else {
        *unlisted += 1;
    }
}

/// How many, where nobody has more than a number can say.
pub(super) fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

impl Report {
    /// A start begins: what was said before is gone.
    pub(super) fn begin(&self, began_at_ms: i64) {
        *self.lock() = Told { began_at_ms, ..Told::default() };
    }

    pub(super) fn swept(&self, swept: Swept) {
        self.lock().swept = swept;
    }

    /// It has come to its end.
    pub(super) fn end(&self, took: Duration) {
        self.lock().took = took;
    }

    /// What became of an instance. Of one that was held, what became of it at last.
    pub(super) fn note(&self, entry: Entry) {
        let mut told = self.lock();
        *told.outcomes.entry(entry.outcome).or_default() += 1;
        if entry.looks > 0 {
            // Said before as held.
            told.outcomes.entry(Outcome::Held).and_modify(|held| *held = held.saturating_sub(1));
            if let Some(held) = told.instances.iter_mut().find(|held| held.id == entry.id) {
                *held = Entry { found: held.found.clone(), ..entry };
            }
            return;
        }
        if told.instances.len() < INSTANCES {
            return told.instances.push(entry);
        }
        told.unlisted += 1;
        let uneventful = told.instances.iter_mut().find(|listed| listed.outcome.is_uneventful());
        if let (false, Some(uneventful)) = (entry.outcome.is_uneventful(), uneventful) {
            *uneventful = entry;
        }
    }

    /// What it says now: those to which something was done first, then by name.
    pub(crate) fn told(&self) -> Told {
        let mut told = self.lock().clone();
        told.outcomes.retain(|_, count| *count > 0);
        told.instances.sort_by(|a, b| {
            (a.outcome.is_uneventful(), a.name.as_str()).cmp(&(b.outcome.is_uneventful(), b.name.as_str()))
        });
        told
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(nth: u32, outcome: Outcome) -> Entry {
        let mut entropy = [0; 16];
        entropy[..4].copy_from_slice(&nth.to_be_bytes());
        Entry {
            id: InstanceId::from_entropy(entropy),
            name: format!("web-{nth:06}").parse().expect("a name"),
            found: Phase::Resting(InstanceState::Running),
            observed: Observed::Alive,
            outcome,
            state: None,
            reason: None,
            looks: 0,
        }
    }

    fn counts(told: &Told) -> Vec<(Outcome, u32)> {
        told.outcomes.iter().map(|(outcome, count)| (*outcome, *count)).collect()
    }

    #[test]
    fn of_too_many_instances_those_are_listed_to_which_something_was_done() {
        let report = Report::default();
        report.begin(7);
        let most = u32::try_from(INSTANCES).expect("few");
        (0..most + 5).for_each(|nth| report.note(entry(nth, Outcome::Adopted)));
        report.note(entry(most + 5, Outcome::Undone));
        let told = report.told();
        assert_eq!((told.instances.len(), told.unlisted), (INSTANCES, 6));
        assert_eq!(told.instances[0].outcome, Outcome::Undone);
        assert!(told.instances[1..].is_sorted_by_key(|entry| entry.name.to_string()));
        assert_eq!(counts(&told), [(Outcome::Adopted, most + 5), (Outcome::Undone, 1)], "all are counted");

        (0..most).for_each(|nth| report.note(entry(2 * most + nth, Outcome::Failed)));
        let told = report.told();
        assert_eq!((told.instances.len(), told.unlisted), (INSTANCES, most + 6));
        assert!(told.instances.iter().all(|entry| !entry.outcome.is_uneventful()));
        report.begin(8);
        assert_eq!((report.told().instances.len(), report.told().unlisted), (0, 0), "of the last start alone");
    }

    #[test]
    fn one_that_was_held_has_what_became_of_it_in_the_end() {
        let report = Report::default();
        let cut = Phase::Busy { op: hearth_model::Op::Standby, from: InstanceState::Running };
        let held = Entry { found: cut.clone(), observed: Observed::Unknown, ..entry(1, Outcome::Held) };
        report.note(held.because("no descriptors"));
        report.note(entry(2, Outcome::Rests));
        assert_eq!(counts(&report.told()), [(Outcome::Rests, 1), (Outcome::Held, 1)]);
        report.note(entry(1, Outcome::Adopted).rests(InstanceState::Running).after(3));
        let told = report.told();
        assert_eq!(counts(&told), [(Outcome::Adopted, 1), (Outcome::Rests, 1)]);
        let seen = Entry { found: cut, looks: 3, ..entry(1, Outcome::Adopted).rests(InstanceState::Running) };
        assert_eq!(told.instances, [seen, entry(2, Outcome::Rests)]);
    }

    #[test]
    fn what_could_not_be_swept_is_named_as_far_as_there_is_room() {
        let mut swept = Swept::default();
        (0..UNSWEPT + 3).for_each(|nth| swept.left(format!("bundle {nth}"), "nobody knows of it"));
        swept.failed("images/.import-x", "é".repeat(2 * REASON));
        assert_eq!((swept.left.len(), swept.failed.len(), swept.unlisted), (UNSWEPT, 1, 3));
        assert_eq!(swept.failed[0].1.chars().count(), REASON);
    }
}
