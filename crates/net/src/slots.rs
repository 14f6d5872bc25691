//! Slots on this host: namespaces with a tap and a way out, made ahead.

use std::net::Ipv4Addr;

use hearth_model::InstanceId;

use crate::fault::{Impossible, NetError};
use crate::spec::{NetConfig, NetSeat, Taken, Usage, Wish};

/// Slots on this host. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Slots {}

#[allow(clippy::unused_async, reason = "as they will be")]
impl Slots {
    pub(crate) fn possible() -> Result<(), Impossible> {
        Err(Impossible::NoKernelSupport { what: "slots" })
    }
    pub(crate) async fn open(_config: NetConfig, _owned: &[NetSeat]) -> Result<Self, NetError> {
        Self::possible().map_err(NetError::Impossible).map(|()| unreachable!("it is not possible"))
    }
    pub(crate) fn lease(&self) -> Result<Ipv4Addr, NetError> {
        match *self {}
    }
    pub(crate) fn hold(&self, _: Ipv4Addr) {
        match *self {}
    }
    pub(crate) fn give_back(&self, _: Ipv4Addr) {
        match *self {}
    }
    pub(crate) async fn take(&self, _: &Wish) -> Result<Taken, NetError> {
        match *self {}
    }
    pub(crate) async fn unlock(&self, _: &InstanceId) -> Result<(), NetError> {
        match *self {}
    }
    pub(crate) async fn shut(&self, _: &InstanceId) -> Result<(), NetError> {
        match *self {}
    }
    pub(crate) async fn release(&self, _: &InstanceId) -> Result<(), NetError> {
        match *self {}
    }
    pub(crate) async fn adopt(&self, _: &Wish, _: &NetSeat) -> Result<(), NetError> {
        match *self {}
    }
    pub(crate) fn usage(&self, _: &InstanceId) -> Option<Usage> {
        match *self {}
    }
    pub(crate) async fn close(&self) {
        match *self {}
    }
}
