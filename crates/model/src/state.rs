//! The states of an instance, and the operations that lead from one to another.
//!
//! ```text
//!   create ─► Stopped ──start──► Running ──standby──► Standby
//!                ▲                 │  ▲                 │  │
//!                └──────stop───────┘  └─────restore─────┘  │
//!                └──────────────stop (drops it)────────────┘
//!   fork ─► Running · Standby · Stopped          any ──delete──► gone
//! ```
//!
//! An operation that fails rests where it came from; if its undo failed too, in `Failed`, from
//! which only delete leads out.

use crate::id::SnapshotId;

/// Where an instance rests between operations. Survives a restart of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum InstanceState {
    /// No VMM, no memory.
    Stopped,
    /// A VMM runs it and its agent has answered.
    Running,
    /// No VMM; memory is in that snapshot.
    Standby {
        /// The internal snapshot that holds the memory.
        snapshot: SnapshotId,
    },
    /// Nothing is known for certain; what stayed behind is in the text.
    Failed {
        /// What went wrong and what was left.
        reason: String,
    },
}

impl InstanceState {
    /// The state's name, as in phase durations and metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Standby { .. } => "standby",
            Self::Failed { .. } => "failed",
        }
    }
}

/// What can be asked of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Make it from an image, and boot it.
    Create,
    /// Make it from a snapshot.
    Fork,
    /// Take over a guest that was saved elsewhere, as a snapshot.
    Import,
    /// Boot it.
    Start,
    /// End it; memory is lost.
    Stop,
    /// Save its memory and end its VMM.
    Standby,
    /// Bring it back from standby.
    Restore,
    /// Save a copy of it; it goes on.
    Snapshot,
    /// Put a snapshot of it in its place.
    Revert,
    /// Remove it.
    Delete,
}

impl Op {
    /// Every operation.
    pub const ALL: [Self; 10] = [
        Self::Create,
        Self::Fork,
        Self::Import,
        Self::Start,
        Self::Stop,
        Self::Standby,
        Self::Restore,
        Self::Snapshot,
        Self::Revert,
        Self::Delete,
    ];

    /// The verb.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Fork => "fork",
            Self::Import => "import",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Standby => "standby",
            Self::Restore => "restore",
            Self::Snapshot => "snapshot",
            Self::Revert => "revert",
            Self::Delete => "delete",
        }
    }
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// At rest, or busy with one operation.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case", tag = "phase")]
pub enum Phase {
    /// Nothing is under way.
    Resting(InstanceState),
    /// `op` is under way; it came from `from`.
    Busy {
        /// The operation.
        op: Op,
        /// Where it rests again if the operation fails.
        from: InstanceState,
    },
}

impl Phase {
    /// The state it rests in, or came from.
    #[must_use]
    pub const fn state(&self) -> &InstanceState {
        match self {
            Self::Resting(state) | Self::Busy { from: state, .. } => state,
        }
    }
}
