//! What an instance may be after what was asked of it and what was answered. Pure.
//!
//! Where an answer was cut off, or something went wrong on purpose, more than one thing may be true:
//! so what is known of an instance is a set, which what is seen later narrows. An empty set is a
//! contradiction, and the daemon's fault.

use std::collections::BTreeSet;

use hearth_model::ErrorKind;

/// What a guest has in its memory; 0 is nothing.
pub(crate) type Token = u32;

/// Where an instance rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Life {
    Absent,
    Stopped,
    Running(Token),
    Standby(Token),
    /// Something of it could not be undone: it can be deleted.
    Failed,
}

/// All that it may be.
pub(crate) type Lives = BTreeSet<Life>;

/// What a snapshot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Saved {
    Memory(Token),
    Disks,
}

/// What is asked of one instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Create,
    Start,
    Stop,
    Standby,
    Restore,
    Delete,
    /// Make a snapshot of its memory, or of its disks alone.
    Save {
        memory: bool,
    },
    /// Put a snapshot in its place: `None` is one that is not its own.
    Revert(Option<Saved>),
    /// Make it, as what it is a fork of was.
    BeBorn(Life),
    Write(Token),
    /// Its guest has this in its memory.
    Read(Token),
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Done,
    /// It could not be, and nothing was begun.
    Refused(ErrorKind),
    /// It was begun, and undone.
    Failed(ErrorKind),
    /// Nobody was there to answer.
    Lost,
}

impl Answer {
    pub(crate) fn of(kind: ErrorKind) -> Self {
        match kind {
            ErrorKind::Invalid
            | ErrorKind::NotFound
            | ErrorKind::AlreadyExists
            | ErrorKind::WrongState
            | ErrorKind::Busy
            | ErrorKind::Unsupported
            | ErrorKind::Cancelled
            | ErrorKind::Unauthorized => Self::Refused(kind),
            ErrorKind::Exhausted
            | ErrorKind::Incompatible
            | ErrorKind::GuestUnresponsive
            | ErrorKind::VmmFailed
            | ErrorKind::HostFailed
            | ErrorKind::Corrupt
            | ErrorKind::GuestFailed
            | ErrorKind::Internal => Self::Failed(kind),
        }
    }
}

/// What goes wrong on purpose, as far as one instance is concerned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// Operations may fail so.
    pub(crate) fails: &'static [ErrorKind],
    /// Its VMM may end by itself.
    pub(crate) ends: bool,
    /// The daemon is killed, or told to end.
    pub(crate) cuts_off: bool,
    /// What an operation was to undo, or to finish, may stay, and be named.
    pub(crate) stays: bool,
}

/// Where a verb leads, or how it is refused.
pub(crate) fn step(life: Life, verb: Verb) -> Result<Life, ErrorKind> {
    use ErrorKind::{AlreadyExists, Invalid, NotFound, WrongState};
    use Life::{Absent, Failed, Running, Standby, Stopped};
    match (verb, life) {
        (Verb::Create, Absent) => Ok(Running(0)),
        (Verb::BeBorn(life), Absent) => Ok(life),
        (Verb::Create | Verb::BeBorn(_), Stopped | Running(_) | Standby(_) | Failed) => Err(AlreadyExists),
        (_, Absent) => Err(NotFound),

        (Verb::Delete, Stopped | Running(_) | Standby(_) | Failed) => Ok(Absent),
        (Verb::Revert(None), _) => Err(Invalid),
        (_, Failed) => Err(WrongState),

        (Verb::Start, Stopped) => Ok(Running(0)),
        (Verb::Start, Running(_)) => Ok(life),
        (Verb::Start, Standby(_)) => Err(WrongState),

        (Verb::Stop, Stopped | Running(_) | Standby(_)) => Ok(Stopped),

        (Verb::Standby, Running(memory) | Standby(memory)) => Ok(Standby(memory)),
        (Verb::Standby, Stopped) => Err(WrongState),

        (Verb::Restore, Standby(memory) | Running(memory)) => Ok(Running(memory)),
        (Verb::Restore, Stopped) => Err(WrongState),

        (Verb::Save { memory: true }, Running(_) | Standby(_)) | (Verb::Save { memory: false }, Stopped) => Ok(life),
        (Verb::Save { .. }, Stopped | Running(_) | Standby(_)) => Err(WrongState),

        (Verb::Revert(Some(_)), Running(_)) => Err(WrongState),
        (Verb::Revert(Some(Saved::Memory(memory))), Stopped | Standby(_)) => Ok(Running(memory)),
        (Verb::Revert(Some(Saved::Disks)), Stopped | Standby(_)) => Ok(Stopped),

        (Verb::Write(memory), Running(_)) => Ok(Running(memory)),
        (Verb::Read(seen), Running(memory)) if seen == memory => Ok(life),
        // What is read is what is there.
        (Verb::Read(_), Running(_)) => Err(ErrorKind::Corrupt),
        (Verb::Write(_) | Verb::Read(_), Stopped | Standby(_)) => Err(WrongState),
    }
}

/// What a snapshot of it holds.
pub(crate) fn saved(life: Life) -> Option<Saved> {
    match life {
        Life::Absent | Life::Failed => None,
        Life::Stopped => Some(Saved::Disks),
        Life::Running(memory) | Life::Standby(memory) => Some(Saved::Memory(memory)),
    }
}

/// What a snapshot is forked to when nothing else is asked for.
pub(crate) fn born_of(saved: Saved) -> Life {
    match saved {
        Saved::Memory(memory) => Life::Running(memory),
        Saved::Disks => Life::Stopped,
    }
}

/// What it may be if its VMM may have ended.
pub(crate) fn perhaps_ended(lives: &Lives) -> Lives {
    let ends = lives.iter().any(|life| matches!(life, Life::Running(_)));
    lives.iter().copied().chain(ends.then_some(Life::Stopped)).collect()
}

/// What it may be after an answer. `verbs` are all that the question may have meant, as what it is about
/// may be one of several things too.
///
/// # Errors
/// There is no way to that answer.
pub(crate) fn after(lives: &Lives, verbs: &[Verb], answer: Answer, trouble: Trouble) -> Result<Lives, String> {
    let before = if trouble.ends { perhaps_ended(lives) } else { lives.clone() };
    let steps = || before.iter().flat_map(|life| verbs.iter().map(|verb| (*life, step(*life, *verb))));
    let mut after: Lives = match answer {
        Answer::Done => steps().filter_map(|(_, led)| led.ok()).collect(),
        Answer::Refused(ErrorKind::Cancelled) if trouble.cuts_off => before.clone(),
        // The record of what was there by that name could not be removed yet.
        Answer::Refused(ErrorKind::AlreadyExists) if trouble.fails.contains(&ErrorKind::Exhausted) => before.clone(),
        // What was not undone at once may be by now: where it is refused tells nothing of where it will rest.
        Answer::Refused(kind) if trouble.stays && steps().any(|(_, led)| led == Err(kind)) => before.clone(),
        Answer::Refused(kind) => steps().filter(|(_, led)| *led == Err(kind)).map(|(life, _)| life).collect(),
        // What could be neither undone nor finished at once is, when the disk works again; and who cannot read
        // a record does not know whether to refuse.
        Answer::Failed(kind) if trouble.stays && trouble.fails.contains(&kind) => {
            before.iter().copied().chain(steps().filter_map(|(_, led)| led.ok())).collect()
        }
        Answer::Failed(kind) if trouble.fails.contains(&kind) => {
            steps().filter(|(_, led)| led.is_ok()).map(|(life, _)| life).collect()
        }
        // Of a command whose guest ends under it nobody knows either.
        Answer::Lost if trouble.cuts_off || trouble.ends => {
            before.iter().copied().chain(steps().filter_map(|(_, led)| led.ok())).collect()
        }
        Answer::Failed(_) | Answer::Lost => Lives::new(),
    };
    if trouble.ends {
        after = perhaps_ended(&after);
    }
    if trouble.stays && !after.is_empty() && steps().any(|(_, led)| led.is_ok()) {
        after.insert(Life::Failed);
    }
    if after.is_empty() {
        return Err(format!("{verbs:?} of what was {lives:?} was answered with {answer:?}"));
    }
    Ok(after)
}

/// What it may be after several have asked at once: whatever some order of what was done leads to, in
/// which each refusal was right at some moment.
///
/// # Errors
/// There is no such order.
pub(crate) fn all_at_once(lives: &Lives, asked: &[(Verb, Answer)]) -> Result<Lives, String> {
    let mut ends = Lives::new();
    for life in lives {
        in_some_order(*life, asked, &mut vec![false; asked.len()], &mut ends);
    }
    if ends.is_empty() {
        return Err(format!("no order of {asked:?} fits what was {lives:?}"));
    }
    Ok(ends)
}

fn in_some_order(life: Life, asked: &[(Verb, Answer)], used: &mut Vec<bool>, ends: &mut Lives) {
    if used.iter().all(|used| *used) {
        ends.insert(life);
    }
    for nth in 0..asked.len() {
        if used[nth] {
            continue;
        }
        let (verb, answer) = asked[nth];
        let led = match answer {
            Answer::Done => step(life, verb).ok(),
            // Somebody else was at it, or has just removed it, or has ended its VMM under a command.
            Answer::Refused(ErrorKind::Busy | ErrorKind::Cancelled) => Some(life),
            Answer::Lost if matches!(verb, Verb::Read(_)) => Some(life),
            Answer::Refused(kind) => (step(life, verb) == Err(kind)).then_some(life),
            Answer::Failed(_) | Answer::Lost => None,
        };
        if let Some(led) = led {
            used[nth] = true;
            in_some_order(led, asked, used, ends);
            used[nth] = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Life::{Absent, Failed, Running, Standby, Stopped};
    use super::*;

    const CALM: Trouble = Trouble { fails: &[], ends: false, cuts_off: false, stays: false };

    fn lives<const N: usize>(lives: [Life; N]) -> Lives {
        lives.into()
    }

    #[test]
    fn what_is_done_leads_on_and_memory_goes_with_it() {
        let mut life = lives([Absent]);
        for (verb, then) in [
            (Verb::Create, Running(0)),
            (Verb::Write(7), Running(7)),
            (Verb::Standby, Standby(7)),
            (Verb::Restore, Running(7)),
            (Verb::Read(7), Running(7)),
            (Verb::Stop, Stopped),
            (Verb::Start, Running(0)),
            (Verb::Delete, Absent),
            (Verb::BeBorn(Standby(3)), Standby(3)),
            (Verb::Revert(Some(Saved::Memory(4))), Running(4)),
        ] {
            life = after(&life, &[verb], Answer::Done, CALM).expect("it may be");
            assert_eq!(life, lives([then]), "{verb:?}");
        }
    }

    #[test]
    fn an_answer_that_cannot_be_is_found() {
        for (life, verb, answer) in [
            (Absent, Verb::Start, Answer::Done),
            (Running(1), Verb::Read(2), Answer::Done),
            (Stopped, Verb::Start, Answer::Refused(ErrorKind::WrongState)),
            (Running(1), Verb::Standby, Answer::Failed(ErrorKind::VmmFailed)),
            (Running(1), Verb::Standby, Answer::Refused(ErrorKind::Busy)),
            (Running(1), Verb::Standby, Answer::Lost),
        ] {
            assert!(after(&lives([life]), &[verb], answer, CALM).is_err(), "{verb:?} of {life:?}: {answer:?}");
        }
        let silent = Trouble { fails: &[ErrorKind::GuestUnresponsive], ..CALM };
        let failed = |kind| after(&lives([Standby(1)]), &[Verb::Restore], Answer::Failed(kind), silent);
        assert_eq!(failed(ErrorKind::GuestUnresponsive), Ok(lives([Standby(1)])));
        assert!(failed(ErrorKind::Internal).is_err(), "not of that kind");
    }

    #[test]
    fn what_was_cut_off_happened_or_did_not() {
        let cut = Trouble { cuts_off: true, ..CALM };
        let standby = after(&lives([Running(5)]), &[Verb::Standby], Answer::Lost, cut).expect("either");
        assert_eq!(standby, lives([Running(5), Standby(5)]));
        // What is asked next tells which.
        let restored = after(&standby, &[Verb::Start], Answer::Refused(ErrorKind::WrongState), CALM);
        assert_eq!(restored, Ok(lives([Standby(5)])));
        let forked = [Verb::BeBorn(Running(5)), Verb::BeBorn(Standby(5))];
        let forked = after(&lives([Absent]), &forked, Answer::Lost, cut).expect("either");
        assert_eq!(forked, lives([Absent, Running(5), Standby(5)]));
    }

    #[test]
    fn a_guest_whose_vmm_may_have_ended_runs_or_is_stopped() {
        let ends = Trouble { ends: true, ..CALM };
        let started = after(&lives([Running(5)]), &[Verb::Start], Answer::Done, ends).expect("either");
        assert_eq!(started, lives([Running(0), Running(5), Stopped]));
        assert_eq!(perhaps_ended(&lives([Standby(5)])), lives([Standby(5)]), "it has none");
    }

    #[test]
    fn what_could_not_be_undone_at_once_is_before_or_behind_it_or_has_failed() {
        let bad = Trouble { fails: &[ErrorKind::HostFailed], stays: true, ..CALM };
        let running = lives([Running(5)]);
        let failed = |kind| after(&running, &[Verb::Standby], Answer::Failed(kind), bad);
        let either = lives([Running(5), Standby(5), Failed]);
        assert_eq!(failed(ErrorKind::HostFailed), Ok(either.clone()));
        assert!(failed(ErrorKind::Corrupt).is_err(), "not of that kind");
        let done = after(&running, &[Verb::Standby], Answer::Done, bad);
        assert_eq!(done, Ok(lives([Standby(5), Failed])));
        // It may be undone between the two.
        let refused = after(&either, &[Verb::Start], Answer::Refused(ErrorKind::WrongState), bad);
        assert_eq!(refused, Ok(either.clone()));
        assert!(after(&running, &[Verb::Start], Answer::Refused(ErrorKind::WrongState), bad).is_err(), "it runs");
        let failed = lives([Failed]);
        for (verb, answer) in [(Verb::Start, Answer::Done), (Verb::Read(0), Answer::Done)] {
            assert!(after(&failed, &[verb], answer, CALM).is_err(), "{verb:?}: only delete leads on");
        }
        assert_eq!(after(&failed, &[Verb::Delete], Answer::Done, CALM), Ok(lives([Absent])));
    }

    #[test]
    fn of_those_who_ask_at_once_each_is_answered_as_if_in_turn() {
        let asked = [(Verb::Stop, Answer::Done), (Verb::Start, Answer::Done)];
        assert_eq!(all_at_once(&lives([Running(5)]), &asked), Ok(lives([Stopped, Running(0)])));
        let asked = [
            (Verb::Delete, Answer::Done),
            (Verb::Standby, Answer::Refused(ErrorKind::NotFound)),
            (Verb::Stop, Answer::Refused(ErrorKind::Busy)),
        ];
        assert_eq!(all_at_once(&lives([Running(5)]), &asked), Ok(lives([Absent])));
        let twice = [(Verb::Restore, Answer::Done), (Verb::Start, Answer::Refused(ErrorKind::WrongState))];
        assert_eq!(all_at_once(&lives([Standby(5)]), &twice), Ok(lives([Running(5)])));
        let never = [(Verb::Restore, Answer::Done), (Verb::Delete, Answer::Refused(ErrorKind::NotFound))];
        assert!(all_at_once(&lives([Standby(5)]), &never).is_err(), "nobody has removed it");
    }
}
