//! Whether an operation may begin: one pure table of state × operation.

use crate::error::ErrorKind;
use crate::state::{InstanceState, Op, Phase};

/// The operation may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Run it.
    Run,
    /// The instance is there already; answer with it.
    AlreadyThere,
    /// Cut short what is under way, and ask again once that has ended.
    CutShort,
}

/// The operation may not begin.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Another one is under way.
    #[error("{running} is under way")]
    Busy {
        /// The one that runs.
        running: Op,
    },
    /// It does not lead on from this state.
    #[error("cannot {op}: it is {}", .state.name())]
    WrongState {
        /// The one that was asked for.
        op: Op,
        /// Where the instance rests.
        state: InstanceState,
    },
}

impl Denied {
    /// Which error this is to the caller.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Busy { .. } => ErrorKind::Busy,
            Self::WrongState { .. } => ErrorKind::WrongState,
        }
    }

    /// The verb that leads to a state where the operation can begin.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Busy { running } => format!("wait until the {running} has ended, and try again"),
            Self::WrongState { op, state } => match (state, op) {
                (InstanceState::Failed { .. }, _) => "only delete leads on from here".into(),
                (InstanceState::Standby { .. }, Op::Start | Op::Standby) => "restore it instead".into(),
                (InstanceState::Stopped, Op::Standby | Op::Restore) => "start it first".into(),
                (InstanceState::Running, Op::Restore | Op::Revert) => "bring it to standby or stop it first".into(),
                (_, Op::Create | Op::Fork) => "these make a new instance".into(),
                (_, Op::Import) => "it makes a snapshot, and needs no instance".into(),
                (_, op) => format!("{op} is not possible from here"),
            },
        }
    }
}

/// Decides whether `op` may begin on an instance in `phase`.
///
/// # Errors
/// [`Denied`], with what stands in the way.
pub fn admit(phase: &Phase, op: Op) -> Result<Admitted, Denied> {
    use InstanceState::{Failed, Running, Standby, Stopped};
    let state = match (phase, op) {
        // A boot may take its time, or never come to an end.
        (Phase::Busy { op: Op::Create | Op::Fork | Op::Start, .. }, Op::Delete) => return Ok(Admitted::CutShort),
        (Phase::Busy { op: running, .. }, _) => return Err(Denied::Busy { running: *running }),
        (Phase::Resting(state), _) => state,
    };
    let run = Ok(Admitted::Run);
    let already = Ok(Admitted::AlreadyThere);
    let denied = || Err(Denied::WrongState { op, state: state.clone() });
    // Every pair is written out: a new state or operation does not compile until decided.
    match (state, op) {
        // The two that make a new instance find it reserved for them and never resting.
        (_, Op::Create | Op::Fork) => denied(),
        // Of no instance.
        (_, Op::Import) => denied(),

        (Stopped | Running | Standby { .. } | Failed { .. }, Op::Delete) => run,

        (Stopped, Op::Start) => run,
        (Running, Op::Start) => already,
        (Standby { .. } | Failed { .. }, Op::Start) => denied(),

        (Running | Standby { .. }, Op::Stop) => run,
        (Stopped, Op::Stop) => already,
        (Failed { .. }, Op::Stop) => denied(),

        (Running, Op::Standby) => run,
        (Standby { .. }, Op::Standby) => already,
        (Stopped | Failed { .. }, Op::Standby) => denied(),

        (Standby { .. }, Op::Restore) => run,
        (Running, Op::Restore) => already,
        (Stopped | Failed { .. }, Op::Restore) => denied(),

        (Stopped | Running | Standby { .. }, Op::Snapshot) => run,
        (Failed { .. }, Op::Snapshot) => denied(),

        (Stopped | Standby { .. }, Op::Revert) => run,
        (Running | Failed { .. }, Op::Revert) => denied(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn states() -> [InstanceState; 4] {
        let snapshot = crate::id::SnapshotId::from_entropy([7; 16]);
        [
            InstanceState::Stopped,
            InstanceState::Running,
            InstanceState::Standby { snapshot },
            InstanceState::Failed { reason: "test".into() },
        ]
    }

    /// ● run, – already so, ✗ denied; columns as in `Op::ALL`.
    #[test]
    fn the_table() {
        let table = states().map(|state| {
            Op::ALL.map(|op| match admit(&Phase::Resting(state.clone()), op) {
                Ok(Admitted::Run) => '●',
                Ok(Admitted::AlreadyThere) => '–',
                Ok(Admitted::CutShort) => '!',
                Err(_) => '✗',
            })
        });
        let rows: Vec<String> = table.iter().map(|row| row.iter().collect()).collect();
        //                create fork import start stop standby restore snapshot revert delete
        assert_eq!(rows, ["✗✗✗●–✗✗●●●", "✗✗✗–●●–●✗●", "✗✗✗✗●–●●●●", "✗✗✗✗✗✗✗✗✗●"]);
    }

    #[test]
    fn busy_denies_everything_but_the_delete_of_what_boots() {
        for from in states() {
            for running in Op::ALL {
                for op in Op::ALL {
                    let phase = Phase::Busy { op: running, from: from.clone() };
                    let boots = [Op::Create, Op::Fork, Op::Start].contains(&running);
                    let wanted =
                        if boots && op == Op::Delete { Ok(Admitted::CutShort) } else { Err(Denied::Busy { running }) };
                    assert_eq!(admit(&phase, op), wanted);
                }
            }
        }
    }

    proptest! {
        /// Whatever is denied for its state says which state that is, and what to do.
        #[test]
        fn denials_explain_themselves(state in 0_usize..4, op in 0_usize..10) {
            let state = states()[state].clone();
            if let Err(denied) = admit(&Phase::Resting(state.clone()), Op::ALL[op]) {
                prop_assert!(denied.to_string().contains(state.name()));
                prop_assert!(!denied.hint().is_empty());
                prop_assert_eq!(denied.kind(), ErrorKind::WrongState);
            }
        }
    }
}
