//! What a story runs on: real QEMU on one of its boards, or the fake. Directories, disks, copies.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use hearth_model::{Accel, Backend, LoadPlan, MemMib};
use hearth_vmm::fake::FakeHost;
use hearth_vmm::{
    AGENT_SOCKET, Cgroups, LaunchSpec, Launcher, Loaded, MEMORY, Machine, Nic, OVERLAY, QMP_SOCKET, ROOTFS, SaveMemory,
    SavedState, VMM_LOG, Vmm,
};
use tempfile::TempDir;

use crate::guest::{self, Guest};

/// QEMU's boards.
pub const BOARDS: [Backend; 2] = [Backend::QemuMicrovm, Backend::Qemu];

pub struct Host {
    pub launcher: Launcher,
    pub fake: Option<FakeHost>,
    pub machine: Machine,
    tmp: TempDir,
}

impl Host {
    /// Real QEMU; `None`, loudly, where it or a kernel for it is missing.
    pub fn real(backend: Backend) -> Option<Self> {
        let tmp = tempfile::tempdir().expect("a directory");
        let found = hearth_vmm::probe_qemu(Path::new("qemu-system-x86_64")).into_iter().find(|p| p.backend == backend);
        let found = found.expect("every backend is probed");
        let made = if found.available { guest::make(tmp.path()) } else { Err(found.why) };
        match made {
            Ok((kernel, initrd)) => {
                let (accel, _) = hearth_vmm::accel();
                Some(Self {
                    launcher: Launcher::Real(Cgroups::of(tmp.path())),
                    fake: None,
                    machine: machine(backend, accel, kernel, initrd),
                    tmp,
                })
            }
            Err(why) => {
                eprintln!("SKIPPED: {backend}: {why}");
                None
            }
        }
    }

    /// The fake, with guests that answer every line with itself.
    pub fn fake() -> Option<Self> {
        let tmp = tempfile::tempdir().expect("a directory");
        let fake = FakeHost::new(|stream, _dir| {
            let stream = stream.into_std().expect("a stream");
            stream.set_nonblocking(false).expect("blocking");
            std::thread::spawn(move || {
                let mut to = stream.try_clone().expect("a clone");
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    if writeln!(to, "{line}").is_err() {
                        break;
                    }
                }
            });
        });
        let (kernel, initrd) = (tmp.path().join("kernel"), tmp.path().join("initrd"));
        fs::write(&kernel, "").expect("written");
        fs::write(&initrd, "").expect("written");
        let machine = machine(Backend::QemuMicrovm, Accel::Tcg, kernel, initrd);
        Some(Self { launcher: Launcher::Fake(fake.clone()), fake: Some(fake), machine, tmp })
    }

    /// A new instance's directory, with its disks.
    pub fn spec(&self, name: &str) -> LaunchSpec {
        let dir = self.tmp.path().join(name);
        fs::create_dir_all(dir.join("disks")).expect("made");
        for disk in [ROOTFS, OVERLAY] {
            let file = File::create(dir.join(disk)).expect("made");
            file.set_len(8 << 20).expect("sized");
        }
        LaunchSpec {
            dir,
            machine: self.machine.clone(),
            program: "qemu-system-x86_64".into(),
            track_dirty_pages: true,
            netns: None,
        }
    }

    pub async fn boot(&self, name: &str) -> Vmm {
        let spec = self.spec(name);
        self.launcher.boot(&spec).await.unwrap_or_else(|error| panic!("boot {name}: {error:?}"))
    }

    /// Loads a bundle under a new name; the guest runs.
    pub async fn fork(&self, bundle: &Bundle, name: &str) -> Vmm {
        let spec = self.spec(name);
        fs::copy(&bundle.overlay, spec.dir.join(OVERLAY)).expect("copied");
        match self
            .launcher
            .load(&spec, &bundle.state, &LoadPlan::ResumeOnLoad)
            .await
            .unwrap_or_else(|error| panic!("load {name}: {error:?}"))
        {
            Loaded::Paused(vmm) => {
                vmm.resume().await.expect("resumes");
                vmm
            }
            Loaded::Resumed(vmm) => vmm,
        }
    }

    /// Pauses the guest, saves all of it, and ends its VMM.
    pub async fn standby(&self, vmm: Vmm, name: &str, base: Option<&Bundle>) -> Bundle {
        vmm.pause().await.expect("pauses");
        let bundle = self.save(&vmm, name, base).await;
        vmm.kill().await.expect("ends");
        bundle
    }

    /// Saves a paused guest. `base`: what it was loaded from.
    pub async fn save(&self, vmm: &Vmm, name: &str, base: Option<&Bundle>) -> Bundle {
        let dir = self.tmp.path().join(name);
        fs::create_dir_all(&dir).expect("made");
        let (vmstate, memory, overlay) = (dir.join("vmstate"), dir.join("memory"), dir.join("overlay"));
        let saved = match base {
            None => {
                copy_sparse(&vmm.seat().dir.join(MEMORY), &memory);
                vmm.save(&vmstate, SaveMemory::Leave).await
            }
            Some(base) => {
                copy_sparse(&base.state.memory, &memory);
                vmm.save(&vmstate, SaveMemory::Onto(&memory)).await
            }
        };
        let format = saved.expect("saved").format;
        fs::copy(vmm.seat().dir.join(OVERLAY), &overlay).expect("copied");
        Bundle { state: SavedState { vmstate, memory, format }, overlay }
    }
}

fn machine(backend: Backend, accel: Accel, kernel: PathBuf, initrd: PathBuf) -> Machine {
    let memory = MemMib::new(256).expect("in range");
    Machine {
        backend,
        accel,
        vcpus: 1,
        memory,
        kernel,
        initrd: Some(initrd),
        network: Nic::User { ports: Vec::new(), closed: false },
        foreign: None,
    }
}

/// A guest at rest.
pub struct Bundle {
    pub state: SavedState,
    pub overlay: PathBuf,
}

impl Bundle {
    /// All bytes that a load must leave as they are.
    pub fn content(&self) -> [Vec<u8>; 2] {
        [&self.state.vmstate, &self.state.memory].map(|path| fs::read(path).expect("it is there"))
    }
}

/// Copies what is not zero.
pub fn copy_sparse(from: &Path, to: &Path) {
    let (from, to) = (File::open(from).expect("there"), File::create(to).expect("made"));
    let length = from.metadata().expect("metadata").len();
    to.set_len(length).expect("sized");
    let mut page = vec![0; 64 << 10];
    for at in (0..length).step_by(page.len()) {
        from.read_exact_at(&mut page, at).expect("read");
        if page.iter().any(|byte| *byte != 0) {
            to.write_all_at(&page, at).expect("written");
        }
    }
}

/// Waits until the guest answers.
pub async fn ready(vmm: &Vmm) -> Guest {
    let mut guest = Guest::dial(vmm).await;
    assert_eq!(guest.ask("hello").await, "hello");
    guest
}

/// What a VMM left in its directory that it must not leave.
pub fn sockets(dir: &Path) -> Vec<&'static str> {
    [QMP_SOCKET, AGENT_SOCKET].into_iter().filter(|name| dir.join(name).symlink_metadata().is_ok()).collect()
}

/// The QEMU processes that stand in that directory.
pub fn processes_in(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().expect("it is there");
    let pids = fs::read_dir("/proc").expect("proc").flatten().map(|e| e.file_name().to_string_lossy().into_owned());
    pids.filter(|pid| fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)).collect()
}

pub fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join(VMM_LOG)).unwrap_or_default()
}
