//! The names of instances: who is where, for all slots of a daemon.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, PoisonError, RwLock};

use hearth_model::InstanceName;
use ipnet::Ipv4Net;

/// Below which instances have their full names. `internal` is reserved for such use and will never
/// be anybody's (ICANN, 2024).
pub(crate) const ZONE: &str = "hearth.internal";

/// Names to addresses. A clone is the same directory.
#[derive(Debug, Clone)]
pub(crate) struct Directory {
    range: Ipv4Net,
    names: Arc<RwLock<HashMap<String, Ipv4Addr>>>,
}

impl Directory {
    /// `range`: of the instances' addresses.
    pub(crate) fn new(range: Ipv4Net) -> Self {
        Self { range, names: Arc::default() }
    }

    pub(crate) fn insert(&self, name: &InstanceName, address: Ipv4Addr) {
        self.names.write().unwrap_or_else(PoisonError::into_inner).insert(name.as_str().to_owned(), address);
    }

    /// Unless the name is another's by now.
    pub(crate) fn remove(&self, name: &InstanceName, address: Ipv4Addr) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.get(name.as_str()) == Some(&address) {
            names.remove(name.as_str());
        }
    }

    pub(super) fn address(&self, name: &str) -> Option<Ipv4Addr> {
        self.names.read().unwrap_or_else(PoisonError::into_inner).get(name).copied()
    }

    pub(super) fn name(&self, address: Ipv4Addr) -> Option<String> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.iter().find(|(_, known)| **known == address).map(|(name, _)| name.clone())
    }

    pub(super) fn is_instance_range(&self, address: Ipv4Addr) -> bool {
        self.range.contains(&address)
    }
}
