//! Standby: memory and devices into a bundle, then the VMM ends.
//!
//! Nothing is copied that need not be. RAM that the VMM maps shared is a file already: it becomes
//! the bundle's by a hard link. RAM that it maps privately from a base becomes a clone of the
//! base with the changed pages written onto it. RAM that is in the VMM alone is written by the
//! VMM: what was touched of a booted guest's, what was changed of a loaded one's.

use std::sync::Arc;

use hearth_model::InstanceState;
use hearth_store::SnapshotKind;

use super::{Outcome, Subject, bundle, slot};
use crate::error::OpError;
use crate::host::{Host, end_vmm, recorded_seat};
use crate::run::{Run, blocking};

pub(super) async fn standby(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    let saved =
        bundle::save(host, subject, bundle::Use::internal(SnapshotKind::Standby), bundle::Then::End, run).await?;
    run.commit();

    // The bundle is published: from here on the instance is in standby.
    let (dir, seat) = (subject.dir.clone(), recorded_seat(&subject.record));
    run.finish("end vmm", || end_vmm(Arc::clone(host), dir.clone(), seat.clone())).await;
    slot::give_up(host, subject, run).await;
    let mapped = [dir.memory(), dir.memory_base(), dir.vmstate()];
    run.finish("unlink memory", || {
        let mapped = mapped.clone();
        blocking(move || mapped.iter().try_for_each(|file| hearth_disk::remove(file)))
    })
    .await;
    subject.record.seat = None;
    Ok(Outcome::Rests(InstanceState::Standby { snapshot: saved.record.id }))
}
