//! Who holds what of the host: the one ledger of the daemon.
//!
//! In: an instance and what an operation needs for it. Out: it is held from before the operation's
//! first side effect, or the operation is refused. What a running instance holds is given back when
//! it has no VMM any more; what was to be written, when the operation has ended, however it did. It
//! is all in memory, and made anew from the records when the daemon starts.
//!
//! A look at what is free is two system calls that do not block, some 10 µs, before a guest runs.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hearth_model::capacity::{Amounts, Full, Ledger, Limits, Shown};
use hearth_model::{Backend, InstanceId, InstanceSpec};
use tracing::info;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::resources;

/// Records, manifests, device state: what everything that is made writes at least.
pub(crate) const LITTLE: u64 = 1 << 20;

/// The ledger, and where one looks for what is free.
#[derive(Debug)]
pub(crate) struct Reservations {
    ledger: Mutex<Ledger<Holder>>,
    data_dir: PathBuf,
    meminfo: Option<File>,
    /// Whether a clone of a disk takes no space.
    clones_share: bool,
    imports: AtomicU64,
    metrics: Arc<Metrics>,
    #[cfg(test)]
    pretended: Mutex<Option<Shown>>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Instance(InstanceId),
    /// Of an image or a snapshot.
    Import(u64),
}

/// What the ledger says, and what is free.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    pub(crate) limits: Limits,
    pub(crate) held: Amounts,
    pub(crate) shown: Shown,
}

impl Reservations {
    pub(crate) fn new(config: &Config, data_dir: &Path, own_cgroup: bool, metrics: Arc<Metrics>) -> Self {
        let limits = resources::limits(config, &resources::capacity(data_dir), own_cgroup);
        info!(?limits, "instances together keep to");
        metrics.limits(&limits.most);
        metrics.reserved(&Amounts::NOTHING);
        Self {
            ledger: Mutex::new(Ledger::new(limits)),
            data_dir: data_dir.to_owned(),
            meminfo: File::open("/proc/meminfo").ok(),
            clones_share: hearth_disk::reflink_supported(data_dir).unwrap_or(false),
            imports: AtomicU64::new(0),
            metrics,
            #[cfg(test)]
            pretended: Mutex::default(),
        }
    }

    /// Holds so much more for an instance, if there is room.
    pub(crate) fn take(&self, id: &InstanceId, wants: Amounts) -> Result<(), Full> {
        self.take_for(Holder::Instance(id.clone()), wants)
    }

    /// The same for a new instance: given back unless it is kept.
    pub(crate) fn take_new(self: &Arc<Self>, id: InstanceId, wants: Amounts) -> Result<Taken, Full> {
        self.take(&id, wants)?;
        Ok(Taken { id, room: Arc::clone(self), kept: false })
    }

    /// Holds what an instance has that runs already.
    pub(crate) fn hold(&self, id: &InstanceId, has: Amounts) {
        let (mut ledger, who) = (self.ledger(), Holder::Instance(id.clone()));
        ledger.give_back(&who);
        ledger.hold(who, has);
        self.metrics.reserved(&ledger.total());
    }

    /// Whether an instance holds what a VMM needs.
    pub(crate) fn of(&self, id: &InstanceId) -> Amounts {
        self.ledger().of(&Holder::Instance(id.clone()))
    }

    /// Its operation has ended: what it was to write is written, or never will be.
    pub(crate) fn written(&self, id: &InstanceId) {
        let mut ledger = self.ledger();
        ledger.written(&Holder::Instance(id.clone()));
        self.metrics.reserved(&ledger.total());
    }

    /// It has no VMM any more.
    pub(crate) fn give_back(&self, id: &InstanceId) {
        let mut ledger = self.ledger();
        ledger.give_back(&Holder::Instance(id.clone()));
        self.metrics.reserved(&ledger.total());
    }

    /// Nobody holds anything: the records are about to say who does.
    pub(crate) fn begin_anew(&self) {
        let mut ledger = self.ledger();
        *ledger = Ledger::new(*ledger.limits());
        self.metrics.reserved(&ledger.total());
    }

    /// Holds space that an import is about to write, until what this returns is dropped.
    pub(crate) fn for_import(self: &Arc<Self>, bytes: u64) -> Result<Promise, Full> {
        let who = Holder::Import(self.imports.fetch_add(1, Ordering::Relaxed));
        self.take_for(who.clone(), writes(bytes))?;
        Ok(Promise { who, room: Arc::clone(self) })
    }

    /// What a copy of these files would take.
    pub(crate) fn of_clones(&self, files: impl Iterator<Item = PathBuf>) -> u64 {
        if self.clones_share { 0 } else { files.filter_map(|file| hearth_disk::usage(&file).ok()).sum() }
    }

    pub(crate) fn figures(&self) -> Figures {
        let shown = self.look();
        let ledger = self.ledger();
        Figures { limits: *ledger.limits(), held: ledger.total(), shown }
    }

    fn take_for(&self, who: Holder, wants: Amounts) -> Result<(), Full> {
        let shown = self.look();
        let mut ledger = self.ledger();
        let taken = ledger.take(who, wants, &shown);
        self.metrics.reserved(&ledger.total());
        taken.inspect_err(|full| self.metrics.refused(full.resource))
    }

    /// What cannot be looked at is no reason to refuse anything.
    fn look(&self) -> Shown {
        #[cfg(test)]
        if let Some(pretended) = *self.pretended.lock().unwrap_or_else(PoisonError::into_inner) {
            return pretended;
        }
        let mut text = [0; 512];
        let read = self.meminfo.as_ref().and_then(|file| file.read_at(&mut text, 0).ok()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text[..read]);
        let disk_free = hearth_disk::free_space(&self.data_dir).map_or(u64::MAX, |space| space.free);
        Shown { memory_available: available(&text).unwrap_or(u64::MAX), disk_free }
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger<Holder>> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
impl Reservations {
    /// From now on the host shows this.
    pub(crate) fn pretend(&self, shown: Option<Shown>) {
        *self.pretended.lock().unwrap_or_else(PoisonError::into_inner) = shown;
    }

    /// How many hold something, and how much is about to be written.
    pub(crate) fn holders(&self) -> (usize, u64) {
        let ledger = self.ledger();
        (ledger.holders(), ledger.total().disk)
    }
}

/// Room for an instance that is being made; given back when this is dropped, unless it was kept.
#[derive(Debug)]
#[must_use = "it is given back when this is dropped"]
pub(crate) struct Taken {
    id: InstanceId,
    room: Arc<Reservations>,
    kept: bool,
}

impl Taken {
    pub(crate) fn id(&self) -> &InstanceId {
        &self.id
    }

    /// The instance has a driver, which gives it back.
    pub(crate) fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            self.room.give_back(&self.id);
        }
    }
}

/// Space for an import; given back when this is dropped.
#[derive(Debug)]
#[must_use = "it is given back when this is dropped"]
pub(crate) struct Promise {
    who: Holder,
    room: Arc<Reservations>,
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut ledger = self.room.ledger();
        ledger.give_back(&self.who);
        self.room.metrics.reserved(&ledger.total());
    }
}

/// So many bytes that are about to be written.
pub(crate) fn writes(bytes: u64) -> Amounts {
    Amounts { disk: bytes.saturating_add(LITTLE), ..Amounts::NOTHING }
}

/// What booting a guest writes: under QEMU its memory is a file, which grows as it is touched, and a
/// guest that touches more than fits is ended.
pub(crate) fn of_boot(spec: &InstanceSpec) -> u64 {
    match spec.backend {
        Backend::Firecracker => 0,
        Backend::QemuMicrovm | Backend::Qemu => spec.memory.size().bytes(),
    }
}

/// The line `MemAvailable:` of `/proc/meminfo`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is on the way of every restore. The best of many: a busy machine makes any of them late.
    #[test]
    fn to_take_room_and_to_give_it_back_takes_less_than_50_us() {
        let dir = tempfile::tempdir().expect("a directory");
        let metrics = Arc::new(Metrics::new(Backend::ALL));
        let room = Reservations::new(&Config::default(), dir.path(), false, metrics);
        let ids: Vec<_> = (0..=255).map(|n| InstanceId::from_entropy([n; 16])).collect();
        let wants = Amounts { vcpus: 1, memory: 1 << 20, files: 1, processes: 1, disk: 0 };
        let best = (0..20).flat_map(|_| &ids).map(|id| {
            let began = std::time::Instant::now();
            room.take(id, wants).expect("there is room");
            room.give_back(id);
            began.elapsed()
        });
        let best = best.min().expect("some");
        println!("best of many: {best:?}");
        assert!(best < std::time::Duration::from_micros(50), "{best:?}");
        assert_eq!(room.holders(), (0, 0));
    }

    #[test]
    fn what_is_available_is_read_in_bytes() {
        let text = "MemTotal:       24637412 kB\nMemFree:  1 kB\nMemAvailable:   22232224 kB\nBuff";
        assert_eq!(available(text), Some(22_232_224 * 1024));
        assert_eq!(available("MemTotal: 1 kB\nMemAvail"), None);
    }
}
