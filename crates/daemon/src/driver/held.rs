//! What an operation could neither undo nor finish: the host does not let it be, for a while.

use std::time::Duration;

use hearth_model::{Backend, ErrorKind, InstanceState};

use crate::handle::InstanceHandle;
use crate::ops::faults::{How, When};
use crate::world::{Picture, World};

/// The next call to the VMM fails, and the `nth` to the network, counted from 0.
fn fail(world: &World, nth: u32) {
    world.fake().fail(Some((0, hearth_vmm::fake::When::Before)));
    world.network.fail(Some((nth, hearth_net::fake::When::Before)));
}

fn mend(world: &World) {
    world.fake().fail(None);
    world.network.fail(None);
}

/// Where it rests once it is known.
async fn settled(web: &InstanceHandle) -> InstanceState {
    let mut watch = web.watch();
    let known = watch.wait_for(|view| view.gone || !matches!(view.state(), InstanceState::Failed { .. }));
    let known = tokio::time::timeout(Duration::from_secs(10), known).await.expect("in time").expect("it has a driver");
    known.state().clone()
}

/// What there is once no instance is.
async fn empty(world: &World) -> Picture {
    for _ in 0..500 {
        if world.registry.list().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    world.at_rest().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restore_that_could_not_be_undone_at_once_is_undone_later() {
    let world = World::on(Backend::Firecracker, hearth_model::load::ResumeOnLoad::On).await;
    let web = world.create("web").await.expect("created");
    web.standby().await.expect("in standby");
    let before = world.at_rest().await;
    let mut left = 0;
    for nth in 0..4 {
        fail(&world, nth);
        let error = web.restore().await.expect_err("the VMM is not started");
        mend(&world);
        left += error.left_behind.len();
        let state = settled(&web).await;
        assert!(matches!(state, InstanceState::Standby { .. }), "{state:?}");
        assert_eq!(world.at_rest().await, before, "{error:?}");
    }
    assert!(left > 0, "everything was undone at once");
    web.restore().await.expect("nothing was lost");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_could_not_be_undone_at_once_is_gone_later() {
    let world = World::new().await;
    let before = world.at_rest().await;
    let mut left = 0;
    for nth in 0..4 {
        fail(&world, nth);
        let error = world.create("web").await.expect_err("the VMM is not started");
        mend(&world);
        left += error.left_behind.len();
        assert_eq!(empty(&world).await, before, "{error:?}");
    }
    assert!(left > 0, "everything was undone at once");
    world.create("web").await.expect("its name is free");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_running_guest_is_left_with_does_not_end_it() {
    let world = World::new().await;
    let web = world.create("web").await.expect("created");
    let (before, vmms) = (world.at_rest().await, world.fake().alive());
    let mut left = 0;
    for nth in 0..3 {
        // The gate is shut, the guest is not paused, and the gate is not opened again.
        fail(&world, nth);
        let error = web.standby().await.expect_err("the guest is not paused");
        mend(&world);
        left += error.left_behind.len();
        assert_eq!(settled(&web).await, InstanceState::Running);
        assert_eq!(world.at_rest().await, before, "its gate is open again: {error:?}");
    }
    assert!(left > 0, "everything was undone at once");
    assert_eq!(world.fake().alive(), vmms, "the VMM that it had");
    web.standby().await.expect("it obeys");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_could_not_be_finished_is_finished_later_and_a_deletion_says_so() {
    let world = World::new().await;
    let nothing = world.at_rest().await;
    let (mut stays, mut nth) = (0, 0);
    loop {
        let web = world.create("web").await.expect("created");
        world.host.faults.set(Some((nth, When::Before, How::Twice)));
        let stopped = web.stop().await;
        let calls = world.host.faults.calls().len();
        world.host.faults.set(None);
        stopped.expect("there is no way back");
        assert_eq!(settled(&web).await, InstanceState::Stopped);
        web.start().await.expect("it boots again");

        world.host.faults.set(Some((nth, When::Before, How::Twice)));
        let deleted = web.delete(false).await;
        world.host.faults.set(None);
        if let Err(error) = deleted {
            assert_eq!((error.kind, error.left_behind.len(), error.hint.is_some()), (ErrorKind::HostFailed, 1, true));
            stays += 1;
        }
        assert_eq!(empty(&world).await, nothing, "call {nth}");
        nth += 1;
        if nth > calls {
            break;
        }
    }
    assert!(stays > 2, "{stays} deletions were not finished at once");
}
