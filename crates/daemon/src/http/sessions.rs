//! How many commands, copies and followed logs are open at a time: in one instance, and in all.
//!
//! Each holds a connection, a task and some hundred KiB of what is on its way; without a bound one client
//! takes all descriptors from the others.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use hearth_model::{ErrorKind, InstanceId};

use crate::config::Limits;
use crate::error::OpError;
use crate::handle::InstanceHandle;

/// The sessions that are open.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions {
    open: Arc<Mutex<HashMap<InstanceId, u32>>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(crate) struct Session {
    of: Sessions,
    instance: InstanceId,
}

impl Sessions {
    /// Counts one more, or says why there may be no more.
    pub(crate) fn begin(&self, instance: &InstanceHandle, limits: &Limits) -> Result<Session, OpError> {
        let (name, id) = (instance.name(), instance.view().record.id.clone());
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let (all, own) = (open.values().sum::<u32>(), open.get(&id).copied().unwrap_or(0));
        let refused = |of: &str, most: u32, setting: &str| {
            OpError::new(
                ErrorKind::Exhausted,
                format!("instance {name}: {most} commands, copies and followed logs are open {of}, and no more may be"),
            )
            .hinted(format!("end some of them, or raise {setting} in the daemon's configuration"))
            .about("instance", name.as_str())
        };
        if own >= limits.sessions_per_instance {
            return Err(refused("in it", limits.sessions_per_instance, "limits.sessions_per_instance"));
        }
        if all >= limits.sessions {
            return Err(refused("in all instances", limits.sessions, "limits.sessions"));
        }
        open.insert(id.clone(), own + 1);
        Ok(Session { of: self.clone(), instance: id })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut open = self.of.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.instance) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.instance);
            }
        }
    }
}
