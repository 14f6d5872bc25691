//! What to do at start about an instance, from its record and from what the host shows.

use crate::id::SnapshotId;
use crate::state::{InstanceState, Op, Phase};

/// What the host shows of an instance's VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Observed {
    /// The recorded process is there: same pid, start time and boot.
    Alive,
    /// Looked, and it is not there.
    Gone,
    /// Could not look. Nothing may be deleted on this.
    Unknown,
}

/// What the daemon does about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// Take the VMM over as it is.
    Adopt,
    /// Rest in this state; nothing on the host is touched.
    Rest(InstanceState),
    /// The VMM ended while nobody looked: clean its sockets, rest stopped.
    NoteExit,
    /// An operation was cut off: remove by name what it may have made, then rest in this state.
    Undo(InstanceState),
    /// An operation that makes an instance was cut off: remove all of it.
    Remove,
    /// The deletion was cut off: finish it.
    FinishDelete,
    /// Leave everything, say why, and look again.
    Hold(&'static str),
}

impl Observed {
    /// As the report has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Gone => "gone",
            Self::Unknown => "unknown",
        }
    }
}

/// What was done about an instance, as the report and the metrics have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Its VMM was taken over.
    Adopted,
    /// It rests where it did: there was nothing to do.
    Rests,
    /// Its VMM had ended while nobody looked, and that was noted.
    ExitNoted,
    /// What an operation that was cut off had made was removed.
    Undone,
    /// It was being made: all of it was removed.
    Removed,
    /// Its deletion was finished.
    DeleteFinished,
    /// It could not be looked for: nothing was touched, and it is looked for again.
    Held,
    /// It could not be brought back under control.
    Failed,
}

impl Outcome {
    /// Every outcome.
    pub const ALL: [Self; 8] = [
        Self::Adopted,
        Self::Rests,
        Self::ExitNoted,
        Self::Undone,
        Self::Removed,
        Self::DeleteFinished,
        Self::Held,
        Self::Failed,
    ];

    /// The name on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => "adopted",
            Self::Rests => "rests",
            Self::ExitNoted => "exit_noted",
            Self::Undone => "undone",
            Self::Removed => "removed",
            Self::DeleteFinished => "delete_finished",
            Self::Held => "held",
            Self::Failed => "failed",
        }
    }

    /// Whether it was found as a daemon leaves it that ends in peace.
    #[must_use]
    pub const fn is_uneventful(self) -> bool {
        matches!(self, Self::Adopted | Self::Rests)
    }
}

impl Recovery {
    /// What it is called once it was carried out.
    #[must_use]
    pub const fn outcome(&self) -> Outcome {
        match self {
            Self::Adopt => Outcome::Adopted,
            Self::Rest(_) => Outcome::Rests,
            Self::NoteExit => Outcome::ExitNoted,
            Self::Undo(_) => Outcome::Undone,
            Self::Remove => Outcome::Removed,
            Self::FinishDelete => Outcome::DeleteFinished,
            Self::Hold(_) => Outcome::Held,
        }
    }
}

/// Where to recover an instance from whose directory is gone because somebody was removing it: a record that
/// rests is older than that, and the newer one was lost with the power.
#[must_use]
pub fn being_removed(phase: &Phase) -> Phase {
    match phase {
        Phase::Resting(InstanceState::Failed { .. }) | Phase::Busy { .. } => phase.clone(),
        Phase::Resting(from) => Phase::Busy { op: Op::Delete, from: from.clone() },
    }
}

/// Decides, purely. `saved`: the bundle that a standby that was cut off had recorded already.
#[must_use]
pub fn recover(phase: &Phase, seen: Observed, saved: Option<SnapshotId>) -> Recovery {
    use InstanceState::{Failed, Running, Standby, Stopped};
    match (phase, seen) {
        (Phase::Resting(state @ Failed { .. }), _) => Recovery::Rest(state.clone()),
        (_, Observed::Unknown) => Recovery::Hold("could not look for its VMM"),

        (Phase::Resting(Running), Observed::Alive) => Recovery::Adopt,
        (Phase::Resting(Running), Observed::Gone) => Recovery::NoteExit,
        // A VMM is there that the record does not know of: an operation was cut off at its end.
        (Phase::Resting(state @ (Stopped | Standby { .. })), Observed::Alive) => Recovery::Undo(state.clone()),
        (Phase::Resting(state @ (Stopped | Standby { .. })), Observed::Gone) => Recovery::Rest(state.clone()),

        (Phase::Busy { op: Op::Delete, .. }, Observed::Alive | Observed::Gone) => Recovery::FinishDelete,
        (Phase::Busy { op: Op::Create | Op::Fork, .. }, Observed::Alive | Observed::Gone) => Recovery::Remove,

        // It was running and still is: whatever was begun on it did not end it.
        (Phase::Busy { from: Running, .. }, Observed::Alive) => Recovery::Adopt,
        // Its memory is safe, only the last words of the standby were not written.
        (Phase::Busy { op: Op::Standby, from: Running }, Observed::Gone) => match saved {
            Some(snapshot) => Recovery::Undo(Standby { snapshot }),
            None => Recovery::NoteExit,
        },
        (Phase::Busy { from: Running, .. }, Observed::Gone) => Recovery::NoteExit,
        (Phase::Busy { from: state, .. }, Observed::Alive | Observed::Gone) => Recovery::Undo(state.clone()),
    }
}

/// What the directory of an instance says of itself that no record knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// It was made before the host was booted, and its record was not on the disk yet.
    OfAnEarlierBoot,
    /// It was made since: a record that no disk has got is still in the kernel's memory.
    OfThisBoot,
    /// None: its record has been on the disk.
    Absent,
    /// Could not look.
    Unknown,
}

/// What to do about such a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stray {
    /// Its record went with the power: nobody has heard of it for longer than some seconds.
    Remove,
    /// It may be somebody's whose records were exchanged for older ones. Leave it, and say why.
    Leave(&'static str),
}

/// Decides, purely, about an instance's directory without a record.
#[must_use]
pub const fn recover_stray(mark: Mark) -> Stray {
    match mark {
        Mark::OfAnEarlierBoot => Stray::Remove,
        Mark::OfThisBoot | Mark::Absent => Stray::Leave("an instance's directory without a record"),
        Mark::Unknown => Stray::Leave("an instance's directory without a record, which could not be looked into"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_touched_when_one_could_not_look() {
        for op in Op::ALL {
            for phase in [
                Phase::Resting(InstanceState::Running),
                Phase::Resting(InstanceState::Stopped),
                Phase::Busy { op, from: InstanceState::Running },
            ] {
                assert!(matches!(recover(&phase, Observed::Unknown, None), Recovery::Hold(_)));
            }
        }
    }

    #[test]
    fn a_running_guest_is_never_ended_by_a_restart() {
        for op in [Op::Snapshot, Op::Standby, Op::Stop] {
            let phase = Phase::Busy { op, from: InstanceState::Running };
            assert_eq!(recover(&phase, Observed::Alive, None), Recovery::Adopt);
        }
        assert_eq!(recover(&Phase::Resting(InstanceState::Running), Observed::Alive, None), Recovery::Adopt);
    }

    #[test]
    fn memory_that_was_saved_is_not_lost_with_the_daemon() {
        let cut = Phase::Busy { op: Op::Standby, from: InstanceState::Running };
        let snapshot = SnapshotId::from_entropy([3; 16]);
        let standby = InstanceState::Standby { snapshot: snapshot.clone() };
        assert_eq!(recover(&cut, Observed::Gone, Some(snapshot.clone())), Recovery::Undo(standby));
        assert_eq!(recover(&cut, Observed::Gone, None), Recovery::NoteExit);
        assert_eq!(recover(&cut, Observed::Alive, Some(snapshot)), Recovery::Adopt);
    }

    #[test]
    fn every_outcome_has_a_name_of_its_own() {
        let names: std::collections::BTreeSet<_> = Outcome::ALL.map(Outcome::as_str).into_iter().collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        let uneventful: Vec<_> = Outcome::ALL.into_iter().filter(|outcome| outcome.is_uneventful()).collect();
        assert_eq!(uneventful, [Outcome::Adopted, Outcome::Rests]);
    }

    #[test]
    fn a_directory_without_a_record_goes_only_if_the_power_took_its_record() {
        assert_eq!(recover_stray(Mark::OfAnEarlierBoot), Stray::Remove);
        for mark in [Mark::OfThisBoot, Mark::Absent, Mark::Unknown] {
            assert!(matches!(recover_stray(mark), Stray::Leave(_)), "{mark:?}");
        }
    }

    #[test]
    fn a_removal_that_was_begun_is_finished_though_its_record_was_lost() {
        let snapshot = SnapshotId::from_entropy([3; 16]);
        for from in [InstanceState::Stopped, InstanceState::Running, InstanceState::Standby { snapshot }] {
            let phase = being_removed(&Phase::Resting(from));
            assert_eq!(recover(&phase, Observed::Gone, None), Recovery::FinishDelete);
            assert!(matches!(recover(&phase, Observed::Unknown, None), Recovery::Hold(_)));
        }
        for op in Op::ALL {
            let busy = Phase::Busy { op, from: InstanceState::Stopped };
            assert_eq!(being_removed(&busy), busy, "it says itself what was under way");
        }
        let failed = Phase::Resting(InstanceState::Failed { reason: "its VMM stays".into() });
        assert_eq!(being_removed(&failed), failed, "somebody was told that not all of it could be removed");
    }

    #[test]
    fn half_made_instances_go_and_half_deleted_ones_too() {
        let cut = |op| Phase::Busy { op, from: InstanceState::Stopped };
        for seen in [Observed::Alive, Observed::Gone] {
            assert_eq!(recover(&cut(Op::Create), seen, None), Recovery::Remove);
            assert_eq!(recover(&cut(Op::Fork), seen, None), Recovery::Remove);
            assert_eq!(recover(&cut(Op::Delete), seen, None), Recovery::FinishDelete);
            assert_eq!(recover(&cut(Op::Start), seen, None), Recovery::Undo(InstanceState::Stopped));
        }
    }
}
