//! Every call of every verb fails in turn, before and after its effect; then one looks at what is
//! left. In-process VMMs and guests, real files and records.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hearth_model::runtime::Accel;
use hearth_model::spec::Program;
use hearth_model::{Backend, ByteSize, InstanceSpec, InstanceState, MemMib};
use hearth_store::{SnapshotKind, Store};
use hearth_vmm::{BackendProbe, Launcher};
use hearth_vmm::fake::FakeHost;

use super::faults::When;
use super::{SnapshotPlan, Target};
use crate::config::Config;
use crate::error::OpError;
use crate::handle::InstanceHandle;
use crate::host::{Host, Vmms};
use crate::paths::DataDir;
use crate::registry::{ForkRequest, ForkSource, Registry};

/// A daemon without HTTP: real files and records, fake VMMs and guests.
struct World {
    host: Arc<Host>,
    registry: Registry,
    digest: String,
    _dir: tempfile::TempDir,
}

/// What one can see of a world, without what is random.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Picture {
    /// By instance: its state, and the files in its directory.
    instances: BTreeMap<String, (String, Vec<String>)>,
    vmms: usize,
    /// Snapshot records, internal ones too, and directories of bundles.
    snapshots: (usize, usize),
}

impl World {
    async fn new() -> Self {
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
            hearth_image::import(&root, &images, &hearth_image::Limits::default(), &|_| {}).expect("imported")
        });
        let digest = imported.await.expect("no panic").digest;
        let store = Store::open(data.root()).expect("a store");
        let probe = |backend| BackendProbe {
            backend,
            available: true,
            version: Some("1".into()),
            path: None,
            why: String::new(),
        };
        let vmms = Vmms {
            accel: Accel::Tcg,
            accel_why: "a test".into(),
            probes: Backend::ALL.map(probe).to_vec(),
            launcher: Launcher::Fake(FakeHost::default()),
        };
        let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
        let host = Host::new(config, data, store, vmms).expect("a host");
        let registry = Registry::new(Arc::clone(&host));
        Self { host, registry, digest, _dir: dir }
    }

    fn spec(&self, name: &str) -> InstanceSpec {
        InstanceSpec {
            name: name.parse().expect("a name"),
            image: "app".parse().expect("a reference"),
            backend: Backend::QemuMicrovm,
            memory: MemMib::MIN,
            vcpus: 1,
            overlay: ByteSize::mib(64),
            network: false,
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

    async fn create(&self, name: &str) -> Result<InstanceHandle, OpError> {
        self.registry.create(self.spec(name), self.digest.clone()).await
    }

    fn get(&self, name: &str) -> InstanceHandle {
        self.registry.resolve(name).expect("it is there")
    }

    fn fake(&self) -> &FakeHost {
        match &self.host.vmms.launcher {
            Launcher::Fake(fake) => fake,
            Launcher::Real => panic!("VMMs are fake here"),
        }
    }

    fn picture(&self) -> Picture {
        let instances = self.registry.list().into_iter().map(|view| {
            let state = match view.state() {
                InstanceState::Failed { reason } => format!("failed: {reason}"),
                state => state.name().to_owned(),
            };
            let stored = self.host.store.instance(&view.record.id).expect("readable").expect("recorded");
            assert_eq!(stored.phase, view.record.phase, "the record and the view say the same");
            let dir = self.host.data.instance(&view.record.id);
            (view.record.spec.name.to_string(), (state, files(dir.path())))
        });
        let instances: BTreeMap<_, _> = instances.collect();
        let directories = std::fs::read_dir(self.host.data.instances()).expect("listed").count();
        assert_eq!(directories, instances.len(), "every instance's directory has an owner: {instances:?}");
        Picture {
            instances,
            vmms: self.fake().alive().len(),
            snapshots: (
                self.host.store.snapshots().expect("readable").len(),
                std::fs::read_dir(self.host.data.snapshots()).expect("listed").count(),
            ),
        }
    }

    /// Waits until what is removed in the background is gone: until the world looks as it should,
    /// or for long enough to be sure that it never will.
    async fn settles_to(&self, wanted: &[&Picture]) -> Picture {
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

/// Names of all files below, but for logs.
fn files(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in std::fs::read_dir(&next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_none_or(|e| e != "log") {
                names.push(path.strip_prefix(dir).expect("below it").display().to_string());
            }
        }
    }
    names.sort();
    names
}

/// A verb, and the state of the instance `web` in which it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verb {
    Create,
    Start,
    Stop,
    StopStandby,
    Standby,
    StandbyOfRestored,
    Restore,
    SnapshotRunning,
    SnapshotRestored,
    SnapshotStandby,
    SnapshotStopped,
    ForkStandby,
    ForkToStandby,
    ForkRunning,
    ForkStopped,
    RevertToRunning,
    RevertToStopped,
    DeleteRunning,
    DeleteStandby,
}

impl Verb {
    const ALL: [Self; 19] = [
        Self::Create,
        Self::Start,
        Self::Stop,
        Self::StopStandby,
        Self::Standby,
        Self::StandbyOfRestored,
        Self::Restore,
        Self::SnapshotRunning,
        Self::SnapshotRestored,
        Self::SnapshotStandby,
        Self::SnapshotStopped,
        Self::ForkStandby,
        Self::ForkToStandby,
        Self::ForkRunning,
        Self::ForkStopped,
        Self::RevertToRunning,
        Self::RevertToStopped,
        Self::DeleteRunning,
        Self::DeleteStandby,
    ];

    /// Brings `web` to where the verb begins.
    async fn prepare(self, world: &World) {
        if self == Self::Create {
            return;
        }
        let web = world.create("web").await.expect("created");
        match self {
            Self::Create | Self::Stop | Self::Standby | Self::SnapshotRunning => {}
            Self::ForkRunning | Self::DeleteRunning => {}
            Self::Start | Self::SnapshotStopped | Self::ForkStopped => {
                web.stop().await.expect("stopped");
            }
            Self::StopStandby | Self::Restore | Self::SnapshotStandby => {
                web.standby().await.expect("standby");
            }
            Self::ForkStandby | Self::ForkToStandby | Self::DeleteStandby => {
                web.standby().await.expect("standby");
            }
            Self::StandbyOfRestored | Self::SnapshotRestored => {
                web.standby().await.expect("standby");
                web.restore().await.expect("restored");
            }
            Self::RevertToRunning => {
                web.snapshot(plan("before", SnapshotKind::Standby)).await.expect("snapshot");
                web.standby().await.expect("standby");
            }
            Self::RevertToStopped => {
                web.stop().await.expect("stopped");
                web.snapshot(plan("before", SnapshotKind::Stopped)).await.expect("snapshot");
            }
        }
    }

    async fn act(self, world: &World) -> Result<(), OpError> {
        let web = || world.get("web");
        match self {
            Self::Create => world.create("web").await.map(drop),
            Self::Start => web().start().await.map(drop),
            Self::Stop | Self::StopStandby => web().stop().await.map(drop),
            Self::Standby | Self::StandbyOfRestored => web().standby().await.map(drop),
            Self::Restore => web().restore().await.map(drop),
            Self::SnapshotRunning | Self::SnapshotRestored | Self::SnapshotStandby => {
                web().snapshot(plan("kept", SnapshotKind::Standby)).await.map(drop)
            }
            Self::SnapshotStopped => web().snapshot(plan("kept", SnapshotKind::Stopped)).await.map(drop),
            Self::ForkStandby | Self::ForkRunning => fork(world, Some(Target::Running)).await,
            Self::ForkToStandby => fork(world, Some(Target::Standby)).await,
            Self::ForkStopped => fork(world, None).await,
            Self::RevertToRunning => revert(world, Target::Running).await,
            Self::RevertToStopped => revert(world, Target::Stopped).await,
            Self::DeleteRunning | Self::DeleteStandby => web().delete(true).await,
        }
    }
}

fn plan(name: &str, kind: SnapshotKind) -> SnapshotPlan {
    SnapshotPlan { name: Some(name.parse().expect("a name")), tags: BTreeMap::new(), kind, internal: false }
}

async fn fork(world: &World, target: Option<Target>) -> Result<(), OpError> {
    let request =
        ForkRequest { name: "child".parse().expect("a name"), count: 1, from_running: true, target, tags: None };
    world.registry.fork(ForkSource::Instance(world.get("web")), request).await.map(drop)
}

async fn revert(world: &World, target: Target) -> Result<(), OpError> {
    let snapshots = world.host.store.listed_snapshots().expect("readable");
    world.registry.revert(&world.get("web"), &snapshots[0], Some(target)).await.map(drop)
}

/// Fails every call of one verb in turn.
async fn every_call_of(verb: Verb) {
    let world = World::new().await;
    verb.prepare(&world).await;
    world.host.faults.set(None);
    verb.act(&world).await.expect("it works when nothing fails");
    let calls = world.host.faults.calls();
    // What a clean run leads to, once the background has done its part.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let done = world.picture();
    assert!(!calls.is_empty(), "{verb:?} makes calls");

    for (nth, call) in calls.iter().enumerate() {
        for when in [When::Before, When::After] {
            let story = format!("{verb:?}: {call:?} (call {nth} of {}) fails {when:?}", calls.len());
            let world = World::new().await;
            verb.prepare(&world).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
            let before = world.picture();
            world.host.faults.set(Some((nth, when)));
            let result = verb.act(&world).await;
            world.host.faults.set(None);

            let after = world.settles_to(&[&before, &done]).await;
            match result {
                Ok(()) => assert_eq!(after, done, "{story}: it says that it was done"),
                Err(error) => {
                    assert_eq!(after, before, "{story}: it failed, so all is as before: {error}");
                    assert!(error.op.is_some() && error.step.is_some(), "{story}: {error:?}");
                    assert!(error.left_behind.is_empty(), "{story}: {error:?}");
                    verb.act(&world).await.unwrap_or_else(|e| panic!("{story}: works when tried again: {e}"));
                    assert_eq!(world.settles_to(&[&done]).await, done, "{story}: tried again");
                }
            }
        }
    }
}

macro_rules! every_call_fails {
    ($($name:ident: $($verb:ident)+;)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            for verb in [$(Verb::$verb),+] {
                every_call_of(verb).await;
            }
        }
    )*

    #[test]
    fn no_verb_is_forgotten() {
        let tested = [$($(Verb::$verb),+),*];
        assert_eq!(tested.len(), Verb::ALL.len());
        assert!(Verb::ALL.iter().all(|verb| tested.contains(verb)));
    }};
}

every_call_fails! {
    create_leaves_nothing: Create;
    start_leaves_nothing: Start;
    stop_leaves_nothing: Stop StopStandby;
    standby_leaves_nothing: Standby StandbyOfRestored;
    restore_leaves_nothing: Restore;
    snapshot_leaves_nothing: SnapshotRunning SnapshotRestored SnapshotStandby SnapshotStopped;
    fork_leaves_nothing: ForkStandby ForkToStandby ForkRunning ForkStopped;
    revert_leaves_nothing: RevertToRunning RevertToStopped;
    delete_leaves_nothing: DeleteRunning DeleteStandby;
}
