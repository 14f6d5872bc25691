//! The body of every error response.

use hearth_model::ErrorKind;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What went wrong, on what, and what to do about it.
///
/// `code` and `message` are as Hypeman's; the rest is ours and is left out where it does not apply.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The kind of error, from a closed list: `invalid`, `not_found`, `already_exists`,
    /// `wrong_state`, `busy`, `unsupported`, `incompatible`, `exhausted`, `guest_unresponsive`,
    /// `guest_failed`, `vmm_failed`, `host_failed`, `corrupt`, `cancelled`, `unauthorized`, `internal`.
    #[schema(example = "not_found")]
    pub code: String,
    /// What was tried on what, and why it failed.
    #[schema(example = "no instance is named \"web-7\"")]
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// What sort of thing it is about: `instance`, `image`, `snapshot`, …
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// Which one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The operation that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub op: Option<String>,
    /// The step of the operation that failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The causes, from the outermost to the innermost.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<String>,
    /// What the failed operation could not remove again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_behind: Vec<String>,
    /// The request, as in the response's `x-request-id` and in the daemon's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<String>,
}

impl ErrorBody {
    /// One that says only what it is.
    #[must_use]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            code: kind.as_str().into(),
            message: message.into(),
            hint: None,
            resource: None,
            name: None,
            op: None,
            step: None,
            causes: Vec::new(),
            left_behind: Vec::new(),
            request_id: None,
        }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, about that thing.
    #[must_use]
    pub fn about(mut self, resource: &str, name: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self.name = Some(name.into());
        self
    }

    /// Its kind; a code that this version does not know counts as `internal`.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        ErrorKind::from_name(&self.code).unwrap_or(ErrorKind::Internal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_apply_is_left_out() {
        let body = ErrorBody::new(ErrorKind::NotFound, "no such thing");
        let json = serde_json::to_value(&body).expect("plain data");
        assert_eq!(json, serde_json::json!({"code": "not_found", "message": "no such thing"}));
        assert_eq!(serde_json::from_value::<ErrorBody>(json).expect("our own"), body);
    }

    #[test]
    fn codes_of_other_versions_are_internal() {
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorBody::new(kind, "").kind(), kind);
        }
        let theirs = ErrorBody { code: "brand_new".into(), ..ErrorBody::new(ErrorKind::Busy, "") };
        assert_eq!(theirs.kind(), ErrorKind::Internal);
    }
}
