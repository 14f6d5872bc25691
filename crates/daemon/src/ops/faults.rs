//! Failing the nth call of an operation, or dying there, before or after it takes effect: for tests. Outside of
//! tests there is nothing to plan, and nothing to look at.

#[cfg(test)]
pub(crate) use planned::Faults;
#[cfg(test)]
pub(crate) use planned::{How, When};

/// No failures are planned.
#[cfg(not(test))]
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {}

#[cfg(not(test))]
impl Faults {
    #[allow(clippy::unused_async, clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with plans")]
    pub(crate) async fn before(&self, _: &'static str) -> Result<(), crate::error::OpError> {
        Ok(())
    }

    #[allow(clippy::unused_async, clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with plans")]
    pub(crate) async fn after(&self, _: &'static str) -> Result<(), crate::error::OpError> {
        Ok(())
    }
}

#[cfg(test)]
mod planned {
    use std::sync::{Arc, Mutex, PoisonError};

    use hearth_model::ErrorKind;

    use crate::error::OpError;

    /// When a call fails.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum When {
        /// The call is not made.
        Before,
        /// The call is made, and its answer lost.
        After,
    }

    /// How it fails.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) enum How {
        /// With an error.
        Error,
        /// With an error, and so does the next call: where one is tried twice, in vain.
        Twice,
        /// The daemon stops dead: the operation never goes on.
        Death,
        /// With a bug.
        Panic,
    }

    /// A plan of one failure; counts calls when there is none.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults {
        plan: Arc<Mutex<Plan>>,
    }

    #[derive(Debug, Default)]
    struct Plan {
        fail: Option<(usize, When, How)>,
        calls: Vec<&'static str>,
        dead: bool,
    }

    impl Faults {
        /// From now on: count calls from zero, and fail the nth.
        pub(crate) fn set(&self, fail: Option<(usize, When, How)>) {
            *self.plan() = Plan { fail, ..Plan::default() };
        }

        /// The calls made since `set`.
        pub(crate) fn calls(&self) -> Vec<&'static str> {
            self.plan().calls.clone()
        }

        /// Whether the planned death has come.
        pub(crate) fn dead(&self) -> bool {
            self.plan().dead
        }

        pub(crate) async fn before(&self, name: &'static str) -> Result<(), OpError> {
            self.plan().calls.push(name);
            self.fail(name, When::Before).await
        }

        pub(crate) async fn after(&self, name: &'static str) -> Result<(), OpError> {
            self.fail(name, When::After).await
        }

        async fn fail(&self, name: &'static str, now: When) -> Result<(), OpError> {
            let how = {
                let mut plan = self.plan();
                // Of two that are made together, the later one may be begun before the first has ended.
                let this = plan.calls.iter().rposition(|call| *call == name).unwrap_or(usize::MAX);
                let is_it = |nth, how| this == nth || (how == How::Twice && this == nth + 1);
                let how = plan.fail.filter(|(nth, when, how)| is_it(*nth, *how) && *when == now).map(|(_, _, how)| how);
                plan.dead |= how == Some(How::Death);
                how
            };
            match how {
                None => Ok(()),
                Some(How::Error | How::Twice) => {
                    Err(OpError::new(ErrorKind::HostFailed, format!("planned failure {now:?} {name:?}")))
                }
                Some(How::Death) => std::future::pending().await,
                Some(How::Panic) => panic!("planned bug {now:?} {name:?}"),
            }
        }

        fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
            self.plan.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }
}
