//! `GET /recovery` (ours): what the daemon found when it started, and what it did about it.

use std::collections::BTreeMap;

use hearth_model::recovery::{Observed, Outcome};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::instances::InstanceState;

/// What the daemon found when it started, and what it did about it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Recovery {
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in milliseconds. The daemon serves after it.
    pub duration_ms: f64,
    /// How many instances there were, by `outcome`; those that did not occur are left out.
    pub outcomes: BTreeMap<String, u32>,
    /// The recorded instances, by name. At most a thousand; those to which something was done come first.
    pub instances: Vec<RecoveredInstance>,
    /// How many more there were that are not listed.
    pub unlisted: u32,
    /// What was removed that nobody owns, and what was not.
    pub swept: Swept,
}

/// One recorded instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RecoveredInstance {
    /// Which.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The state that its record said, or in which it was while an operation was under way.
    pub found: InstanceState,
    /// The operation that was cut off; left out if none was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut_off: Option<String>,
    /// What the host showed of its VMM.
    pub vmm: VmmSeen,
    /// What was done.
    pub outcome: RecoveryOutcome,
    /// Where it rests since; left out if it is no more, or nothing is decided yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<InstanceState>,
    /// Why it is held or has failed, with the causes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// How often it was looked for again after the start, because it could not be looked for then.
    pub looks: u32,
}

/// What the host shows of a VMM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmmSeen {
    /// It is there.
    Alive,
    /// It was looked for, and is not there.
    Gone,
    /// It could not be looked for.
    Unknown,
}

impl VmmSeen {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => Observed::Alive.as_str(),
            Self::Gone => Observed::Gone.as_str(),
            Self::Unknown => Observed::Unknown.as_str(),
        }
    }
}

impl From<Observed> for VmmSeen {
    fn from(observed: Observed) -> Self {
        match observed {
            Observed::Alive => Self::Alive,
            Observed::Gone => Self::Gone,
            Observed::Unknown => Self::Unknown,
        }
    }
}

/// What was done about an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryOutcome {
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

impl RecoveryOutcome {
    /// The name on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Adopted => Outcome::Adopted.as_str(),
            Self::Rests => Outcome::Rests.as_str(),
            Self::ExitNoted => Outcome::ExitNoted.as_str(),
            Self::Undone => Outcome::Undone.as_str(),
            Self::Removed => Outcome::Removed.as_str(),
            Self::DeleteFinished => Outcome::DeleteFinished.as_str(),
            Self::Held => Outcome::Held.as_str(),
            Self::Failed => Outcome::Failed.as_str(),
        }
    }
}

impl From<Outcome> for RecoveryOutcome {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Adopted => Self::Adopted,
            Outcome::Rests => Self::Rests,
            Outcome::ExitNoted => Self::ExitNoted,
            Outcome::Undone => Self::Undone,
            Outcome::Removed => Self::Removed,
            Outcome::DeleteFinished => Self::DeleteFinished,
            Outcome::Held => Self::Held,
            Outcome::Failed => Self::Failed,
        }
    }
}

/// What was removed that nobody owns: how many of each. And what was not removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Swept {
    /// Bundles that were half made, half removed, or had not reached the disk.
    pub bundles: u32,
    /// Records of snapshots whose removal was cut off.
    pub withdrawn_records: u32,
    /// Records of snapshots that were never published.
    pub unpublished_records: u32,
    /// Directories of instances that were half made or half removed, or whose record had not reached the
    /// disk.
    pub directories: u32,
    /// Imports of guests that were cut off, each with its VMM.
    pub imports: u32,
    /// Images whose import or removal was cut off.
    pub images: u32,
    /// Templates of overlays, kernels and initrds that were half made.
    pub drafts: u32,
    /// Cgroups of VMMs that had ended.
    pub cgroups: u32,
    /// Slots of the network without an instance.
    pub slots: u32,
    /// What nobody knows of, or what is not there of what is known: left as it is.
    pub left: Vec<Unswept>,
    /// What should have been removed and could not be.
    pub failed: Vec<Unswept>,
    /// How many more of either are not listed: a hundred of each are.
    pub unlisted: u32,
}

/// Something that was not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Unswept {
    /// A path, or what else it is called.
    pub what: String,
    /// Why it was not.
    pub why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_has_the_model_s_names() {
        for outcome in Outcome::ALL {
            let wire = RecoveryOutcome::from(outcome);
            assert_eq!(serde_json::to_value(wire).expect("plain data"), outcome.as_str());
            assert_eq!(wire.as_str(), outcome.as_str());
        }
        for observed in [Observed::Alive, Observed::Gone, Observed::Unknown] {
            let wire = VmmSeen::from(observed);
            assert_eq!(serde_json::to_value(wire).expect("plain data"), observed.as_str());
            assert_eq!(wire.as_str(), observed.as_str());
        }
    }
}
