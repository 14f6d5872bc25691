//! A daemon without a host, for tests: real files and records, VMMs and guests in this process.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use hearth_agent_client::fake::{AtRefresh, FakeGuest};
use hearth_model::load::ResumeOnLoad;
use hearth_model::runtime::Accel;
use hearth_model::spec::Program;
use hearth_model::{Backend, ByteSize, InstanceSpec, InstanceState, MemMib, Network};
use hearth_net::fake::FakeNetwork;
use hearth_store::Store;
use hearth_vmm::fake::FakeHost;
use hearth_vmm::{BackendProbe, Ended, Launcher};

use crate::config::Config;
use crate::error::OpError;
use crate::handle::{InstanceHandle, Request};
use crate::host::{Host, Vmms};
use crate::networks::Networks;
use crate::ops::{ImportPlan, import_guest};
use crate::paths::DataDir;
use crate::registry::Registry;

/// Guests by the VMM that they run in.
type Guests = Arc<Mutex<HashMap<(PathBuf, u32), FakeGuest>>>;

/// How guests behave that are dialled from now on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Manners {
    pub(crate) at_refresh: AtRefresh,
    /// The protocol's version that they speak, if not the newest.
    pub(crate) version: Option<u32>,
}

/// VMMs whose guests answer, and end when they are told to shut down.
fn fake_host(guests: Guests, mute: Arc<AtomicBool>, manners: Arc<Mutex<Manners>>) -> FakeHost {
    let this: Arc<OnceLock<FakeHost>> = Arc::default();
    let host = FakeHost::new({
        let this = Arc::clone(&this);
        move |stream, dir| {
            let Some(host) = this.get().cloned() else { return };
            let Some(seat) = host.alive().into_iter().find(|seat| seat.dir == dir) else { return };
            let mut guests = guests.lock().unwrap_or_else(PoisonError::into_inner);
            let guest = guests.entry((seat.dir.clone(), seat.pid)).or_default().clone();
            guest.set_silent(mute.load(Ordering::Relaxed));
            let Manners { at_refresh, version } = manners.lock().unwrap_or_else(PoisonError::into_inner).clone();
            guest.at_refresh(at_refresh);
            version.into_iter().for_each(|version| guest.set_version(version));
            drop(guest.serve(stream));
            tokio::spawn(async move {
                // As the real agent does: the host is to know of the program's end before the VMM's.
                let mut patience = 200_u32;
                while host.alive().iter().any(|alive| alive.pid == seat.pid) {
                    if guest.has_ended() && (guest.exit_was_seen() || patience == 0) {
                        host.end(&seat.dir, Ended::Code(0));
                    }
                    if guest.has_ended() {
                        patience = patience.saturating_sub(1);
                    }
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            });
        }
    });
    this.set(host.clone()).ok();
    host
}

/// So long after they were written records are on the disk: what waits for that is not waited for long.
const SYNCED: Duration = Duration::from_millis(20);

/// A daemon without HTTP: real files and records, fake VMMs and guests.
pub(crate) struct World {
    backend: Backend,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Registry,
    pub(crate) digest: String,
    /// Guests that are dialled while this is set say nothing.
    pub(crate) mute: Arc<AtomicBool>,
    pub(crate) network: FakeNetwork,
    guests: Guests,
    manners: Arc<Mutex<Manners>>,
    _dir: tempfile::TempDir,
}

/// What one can see of a world, without what is random.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Picture {
    /// By instance: its state, and the files in its directory.
    instances: BTreeMap<String, (String, Vec<String>)>,
    vmms: usize,
    cgroups: usize,
    /// Snapshot records, internal ones too, and directories of bundles.
    snapshots: (usize, usize),
    /// Imports that are under way.
    imports: usize,
    /// Slots of the network that are taken, those that are open, and leased addresses.
    network: (usize, usize, usize),
    /// Who holds something of the host, and bytes that are about to be written.
    room: (usize, u64),
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::on(Backend::QemuMicrovm, ResumeOnLoad::On).await
    }

    /// One whose instances are run by this backend, and brought back with the hatch open or closed.
    pub(crate) async fn on(backend: Backend, hatch: ResumeOnLoad) -> Self {
        Self::configured(backend, |config| config.firecracker.resume_on_load = hatch).await
    }

    /// One whose instances are run by this backend, with other settings.
    pub(crate) async fn configured(backend: Backend, configure: impl FnOnce(&mut Config)) -> Self {
        Self::made(backend, SYNCED, configure).await
    }

    /// One whose records are on the disk so long after they were written.
    pub(crate) async fn syncing_after(soon: Duration) -> Self {
        Self::made(Backend::QemuMicrovm, soon, |_| ()).await
    }

    async fn made(backend: Backend, soon: Duration, configure: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = DataDir::new(dir.path().to_owned());
        for path in data.all() {
            std::fs::create_dir_all(path).expect("made");
        }
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("bin")).expect("made");
        std::fs::write(root.join("bin/app"), "app").expect("written");
        let images = data.images();
        let imported = tokio::task::spawn_blocking(move || {
            let imported = hearth_image::import(&root, &images, &hearth_image::Limits::default(), &|_| {});
            let imported = imported.expect("imported");
            hearth_image::claim(&images, &imported.digest).expect("claimed");
            imported
        });
        let digest = imported.await.expect("no panic").digest;
        let store = Store::open_syncing(data.root(), soon).expect("a store");
        let probe = |backend| BackendProbe {
            backend,
            available: true,
            version: Some("1".into()),
            path: None,
            why: String::new(),
        };
        let (guests, mute) = (Guests::default(), Arc::new(AtomicBool::new(false)));
        let manners = Arc::<Mutex<Manners>>::default();
        let vmms = Vmms {
            accel: Accel::Tcg,
            accel_why: "a test".into(),
            probes: Backend::ALL.map(probe).to_vec(),
            launcher: Launcher::Fake(fake_host(Arc::clone(&guests), Arc::clone(&mute), Arc::clone(&manners))),
        };
        let mut config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        configure(&mut config);
        let network = FakeNetwork::new(&crate::networks::slots_config(&config));
        let networks = Networks::Slots(hearth_net::Network::Fake(network.clone()));
        let host = Host::new(config, data, store, vmms, networks).expect("a host");
        let registry = Registry::new(Arc::clone(&host));
        Self { backend, host, registry, digest, mute, network, guests, manners, _dir: dir }
    }

    pub(crate) fn spec(&self, name: &str) -> InstanceSpec {
        InstanceSpec {
            foreign: None,
            restart: hearth_model::RestartPolicy::default(),
            name: name.parse().expect("a name"),
            image: "app".parse().expect("a reference"),
            backend: self.backend,
            memory: MemMib::MIN,
            vcpus: 1,
            overlay: ByteSize::mib(64),
            network: Some(Network::default()),
            agent: true,
            tags: BTreeMap::new(),
            env: BTreeMap::new(),
            program: Program {
                argv: vec!["/bin/app".into()],
                env: Vec::new(),
                workdir: "/".into(),
                user: String::new(),
            },
        }
    }

    pub(crate) async fn create(&self, name: &str) -> Result<InstanceHandle, OpError> {
        self.create_of(self.spec(name)).await
    }

    pub(crate) async fn create_of(&self, spec: InstanceSpec) -> Result<InstanceHandle, OpError> {
        let handle = self.registry.begin(spec, self.digest.clone())?;
        handle.submit(Request::Create).await?;
        Ok(handle)
    }

    /// A directory as plain Firecracker leaves it, with a guest of two drives; written once.
    pub(crate) fn elsewhere(&self) -> PathBuf {
        let dir = self._dir.path().join("elsewhere");
        if dir.exists() {
            return dir;
        }
        std::fs::create_dir(&dir).expect("made");
        let (root, data) = (dir.join("root.img"), dir.join("data.img"));
        std::fs::write(&root, "root").expect("written");
        std::fs::write(&data, "data").expect("written");
        let memory = std::fs::File::create(dir.join("mem_file")).expect("made");
        memory.set_len(MemMib::MIN.size().bytes()).expect("sized");
        let drives = [("root", root.as_path(), true), ("data", data.as_path(), false)];
        let state = hearth_vmm::fake::foreign_state(1, u64::from(MemMib::MIN.mib()), &drives);
        std::fs::write(dir.join("state"), state).expect("written");
        dir
    }

    pub(crate) async fn import(&self, name: &str) -> Result<hearth_store::SnapshotRecord, OpError> {
        let plan = ImportPlan {
            dir: self.elsewhere(),
            vmstate: Some("state".into()),
            memory: None,
            name: name.parse().expect("a name"),
            agent: true,
            tags: BTreeMap::new(),
        };
        import_guest(Arc::clone(&self.host), plan).await
    }

    pub(crate) fn set_manners(&self, manners: Manners) {
        *self.manners.lock().unwrap_or_else(PoisonError::into_inner) = manners;
    }

    pub(crate) fn get(&self, name: &str) -> InstanceHandle {
        self.registry.resolve(name).expect("it is there")
    }

    /// The guest that runs in an instance now.
    pub(crate) fn guest(&self, instance: &InstanceHandle) -> FakeGuest {
        let dir = instance.dir();
        let seat = self.fake().alive().into_iter().find(|seat| seat.dir == dir.path()).expect("it has a VMM");
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.get(&(seat.dir, seat.pid)).expect("it has been dialled").clone()
    }

    fn network_of_host(&self) -> &hearth_net::Network {
        match &self.host.networks {
            Networks::Slots(network) => network,
            Networks::User(_) => panic!("the network is a fake one here"),
        }
    }

    pub(crate) fn fake(&self) -> &FakeHost {
        match &self.host.vmms.launcher {
            Launcher::Fake(fake) => fake,
            Launcher::Real(_) => panic!("VMMs are fake here"),
        }
    }

    /// The daemon has died and is started again: what it knew is gone, what it did is not.
    pub(crate) async fn reborn(&mut self) {
        self.host.faults.set(None);
        self.registry.draining().cancel();
        self.host.pins.forget_all();
        let records = self.host.store.instances().expect("readable");
        self.network.reopen(&crate::networks::seats(&records));
        records.iter().filter_map(|record| record.address).for_each(|address| self.network_of_host().hold(address));
        self.registry = Registry::new(Arc::clone(&self.host));
        crate::recover::recover_all(&self.host, &self.registry).await.expect("recovered");
    }

    pub(crate) fn picture(&self) -> Picture {
        let instances = self.registry.list().into_iter().map(|view| {
            let state = match view.state() {
                InstanceState::Failed { reason } => format!("failed: {reason}"),
                state => state.name().to_owned(),
            };
            let stored = self.host.store.instance(&view.record.id).expect("readable").expect("recorded");
            assert_eq!(stored.phase, view.record.phase, "the record and the view say the same");
            let dir = self.host.data.instance(&view.record.id);
            let mut files = files(dir.path());
            if view.record.spec.backend == Backend::Firecracker && *view.state() == InstanceState::Running {
                // A save that was begun and failed takes it away: the next one saves all.
                files.retain(|file| file != hearth_vmm::MEMORY_BASE);
            }
            (view.record.spec.name.to_string(), (state, files))
        });
        let instances: BTreeMap<_, _> = instances.collect();
        let directories = std::fs::read_dir(self.host.data.instances()).expect("listed").count();
        assert_eq!(directories, instances.len(), "every instance's directory has an owner: {instances:?}");
        Picture {
            instances,
            vmms: self.fake().alive().len(),
            cgroups: self.fake().cgroups().len(),
            snapshots: (
                self.host.store.snapshots().expect("readable").len(),
                std::fs::read_dir(self.host.data.snapshots()).expect("listed").count(),
            ),
            imports: std::fs::read_dir(self.host.data.imports()).expect("listed").count(),
            room: self.host.room.holders(),
            network: (self.network.taken().len(), self.network.open().len(), self.network.leased().len()),
        }
    }

    /// Whether no snapshot is there any more that is about to be removed in the background.
    fn nothing_is_dropped(&self) -> bool {
        let views = self.registry.list();
        let snapshots = self.host.store.snapshots().expect("readable");
        snapshots.into_iter().filter(|snapshot| snapshot.internal).all(|snapshot| {
            views.iter().any(|view| *view.state() == InstanceState::Standby { snapshot: snapshot.id.clone() })
        })
    }

    /// The world once the background has done its part: unchanged for a while, every recorded
    /// snapshot has its bundle and no other is there, and none is kept for nobody.
    pub(crate) async fn at_rest(&self) -> Picture {
        let mut last = self.picture();
        for _ in 0..200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            // Asked first: what goes between the two is in neither.
            let nothing_is_dropped = self.nothing_is_dropped();
            let now = self.picture();
            if now == last && now.snapshots.0 == now.snapshots.1 && nothing_is_dropped {
                return now;
            }
            last = now;
        }
        panic!("the world does not come to rest: {last:?}");
    }

    /// Waits until what is removed in the background is gone: until the world looks as it should,
    /// or for long enough to be sure that it never will.
    pub(crate) async fn settles_to(&self, wanted: &[&Picture]) -> Picture {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(2);
        loop {
            let now = self.picture();
            if wanted.contains(&&now) || tokio::time::Instant::now() > deadline {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// Names of all files below, but for logs, and the mark that goes in its own time.
fn files(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_none_or(|e| e != "log")
                && !entry.file_name().to_str().is_some_and(crate::fresh::is_mark)
            {
                names.push(path.strip_prefix(dir).expect("below it").display().to_string());
            }
        }
    }
    names.sort();
    names
}
