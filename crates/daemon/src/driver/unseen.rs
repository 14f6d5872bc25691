//! An instance of which it is not known where it rests: its VMM could not be looked for when the daemon
//! started, or what an operation was to undo, or to finish, could not be. It is looked again, and what is
//! then to be done is what a daemon does that starts.

use std::sync::Arc;
use std::time::Duration;

use hearth_model::recovery::Outcome;
use hearth_model::{InstanceState, Phase, RestartPolicy};
use hearth_store::InstanceRecord;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Driver;
use crate::clock::now_ms;
use crate::recover::{self, Entry, Found};

/// After so many milliseconds each it is looked again, before it is called failed.
const LOOK_AGAIN: [u64; 5] = if cfg!(test) { [20; 5] } else { [250, 1_000, 4_000, 15_000, 40_000] };

/// Until it is seen, nothing is decided, and its record stays as it was left.
#[derive(Debug)]
pub(super) struct Unseen {
    record: InstanceRecord,
    /// An operation of this daemon's has left it so, for that reason; `None` is one before.
    left: Option<String>,
    looks: usize,
    /// When it was last looked for: what happens in between puts nothing off.
    looked_at: Instant,
}

impl Unseen {
    /// One that the start could not look for.
    pub(super) fn new(record: InstanceRecord) -> Self {
        Self { record, left: None, looks: 0, looked_at: Instant::now() }
    }

    pub(super) fn due(&self) -> Instant {
        self.looked_at + Duration::from_millis(LOOK_AGAIN.get(self.looks).copied().unwrap_or_default())
    }

    /// As it was left.
    pub(super) fn record(&self) -> &InstanceRecord {
        &self.record
    }

    /// Which look it is.
    fn begin_look(&mut self) -> usize {
        (self.looks, self.looked_at) = (self.looks + 1, Instant::now());
        self.looks
    }

    /// Somebody has given it another policy.
    pub(super) fn under(&mut self, policy: RestartPolicy) {
        self.record.spec.restart = policy;
        self.record.restart = self.record.restart.under(&policy);
    }
}

impl Driver {
    /// Has it looked again, and done what is to be done then, where an operation has left something. The
    /// record says in `phase` what is under way, as if the daemon had died over it. Returns what is shown
    /// meanwhile.
    pub(super) fn hold(&mut self, phase: Phase, reason: String) -> InstanceState {
        self.unwatch();
        let shown = InstanceState::Failed { reason: format!("{reason}; trying again") };
        let record = InstanceRecord { phase, ..self.record.clone() };
        self.record.restart.next_attempt_at_ms = None;
        self.unseen = Some(Unseen { left: Some(reason), ..Unseen::new(record) });
        shown
    }

    /// Takes it into the report of the start, if that has left it so.
    fn tell(&self, unseen: &Unseen, entry: Entry) {
        if unseen.left.is_none() {
            recover::note(&self.host, entry);
        }
    }

    /// Looks once more for the VMM; true when what was recorded is an instance no more.
    pub(super) async fn look_again(&mut self) -> bool {
        let Some(mut unseen) = self.unseen.take() else { return false };
        let look = unseen.begin_look();
        let sight = recover::look(&self.host, &unseen.record).await;
        let observed = sight.observed;
        let entry = |outcome| Entry::of(&unseen.record, observed, outcome).after(look);
        let why = match recover::act(&self.host, unseen.record.clone(), sight).await {
            Ok((outcome, Found::Running(record, live, events))) => {
                info!(look, "its VMM was found: it runs");
                self.tell(&unseen, entry(outcome).rests(InstanceState::Running));
                self.record = *record;
                self.watch(live, events);
                self.found(InstanceState::Running);
                self.drop_orphans();
                return false;
            }
            Ok((outcome, Found::Rests(record, state))) => {
                info!(look, state = state.name(), "its VMM was looked for, and is not there");
                self.tell(&unseen, entry(outcome).rests(state.clone()));
                self.record = *record;
                self.found(state);
                self.drop_orphans();
                return false;
            }
            Ok((outcome, Found::Nothing)) => {
                info!(look, "what was cut off is removed");
                self.tell(&unseen, entry(outcome));
                self.forget();
                return true;
            }
            Ok((_, Found::Unseen(why))) => why.to_owned(),
            Err(error) => error.chain(),
        };
        if look < LOOK_AGAIN.len() {
            debug!(look, why, "it is still not known whether it runs");
            self.unseen = Some(unseen);
            return false;
        }
        warn!(looks = look, why, "the instance could not be brought back under control");
        let before = unseen.left.as_deref().unwrap_or("after a restart of the daemon");
        let state = InstanceState::Failed { reason: format!("{before}: {why}") };
        self.tell(&unseen, entry(Outcome::Failed).rests(state.clone()).because(&why));
        self.record.restart = unseen.record.restart;
        self.record.restart.next_attempt_at_ms = None;
        self.found(state);
        false
    }

    /// It is known at last where it rests. A deletion that was admitted meanwhile comes next.
    fn found(&mut self, state: InstanceState) {
        self.settle_room(&state);
        if let InstanceState::Standby { snapshot } = &state {
            self.host.settler.later(snapshot);
        }
        self.record.phases.enter(state.name(), now_ms());
        self.record.phase = Phase::Resting(state);
        self.store();
        let record = self.record.clone();
        self.handle.publish(|view| {
            let phase = match &view.record.phase {
                busy @ Phase::Busy { .. } => busy.clone(),
                Phase::Resting(_) => record.phase.clone(),
            };
            view.record = Arc::new(InstanceRecord { phase, ..record });
        });
    }

    /// What an operation that was cut off has left in snapshots.
    fn drop_orphans(&self) {
        if let Err(error) = recover::drop_orphans_of(&self.host, &self.registry, &self.record.id) {
            warn!(%error, "snapshots that nobody holds stay until the next start");
        }
    }
}
