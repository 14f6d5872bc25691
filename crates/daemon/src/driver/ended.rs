//! A VMM that ends while something is being asked for.

use std::time::Duration;

use hearth_model::InstanceState;
use hearth_vmm::Ended;

use crate::world::World;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_admitted_before_a_vmm_ended_does_not_bring_it_back_as_running() {
    let world = World::new().await;
    let web = world.create("web").await.expect("created");
    // Which of them is first is the scheduler's: until it was often enough the other one.
    let (mut rounds, mut admitted) = (0, 0);
    while admitted < 5 {
        rounds += 1;
        assert!(rounds < 1000, "the driver was first but {admitted} times");
        world.fake().end(web.dir().path(), Ended::Code(1));
        // The driver is about to note the end; the view still says that it runs.
        while web.agent(Duration::ZERO).await.is_ok() {
            tokio::task::yield_now().await;
        }
        admitted += u32::from(*web.view().state() == InstanceState::Running);
        web.standby().await.expect_err("it has no VMM");
        web.watch().wait_for(|view| view.busy_since_ms.is_none()).await.expect("a view");
        assert_eq!(*web.view().state(), InstanceState::Stopped);
        web.start().await.expect("it boots again");
    }
}
