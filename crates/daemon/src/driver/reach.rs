//! The way to a guest's agent that was lost while its VMM may run on: it is looked for until it is found.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::Driver;
use crate::agents;
use crate::error::OpError;

/// How often it is tried at once, before anything else is done for the instance.
const TRIES: usize = 3;
/// Until it is tried again after that: at first, and at most.
const AGAIN: Duration = if cfg!(test) { Duration::from_millis(20) } else { Duration::from_secs(2) };
const AGAIN_AT_MOST: Duration = Duration::from_secs(60);
/// How long such a try may take: meanwhile what is asked for waits.
const LONGEST_TRY: Duration = Duration::from_secs(5);

/// From a try to the next when somebody waits for the agent; what else is asked for comes between.
const AGAIN_WHEN_ASKED: Duration = Duration::from_millis(500);

/// When it is tried next.
#[derive(Debug)]
pub(super) struct Unreached {
    tried: Instant,
    due: Instant,
    pause: Duration,
}

impl Unreached {
    pub(super) fn new() -> Self {
        let tried = Instant::now();
        Self { tried, due: tried + AGAIN, pause: AGAIN }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    fn put_off(&mut self) {
        self.pause = (2 * self.pause).min(AGAIN_AT_MOST);
        self.tried = Instant::now();
        self.due = self.tried + self.pause;
    }

    fn asked_for(&mut self) {
        self.due = self.due.min(self.tried + AGAIN_WHEN_ASKED);
    }
}

impl Driver {
    /// The connection to the agent ended while the VMM may run on: reach it anew.
    pub(super) async fn agent_lost(&mut self) {
        self.handle.publish_agent(None);
        let Some(running) = &mut self.running else { return };
        running.events = None;
        running.live.agent = None;
        for tries_left in (0..TRIES).rev() {
            let Err(error) = self.reach(self.host.config.timeouts.agent()).await else { return };
            let Some(running) = &mut self.running else { return };
            // A VMM that ends closes its sockets first: its end is news of its own.
            if tokio::time::timeout(agents::ENDING, running.live.vmm.exited()).await.is_ok() {
                return;
            }
            match tries_left {
                0 => {
                    warn!(%error, tries = TRIES, "the agent is not reached: it is tried now and then");
                    running.unreached = Some(Unreached::new());
                }
                _ => debug!(%error, tries_left, "the agent is not reached yet"),
            }
        }
    }

    /// Somebody waits for it.
    pub(super) fn reach_soon(&mut self) {
        if let Some(unreached) = self.running.as_mut().and_then(|running| running.unreached.as_mut()) {
            unreached.asked_for();
        }
    }

    /// Tries once more.
    pub(super) async fn reach_again(&mut self) {
        match self.reach(self.host.config.timeouts.agent().min(LONGEST_TRY)).await {
            Ok(()) => info!("the agent is reached again"),
            Err(error) => {
                debug!(%error, "the agent is still not reached");
                if let Some(unreached) = self.running.as_mut().and_then(|running| running.unreached.as_mut()) {
                    unreached.put_off();
                }
            }
        }
    }

    async fn reach(&mut self, within: Duration) -> Result<(), OpError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let (agent, events) = agents::meet(&running.live.vmm, within).await?;
        running.live.agent = Some(agent.clone());
        (running.events, running.unreached) = (Some(events), None);
        self.handle.publish_agent(Some(agent));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    use hearth_model::Backend;
    use tokio::time::Instant;

    use super::{AGAIN_AT_MOST, AGAIN_WHEN_ASKED, Unreached};
    use crate::world::World;

    /// Also when it answers only long after the daemon began to look.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_guest_that_was_silent_is_reached_when_it_answers_again() {
        let mut world = World::configured(Backend::QemuMicrovm, |config| config.timeouts.agent_s = 1).await;
        world.create("web").await.expect("created");
        world.mute.store(true, Ordering::Relaxed);
        world.reborn().await;
        let web = world.get("web");
        web.agent(Duration::ZERO).await.expect_err("it is silent");
        world.mute.store(false, Ordering::Relaxed);
        web.agent(Duration::from_secs(20)).await.expect("it answers, and nobody had to ask");
        web.standby().await.expect("all is as it was");
    }

    /// However long it was silent, and however seldom it is tried by then.
    #[tokio::test]
    async fn who_waits_for_a_guest_does_not_wait_until_it_is_tried_next() {
        let mut unreached = Unreached::new();
        for _ in 0..20 {
            unreached.put_off();
        }
        assert!(unreached.due() >= Instant::now() + AGAIN_AT_MOST / 2);
        unreached.asked_for();
        assert!(unreached.due() <= Instant::now() + AGAIN_WHEN_ASKED);
        let due = unreached.due();
        unreached.asked_for();
        assert_eq!(unreached.due(), due, "another request puts nothing off");
    }
}
