//! A double of VMMs in memory: the same files and sockets, the same states, refusals and ends,
//! without a guest. For tests of whoever uses this crate; the contract suite keeps it honest.
//!
//! A [`FakeHost`] stands for the host that VMMs run on: it outlives the "daemon" of a test, which
//! can be dropped and made anew, and finds its VMMs again by their seats. It can be asked what is
//! still alive, and can fail the nth call before or after its effect.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use hearth_model::foreign::{Described, DescribedDrive};
use hearth_model::{Backend, LoadPlan};
use tokio::net::UnixStream;
use tokio::sync::watch;

use crate::ending::remove_sockets;
use crate::fault::{AdoptError, ControlError, KillError, LaunchError};
use crate::process::{Ended, Exit};
use crate::socket;
use crate::spec::{
    AGENT_SOCKET, API_SOCKET, LaunchSpec, MEMORY, PageCount, QMP_SOCKET, Ram, RunState, SERIAL_LOG, SaveMemory, Saved,
    SavedState, Seat, StateFormat, VMM_LOG, VSOCK_SOCKET, device_set,
};
use crate::vmm::{Loaded, Vmm};

const PAGE: u64 = 4096;
/// Above every pid that Linux gives.
const FIRST_PID: u32 = 1 << 23;
const BOOT: &str = "fake-boot";

/// Where a call is made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Nothing has happened.
    Before,
    /// It has happened, and the answer is an error all the same.
    After,
}

/// Serves the guest's end of a dialled connection: gets the stream and the VMM's directory.
pub type Guest = dyn Fn(UnixStream, &Path) + Send + Sync;

/// A host of fake VMMs. A clone is the same host.
#[derive(Clone)]
pub struct FakeHost {
    state: Arc<Mutex<State>>,
    guest: Arc<Guest>,
}

#[derive(Default)]
struct State {
    vmms: BTreeMap<u32, Running>,
    launched: u32,
    /// The directories of VMMs that have a cgroup: it stays when a VMM ends by itself.
    cgroups: BTreeSet<PathBuf>,
    calls: u32,
    fail: Option<(u32, When)>,
    /// So many looks for a VMM fail from now on.
    blind: u32,
}

struct Running {
    seat: Seat,
    device_set: String,
    run_state: RunState,
    /// What its memory is mapped from.
    mapped: Option<MappedFrom>,
    /// Pages written by the "guest" over what is mapped.
    own: BTreeMap<u64, u8>,
    /// Those of them that were written since the last save.
    log: BTreeSet<u64>,
    exit: watch::Sender<Option<Exit>>,
    _sockets: [UnixListener; 2],
}

#[derive(Debug)]
enum MappedFrom {
    Shared(File),
    Private(File),
}

/// A handle on a fake VMM.
#[derive(Debug, Clone)]
pub struct Fake {
    host: FakeHost,
    seat: Seat,
    exit: watch::Receiver<Option<Exit>>,
}

impl std::fmt::Debug for FakeHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeHost").field("alive", &self.alive()).finish_non_exhaustive()
    }
}

impl FakeHost {
    /// A host whose guests are served by `guest`, which is called within the dialling task.
    pub fn new(guest: impl Fn(UnixStream, &Path) + Send + Sync + 'static) -> Self {
        Self { state: Arc::default(), guest: Arc::new(guest) }
    }

    /// The seats of all VMMs that have not ended.
    #[must_use]
    pub fn alive(&self) -> Vec<Seat> {
        self.lock().vmms.values().map(|vmm| vmm.seat.clone()).collect()
    }

    /// The directories of VMMs whose cgroups are there.
    #[must_use]
    pub fn cgroups(&self) -> BTreeSet<PathBuf> {
        self.lock().cgroups.clone()
    }

    /// How many calls were made, of any kind.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.lock().calls
    }

    /// Lets the nth call from now fail, counted from 0; `None` lets all succeed.
    pub fn fail(&self, nth: Option<(u32, When)>) {
        let mut state = self.lock();
        state.fail = nth.map(|(nth, when)| (state.calls + nth, when));
    }

    /// The VMM in that directory ends by itself.
    pub fn end(&self, dir: &Path, ended: Ended) {
        let mut state = self.lock();
        let pids: Vec<u32> = state.vmms.values().filter(|v| v.seat.dir == dir).map(|v| v.seat.pid).collect();
        for pid in pids {
            state.end(pid, ended);
        }
    }

    /// The guest in that directory fills a page of its memory with a byte.
    ///
    /// # Errors
    /// There is no such VMM, or its memory file cannot be written.
    pub fn write_guest(&self, dir: &Path, page: u64, byte: u8) -> io::Result<()> {
        let mut state = self.lock();
        let vmm = state.vmms.values_mut().find(|v| v.seat.dir == dir).ok_or(io::ErrorKind::NotFound)?;
        match vmm.seat.ram {
            Ram::Private | Ram::Anonymous | Ram::Tracked => {
                vmm.own.insert(page, byte);
                vmm.log.insert(page);
                Ok(())
            }
            Ram::Shared => File::options().write(true).open(dir.join(MEMORY))?.write_all_at(&[byte; 4096], page * PAGE),
        }
    }

    pub(crate) fn boot(&self, spec: &LaunchSpec) -> Result<Fake, LaunchError> {
        self.call(LaunchError::Demanded, || {
            open("kernel", &spec.machine.kernel)?;
            if let Some(initrd) = &spec.machine.initrd {
                open("initrd", initrd)?;
            }
            if spec.machine.backend == Backend::Firecracker {
                return self.launch(spec, Ram::Anonymous, None, RunState::Running);
            }
            let make = |source| LaunchError::Make { what: "memory file", path: spec.dir.join(MEMORY), source };
            socket::remove(&spec.dir.join(MEMORY)).map_err(make)?;
            let memory = File::options().read(true).write(true).create_new(true).open(spec.dir.join(MEMORY));
            let memory = memory.map_err(make)?;
            memory.set_len(spec.machine.memory.size().bytes()).map_err(make)?;
            self.launch(spec, Ram::Shared, Some(MappedFrom::Shared(memory)), RunState::Running)
        })
    }

    pub(crate) fn load(&self, spec: &LaunchSpec, from: &SavedState, plan: &LoadPlan) -> Result<Loaded, LaunchError> {
        self.call(LaunchError::Demanded, || {
            let (vmstate, path) = (spec.dir.join(&from.vmstate), spec.dir.join(&from.memory));
            open("saved state", &vmstate)?;
            let memory = open("saved memory", &path)?;
            let wanted = spec.machine.memory.size().bytes();
            let found = memory.metadata().map(|m| m.len()).unwrap_or_default();
            if found != wanted {
                return Err(LaunchError::MemorySize { path, found, wanted });
            }
            let state = fs::read_to_string(&vmstate).ok();
            let theirs = state.as_deref().and_then(parse_foreign);
            // What it names is opened, replaced or not.
            for path in theirs.iter().flat_map(|state| &state.drives).filter_map(|drive| drive.path.as_ref()) {
                open("drive", &spec.dir.join(path))?;
            }
            let replaced = matches!(plan, LoadPlan::LoadPatchResume(_));
            let fits = if replaced { theirs.is_some() } else { state == Some(device_set(&spec.machine)) };
            if !fits {
                let log_tail = "saved for another machine, or damaged".to_owned();
                return Err(LaunchError::Unloadable {
                    vmstate,
                    exit: Box::new(Exit { ended: Ended::Code(1), out_of_memory: false, disk_full: false, log_tail }),
                });
            }
            let firecracker = spec.machine.backend == Backend::Firecracker;
            let ram = if firecracker && spec.track_dirty_pages { Ram::Tracked } else { Ram::Private };
            let mapped = Some(MappedFrom::Private(memory));
            if firecracker && *plan == LoadPlan::ResumeOnLoad {
                let vmm = self.launch(spec, ram, mapped, RunState::Running)?;
                return Ok(Loaded::Resumed(Vmm::Fake(vmm)));
            }
            self.launch(spec, ram, mapped, RunState::Paused).map(|vmm| Loaded::Paused(Vmm::Fake(vmm)))
        })
    }

    /// What a state names: what a test wrote into it with [`foreign_state`].
    pub(crate) fn inspect(&self, spec: &LaunchSpec, from: &SavedState) -> Result<Described, LaunchError> {
        self.call(LaunchError::Demanded, || {
            let vmstate = spec.dir.join(&from.vmstate);
            open("saved state", &vmstate)?;
            open("saved memory", &spec.dir.join(&from.memory))?;
            fs::read_to_string(&vmstate).ok().as_deref().and_then(parse_foreign).ok_or_else(|| {
                let answer = "CRC64 validation failed".to_owned();
                LaunchError::Refused { vmstate, answer, exit: None }
            })
        })
    }

    pub(crate) fn adopt(&self, seat: &Seat) -> Result<Option<Fake>, AdoptError> {
        self.call(AdoptError::Demanded, || {
            let mut state = self.lock();
            if let Some(left) = state.blind.checked_sub(1) {
                state.blind = left;
                return Err(AdoptError::Demanded);
            }
            let found = state.vmms.get(&seat.pid).filter(|vmm| vmm.seat == *seat);
            Ok(found.map(|vmm| Fake { host: self.clone(), seat: seat.clone(), exit: vmm.exit.subscribe() }))
        })
    }

    pub(crate) fn kill_in(&self, dir: &Path) -> Result<(), KillError> {
        self.call(KillError::Demanded, || {
            self.end(dir, Ended::Signal(9));
            self.remove_traces(dir)
        })
    }

    /// Removes what a VMM that has ended left.
    pub(crate) fn remove_traces(&self, dir: &Path) -> Result<(), KillError> {
        self.lock().cgroups.remove(dir);
        remove_sockets(dir)
    }

    /// Removes the cgroups of VMMs that have ended; how many.
    pub(crate) fn sweep(&self) -> usize {
        let mut state = self.lock();
        let inhabited = state.vmms.values().map(|vmm| vmm.seat.dir.clone()).collect();
        let before = state.cgroups.len();
        state.cgroups = state.cgroups.intersection(&inhabited).cloned().collect();
        before - state.cgroups.len()
    }

    fn launch(
        &self,
        spec: &LaunchSpec,
        ram: Ram,
        mapped: Option<MappedFrom>,
        run_state: RunState,
    ) -> Result<Fake, LaunchError> {
        for disk in hearth_model::spec::disks(spec.machine.foreign.as_ref()) {
            open("disk", &spec.dir.join(disk.path))?;
        }
        let make = |what, name: &str| {
            let path = spec.dir.join(name);
            move |source| LaunchError::Make { what, path, source }
        };
        File::create(spec.dir.join(VMM_LOG)).map_err(make("log", VMM_LOG))?;
        File::options().append(true).create(true).open(spec.dir.join(SERIAL_LOG)).map_err(make("log", SERIAL_LOG))?;
        let listen = |name| socket::listen(&spec.dir, name).map_err(make("socket", name));
        let sockets = match spec.machine.backend {
            Backend::Firecracker => [listen(API_SOCKET)?, listen(VSOCK_SOCKET)?],
            Backend::QemuMicrovm | Backend::Qemu => [listen(QMP_SOCKET)?, listen(AGENT_SOCKET)?],
        };
        let memory_inode = match &mapped {
            Some(MappedFrom::Shared(file) | MappedFrom::Private(file)) => {
                file.metadata().map_err(make("memory file", MEMORY))?.ino()
            }
            None => 0,
        };
        let mut state = self.lock();
        state.launched += 1;
        let seat = Seat {
            pid: FIRST_PID + state.launched,
            start_ticks: u64::from(state.launched),
            boot_id: BOOT.into(),
            dir: spec.dir.clone(),
            backend: spec.machine.backend,
            ram,
            memory_inode,
            memory: spec.machine.memory,
            device_set: Some(device_set(&spec.machine)),
        };
        let (tell, exit) = watch::channel(None);
        let device_set = device_set(&spec.machine);
        let vmm = Running {
            seat: seat.clone(),
            device_set,
            run_state,
            mapped,
            own: BTreeMap::new(),
            log: BTreeSet::new(),
            exit: tell,
            _sockets: sockets,
        };
        state.vmms.insert(seat.pid, vmm);
        state.cgroups.insert(spec.dir.clone());
        Ok(Fake { host: self.clone(), seat, exit })
    }

    /// Lets the next looks for a VMM fail, so many of them.
    pub fn blind(&self, looks: u32) {
        self.lock().blind = looks;
    }

    /// Counts a call, and lets it fail if it is the one.
    fn call<T, E>(&self, demanded: E, effect: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        let fail = {
            let mut state = self.lock();
            let this = state.calls;
            state.calls += 1;
            state.fail.filter(|(nth, _)| *nth == this).map(|(_, when)| when)
        };
        match fail {
            None => effect(),
            Some(When::Before) => Err(demanded),
            Some(When::After) => effect().and(Err(demanded)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Running {
    /// Writes what differs onto a copy of the base, or all of it into a new file.
    fn write_memory(&mut self, path: &Path, how: SaveMemory<'_>) -> io::Result<PageCount> {
        let file = match how {
            SaveMemory::Onto(_) => File::options().write(true).open(path)?,
            SaveMemory::Into(_) | SaveMemory::Leave => {
                let file = File::create_new(path)?;
                file.set_len(self.seat.memory.size().bytes())?;
                file
            }
        };
        if file.metadata()?.len() != self.seat.memory.size().bytes() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if let (SaveMemory::Into(_), Some(base)) | (SaveMemory::Onto(_), Some(base @ MappedFrom::Shared(_))) =
            (how, &self.mapped)
        {
            let (MappedFrom::Shared(from) | MappedFrom::Private(from)) = base;
            let mut memory = Vec::new();
            from.try_clone()?.rewind()?;
            from.try_clone()?.read_to_end(&mut memory)?;
            file.write_all_at(&memory, 0)?;
        }
        let written: Vec<(u64, u8)> = match (self.seat.ram, how) {
            (Ram::Tracked, SaveMemory::Onto(_)) => self.log.iter().map(|page| (*page, self.own[page])).collect(),
            _ => self.own.iter().map(|(page, byte)| (*page, *byte)).collect(),
        };
        written.iter().try_for_each(|(page, byte)| file.write_all_at(&[*byte; 4096], page * PAGE))?;
        self.log.clear();
        let zero = written.iter().filter(|(_, byte)| *byte == 0).count() as u64;
        Ok(PageCount { changed: written.len() as u64, zero })
    }

    fn state_format(&self) -> StateFormat {
        match self.seat.backend {
            Backend::Firecracker => StateFormat::Firecracker,
            Backend::QemuMicrovm | Backend::Qemu => StateFormat::QemuDevices,
        }
    }
}

impl State {
    fn end(&mut self, pid: u32, ended: Ended) {
        if let Some(vmm) = self.vmms.remove(&pid) {
            vmm.exit.send_replace(Some(Exit { ended, ..Exit::unknown() }));
        }
    }
}

impl Fake {
    pub(crate) fn seat(&self) -> &Seat {
        &self.seat
    }

    pub(crate) async fn resume(&self) -> Result<(), ControlError> {
        self.control("cont", |vmm| {
            vmm.run_state = RunState::Running;
            Ok(())
        })
    }

    pub(crate) async fn pause(&self) -> Result<(), ControlError> {
        self.control("stop", |vmm| {
            vmm.run_state = RunState::Paused;
            Ok(())
        })
    }

    pub(crate) async fn run_state(&self) -> Result<RunState, ControlError> {
        self.control("query-status", |vmm| Ok(vmm.run_state))
    }

    pub(crate) async fn save(&self, vmstate: &Path, memory: SaveMemory<'_>) -> Result<Saved, ControlError> {
        let path = self.seat.dir.join(vmstate);
        self.control("save the guest", |vmm| {
            if vmm.run_state == RunState::Running {
                return Err(ControlError::NotPaused { action: "save the guest" });
            }
            let written = fs::write(&path, &vmm.device_set);
            written.map_err(|source| ControlError::Write { what: "device state", path: path.clone(), source })?;
            let pages = match memory {
                SaveMemory::Leave => None,
                SaveMemory::Onto(to) | SaveMemory::Into(to) => {
                    let path = vmm.seat.dir.join(to);
                    let pages = vmm.write_memory(&path, memory);
                    Some(pages.map_err(|source| ControlError::Write { what: "memory file", path, source })?)
                }
            };
            Ok(Saved { format: vmm.state_format(), pages })
        })
    }

    pub(crate) async fn dial_guest(&self) -> Result<UnixStream, ControlError> {
        let unreachable = |source| ControlError::Unreachable { socket: self.seat.dir.join(AGENT_SOCKET), source };
        self.control("dial the guest", |_| Ok(()))?;
        let (ours, guest) = UnixStream::pair().map_err(unreachable)?;
        (self.host.guest)(guest, &self.seat.dir);
        Ok(ours)
    }

    pub(crate) fn exited(&self) -> impl Future<Output = Exit> + Send + 'static {
        let mut exit = self.exit.clone();
        async move {
            let ended = exit.wait_for(Option::is_some).await.ok().and_then(|exit| exit.clone());
            ended.unwrap_or_else(Exit::unknown)
        }
    }

    pub(crate) async fn kill(&self) -> Result<(), KillError> {
        self.host.call(KillError::Demanded, || {
            self.host.lock().end(self.seat.pid, Ended::Signal(9));
            self.host.remove_traces(&self.seat.dir)
        })
    }

    fn control<T>(
        &self,
        command: &'static str,
        effect: impl FnOnce(&mut Running) -> Result<T, ControlError>,
    ) -> Result<T, ControlError> {
        self.host.call(ControlError::Demanded, || {
            let mut state = self.host.lock();
            match state.vmms.get_mut(&self.seat.pid) {
                Some(vmm) => effect(vmm),
                None => {
                    let exit = self.exit.borrow().clone();
                    let exit = exit.unwrap_or_else(Exit::unknown);
                    Err(ControlError::Gone { command, exit: Box::new(exit) })
                }
            }
        })
    }
}

/// A state that was saved elsewhere, of a guest with a vsock and these drives: id, path, read-only.
#[must_use]
pub fn foreign_state(vcpus: u64, memory_mib: u64, drives: &[(&str, &Path, bool)]) -> String {
    let mut text = format!("foreign {vcpus} {memory_mib}\n");
    for (id, path, read_only) in drives {
        text += &format!("{id} {read_only} {}\n", path.display());
    }
    text
}

fn parse_foreign(text: &str) -> Option<Described> {
    let mut lines = text.lines();
    let mut head = lines.next()?.strip_prefix("foreign ")?.split(' ');
    let mut number = || head.next()?.parse().ok();
    let (vcpus, memory_mib) = (number()?, number()?);
    let drive = |line: &str| {
        let mut words = line.splitn(3, ' ');
        let (id, read_only, path) = (words.next()?.to_owned(), words.next()?.parse().ok()?, words.next()?.to_owned());
        Some(DescribedDrive { id, path: Some(path), read_only })
    };
    let drives = lines.map(drive).collect::<Option<Vec<_>>>()?;
    Some(Described { vcpus, memory_mib, drives, vsock: true, ..Described::default() })
}

fn open(what: &'static str, path: &PathBuf) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::Open { what, path: path.clone(), source })
}
