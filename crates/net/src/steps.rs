//! The calls that make and take a slot, one after the other. Tests can let each of them fail.

use crate::fault::NetError;

#[cfg(feature = "fake")]
pub(crate) use counted::Steps;

/// Nothing but the calls.
#[cfg(not(feature = "fake"))]
#[derive(Debug, Default)]
pub(crate) struct Steps {}

#[cfg(not(feature = "fake"))]
impl Steps {
    #[allow(clippy::unused_self, reason = "as in the counted one")]
    pub(crate) fn run<T>(&self, step: impl FnOnce() -> Result<T, NetError>) -> Result<T, NetError> {
        step()
    }
}

#[cfg(feature = "fake")]
mod counted {
    use std::sync::{Mutex, MutexGuard, PoisonError};

    use super::NetError;
    use crate::fake::When;

    /// Counts calls, and lets one fail.
    #[derive(Debug, Default)]
    pub(crate) struct Steps(Mutex<State>);

    #[derive(Debug, Default)]
    struct State {
        calls: u32,
        fail: Option<(u32, When)>,
    }

    impl Steps {
        pub(crate) fn run<T>(&self, step: impl FnOnce() -> Result<T, NetError>) -> Result<T, NetError> {
            let fail = {
                let mut state = self.lock();
                let this = state.calls;
                state.calls += 1;
                state.fail.filter(|(nth, _)| *nth == this).map(|(_, when)| when)
            };
            match fail {
                None => step(),
                Some(When::Before) => Err(NetError::Demanded),
                Some(When::After) => step().and(Err(NetError::Demanded)),
            }
        }

        pub(crate) fn calls(&self) -> u32 {
            self.lock().calls
        }

        pub(crate) fn fail(&self, nth: Option<(u32, When)>) {
            let mut state = self.lock();
            state.fail = nth.map(|(nth, when)| (state.calls + nth, when));
        }

        fn lock(&self) -> MutexGuard<'_, State> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
