//! `GET /instances/{id}/cp`: the frames of the WebSocket that copies one file or directory into a
//! guest, or a tree out of one.
//!
//! The client's first frame is text, a [`CpRequest`].
//! - `to`: binary frames with the file's bytes, then [`CpFrame::End`]; the server answers with one
//!   [`CpFrame::Result`]. A directory has no bytes. A tree is as many connections as it has entries.
//! - `from`: the server sends, for each entry, [`CpFrame::Header`], binary frames with its bytes,
//!   and [`CpFrame::End`], whose `final` is set on the last one. Paths are relative and begin with
//!   the last component of what was asked for.
//!
//! Either way [`CpFrame::Error`] ends it.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// Into the guest.
    To,
    /// Out of the guest.
    From,
}

/// What to copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CpRequest {
    /// Which way.
    pub direction: Direction,
    /// Where in the guest; absolute.
    pub guest_path: String,
    /// `to`: make a directory.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_dir: bool,
    /// `to`: permissions; 0644 for files and 0755 for directories if left out or 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// `from`: copy what symbolic links lead to instead of the links.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow_links: bool,
    /// `to`: the source's last component; not needed, as `guest_path` is the whole destination.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub src_basename: Option<String>,
    /// `to`: owner; root if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// `to`: group; root if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Ours, `to`: time of last change, in seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime: Option<i64>,
    /// Ours, `to`: make a symbolic link to this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_target: Option<String>,
}

impl CpRequest {
    /// Into the guest, at `guest_path`.
    #[must_use]
    pub fn to(guest_path: impl Into<String>) -> Self {
        Self {
            direction: Direction::To,
            guest_path: guest_path.into(),
            is_dir: false,
            mode: None,
            follow_links: false,
            src_basename: None,
            uid: None,
            gid: None,
            mtime: None,
            link_target: None,
        }
    }

    /// Out of the guest, what is at `guest_path`.
    #[must_use]
    pub fn from(guest_path: impl Into<String>) -> Self {
        Self { direction: Direction::From, ..Self::to(guest_path) }
    }
}

/// A text frame after the first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum CpFrame {
    /// An entry follows.
    Header(CpHeader),
    /// The entry is complete.
    End {
        /// It was the last one.
        #[serde(default, rename = "final")]
        last: bool,
    },
    /// It failed.
    Error {
        /// Why.
        message: String,
        /// On which entry.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// Ours: which kind of error, as in an error body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
    /// What became of a copy into the guest.
    Result {
        /// Whether it is there.
        success: bool,
        /// Why not.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        /// How many bytes were written.
        #[serde(default)]
        bytes_written: u64,
        /// Ours: which kind of error, as in an error body.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        code: Option<String>,
    },
}

/// One entry of a tree.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CpHeader {
    /// Relative, beginning with the last component of what was asked for.
    pub path: String,
    /// Permissions, at most 0777.
    pub mode: u32,
    /// A directory.
    pub is_dir: bool,
    /// A symbolic link.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_symlink: bool,
    /// Where the link leads.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub link_target: String,
    /// Bytes that follow; 0 for directories and links.
    pub size: u64,
    /// Time of last change, in seconds since 1970.
    pub mtime: i64,
    /// Owner.
    #[serde(default)]
    pub uid: u32,
    /// Group.
    #[serde(default)]
    pub gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn frames_as_hypemans_clients_read_and_write_them() {
        let request: CpRequest =
            serde_json::from_str(r#"{"direction":"to","guest_path":"/x","is_dir":false,"mode":420}"#).expect("theirs");
        assert_eq!(request, CpRequest { mode: Some(0o644), ..CpRequest::to("/x") });

        let end: CpFrame = serde_json::from_str(r#"{"type":"end"}"#).expect("theirs");
        assert_eq!(end, CpFrame::End { last: false });
        let json = |frame: CpFrame| serde_json::to_value(frame).expect("plain data");
        assert_eq!(json(CpFrame::End { last: true }), json!({"type": "end", "final": true}));
        assert_eq!(
            json(CpFrame::Result { success: true, error: None, bytes_written: 7, code: None }),
            json!({"type": "result", "success": true, "bytes_written": 7})
        );
        let header = json(CpFrame::Header(CpHeader { path: "a".into(), mode: 0o644, ..CpHeader::default() }));
        assert_eq!(header["type"], "header");
        assert_eq!(header["mtime"], 0);
    }
}
