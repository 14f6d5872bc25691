//! A guest's place on the network: taken, closed, before its VMM starts; opened when it has
//! acknowledged who it is; closed while it is saved; given up when its VMM has ended.
//!
//! Instances without a network, and those on QEMU's own, have none: then there is nothing to do.

use std::sync::Arc;

use hearth_net::Made;

use super::Subject;
use crate::error::OpError;
use crate::host::Host;
use crate::networks::Place;
use crate::run::Run;

pub(super) async fn take(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Place, OpError> {
    let networks = &host.networks;
    if !networks.has_slots(&subject.record.spec) {
        return Ok(Place { nic: networks.nic(&subject.record.spec), netns: None });
    }
    run.undo("network", {
        let (host, id) = (Arc::clone(host), subject.id().clone());
        async move { host.networks.release(&id).await }
    });
    let (place, made) = run.step("take network", networks.take(&mut subject.record)).await?;
    host.metrics.slot_taken(made);
    run.note(match made {
        Made::Ahead => "made ahead",
        Made::Inline => "made now: the pool was dry",
    });
    Ok(place)
}

pub(super) async fn open(host: &Arc<Host>, subject: &Subject, run: &mut Run) -> Result<(), OpError> {
    if subject.record.slot.is_none() {
        return Ok(());
    }
    run.step("open network", host.networks.unlock(subject.id())).await
}

/// Closes the gate of a guest that runs; an operation that fails opens it again.
pub(super) async fn shut(host: &Arc<Host>, subject: &Subject, run: &mut Run) -> Result<(), OpError> {
    if subject.record.slot.is_none() {
        return Ok(());
    }
    run.undo("open network", {
        let (host, id) = (Arc::clone(host), subject.id().clone());
        async move { host.networks.unlock(&id).await }
    });
    run.step("close network", host.networks.shut(subject.id())).await
}

pub(super) async fn give_up(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) {
    if host.networks.has_slots(&subject.record.spec) {
        let id = subject.id().clone();
        run.finish("leave network", || host.networks.release(&id)).await;
    }
    subject.record.slot = None;
}
