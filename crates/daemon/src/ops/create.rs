//! Create: an instance from an image, booted. Fails whole: nothing of it stays.

use std::sync::Arc;

use hearth_model::ErrorKind;

use super::{Outcome, Subject, boot};
use crate::error::OpError;
use crate::fresh;
use crate::host::Host;
use crate::run::{Run, blocking};

pub(super) async fn create(host: &Arc<Host>, subject: &mut Subject, run: &mut Run) -> Result<Outcome, OpError> {
    let dir = subject.dir.clone();
    let whole = dir.clone();
    run.undo("instance directory", blocking(move || fresh::remove(&whole)));
    let new = dir.clone();
    run.step("make directory", blocking(move || fresh::make(&new))).await?;

    let images = host.data.images();
    let (digest, image) = (subject.record.image_digest.clone(), subject.record.spec.image.clone());
    let rootfs = dir.rootfs();
    run.step("link image", async move {
        blocking(move || {
            let stored = hearth_image::open(&images, &digest).map_err(|e| OpError::from_kind(&e))?;
            hearth_disk::link(&stored.rootfs, &rootfs).map_err(|e| OpError::from_kind(&e))
        })
        .await
        .map_err(|error| match error.kind {
            ErrorKind::NotFound => error.about("image", image.as_str()),
            _ => error,
        })
    })
    .await?;

    let (templates, size, overlay) = (host.data.templates(), subject.record.spec.overlay, dir.overlay());
    run.step("make overlay", blocking(move || hearth_disk::create_overlay(&templates, size, &overlay))).await?;

    boot::boot(host, subject, run).await.map(Outcome::Running)
}
