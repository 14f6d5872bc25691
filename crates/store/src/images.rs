//! Image records: which names there are, and which imported content each leads to.

use std::collections::BTreeMap;

use hearth_model::ImageRef;
use hearth_model::spec::ImageConfig;
use rusqlite::params;

use crate::Store;
use crate::error::RecordError;
use crate::table::Resource;

const IMAGE: Resource = Resource("image");

/// A name for imported content. Several names may lead to one digest.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageRecord {
    /// The name.
    pub name: ImageRef,
    /// What it leads to.
    pub digest: String,
    /// What runs by default.
    pub config: ImageConfig,
    /// Bytes that its root file system takes on disk.
    pub size_bytes: u64,
    /// `os/arch[/variant]`.
    pub platform: String,
    /// When it was imported, in milliseconds since the Unix epoch.
    pub created_at_ms: i64,
    /// The user's tags.
    pub tags: BTreeMap<String, String>,
}

impl Store {
    /// Adds a record.
    ///
    /// # Errors
    /// `already_exists` if the name is taken.
    pub fn insert_image(&self, record: &ImageRecord) -> Result<(), RecordError> {
        let json = IMAGE.encode(record)?;
        let name = record.name.as_str();
        IMAGE
            .write_unique(
                &self.to_write(),
                "add to",
                (
                    "INSERT INTO images (name, digest, created_at_ms, record) VALUES (?1, ?2, ?3, ?4)",
                    params![name, record.digest, record.created_at_ms, json],
                ),
                name,
                ("SELECT digest FROM images WHERE name = ?1", [name]),
            )
            .map(drop)
    }

    /// Puts this record in place of the one with its name.
    ///
    /// # Errors
    /// `not_found` if there is none.
    pub fn update_image(&self, record: &ImageRecord) -> Result<(), RecordError> {
        let json = IMAGE.encode(record)?;
        let name = record.name.as_str();
        let changed = IMAGE.write(
            &self.to_write(),
            "change",
            "UPDATE images SET digest = ?2, created_at_ms = ?3, record = ?4 WHERE name = ?1",
            params![name, record.digest, record.created_at_ms, json],
        )?;
        if changed == 0 { Err(IMAGE.absent(name)) } else { Ok(()) }
    }

    /// The record of that name.
    ///
    /// # Errors
    /// `corrupt` if what is stored is no record.
    pub fn image(&self, name: &ImageRef) -> Result<Option<ImageRecord>, RecordError> {
        IMAGE.one(&self.db(), "SELECT name, record FROM images WHERE name = ?1", [name.as_str()])
    }

    /// All records, by name.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record; the error names it.
    pub fn images(&self) -> Result<Vec<ImageRecord>, RecordError> {
        IMAGE.all(&self.db(), "SELECT name, record FROM images ORDER BY name", [])
    }

    /// All names of one content; none left means that nothing but instances and snapshots needs it.
    ///
    /// # Errors
    /// `corrupt` if one of them is no record; the error names it.
    pub fn images_with_digest(&self, digest: &str) -> Result<Vec<ImageRecord>, RecordError> {
        IMAGE.all(&self.db(), "SELECT name, record FROM images WHERE digest = ?1 ORDER BY name", [digest])
    }

    /// Removes the name. One that is not there is success.
    ///
    /// # Errors
    /// The database's.
    pub fn remove_image(&self, name: &ImageRef) -> Result<(), RecordError> {
        IMAGE.write(&self.to_write(), "remove from", "DELETE FROM images WHERE name = ?1", [name.as_str()]).map(drop)
    }
}
