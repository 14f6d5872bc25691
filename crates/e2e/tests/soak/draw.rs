//! What is done, drawn from seeds: each client draws from its own generator, and so do the faults. What
//! is drawn does not depend on what came of it, so the same seed draws the same again.

use fastrand::Rng;
use hearth_e2e::{Calls, DiskFault};

/// How many instances a client has to do with.
pub(crate) const SLOTS: usize = 3;
/// How many snapshots.
pub(crate) const PLACES: usize = 2;

/// One thing that a client asks for. Slots and places are its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Create {
        slot: usize,
    },
    Start {
        slot: usize,
    },
    Stop {
        slot: usize,
    },
    Standby {
        slot: usize,
    },
    Restore {
        slot: usize,
    },
    Delete {
        slot: usize,
    },
    /// Remember something in the guest's memory.
    Write {
        slot: usize,
        token: u32,
    },
    /// Look whether it is remembered.
    Read {
        slot: usize,
    },
    /// A snapshot, in the place of an older one.
    Save {
        slot: usize,
        place: usize,
        memory: bool,
    },
    Drop {
        place: usize,
    },
    Verify {
        place: usize,
    },
    Revert {
        slot: usize,
        place: usize,
    },
    /// A fork of an instance.
    Fork {
        from: usize,
        slot: usize,
    },
    /// A fork of a snapshot.
    ForkSaved {
        place: usize,
        slot: usize,
    },
}

/// What the generator takes an instance for: it believes that everything succeeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Guess {
    Absent,
    Stopped,
    Running,
    Standby,
}

/// Draws what one client asks for.
#[derive(Debug)]
pub(crate) struct Client {
    random: Rng,
    guesses: [Guess; SLOTS],
    saved: [bool; PLACES],
    tokens: u32,
}

impl Client {
    pub(crate) fn new(seed: u64, client: usize) -> Self {
        let random = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (client as u64 + 1));
        Self { random, guesses: [Guess::Absent; SLOTS], saved: [false; PLACES], tokens: 0 }
    }

    /// What it asks for in one round, one after another.
    pub(crate) fn round(&mut self) -> Vec<Ask> {
        (0..self.random.usize(1..=4)).map(|_| self.ask()).collect()
    }

    fn ask(&mut self) -> Ask {
        let slot = self.random.usize(..SLOTS);
        // Now and then something that makes no sense.
        let guess = match self.random.u8(..8) {
            0 => [Guess::Absent, Guess::Stopped, Guess::Running, Guess::Standby][self.random.usize(..4)],
            _ => self.guesses[slot],
        };
        let place = self.random.usize(..PLACES);
        let from = self.random.usize(..SLOTS);
        let ask = match (guess, self.random.u8(..16)) {
            (Guess::Absent, 0..=6) => Ask::Create { slot },
            (Guess::Absent, 7..=10) => Ask::Fork { from, slot },
            (Guess::Absent, _) if self.saved[place] => Ask::ForkSaved { place, slot },
            (Guess::Absent, _) => Ask::Create { slot },

            (Guess::Running, 0..=2) => self.write(slot),
            (Guess::Running, 3..=4) => Ask::Read { slot },
            (Guess::Running, 5..=9) => Ask::Standby { slot },
            (Guess::Running, 10..=11) => Ask::Save { slot, place, memory: true },
            (Guess::Running, 12) => Ask::Stop { slot },
            (Guess::Running, 13) => Ask::Start { slot },
            (Guess::Running, _) => Ask::Delete { slot },

            (Guess::Standby, 0..=8) => Ask::Restore { slot },
            (Guess::Standby, 9) => Ask::Save { slot, place, memory: true },
            (Guess::Standby, 10) => Ask::Stop { slot },
            (Guess::Standby, 11) => Ask::Revert { slot, place },
            (Guess::Standby, 12) => Ask::Verify { place },
            (Guess::Standby, 13) => Ask::Standby { slot },
            (Guess::Standby, _) => Ask::Delete { slot },

            (Guess::Stopped, 0..=6) => Ask::Start { slot },
            (Guess::Stopped, 7) => Ask::Save { slot, place, memory: false },
            (Guess::Stopped, 8..=10) => Ask::Revert { slot, place },
            (Guess::Stopped, 11) => Ask::Drop { place },
            (Guess::Stopped, 12) => Ask::Stop { slot },
            (Guess::Stopped, _) => Ask::Delete { slot },
        };
        self.believe(ask);
        ask
    }

    fn write(&mut self, slot: usize) -> Ask {
        self.tokens += 1;
        Ask::Write { slot, token: self.tokens }
    }

    fn believe(&mut self, ask: Ask) {
        match ask {
            Ask::Create { slot } | Ask::Start { slot } | Ask::Restore { slot } => self.guesses[slot] = Guess::Running,
            Ask::Stop { slot } => self.guesses[slot] = Guess::Stopped,
            Ask::Standby { slot } => self.guesses[slot] = Guess::Standby,
            Ask::Delete { slot } => self.guesses[slot] = Guess::Absent,
            Ask::Save { place, .. } => self.saved[place] = true,
            Ask::Drop { place } => self.saved[place] = false,
            Ask::Fork { from, slot } => self.guesses[slot] = self.guesses[from],
            Ask::ForkSaved { slot, .. } | Ask::Revert { slot, .. } => self.guesses[slot] = Guess::Running,
            Ask::Write { .. } | Ask::Read { .. } | Ask::Verify { .. } => {}
        }
    }
}

/// What goes wrong in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    Calm,
    /// All clients are at one instance.
    Crowd {
        client: usize,
        slot: usize,
    },
    DaemonKilled {
        after_ms: u64,
    },
    /// It is told to end, and started again.
    DaemonEnded {
        after_ms: u64,
    },
    VmmKilled {
        client: usize,
        slot: usize,
        after_ms: u64,
    },
    /// One of the simulated VMM's faults, by its number.
    VmmFault {
        fault: usize,
    },
    AgentSilent,
    DiskFull {
        left_kib: u64,
    },
    /// The disk fails, or is slow.
    DiskBad(DiskFault),
    /// The daemon is killed, and started again while the disk fails.
    DaemonOnBadDisk {
        fault: DiskFault,
        after_ms: u64,
    },
}

/// Draws what goes wrong.
#[derive(Debug)]
pub(crate) struct Fates {
    random: Rng,
    clients: usize,
    faults: usize,
}

impl Fates {
    /// `faults`: how many the simulated VMM has.
    pub(crate) fn new(seed: u64, clients: usize, faults: usize) -> Self {
        Self { random: Rng::with_seed(!seed), clients, faults }
    }

    pub(crate) fn round(&mut self) -> Fate {
        let (client, slot) = (self.random.usize(..self.clients), self.random.usize(..SLOTS));
        let after_ms = self.random.u64(..400);
        match self.random.u8(..100) {
            0..=9 => Fate::Crowd { client, slot },
            10..=17 => Fate::DaemonKilled { after_ms },
            18..=20 => Fate::DaemonEnded { after_ms },
            21..=28 => Fate::VmmKilled { client, slot, after_ms },
            29..=43 => Fate::VmmFault { fault: self.random.usize(..self.faults) },
            44 => Fate::AgentSilent,
            45..=49 => Fate::DiskFull { left_kib: [0, 64, 512, 4096][self.random.usize(..4)] },
            50..=55 => Fate::DiskBad(self.disk_fails()),
            56..=58 => Fate::DiskBad(DiskFault::Slow { ms: [1, 5, 20][self.random.usize(..3)] }),
            59..=61 => Fate::DaemonOnBadDisk { fault: self.disk_fails(), after_ms },
            _ => Fate::Calm,
        }
    }

    /// From somewhere on all calls of a kind fail, or one in so many.
    fn disk_fails(&mut self) -> DiskFault {
        let calls = [Calls::Reads, Calls::Writes, Calls::Names, Calls::Syncs, Calls::All][self.random.usize(..5)];
        let soon = [1, 20, 200][self.random.usize(..3)];
        let first = 1 + self.random.u64(..soon);
        DiskFault::Fails { calls, first, each: [1, 3, 10, 50][self.random.usize(..4)] }
    }

    /// What each of a crowd asks for.
    pub(crate) fn crowd(&mut self, client: usize, slot: usize) -> Ask {
        match self.random.u8(..8) {
            0 => Ask::Start { slot },
            1 => Ask::Stop { slot },
            2 | 3 => Ask::Standby { slot },
            4 | 5 => Ask::Restore { slot },
            6 => Ask::Read { slot },
            _ if client == 0 => Ask::Delete { slot },
            _ => Ask::Standby { slot },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_draws_the_same() {
        let drawn = |seed, client| {
            let mut draws = Client::new(seed, client);
            (0..200).flat_map(|_| draws.round()).collect::<Vec<_>>()
        };
        assert_eq!(drawn(1, 0), drawn(1, 0));
        assert_ne!(drawn(1, 0), drawn(1, 1), "each client its own");
        assert_ne!(drawn(1, 0), drawn(2, 0));
        let fates = |seed| {
            let mut draws = Fates::new(seed, 4, 7);
            (0..200).map(|_| draws.round()).collect::<Vec<_>>()
        };
        assert_eq!(fates(1), fates(1));
        assert_ne!(fates(1), fates(2));
    }

    #[test]
    fn everything_is_drawn_before_long() {
        let mut draws = Client::new(1, 0);
        let asks: Vec<Ask> = (0..500).flat_map(|_| draws.round()).collect();
        let kinds: std::collections::BTreeSet<String> =
            asks.iter().map(|ask| format!("{ask:?}").split(' ').next().unwrap_or_default().to_owned()).collect();
        assert_eq!(kinds.len(), 14, "{kinds:?}");
        let mut draws = Fates::new(1, 4, 7);
        let fates: Vec<Fate> = (0..500).map(|_| draws.round()).collect();
        let kinds: std::collections::BTreeSet<_> =
            fates.iter().map(std::mem::discriminant).map(|d| format!("{d:?}")).collect();
        assert_eq!(kinds.len(), 10, "{kinds:?}");
    }
}
