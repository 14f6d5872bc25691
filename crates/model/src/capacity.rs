//! Whether the host has room for what is asked for: one ledger of who holds how much, and the limits
//! that all of it together keeps to.
//!
//! Comes in: the limits, what is wanted, and what the host shows at that moment. Goes out: it is
//! held, or [`Full`] with the resource that is short, by how much, and what to do. What a guest holds
//! is what it may grow to, not what it takes just now: forks share the pages of their snapshot, and
//! most guests never touch half of their memory, so the limit is the host's capacity several times
//! over. The reserves are what that bet is hedged with: room that is left alone, so that what was
//! begun can be finished, and a bet that is lost ends in a refusal.

use std::collections::BTreeMap;

use crate::error::ErrorKind;
use crate::units::ByteSize;

/// What may still be written to a file system, in bytes, of what `statvfs(3)` says: its blocks, those that are
/// available, and a block's size. ext4 adds these up of several counters while others change: on a full disk
/// they may come to less than none for a moment, which is told as more than there are.
#[must_use]
pub fn free_bytes(blocks: u64, available: u64, block_size: u64) -> u64 {
    if available > blocks { 0 } else { available.saturating_mul(block_size) }
}

/// What a host may run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Virtual CPUs.
    Vcpus,
    /// Memory, in bytes.
    Memory,
    /// Descriptors of the daemon.
    Files,
    /// Processes and threads.
    Processes,
    /// Space of the data directory's file system, in bytes.
    Disk,
}

impl Resource {
    /// Every resource.
    pub const ALL: [Self; 5] = [Self::Vcpus, Self::Memory, Self::Files, Self::Processes, Self::Disk];

    /// The name in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vcpus => "vcpus",
            Self::Memory => "memory",
            Self::Files => "files",
            Self::Processes => "processes",
            Self::Disk => "disk",
        }
    }

    /// The name to people.
    const fn in_words(self) -> &'static str {
        match self {
            Self::Vcpus => "virtual CPUs",
            Self::Memory => "memory",
            Self::Files => "open files",
            Self::Processes => "processes",
            Self::Disk => "disk space",
        }
    }

    /// An amount of it, to people.
    fn amount(self, amount: u64) -> String {
        match self {
            Self::Memory | Self::Disk => ByteSize(amount).to_string(),
            Self::Vcpus | Self::Files | Self::Processes => amount.to_string(),
        }
    }
}

/// So much of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Bytes of memory.
    pub memory: u64,
    /// Descriptors of the daemon.
    pub files: u64,
    /// Processes and threads.
    pub processes: u64,
    /// Bytes that are about to be written.
    pub disk: u64,
}

impl Amounts {
    /// Nothing of anything.
    pub const NOTHING: Self = Self { vcpus: 0, memory: 0, files: 0, processes: 0, disk: 0 };

    /// How much of one resource.
    #[must_use]
    pub const fn of(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Vcpus => self.vcpus,
            Resource::Memory => self.memory,
            Resource::Files => self.files,
            Resource::Processes => self.processes,
            Resource::Disk => self.disk,
        }
    }

    fn each(self, other: Self, combine: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            vcpus: combine(self.vcpus, other.vcpus),
            memory: combine(self.memory, other.memory),
            files: combine(self.files, other.files),
            processes: combine(self.processes, other.processes),
            disk: combine(self.disk, other.disk),
        }
    }

    fn and(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    fn without(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }
}

/// `capacity` so many times over.
#[must_use]
pub fn oversubscribed(capacity: u64, ratio: f64) -> u64 {
    // Exact below 2^53, which is more bytes than a host has; a cast of what is larger saturates.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "see above"
    )]
    let limit = (capacity as f64 * ratio) as u64;
    limit
}

/// What all that is held together keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most that may be held of each; of disk, which is counted as it is free, this says nothing.
    pub most: Amounts,
    /// Memory that the host keeps available, in bytes.
    pub memory_reserve: u64,
    /// Disk space that is left free, in bytes.
    pub disk_reserve: u64,
}

/// What the host shows at this moment, whoever uses the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// Bytes of memory that can be had without swapping.
    pub memory_available: u64,
    /// Bytes that can still be written.
    pub disk_free: u64,
}

/// There is no room for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full {
    /// What is short.
    pub resource: Resource,
    /// How much of it was asked for.
    pub wants: u64,
    /// How much there is to have.
    pub left: u64,
    /// What sets the bound.
    pub bound: Bound,
}

/// What sets a bound to what may be held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// Guests hold the rest of this together.
    Limit(u64),
    /// The host has little left, and so much of that is not given away.
    Reserve(u64),
}

impl std::fmt::Display for Full {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { resource, wants, left, bound } = *self;
        let (what, wants, left) = (resource.in_words(), resource.amount(wants), resource.amount(left));
        match (bound, resource) {
            (Bound::Limit(limit), _) => {
                write!(f, "not enough {what}: it may take {wants}, and of {} {left} are left", resource.amount(limit))
            }
            // Nobody knows yet what of its memory a guest will touch.
            (Bound::Reserve(reserve), Resource::Memory) => {
                let reserve = resource.amount(reserve);
                write!(f, "not enough {what}: the host has {left} available, with a reserve of {reserve}")
            }
            (Bound::Reserve(reserve), _) => {
                let reserve = resource.amount(reserve);
                write!(f, "not enough {what}: it needs {wants}, and {left} are free, with a reserve of {reserve}")
            }
        }
    }
}

impl std::error::Error for Full {}

impl Full {
    /// Which error this is to the caller.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        ErrorKind::Exhausted
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match (self.resource, self.bound) {
            (Resource::Vcpus, _) => "stop an instance or bring one to standby, or raise cpu.oversubscription",
            (Resource::Memory, Bound::Limit(_)) => {
                "stop an instance or bring one to standby, ask for a smaller size, or raise memory.oversubscription"
            }
            (Resource::Memory, Bound::Reserve(_)) => {
                "stop an instance or bring one to standby, end what else takes the host's memory, or lower memory.reserve"
            }
            (Resource::Files, _) => "stop an instance, or let the daemon open more files (LimitNOFILE=)",
            (Resource::Processes, _) => "stop an instance, or let the host run more processes (TasksMax=, kernel.pid_max)",
            (Resource::Disk, _) => {
                "remove instances, snapshots or images that nobody needs, or lower disk.reserve; `hearth rm`, stop and \
                 restore work meanwhile"
            }
        }
        .to_owned()
    }
}

/// Who holds how much.
#[derive(Debug, Clone)]
pub struct Ledger<K> {
    limits: Limits,
    held: BTreeMap<K, Amounts>,
    total: Amounts,
}

impl<K: Ord> Ledger<K> {
    /// One in which nobody holds anything.
    #[must_use]
    pub const fn new(limits: Limits) -> Self {
        Self { limits, held: BTreeMap::new(), total: Amounts::NOTHING }
    }

    /// What it keeps to.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// What is held by all together.
    #[must_use]
    pub const fn total(&self) -> Amounts {
        self.total
    }

    /// How many hold something.
    #[must_use]
    pub fn holders(&self) -> usize {
        self.held.len()
    }

    /// What one of them holds.
    #[must_use]
    pub fn of(&self, who: &K) -> Amounts {
        self.held.get(who).copied().unwrap_or_default()
    }

    /// Whether so much more may be held. Of what nothing is wanted, any shortage is no reason.
    ///
    /// # Errors
    /// [`Full`], with the first resource that is short.
    pub fn check(&self, wants: &Amounts, shown: &Shown) -> Result<(), Full> {
        let Limits { most, memory_reserve, disk_reserve } = self.limits;
        for resource in [Resource::Vcpus, Resource::Memory, Resource::Files, Resource::Processes] {
            let (wants, limit) = (wants.of(resource), most.of(resource));
            let left = limit.saturating_sub(self.total.of(resource));
            if wants > left {
                return Err(Full { resource, wants, left, bound: Bound::Limit(limit) });
            }
        }
        if wants.memory > 0 && shown.memory_available < memory_reserve {
            let (wants, left) = (wants.memory, shown.memory_available);
            return Err(Full { resource: Resource::Memory, wants, left, bound: Bound::Reserve(memory_reserve) });
        }
        // Of what is promised, some may be written already and is counted twice until its end.
        let left = shown.disk_free.saturating_sub(self.total.disk);
        if wants.disk > 0 && left < disk_reserve.saturating_add(wants.disk) {
            return Err(Full {
                resource: Resource::Disk,
                wants: wants.disk,
                left,
                bound: Bound::Reserve(disk_reserve),
            });
        }
        Ok(())
    }

    /// Holds so much more, if there is room for all of it.
    ///
    /// # Errors
    /// [`Full`]; then it holds what it held.
    pub fn take(&mut self, who: K, wants: Amounts, shown: &Shown) -> Result<(), Full> {
        self.check(&wants, shown)?;
        self.hold(who, wants);
        Ok(())
    }

    /// Holds so much more, whatever the limits say: it is there already.
    pub fn hold(&mut self, who: K, more: Amounts) {
        if more == Amounts::NOTHING {
            return;
        }
        let held = self.held.entry(who).or_default();
        *held = held.and(more);
        self.total = self.total.and(more);
    }

    /// What was to be written is written, or will not be.
    pub fn written(&mut self, who: &K) {
        let Some(held) = self.held.get_mut(who) else { return };
        let disk = Amounts { disk: held.disk, ..Amounts::NOTHING };
        *held = held.without(disk);
        self.total = self.total.without(disk);
        if *held == Amounts::NOTHING {
            self.held.remove(who);
        }
    }

    /// It holds nothing any more.
    pub fn give_back(&mut self, who: &K) {
        if let Some(held) = self.held.remove(who) {
            self.total = self.total.without(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn less_than_nothing_is_nothing() {
        assert_eq!(free_bytes(1000, 10, 4096), 40960);
        assert_eq!(free_bytes(1000, 0, 4096), 0);
        assert_eq!(free_bytes(1000, u64::MAX - 3, 4096), 0, "four blocks too few");
    }

    const GIB: u64 = 1 << 30;
    const PLENTY: Shown = Shown { memory_available: 1 << 40, disk_free: 1 << 40 };

    fn limits() -> Limits {
        let most = Amounts { vcpus: 8, memory: 4 * GIB, files: 100, processes: 50, disk: 0 };
        Limits { most, memory_reserve: GIB / 2, disk_reserve: GIB }
    }

    fn guest(memory: u64) -> Amounts {
        Amounts { vcpus: 1, memory, files: 10, processes: 4, disk: 0 }
    }

    fn writes(disk: u64) -> Amounts {
        Amounts { disk, ..Amounts::NOTHING }
    }

    #[test]
    fn the_last_piece_goes_to_one_of_two() {
        let mut ledger = Ledger::new(limits());
        ledger.take("old", guest(3 * GIB), &PLENTY).expect("there is room");
        ledger.take("a", guest(GIB), &PLENTY).expect("the last piece");
        let full = ledger.take("b", guest(GIB), &PLENTY).expect_err("nothing is left");
        assert_eq!((full.resource, full.wants, full.left), (Resource::Memory, GIB, 0));
        assert_eq!(ledger.holders(), 2);
        ledger.give_back(&"a");
        ledger.take("b", guest(GIB), &PLENTY).expect("it was given back");
    }

    #[test]
    fn every_resource_can_be_the_short_one_and_says_what_to_do() {
        let (most, shown) = (limits().most, PLENTY);
        let tight = Shown { memory_available: GIB / 4, disk_free: GIB + GIB / 2 };
        for (wants, shown, resource, says) in [
            (
                Amounts { vcpus: most.vcpus + 1, ..guest(1) },
                shown,
                Resource::Vcpus,
                "it may take 9, and of 8 8 are left",
            ),
            (guest(5 * GIB), shown, Resource::Memory, "it may take 5 GB, and of 4 GB 4 GB are left"),
            (Amounts { files: 101, ..guest(1) }, shown, Resource::Files, "open files"),
            (Amounts { processes: 51, ..guest(1) }, shown, Resource::Processes, "processes"),
            (guest(1), tight, Resource::Memory, "the host has 256 MB available, with a reserve of 512 MB"),
            (writes(GIB), tight, Resource::Disk, "it needs 1 GB, and 1.5 GB are free, with a reserve of 1 GB"),
        ] {
            let mut ledger = Ledger::new(limits());
            let full = ledger.take("web", wants, &shown).expect_err(says);
            assert_eq!((full.resource, full.kind()), (resource, ErrorKind::Exhausted));
            assert!(full.to_string().contains(says), "{full}");
            assert!(!full.hint().is_empty());
            assert_eq!((ledger.holders(), ledger.total()), (0, Amounts::NOTHING), "and nothing is held");
        }
    }

    #[test]
    fn who_wants_nothing_of_what_is_short_is_not_refused() {
        let mut ledger = Ledger::new(limits());
        // After a restart with smaller limits, more runs than may.
        ledger.hold("old", guest(40 * GIB));
        let dry = Shown { memory_available: 0, disk_free: 0 };
        ledger.take("old", Amounts::NOTHING, &dry).expect("it wants nothing");
        ledger.take("old", writes(GIB), &PLENTY).expect("memory is no reason not to save it");
        assert_eq!(ledger.take("new", guest(1), &PLENTY).expect_err("too much is held").left, 0);
    }

    #[test]
    fn what_is_promised_is_not_free_until_it_is_written() {
        let mut ledger = Ledger::new(limits());
        let shown = Shown { disk_free: 3 * GIB, ..PLENTY };
        ledger.take("a", guest(GIB), &shown).expect("there is room");
        ledger.take("a", writes(GIB), &shown).expect("there is room");
        ledger.take("b", writes(GIB + 1), &shown).expect_err("the first has promised it");
        ledger.written(&"a");
        ledger.take("b", writes(GIB + 1), &shown).expect("it was free after all");
        assert_eq!(ledger.of(&"a"), guest(GIB), "what it runs with is still its");
    }

    #[test]
    fn a_ratio_gives_capacity_several_times_over() {
        assert_eq!(oversubscribed(24 * GIB, 4.0), 96 * GIB);
        assert_eq!(oversubscribed(2, 0.5), 1);
        assert_eq!(oversubscribed(u64::MAX, 8.0), u64::MAX);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Take(u8, Amounts),
        Written(u8),
        GiveBack(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let amounts = (0_u64..4, 0..2 * GIB, 0_u64..40, 0_u64..20, 0..2 * GIB)
            .prop_map(|(vcpus, memory, files, processes, disk)| Amounts { vcpus, memory, files, processes, disk });
        let step = prop_oneof![
            4 => (0_u8..6, amounts).prop_map(|(who, amounts)| Step::Take(who, amounts)),
            1 => (0_u8..6).prop_map(Step::Written),
            2 => (0_u8..6).prop_map(Step::GiveBack),
        ];
        proptest::collection::vec(step, 1..80)
    }

    proptest! {
        /// Against a ledger that sums up anew each time: the same is admitted, the total is the sum,
        /// no limit is passed, and in the end all of it is given back.
        #[test]
        fn what_is_held_is_the_sum_and_never_over_a_limit(steps in steps(), free in 0..8 * GIB) {
            let shown = Shown { disk_free: free, ..PLENTY };
            let limits = limits();
            let mut ledger = Ledger::new(limits);
            let mut naive: BTreeMap<u8, Amounts> = BTreeMap::new();
            for step in steps {
                let sum = |naive: &BTreeMap<u8, Amounts>, resource| naive.values().map(|held| held.of(resource)).sum::<u64>();
                match step {
                    Step::Take(who, wants) => {
                        let counted = [Resource::Vcpus, Resource::Memory, Resource::Files, Resource::Processes];
                        let fits = counted.into_iter().all(|r| sum(&naive, r) + wants.of(r) <= limits.most.of(r));
                        let disk = wants.disk == 0
                            || sum(&naive, Resource::Disk) + wants.disk + limits.disk_reserve <= free;
                        let taken = ledger.take(who, wants, &shown);
                        prop_assert_eq!(taken.is_ok(), fits && disk, "{:?}", taken);
                        if taken.is_ok() {
                            let held = naive.entry(who).or_default();
                            *held = held.and(wants);
                        }
                    }
                    Step::Written(who) => {
                        ledger.written(&who);
                        naive.entry(who).or_default().disk = 0;
                    }
                    Step::GiveBack(who) => {
                        ledger.give_back(&who);
                        naive.remove(&who);
                    }
                }
                for resource in Resource::ALL {
                    prop_assert_eq!(ledger.total().of(resource), sum(&naive, resource));
                }
                for (who, held) in &naive {
                    prop_assert_eq!(ledger.of(who), *held);
                }
                naive.retain(|_, held| *held != Amounts::NOTHING);
                prop_assert_eq!(ledger.holders(), naive.len());
            }
            naive.keys().for_each(|who| ledger.give_back(who));
            prop_assert_eq!((ledger.holders(), ledger.total()), (0, Amounts::NOTHING));
        }
    }
}
