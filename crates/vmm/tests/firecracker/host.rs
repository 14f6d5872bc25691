//! What a story runs on: the simulated VMM or the real Firecracker, with a guest that counts on its
//! serial port and sends back what it is sent on its vsock. Directories, disks, bundles.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hearth_model::{Accel, Backend, LoadPlan, MemMib};
use hearth_simulated::faults::{self, Fault, Plan};
use hearth_simulated::guest::{self, After, Params};
use hearth_vmm::{
    Cgroups, KvmTrust, LaunchError, LaunchSpec, Launcher, Loaded, MEMORY_BASE, Machine, OVERLAY, ROOTFS, SERIAL_LOG,
    SOCKETS, SaveMemory, SavedState, Vmm,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
pub const MEMORY: MemMib = MemMib::MIN;

pub struct Host {
    pub simulated: bool,
    pub launcher: Launcher,
    cgroups: Cgroups,
    tmp: TempDir,
    program: PathBuf,
    kernel: PathBuf,
}

/// A guest at rest.
#[derive(Debug, Clone)]
pub struct Bundle {
    pub dir: PathBuf,
    pub state: SavedState,
}

impl Host {
    pub fn simulated() -> Self {
        let program = hearth_simulated::program().expect("it is built");
        Self::new(program, true, guest::describe).expect("the simulated VMM needs no compiler")
    }

    /// `None`, loudly, where it cannot be used.
    pub fn firecracker() -> Option<Self> {
        let program = std::env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
        let probe = hearth_vmm::probe_firecracker(&program, &hearth_vmm::evidence(), KvmTrust::Trust);
        let made = match (probe.available, probe.path) {
            (true, Some(path)) => Self::new(path, false, guest::assemble).map_err(|error| error.to_string()),
            _ => Err(probe.why),
        };
        made.inspect_err(|why| eprintln!("SKIPPED: stories on real Firecracker: {why}")).ok()
    }

    fn new(
        program: PathBuf,
        simulated: bool,
        make: impl Fn(&Path, &Params) -> Result<PathBuf, guest::GuestError>,
    ) -> Result<Self, guest::GuestError> {
        let tmp = tempfile::tempdir().expect("a directory");
        let cgroups = Cgroups::of(tmp.path());
        if let Err(why) = cgroups.parent() {
            eprintln!("SKIPPED: VMMs in cgroups of their own: {why}");
        }
        let params = Params { pages: 40, stride: 3, step: 7, per_tick: 1, hz: 100, after: After::Listen };
        let kernel = make(tmp.path(), &params)?;
        Ok(Self { simulated, launcher: Launcher::Real(cgroups.clone()), cgroups, tmp, program, kernel })
    }

    /// A new instance's directory, with its disks.
    pub fn spec(&self, name: &str) -> LaunchSpec {
        let dir = self.tmp.path().join(name);
        fs::create_dir_all(dir.join("disks")).expect("made");
        for disk in [ROOTFS, OVERLAY] {
            File::create(dir.join(disk)).expect("made").set_len(1 << 20).expect("sized");
        }
        LaunchSpec {
            dir,
            machine: Machine {
                backend: Backend::Firecracker,
                accel: Accel::Kvm,
                vcpus: 1,
                memory: MEMORY,
                kernel: self.kernel.clone(),
                initrd: None,
                network: hearth_vmm::Nic::None,
                foreign: None,
            },
            program: self.program.clone(),
            netns: None,
            track_dirty_pages: true,
        }
    }

    /// The next VMM in that directory has these faults. Only the simulated one has any.
    pub fn faults(&self, spec: &LaunchSpec, faults: Vec<Fault>) {
        assert!(self.simulated);
        let plan = serde_json::to_vec(&Plan { faults, ..Plan::default() }).expect("a plan is JSON");
        fs::write(spec.dir.join(faults::FILE), plan).expect("written");
    }

    pub async fn boot(&self, name: &str) -> Vmm {
        let vmm = self.launcher.boot(&self.spec(name)).await.unwrap_or_else(|error| panic!("boot {name}: {error:?}"));
        ticks(&vmm, 3).await;
        vmm
    }

    /// Puts a bundle's files where a new instance is to load them from.
    pub fn place(&self, bundle: &Bundle, name: &str) -> (LaunchSpec, SavedState) {
        let spec = self.spec(name);
        fs::copy(bundle.dir.join("overlay"), spec.dir.join(OVERLAY)).expect("copied");
        for (from, to) in [(&bundle.state.memory, MEMORY_BASE), (&bundle.state.vmstate, "vmstate")] {
            let _ = fs::remove_file(spec.dir.join(to));
            fs::hard_link(from, spec.dir.join(to)).expect("linked");
        }
        let state = SavedState { vmstate: "vmstate".into(), memory: MEMORY_BASE.into(), format: bundle.state.format };
        (spec, state)
    }

    pub async fn load(&self, bundle: &Bundle, name: &str, plan: &LoadPlan) -> Result<Loaded, LaunchError> {
        let (spec, state) = self.place(bundle, name);
        self.launcher.load(&spec, &state, plan).await
    }

    /// A fork that runs when the load returns.
    pub async fn fork(&self, bundle: &Bundle, name: &str) -> Vmm {
        match self.load(bundle, name, &LoadPlan::ResumeOnLoad).await {
            Ok(Loaded::Resumed(vmm)) => vmm,
            other => panic!("fork {name}: {other:?}"),
        }
    }

    /// Where a snapshot is saved to.
    pub fn shelf(&self, name: &str) -> PathBuf {
        let dir = self.tmp.path().join(name);
        fs::create_dir_all(&dir).expect("made");
        dir
    }

    /// Saves a paused guest: as a whole, or, if its memory has a base, onto a copy of that.
    pub async fn save(&self, vmm: &Vmm, name: &str) -> Bundle {
        let dir = self.shelf(name);
        let (vmstate, memory) = (dir.join("vmstate"), dir.join("memory"));
        let base = vmm.seat().dir.join(MEMORY_BASE);
        let how = if base.exists() {
            copy_sparse(&base, &memory);
            SaveMemory::Onto(&memory)
        } else {
            SaveMemory::Into(&memory)
        };
        let format = vmm.save(&vmstate, how).await.expect("saved").format;
        fs::copy(vmm.seat().dir.join(OVERLAY), dir.join("overlay")).expect("copied");
        Bundle { dir, state: SavedState { vmstate, memory, format } }
    }

    /// Pauses the guest, saves it, and ends its VMM.
    pub async fn standby(&self, vmm: Vmm, name: &str) -> Bundle {
        vmm.pause().await.expect("pauses");
        let bundle = self.save(&vmm, name).await;
        vmm.kill().await.expect("ends");
        bundle
    }

    /// How many cgroups a VMM has here.
    pub fn cgroups_each(&self) -> usize {
        usize::from(self.cgroups.parent().is_ok())
    }

    /// What is left of a VMM: in its directory, in the process table, and its cgroup.
    pub fn left(&self, dir: &Path) -> Vec<String> {
        let mut left: Vec<String> = SOCKETS
            .iter()
            .filter(|name| dir.join(name).symlink_metadata().is_ok())
            .map(|name| (*name).to_owned())
            .collect();
        let place = dir.canonicalize().expect("it is there");
        for entry in fs::read_dir("/proc").expect("proc").flatten() {
            if fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == place) {
                left.push(format!("process {}", entry.file_name().to_string_lossy()));
            }
        }
        let cgroup = self.cgroups.parent().ok().map(|parent| parent.join(dir.file_name().expect("it has a name")));
        left.extend(cgroup.filter(|cgroup| cgroup.exists()).map(|cgroup| format!("cgroup {}", cgroup.display())));
        left
    }
}

pub fn fault(json: serde_json::Value) -> Fault {
    serde_json::from_value(json).expect("a fault")
}

pub fn copy_sparse(from: &Path, to: &Path) {
    let copied = std::process::Command::new("cp").arg("--sparse=always").args([from, to]).status();
    assert!(copied.expect("cp is there").success());
}

/// The ticks that a guest has counted, as its console says.
pub fn last_tick(dir: &Path) -> u64 {
    let log = fs::read_to_string(dir.join(SERIAL_LOG)).unwrap_or_default();
    // The last line may not be whole yet.
    let whole = log.rfind('\n').map_or("", |end| &log[..end]);
    whole.lines().filter_map(|line| line.strip_prefix("tick ")?.trim().parse().ok()).next_back().unwrap_or(0)
}

/// Waits until the guest has counted that far.
pub async fn ticks(vmm: &Vmm, far: u64) {
    let dir = &vmm.seat().dir;
    let counted = async {
        while last_tick(dir) < far {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, counted).await.is_err() {
        panic!("tick {} of {far} in {}", last_tick(dir), dir.display());
    }
}

/// Calls the guest, which sends back what it is sent.
pub async fn answers(vmm: &Vmm) {
    let echo = async {
        let mut stream: UnixStream = vmm.dial_guest().await.expect("dialled");
        stream.write_all(b"hello").await.expect("sent");
        let mut back = [0; 5];
        stream.read_exact(&mut back).await.expect("answered");
        assert_eq!(&back, b"hello");
    };
    tokio::time::timeout(PATIENCE, echo).await.expect("the guest answers");
}

/// Bytes that a file takes on disk.
pub fn allocated(path: &Path) -> u64 {
    path.metadata().expect("it is there").blocks() * 512
}
