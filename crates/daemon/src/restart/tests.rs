//! Ends that nobody asked for, and what follows, without a host: VMMs and guests in this process.

use std::time::{Duration, Instant};

use hearth_agent_client::ProgramExit as Exited;
use hearth_model::restart::{Blocked, RestartOn};
use hearth_model::{InstanceState, Op, Phase, RestartPolicy, RestartStatus};
use hearth_store::{Ending, SnapshotKind};
use hearth_vmm::Ended;
use hearth_vmm::fake::When;

use crate::handle::{InstanceHandle, InstanceView};
use crate::ops::SnapshotPlan;
use crate::world::World;

/// Longer than a machine with much else to do takes for anything here.
const LONG: Duration = Duration::from_secs(20);
/// Long enough to see that nothing is going to happen after [`SOON`].
const A_WHILE: Duration = Duration::from_millis(200);
const SOON: Duration = Duration::from_millis(20);

fn policy(on: RestartOn, max_attempts: u32, backoff: Duration) -> RestartPolicy {
    RestartPolicy { on, max_attempts, backoff, ..RestartPolicy::default() }
}

async fn create(world: &World, restart: RestartPolicy) -> InstanceHandle {
    let spec = hearth_model::InstanceSpec { restart, ..world.spec("web") };
    world.create_of(spec).await.expect("created")
}

async fn until(web: &InstanceHandle, what: &str, mut is_so: impl FnMut(&InstanceView) -> bool) -> InstanceView {
    let mut watch = web.watch();
    match tokio::time::timeout(LONG, watch.wait_for(|view| is_so(view))).await {
        Ok(Ok(view)) => view.clone(),
        Ok(Err(_)) => panic!("{what}: its driver is gone"),
        Err(_) => panic!("{what}: {:?}", web.view().record),
    }
}

async fn runs_after(web: &InstanceHandle, attempts: u32) -> InstanceView {
    until(web, "it runs again", |view| {
        view.record.phase == Phase::Resting(InstanceState::Running) && view.record.restart.attempts == attempts
    })
    .await
}

async fn stopped(web: &InstanceHandle) -> InstanceView {
    until(web, "it has stopped", |view| view.record.phase == Phase::Resting(InstanceState::Stopped)).await
}

/// Its VMM dies.
fn crash(world: &World, web: &InstanceHandle) {
    world.fake().end(web.dir().path(), Ended::Signal(11));
}

/// Its program ends, and the guest powers off.
fn exit(world: &World, web: &InstanceHandle, code: i32) {
    let message = format!("exited with code {code}");
    world.guest(web).exit_program(Exited { code, signal: None, message });
}

/// It rests stopped, now and a while later, and the record says the same.
async fn stays_stopped(world: &World, web: &InstanceHandle) -> RestartStatus {
    tokio::time::sleep(A_WHILE).await;
    let view = web.view();
    assert_eq!(view.record.phase, Phase::Resting(InstanceState::Stopped));
    assert!(world.fake().alive().is_empty());
    let stored = world.host.store.instance(web.id()).expect("readable").expect("recorded");
    assert_eq!(stored, *view.record);
    assert_eq!(stored.restart.next_attempt_at_ms, None);
    stored.restart
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_vmm_that_keeps_dying_is_given_up_after_max_attempts() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::Failure, 3, SOON)).await;
    for attempt in 1..=3 {
        let crashed = Instant::now();
        crash(&world, &web);
        let view = runs_after(&web, attempt).await;
        assert!(crashed.elapsed() >= SOON, "it waits before each attempt");
        assert_eq!(view.record.restart.next_attempt_at_ms, None);
        assert_eq!(view.record.exit, None, "it runs");
    }
    let before = stopped_picture(&world);
    crash(&world, &web);
    stopped(&web).await;
    let status = stays_stopped(&world, &web).await;
    assert_eq!((status.attempts, status.blocked), (3, Some(Blocked::MaxAttemptsExceeded)));
    assert_eq!(stopped_picture(&world) + 1, before, "a slot was given back");
    let log = std::fs::read_to_string(web.dir().hearth_log()).expect("a log");
    assert!(log.contains("attempt 2 of 3") && log.contains("restarts no more: 3 attempts"), "{log}");

    // Whoever starts it by hand gives it all attempts anew.
    web.start().await.expect("started");
    assert_eq!(web.view().record.restart, RestartStatus::default());
    crash(&world, &web);
    runs_after(&web, 1).await;
}

/// How many slots of the network are taken.
fn stopped_picture(world: &World) -> usize {
    world.network.taken().len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_program_exited_with_decides() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::Failure, 0, SOON)).await;
    exit(&world, &web, 3);
    runs_after(&web, 1).await;
    exit(&world, &web, 0);
    let view = stopped(&web).await;
    let end = view.record.exit.clone().expect("it has ended");
    assert_eq!((end.code, end.of, end.signal, end.out_of_memory), (0, Ending::Program, None, false));
    assert_eq!(stays_stopped(&world, &web).await.blocked, None, "it did what it should");

    web.set_restart_policy(policy(RestartOn::AnyEnd, 0, SOON)).await.expect("changed");
    web.start().await.expect("started");
    exit(&world, &web, 0);
    runs_after(&web, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_recorded_with_its_signal_and_the_last_lines_of_the_console() {
    let world = World::new().await;
    let web = create(&world, RestartPolicy::default()).await;
    std::fs::write(web.dir().serial_log(), "hello\nKernel panic - not syncing\n").expect("written");
    crash(&world, &web);
    let end = stopped(&web).await.record.exit.clone().expect("it has ended");
    assert_eq!((end.code, end.of, end.signal), (-1, Ending::Vmm, Some(11)));
    assert_eq!(end.console, ["hello", "Kernel panic - not syncing"]);
    assert!(end.message.contains("signal 11"), "{}", end.message);
    assert_eq!(stays_stopped(&world, &web).await, RestartStatus::default(), "nobody asked for more");

    // An end from before says nothing of one that runs.
    web.start().await.expect("started");
    web.standby().await.expect("standby");
    web.restore().await.expect("restored");
    assert_eq!(web.view().record.exit, None);
    world.guest(&web).exit_program(Exited { code: 137, signal: Some(9), message: "killed".into() });
    let end = stopped(&web).await.record.exit.clone().expect("it has ended");
    assert_eq!((end.code, end.of, end.signal), (137, Ending::Program, Some(9)));
}

/// Whatever else the machine does may make one of several late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_noticed_within_a_tenth_of_a_second() {
    let world = World::new().await;
    let web = create(&world, RestartPolicy::default()).await;
    let mut soonest = Duration::MAX;
    for _ in 0..5 {
        let crashed = Instant::now();
        crash(&world, &web);
        stopped(&web).await;
        soonest = soonest.min(crashed.elapsed());
        web.start().await.expect("started");
    }
    assert!(soonest < Duration::from_millis(100), "{soonest:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn having_been_stable_it_counts_anew() {
    let world = World::new().await;
    let stable = RestartPolicy { stable_after: A_WHILE, ..policy(RestartOn::Failure, 1, SOON) };
    let web = create(&world, stable).await;
    crash(&world, &web);
    runs_after(&web, 1).await;
    tokio::time::sleep(A_WHILE + SOON).await;
    crash(&world, &web);
    stopped(&web).await;
    // The first of one again.
    runs_after(&web, 1).await;
    crash(&world, &web);
    stopped(&web).await;
    assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::MaxAttemptsExceeded));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_wins_while_it_runs_and_while_it_waits() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::AnyEnd, 0, SOON)).await;
    web.stop().await.expect("stopped");
    assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::ManualStop));

    web.set_restart_policy(policy(RestartOn::AnyEnd, 0, A_WHILE / 2)).await.expect("changed");
    assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::ManualStop), "a policy boots nothing");
    web.start().await.expect("started");
    crash(&world, &web);
    let waiting = stopped(&web).await;
    assert!(waiting.record.restart.next_attempt_at_ms.is_some());
    let told = web.stop().await.expect("it is stopped, and stays so");
    assert_eq!(told.record.restart.next_attempt_at_ms, None);
    assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::ManualStop));
    // Once more changes nothing.
    web.stop().await.expect("it is stopped");
    assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::ManualStop));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_else_is_asked_for_while_it_waits_is_done() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::AnyEnd, 0, A_WHILE)).await;
    // Saved: it goes on waiting.
    crash(&world, &web);
    stopped(&web).await;
    let plan = SnapshotPlan {
        name: Some("before".parse().expect("a name")),
        tags: std::collections::BTreeMap::new(),
        kind: SnapshotKind::Stopped,
        internal: false,
    };
    web.snapshot(plan).await.expect("saved");
    runs_after(&web, 1).await;
    // Started by hand: nothing is left to wait for.
    crash(&world, &web);
    stopped(&web).await;
    web.start().await.expect("started");
    assert_eq!(web.view().record.restart, RestartStatus::default());
    // No policy any more.
    crash(&world, &web);
    stopped(&web).await;
    web.set_restart_policy(RestartPolicy::default()).await.expect("changed");
    assert_eq!(stays_stopped(&world, &web).await, RestartStatus::default());
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(*web.view().state(), InstanceState::Stopped);
    // Deleted.
    web.set_restart_policy(policy(RestartOn::AnyEnd, 0, SOON)).await.expect("changed");
    web.start().await.expect("started");
    crash(&world, &web);
    web.delete(false).await.expect("deleted");
    tokio::time::sleep(A_WHILE).await;
    assert!(world.fake().alive().is_empty() && world.registry.list().is_empty());
}

/// What is put in the record meanwhile does not let a second operation in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_is_changed_beside_an_operation_that_was_admitted() {
    let world = World::new().await;
    let web = create(&world, RestartPolicy::default()).await;
    for _ in 0..20 {
        web.stop().await.expect("stopped");
        let changed = policy(RestartOn::AnyEnd, 0, LONG);
        let (changing, first, second) = tokio::join!(web.set_restart_policy(changed), web.start(), web.start());
        changing.expect("it rested");
        first.expect("started");
        assert_eq!(second.expect_err("the first is under way").kind, hearth_model::ErrorKind::Busy);
        assert_eq!(world.fake().alive().len(), 1);
        assert_eq!(web.view().record.spec.restart, changed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_fails_is_followed_by_the_next_until_there_is_none() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::Failure, 2, SOON)).await;
    crash(&world, &web);
    stopped(&web).await;
    world.fake().fail(Some((0, When::Before)));
    let view = runs_after(&web, 2).await;
    assert!(view.record.restart.last_attempt_at_ms.is_some());
    let failed = web.timeline(2).expect("readable").pop().expect("two starts");
    assert!(failed.op == "start" && !failed.ok, "{failed:?}");
    crash(&world, &web);
    stopped(&web).await;
    assert_eq!(stays_stopped(&world, &web).await.attempts, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_comes_back_goes_on_waiting() {
    let mut world = World::new().await;
    let web = create(&world, policy(RestartOn::Failure, 3, A_WHILE)).await;
    crash(&world, &web);
    let due = stopped(&web).await.record.restart;
    world.reborn().await;
    let web = world.get("web");
    assert_eq!(web.view().record.restart, due, "it is as it was");
    runs_after(&web, 1).await;
    assert_eq!(world.fake().alive().len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_ended_while_no_daemon_ran_is_booted_again_unless_somebody_wanted_its_end() {
    let running = Phase::Resting(InstanceState::Running);
    let stopping = Phase::Busy { op: Op::Stop, from: InstanceState::Running };
    let saving = Phase::Busy { op: Op::Snapshot, from: InstanceState::Running };
    for (phase, comes_back) in [(running, true), (stopping, false), (saving, true)] {
        let mut world = World::new().await;
        let web = create(&world, policy(RestartOn::Failure, 0, SOON)).await;
        let record = web.view().record;
        web.stop().await.expect("stopped");
        // As a daemon leaves it that is killed then, and its VMM after it.
        let record = hearth_store::InstanceRecord { phase, ..(*record).clone() };
        world.host.store.update_instance(&record).expect("stored");
        world.reborn().await;
        let web = world.get("web");
        if comes_back {
            runs_after(&web, 1).await;
        } else {
            assert_eq!(stays_stopped(&world, &web).await.blocked, Some(Blocked::ManualStop));
            let end = web.view().record.exit.clone().expect("it has ended");
            assert!(end.of == Ending::Vmm && end.message.contains("no daemon"), "{end:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_was_cut_off_counts() {
    for (attempts, comes_back) in [(1, true), (2, false)] {
        let mut world = World::new().await;
        let web = create(&world, policy(RestartOn::Failure, 2, SOON)).await;
        web.stop().await.expect("stopped");
        let mut record = (*web.view().record).clone();
        record.phase = Phase::Busy { op: Op::Start, from: InstanceState::Stopped };
        record.restart = RestartStatus { attempts, next_attempt_at_ms: Some(1), ..RestartStatus::default() };
        world.host.store.update_instance(&record).expect("stored");
        world.reborn().await;
        let web = world.get("web");
        if comes_back {
            runs_after(&web, 2).await;
        } else {
            let status = stays_stopped(&world, &web).await;
            assert_eq!((status.attempts, status.blocked), (2, Some(Blocked::MaxAttemptsExceeded)));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_drains_begins_no_attempt_and_may_stop_all() {
    let world = World::new().await;
    let web = create(&world, policy(RestartOn::Failure, 0, SOON)).await;
    let runs = world.create("runs").await.expect("created");
    let asleep = world.create("asleep").await.expect("created");
    asleep.standby().await.expect("standby");
    world.registry.draining().cancel();
    crash(&world, &web);
    let due = stopped(&web).await.record.restart.next_attempt_at_ms;
    tokio::time::sleep(A_WHILE).await;
    let status = web.view().record.restart;
    assert_eq!((status.next_attempt_at_ms, status.attempts), (due, 0), "the next daemon finds it due");
    assert!(due.is_some());

    world.registry.stop_all().await;
    assert_eq!(*runs.view().state(), InstanceState::Stopped);
    assert!(matches!(asleep.view().state(), InstanceState::Standby { .. }), "it would lose what it holds");
    assert_eq!(web.view().record.restart.next_attempt_at_ms, None);
    assert!(world.fake().alive().is_empty());
}
