//! Images: what was imported, under which names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hearth_image::{Limits, Progress};
use hearth_model::{ErrorKind, ImageRef};
use hearth_store::ImageRecord;
use tokio::sync::Mutex;

use crate::clock::now_ms;
use crate::error::OpError;
use crate::host::Host;
use crate::run::blocking;

#[derive(Debug, Clone)]
pub(crate) struct Images {
    host: Arc<Host>,
    /// One import at a time: an import wants the whole disk, and two of one image would race.
    importing: Arc<Mutex<()>>,
}

impl Images {
    pub(crate) fn new(host: Arc<Host>) -> Self {
        Self { host, importing: Arc::default() }
    }

    /// Imports what lies at `path` and names it; a name that was there moves to the new content.
    pub(crate) async fn import(
        &self,
        path: &Path,
        name: ImageRef,
        tags: BTreeMap<String, String>,
    ) -> Result<ImageRecord, OpError> {
        let _turn = self.importing.lock().await;
        let archive =
            tokio::fs::metadata(path).await.ok().filter(std::fs::Metadata::is_file).map_or(0, |file| file.len());
        let _space = self.host.room.for_import(archive).map_err(|full| {
            OpError::new(full.kind(), format!("import {name}: {full}"))
                .hinted(full.hint())
                .about("image", name.as_str())
        })?;
        let (source, images, log_name): (PathBuf, _, _) = (path.to_owned(), self.host.data.images(), name.clone());
        let imported = blocking(move || {
            let progress = |progress: Progress| tracing::debug!(image = %log_name, ?progress, "import");
            hearth_image::import(&source, &images, &Limits::default(), &progress)
        })
        .await
        .map_err(|error| not_imported(error, &name))?;

        let record = ImageRecord {
            name: name.clone(),
            digest: imported.digest,
            config: imported.config,
            size_bytes: imported.size_bytes,
            platform: imported.platform,
            created_at_ms: now_ms(),
            tags,
        };
        let before = self.host.store.image(&name)?;
        if let Some(before) = &before {
            self.disown(&before.digest).await?;
        }
        let stored = match &before {
            None => self.host.store.insert_image(&record),
            Some(_) => self.host.store.update_image(&record),
        };
        if let Err(error) = stored {
            self.keep_or_remove(&record.digest).await.unwrap_or_else(|error| {
                tracing::warn!(%error, "an image without a name stays until the next start");
            });
            return Err(error.into());
        }
        // The mark goes after that, and so does what nobody names: a power cut leaves both or neither.
        if !self.host.records_are_on_disk().await {
            tracing::warn!(image = %name, "an image's name is not on the disk yet: the next start looks again");
            return Ok(record);
        }
        self.keep_or_remove(&record.digest).await?;
        if let Some(before) = before {
            self.keep_or_remove(&before.digest).await?;
        }
        tracing::info!(image = %name, digest = record.digest, "image imported");
        Ok(record)
    }

    /// The image of that name, or of that digest under any name.
    pub(crate) fn get(&self, name: &ImageRef) -> Result<ImageRecord, OpError> {
        if let Some(found) = self.host.store.image(name)? {
            return Ok(found);
        }
        if let Some((_, digest)) = name.as_str().split_once('@')
            && let Some(found) = self.host.store.images_with_digest(digest)?.pop()
        {
            return Ok(found);
        }
        let known: Vec<String> = self.host.store.images()?.iter().map(|image| image.name.to_string()).collect();
        let similar = hearth_store::lookup::similar(name.as_str(), known.iter().map(String::as_str));
        let error = OpError::not_found("image", name.as_str(), &similar);
        Err(match error.hint {
            Some(_) => error,
            None => error
                .hinted("`hearth image import PATH --name NAME` imports it; `hearth image list` shows what is there"),
        })
    }

    /// All names, in order.
    pub(crate) fn list(&self) -> Result<Vec<ImageRecord>, OpError> {
        Ok(self.host.store.images()?)
    }

    /// Removes a name, and the content with its last name. Instances and snapshots keep what they
    /// were made of: they hold links of their own.
    pub(crate) async fn delete(&self, name: &ImageRef) -> Result<(), OpError> {
        let record = self.get(name)?;
        let _turn = self.importing.lock().await;
        self.disown(&record.digest).await?;
        self.host.store.remove_image(&record.name)?;
        if !self.host.records_are_on_disk().await {
            // Where there is no room for it, that is made now.
            tracing::warn!(image = %record.name, "that a name has gone is not on the disk yet");
        }
        self.keep_or_remove(&record.digest).await
    }

    /// What names this content is about to change: whoever dies now leaves it with a mark.
    async fn disown(&self, digest: &str) -> Result<(), OpError> {
        let (images, digest) = (self.host.data.images(), digest.to_owned());
        blocking(move || hearth_image::disown(&images, &digest)).await
    }

    /// The records say now whether anybody names this content.
    async fn keep_or_remove(&self, digest: &str) -> Result<(), OpError> {
        let named = !self.host.store.images_with_digest(digest)?.is_empty();
        let (images, digest) = (self.host.data.images(), digest.to_owned());
        let keep_or_remove = if named { hearth_image::claim } else { hearth_image::remove };
        blocking(move || keep_or_remove(&images, &digest)).await
    }
}

/// What is damaged is what was given, not what is stored: the request's fault.
fn not_imported(error: OpError, name: &ImageRef) -> OpError {
    let kind = if error.kind == ErrorKind::Corrupt { ErrorKind::Invalid } else { error.kind };
    let message = format!("{name}: {}", error.message);
    OpError { kind, message, ..error }.about("image", name.as_str())
}

/// A text from a request as an image reference.
pub(crate) fn parse_ref(text: &str) -> Result<ImageRef, OpError> {
    text.parse().map_err(|error: hearth_model::image_ref::ImageRefError| {
        OpError::new(ErrorKind::Invalid, error.to_string()).about("image", text)
    })
}
