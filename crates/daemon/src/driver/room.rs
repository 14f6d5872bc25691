//! What an operation takes of the host before it begins, and when it is given back.

use hearth_model::capacity::{Amounts, Full};
use hearth_model::restart::{By, Led};
use hearth_model::{InstanceState, Op, Phase};
use hearth_vmm::Ram;
use tracing::info;

use super::Driver;
use crate::error::OpError;
use crate::handle::Request;
use crate::ops::{self, Target};
use crate::reservations::{of_boot, writes};
use crate::resources::machine;

impl Driver {
    /// Takes what the operation needs of the host, before anything is done. A new instance has it
    /// already; what ends something needs nothing.
    pub(super) fn make_room(&self, request: &Request) -> Result<(), Full> {
        let (spec, room, id) = (&self.record.spec, &self.host.room, &self.record.id);
        let wants = match request {
            Request::Create | Request::Fork(_) | Request::Stop | Request::Delete { .. } => return Ok(()),
            Request::Start => Amounts { disk: of_boot(spec), ..machine(spec) },
            // Space is not asked for: a guest is brought back also on a disk of which only the reserve is left.
            Request::Restore => machine(spec),
            Request::Revert(plan) => match plan.target {
                Target::Running => Amounts { disk: writes(0).disk, ..machine(spec) },
                Target::Standby | Target::Stopped => writes(0),
            },
            Request::Standby => writes(self.of_saved_memory(false)),
            // It is refused for that, whatever room there is.
            Request::Snapshot(plan) if !ops::can_be_saved(self.record.phase.state(), plan.kind) => return Ok(()),
            Request::Snapshot(_) => {
                let dir = self.handle.dir();
                let writable = spec.disks().into_iter().filter(|disk| !disk.read_only);
                let disks = match self.record.phase.state() {
                    // Its disk is a link to what cannot change.
                    InstanceState::Standby { .. } => 0,
                    InstanceState::Running | InstanceState::Stopped | InstanceState::Failed { .. } => {
                        room.of_clones(writable.map(|disk| dir.disk(&disk.path)))
                    }
                };
                writes(disks + self.of_saved_memory(true))
            }
        };
        room.take(id, wants)
    }

    /// What saving its memory may write: known before the guest is paused. `goes_on`: its files are
    /// copied, else linked.
    fn of_saved_memory(&self, goes_on: bool) -> u64 {
        let Some(running) = &self.running else { return 0 };
        match running.live.vmm.ram() {
            Ram::Shared if !goes_on => 0,
            Ram::Shared | Ram::Private | Ram::Anonymous | Ram::Tracked => self.record.spec.memory.size().bytes(),
        }
    }

    /// Nothing was begun: it rests where it rested.
    pub(super) fn refuse(&mut self, op: Op, by: By, from: InstanceState, full: &Full) -> OpError {
        info!(%op, %full, "refused: the host has no room");
        self.record.phase = Phase::Resting(from);
        if by == By::Policy {
            // An attempt in vain like any other: it is tried again when it is due.
            self.take_into_policy(op, by, Led::Back);
            self.store();
        }
        self.publish();
        OpError::full(op, self.record.spec.name.as_str(), full)
    }

    /// Where it rests now it needs nothing to be written, and without a VMM nothing at all. One that
    /// has failed may have a VMM.
    pub(super) fn settle_room(&self, state: &InstanceState) {
        match state {
            InstanceState::Running | InstanceState::Failed { .. } => self.host.room.written(&self.record.id),
            InstanceState::Stopped | InstanceState::Standby { .. } => self.host.room.give_back(&self.record.id),
        }
    }
}
