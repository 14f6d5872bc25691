//! A host that is full: what is refused before anything is done, and what goes on.

use std::collections::BTreeMap;
use std::sync::Arc;

use hearth_model::capacity::Shown;
use hearth_model::{Backend, ByteSize, ErrorKind, InstanceState, MemMib, RestartPolicy};
use hearth_store::SnapshotKind;

use super::{Target, Verb, fork, plan};
use crate::error::OpError;
use crate::images::Images;
use crate::ops::faults::{How, When};
use crate::world::{Picture, World};

const PLENTY: Shown = Shown { memory_available: 1 << 40, disk_free: 1 << 40 };

/// With memory for so many of the smallest guests.
async fn room_for(guests: u64) -> World {
    let world = World::configured(Backend::QemuMicrovm, |config| {
        config.memory.capacity = Some(ByteSize(MemMib::MIN.size().bytes() * guests));
        config.memory.oversubscription = 1.0;
        config.disk.reserve = Some(ByteSize::gib(1));
        config.memory.reserve = Some(ByteSize::mib(64));
    })
    .await;
    world.host.room.pretend(Some(PLENTY));
    world
}

/// Refused for want of that, and not one call was made for it.
async fn refused(world: &World, before: &Picture, says: &str, act: impl Future<Output = Result<(), OpError>>) {
    world.host.faults.set(None);
    let error = act.await.expect_err(says);
    assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
    assert!(error.to_string().contains(says), "{says:?} is not in {error}");
    assert!(error.hint.is_some() && error.left_behind.is_empty(), "{error:?}");
    assert_eq!(world.host.faults.calls(), [""; 0], "{says}: nothing was begun");
    assert_eq!(world.picture(), *before, "{says}: nothing has changed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_into_memory_is_refused_before_it_begins() {
    let world = room_for(2).await;
    let one = world.create("one").await.expect("there is room");
    world.create("two").await.expect("there is room");
    let before = world.at_rest().await;
    let says = "it may take 128 MB, and of 256 MB 0 B are left";
    refused(&world, &before, "create three: not enough memory", async { world.create("three").await.map(drop) }).await;
    refused(&world, &before, says, async { world.create("three").await.map(drop) }).await;
    let web = world.create_of(hearth_model::InstanceSpec { name: "web".parse().expect("a name"), ..world.spec("x") });
    refused(&world, &before, "create web", async { web.await.map(drop) }).await;

    // What has no VMM holds nothing, and needs room to come back.
    one.standby().await.expect("standby");
    world.create("three").await.expect("one has given back");
    let before = world.at_rest().await;
    refused(&world, &before, "restore one: not enough memory", async { one.restore().await.map(drop) }).await;
    assert!(matches!(one.view().state(), InstanceState::Standby { .. }));
    one.stop().await.expect("to stop needs nothing");
    let before = world.at_rest().await;
    refused(&world, &before, "start one: not enough memory", async { one.start().await.map(drop) }).await;

    world.get("two").delete(false).await.expect("to delete needs nothing");
    one.start().await.expect("two has given back");
}

/// The source of a fork is not even paused.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forks_that_do_not_fit_are_refused_and_the_others_are_made() {
    let world = room_for(3).await;
    world.create("web").await.expect("there is room");
    let request = |count| crate::registry::ForkRequest {
        from_running: true,
        count,
        ..crate::registry::ForkRequest::one("child".parse().expect("a name"))
    };
    let source = || crate::registry::ForkSource::Instance(world.get("web"));
    let forked = world.registry.fork_many(source(), request(4)).await.expect("some are made");
    let made = forked.iter().filter(|(_, result)| result.is_ok()).count();
    assert_eq!((forked.len(), made), (4, 2));
    for (_, result) in forked {
        if let Err(error) = result {
            assert_eq!(error.kind, ErrorKind::Exhausted, "{error}");
        }
    }
    let before = world.at_rest().await;
    refused(&world, &before, "fork child: not enough memory", fork(&world, Some(Target::Running))).await;
    fork(&world, Some(Target::Standby)).await.expect("one in standby holds no memory");

    // Nor for a name that is taken.
    let before = world.at_rest().await;
    world.host.faults.set(None);
    let error = fork(&world, Some(Target::Standby)).await.expect_err("there is one");
    assert_eq!((error.kind, world.host.faults.calls()), (ErrorKind::AlreadyExists, vec![]), "{error}");
    assert_eq!(world.at_rest().await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_that_want_the_last_piece_one_gets_it() {
    for _ in 0..20 {
        let world = Arc::new(room_for(1).await);
        let create = |name: &'static str| {
            let world = Arc::clone(&world);
            tokio::spawn(async move { world.create(name).await.map(drop) })
        };
        let (a, b) = tokio::join!(create("a"), create("b"));
        let (a, b) = (a.expect("no bug"), b.expect("no bug"));
        assert_eq!(u8::from(a.is_ok()) + u8::from(b.is_ok()), 1, "{a:?} {b:?}");
        assert_eq!(a.and(b).expect_err("one of them").kind, ErrorKind::Exhausted);
        assert_eq!((world.registry.list().len(), world.host.room.holders()), (1, (1, 0)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_way_it_ends_what_was_held_is_given_back() {
    let mut world = room_for(1).await;
    world.host.faults.set(Some((1, When::Before, How::Error)));
    world.create("web").await.expect_err("a call fails");
    assert_eq!(world.host.room.holders(), (0, 0));

    // With a bug nobody knows what there is: it is held until the instance is deleted.
    world.host.faults.set(Some((3, When::Before, How::Panic)));
    world.create("web").await.expect_err("a bug");
    world.host.faults.set(None);
    assert_eq!(world.host.room.holders(), (1, 0));
    world.create("other").await.expect_err("it may run");
    world.get("web").delete(false).await.expect("deleted");
    assert_eq!(world.host.room.holders(), (0, 0));

    let web = world.create("web").await.expect("there is room");
    let taken = world.registry.begin(world.spec("web"), world.digest.clone());
    assert_eq!(taken.expect_err("no room, and the name is taken").kind, ErrorKind::AlreadyExists);
    world.reborn().await;
    assert_eq!(world.host.room.holders(), (1, 0), "made anew from the records");
    world.fake().end(web.dir().path(), hearth_vmm::Ended::Signal(9));
    let mut watch = world.get("web").watch();
    watch.wait_for(|view| *view.state() == InstanceState::Stopped).await.expect("it has a driver");
    assert_eq!(world.host.room.holders(), (0, 0));
    world.reborn().await;
    assert_eq!(world.host.room.holders(), (0, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_of_the_restart_policy_without_room_is_one_in_vain() {
    let world = room_for(1).await;
    let restart = RestartPolicy {
        on: hearth_model::restart::RestartOn::AnyEnd,
        backoff: std::time::Duration::from_millis(20),
        max_attempts: 2,
        ..RestartPolicy::default()
    };
    let web = world.create_of(hearth_model::InstanceSpec { restart, ..world.spec("web") }).await.expect("created");
    let dry = Shown { memory_available: 0, ..PLENTY };
    world.host.room.pretend(Some(dry));
    world.fake().end(web.dir().path(), hearth_vmm::Ended::Signal(9));
    let mut watch = web.watch();
    let given_up = watch.wait_for(|view| view.record.restart.blocked.is_some());
    let view = tokio::time::timeout(std::time::Duration::from_secs(10), given_up).await.expect("in time");
    let record = Arc::clone(&view.expect("it has a driver").record);
    assert_eq!((record.restart.attempts, record.phase.state()), (2, &InstanceState::Stopped));
    assert_eq!(world.host.store.instance(web.id()).expect("readable").expect("recorded").restart, record.restart);
}

/// Nothing new begins; what is there goes on, and what frees space is done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_disk_of_which_only_the_reserve_is_left_nothing_new_begins() {
    let world = room_for(8).await;
    let web = world.create("web").await.expect("created");
    let asleep = world.create("asleep").await.expect("created");
    asleep.standby().await.expect("standby");
    world.elsewhere();
    let before = world.at_rest().await;
    world.host.room.pretend(Some(Shown { disk_free: 1 << 30, ..PLENTY }));
    let says = "disk space: it needs";
    refused(&world, &before, says, async { world.create("new").await.map(drop) }).await;
    refused(&world, &before, says, fork(&world, Some(Target::Running))).await;
    refused(&world, &before, says, async { web.standby().await.map(drop) }).await;
    for name in ["web", "asleep"] {
        let saved = async { world.get(name).snapshot(plan("kept", SnapshotKind::Standby)).await.map(drop) };
        refused(&world, &before, "with a reserve of 1 GB", saved).await;
    }
    let images = Images::new(Arc::clone(&world.host));
    let image = async {
        let name = "new:1".parse().expect("a reference");
        images.import(&world.elsewhere(), name, BTreeMap::new()).await.map(drop)
    };
    refused(&world, &before, "new:1: not enough disk space", image).await;
    let import = world.import("theirs").await.expect_err("no space");
    assert_eq!((import.kind, import.step), (ErrorKind::Exhausted, Some("look for room")), "{import}");
    assert_eq!(world.picture(), before);

    asleep.restore().await.expect("what is there is brought back");
    web.stop().await.expect("stopped");
    web.delete(false).await.expect("deleted");
    world.host.room.pretend(Some(PLENTY));
    asleep.standby().await.expect("standby");
}

/// Before the guest is paused: its memory may be all that there is space for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_whose_memory_would_not_fit_does_not_pause_the_guest() {
    let world = room_for(8).await;
    let web = world.create("web").await.expect("created");
    // A booted guest's memory is a file already; that of one that was restored is copied.
    let (memory, reserve) = (MemMib::MIN.size().bytes(), 1 << 30);
    let tight = Shown { disk_free: reserve + memory, ..PLENTY };
    world.host.room.pretend(Some(tight));
    web.standby().await.expect("nothing is copied");
    web.restore().await.expect("restored");
    let before = world.at_rest().await;
    refused(&world, &before, "standby web: not enough disk space", async { web.standby().await.map(drop) }).await;
    world.host.room.pretend(Some(Shown { disk_free: tight.disk_free + (2 << 20), ..tight }));
    web.standby().await.expect("there is space for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_with_little_memory_available_starts_nothing_whatever_the_ledger_says() {
    let world = room_for(8).await;
    let web = world.create("web").await.expect("created");
    let before = world.at_rest().await;
    world.host.room.pretend(Some(Shown { memory_available: 32 << 20, ..PLENTY }));
    let says = "the host has 32 MB available, with a reserve of 64 MB";
    refused(&world, &before, says, async { world.create("new").await.map(drop) }).await;
    web.standby().await.expect("it gives memory back");
}

/// Accounting takes nothing away from ordinary use: every verb works with the defaults.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_defaults_leave_room_for_fifty_forks_of_512_mb_on_24_gb() {
    let config = crate::config::Config::default();
    let gib = 1_u64 << 30;
    let host = crate::resources::Capacity { cpus: 2, memory: 24 * gib, disk: 100 * gib };
    let limits = crate::resources::limits(&config, &host, false);
    assert!(limits.most.memory >= 50 * gib / 2 && limits.most.vcpus >= 256);
    // The smallest host that a developer has.
    let host = crate::resources::Capacity { cpus: 1, memory: 2 * gib, disk: 20 * gib };
    let limits = crate::resources::limits(&config, &host, false);
    assert!(limits.most.memory >= 50 * (128 << 20) && limits.most.vcpus >= 64, "{limits:?}");
    assert!(limits.memory_reserve <= gib / 8 && limits.disk_reserve == gib, "{limits:?}");
    assert!(limits.most.files > 0 && limits.most.processes > 0);
    Verb::Create.act(&World::new().await).await.expect("created");
}

/// What can never be is not refused for want of room: to make some would not help.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_on_any_disk_is_refused_for_that_on_a_full_one() {
    let world = room_for(2).await;
    let web = world.create("web").await.expect("there is room");
    let before = world.at_rest().await;
    world.host.room.pretend(Some(Shown { disk_free: 0, ..PLENTY }));
    let error = web.snapshot(plan("disks", SnapshotKind::Stopped)).await.expect_err("it runs");
    assert_eq!(error.kind, ErrorKind::WrongState, "{error}");
    let error = world.create("web").await.expect_err("there is one");
    assert_eq!(error.kind, ErrorKind::AlreadyExists, "{error}");
    let whole = web.snapshot(plan("all", SnapshotKind::Standby));
    refused(&world, &before, "not enough disk", async { whole.await.map(drop) }).await;
}
