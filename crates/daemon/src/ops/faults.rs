//! Failing the nth call of an operation, before or after it takes effect: for tests. Outside of
//! tests there is nothing to plan, and nothing to look at.

#[cfg(test)]
pub(crate) use planned::Faults;
#[cfg(test)]
pub(crate) use planned::When;

/// No failures are planned.
#[cfg(not(test))]
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {}

#[cfg(not(test))]
impl Faults {
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with plans")]
    pub(crate) fn before(&self, _: &'static str) -> Result<(), crate::error::OpError> {
        Ok(())
    }

    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as the one with plans")]
    pub(crate) fn after(&self, _: &'static str) -> Result<(), crate::error::OpError> {
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

    /// A plan of one failure; counts calls when there is none.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Faults {
        plan: Arc<Mutex<Plan>>,
    }

    #[derive(Debug, Default)]
    struct Plan {
        fail: Option<(usize, When)>,
        calls: Vec<&'static str>,
    }

    impl Faults {
        /// From now on: count calls from zero, and fail the nth.
        pub(crate) fn set(&self, fail: Option<(usize, When)>) {
            *self.plan() = Plan { fail, calls: Vec::new() };
        }

        /// The calls made since `set`.
        pub(crate) fn calls(&self) -> Vec<&'static str> {
            self.plan().calls.clone()
        }

        pub(crate) fn before(&self, name: &'static str) -> Result<(), OpError> {
            let mut plan = self.plan();
            plan.calls.push(name);
            let this = plan.calls.len() - 1;
            if plan.fail == Some((this, When::Before)) { Err(planned(name, "before")) } else { Ok(()) }
        }

        pub(crate) fn after(&self, name: &'static str) -> Result<(), OpError> {
            let plan = self.plan();
            let this = plan.calls.len().wrapping_sub(1);
            if plan.fail == Some((this, When::After)) { Err(planned(name, "after")) } else { Ok(()) }
        }

        fn plan(&self) -> std::sync::MutexGuard<'_, Plan> {
            self.plan.lock().unwrap_or_else(PoisonError::into_inner)
        }
    }

    fn planned(name: &str, when: &str) -> OpError {
        OpError::new(ErrorKind::HostFailed, format!("planned failure {when} {name:?}"))
    }
}
