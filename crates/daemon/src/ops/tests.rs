//! Every call of every verb fails in turn, before and after its effect; then one looks at what is
//! left. And the daemon stops dead there, is started again, and one looks once more. In-process VMMs and guests, real files and records.

mod refresh;
mod room;

use std::collections::BTreeMap;
use std::time::Duration;

use hearth_model::Backend;
use hearth_model::load::ResumeOnLoad;
use hearth_store::SnapshotKind;

use super::faults::{How, When};
use super::{SnapshotPlan, Target};
use crate::error::OpError;
use crate::registry::{ForkRequest, ForkSource};
use crate::world::{Picture, World};

/// What runs the instances, and how they are brought back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    Qemu,
    Firecracker,
    /// The escape hatch is closed.
    FirecrackerInTwoSteps,
}

impl On {
    fn backend(self) -> Backend {
        match self {
            Self::Qemu => Backend::QemuMicrovm,
            Self::Firecracker | Self::FirecrackerInTwoSteps => Backend::Firecracker,
        }
    }

    fn hatch(self) -> ResumeOnLoad {
        match self {
            Self::Qemu | Self::Firecracker => ResumeOnLoad::On,
            Self::FirecrackerInTwoSteps => ResumeOnLoad::Off,
        }
    }
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
    Import,
    ForkImported,
    ForkImportedToStandby,
    StandbyOfImported,
    RestoreImported,
    RestoreSavedImported,
    RevertImported,
}

impl Verb {
    const ALL: [Self; 26] = [
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
        Self::Import,
        Self::ForkImported,
        Self::ForkImportedToStandby,
        Self::StandbyOfImported,
        Self::RestoreImported,
        Self::RestoreSavedImported,
        Self::RevertImported,
    ];

    /// Brings `web` to where the verb begins.
    async fn prepare(self, world: &World) {
        if self == Self::Create {
            return;
        }
        if self.is_of_an_import() {
            return self.prepare_import(world).await;
        }
        let web = world.create("web").await.expect("created");
        match self {
            Self::Import | Self::ForkImported | Self::ForkImportedToStandby => {}
            Self::StandbyOfImported | Self::RestoreImported => {}
            Self::RestoreSavedImported | Self::RevertImported => {}
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

    fn is_of_an_import(self) -> bool {
        [
            Self::Import,
            Self::ForkImported,
            Self::ForkImportedToStandby,
            Self::StandbyOfImported,
            Self::RestoreImported,
            Self::RestoreSavedImported,
            Self::RevertImported,
        ]
        .contains(&self)
    }

    /// `web` is a fork of what was imported; its state is somebody else's until it was saved here.
    async fn prepare_import(self, world: &World) {
        world.elsewhere();
        if self == Self::Import {
            return;
        }
        world.import("theirs").await.expect("imported");
        let target = match self {
            Self::RestoreImported => Target::Standby,
            Self::ForkImported | Self::ForkImportedToStandby => return,
            _ => Target::Running,
        };
        fork_imported(world, "web", target).await.expect("forked");
        let web = world.get("web");
        if self == Self::RevertImported {
            web.snapshot(plan("before", SnapshotKind::Standby)).await.expect("snapshot");
        }
        if [Self::RestoreSavedImported, Self::RevertImported].contains(&self) {
            web.standby().await.expect("standby");
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
            Self::Import => world.import("theirs").await.map(drop),
            Self::ForkImported => fork_imported(world, "web", Target::Running).await,
            Self::ForkImportedToStandby => fork_imported(world, "web", Target::Standby).await,
            Self::StandbyOfImported => web().standby().await.map(drop),
            Self::RestoreImported | Self::RestoreSavedImported => web().restore().await.map(drop),
            Self::RevertImported => revert(world, Target::Running).await,
        }
    }
}

fn plan(name: &str, kind: SnapshotKind) -> SnapshotPlan {
    SnapshotPlan { name: Some(name.parse().expect("a name")), tags: BTreeMap::new(), kind, internal: false }
}

async fn fork(world: &World, target: Option<Target>) -> Result<(), OpError> {
    let request = ForkRequest { from_running: true, target, ..ForkRequest::one("child".parse().expect("a name")) };
    world.registry.fork(ForkSource::Instance(world.get("web")), request).await.map(drop)
}

async fn fork_imported(world: &World, name: &str, target: Target) -> Result<(), OpError> {
    let imported = world.host.store.find_snapshot("theirs").expect("readable");
    let hearth_store::Lookup::Found(imported) = imported else { panic!("it was imported") };
    let request = ForkRequest { target: Some(target), ..ForkRequest::one(name.parse().expect("a name")) };
    world.registry.fork(ForkSource::Snapshot(imported.id), request).await.map(drop)
}

async fn revert(world: &World, target: Target) -> Result<(), OpError> {
    let mut snapshots = world.host.store.listed_snapshots().expect("readable");
    snapshots.retain(|snapshot| snapshot.name.as_ref().is_some_and(|name| name.as_str() == "before"));
    world.registry.revert(&world.get("web"), &snapshots[0], Some(target)).await.map(drop)
}

/// The calls that a verb makes when nothing fails, and where that leads.
async fn undisturbed(on: On, verb: Verb) -> (Vec<&'static str>, Picture) {
    let world = World::on(on.backend(), on.hatch()).await;
    verb.prepare(&world).await;
    world.host.faults.set(None);
    verb.act(&world).await.expect("it works when nothing fails");
    let calls = world.host.faults.calls();
    assert!(!calls.is_empty(), "{verb:?} makes calls");
    (calls, world.at_rest().await)
}

/// Fails every call of one verb in turn.
async fn every_call_of(on: On, verb: Verb) {
    let (calls, done) = undisturbed(on, verb).await;
    println!("{on:?}, {verb:?}: {} points of failure", 2 * calls.len());
    for (nth, call) in calls.iter().enumerate() {
        for when in [When::Before, When::After] {
            let story = format!("{on:?}, {verb:?}: {call:?} (call {nth} of {}) fails {when:?}", calls.len());
            let world = World::on(on.backend(), on.hatch()).await;
            verb.prepare(&world).await;
            let before = world.at_rest().await;
            world.host.faults.set(Some((nth, when, How::Error)));
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

/// The daemon dies at every call of one verb in turn.
async fn death_at_every_call_of(on: On, verb: Verb) {
    let (calls, done) = undisturbed(on, verb).await;
    println!("{on:?}, {verb:?}: {} points of death", 2 * calls.len());
    for (nth, call) in calls.iter().enumerate() {
        for when in [When::Before, When::After] {
            let story = format!("{on:?}, {verb:?}: the daemon dies {when:?} {call:?} (call {nth} of {})", calls.len());
            let mut world = World::on(on.backend(), on.hatch()).await;
            verb.prepare(&world).await;
            let before = world.at_rest().await;
            world.host.faults.set(Some((nth, when, How::Death)));
            tokio::select! {
                ended = verb.act(&world) => panic!("{story}: it did not die: {ended:?}"),
                () = died(&world) => {}
            }
            world.reborn().await;
            let after = world.settles_to(&[&before, &done]).await;
            assert!(
                after == before || after == done,
                "{story}: neither as before {before:?} nor done {done:?}: {after:?}"
            );
        }
    }
}

async fn died(world: &World) {
    while !world.host.faults.dead() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// The load's result says whether the guest runs, through every layer above it: only a guest that
/// does not is resumed, once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_is_resumed_once_in_the_load_or_after_it() {
    for (on, resumes) in [(On::Firecracker, 0), (On::FirecrackerInTwoSteps, 1), (On::Qemu, 1)] {
        for verb in [Verb::Restore, Verb::ForkStandby, Verb::RevertToRunning] {
            let (calls, _) = undisturbed(on, verb).await;
            assert_eq!(calls.iter().filter(|call| **call == "resume").count(), resumes, "{on:?} {verb:?}: {calls:?}");
            assert_eq!(calls.iter().filter(|call| **call == "load snapshot").count(), 1, "{on:?} {verb:?}");
        }
    }
}

macro_rules! every_call_fails {
    ($($name:ident, $death:ident: $($verb:ident)+;)*) => {
        every_call_fails! { @on qemu Qemu $($name, $death: $($verb)+;)* }
        every_call_fails! { @on firecracker Firecracker $($name, $death: $($verb)+;)* }
        every_call_fails! { @on firecracker_in_two_steps FirecrackerInTwoSteps $($name, $death: $($verb)+;)* }

        #[test]
        fn no_verb_is_forgotten() {
            let tested = [$($(Verb::$verb),+),*];
            assert_eq!(tested.len(), Verb::ALL.len());
            assert!(Verb::ALL.iter().all(|verb| tested.contains(verb)));
        }
    };
    (@on $module:ident $on:ident $($name:ident, $death:ident: $($verb:ident)+;)*) => {
        mod $module {
            use super::*;
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    for verb in [$(Verb::$verb),+] {
                        every_call_of(On::$on, verb).await;
                    }
                }

                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $death() {
                    for verb in [$(Verb::$verb),+] {
                        death_at_every_call_of(On::$on, verb).await;
                    }
                }
            )*
        }
    };
}

every_call_fails! {
    create_leaves_nothing, death_in_create_loses_nothing: Create;
    start_leaves_nothing, death_in_start_loses_nothing: Start;
    stop_leaves_nothing, death_in_stop_loses_nothing: Stop StopStandby;
    standby_leaves_nothing, death_in_standby_loses_nothing: Standby StandbyOfRestored;
    restore_leaves_nothing, death_in_restore_loses_nothing: Restore;
    snapshot_leaves_nothing, death_in_snapshot_loses_nothing: SnapshotRunning SnapshotRestored SnapshotStandby SnapshotStopped;
    fork_leaves_nothing, death_in_fork_loses_nothing: ForkStandby ForkToStandby ForkRunning ForkStopped;
    revert_leaves_nothing, death_in_revert_loses_nothing: RevertToRunning RevertToStopped;
    import_leaves_nothing, death_in_import_loses_nothing: Import;
    fork_of_an_import_leaves_nothing, death_in_fork_of_an_import_loses_nothing: ForkImported ForkImportedToStandby;
    standby_of_an_import_leaves_nothing, death_in_standby_of_an_import_loses_nothing: StandbyOfImported;
    restore_of_an_import_leaves_nothing, death_in_restore_of_an_import_loses_nothing: RestoreImported RestoreSavedImported RevertImported;
    delete_leaves_nothing, death_in_delete_loses_nothing: DeleteRunning DeleteStandby;
}
