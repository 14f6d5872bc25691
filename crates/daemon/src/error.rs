//! The one error of every operation: which step failed on what, and what stayed behind.
//!
//! Adapters' errors come in through [`OpError::step`]; nobody writes variants for steps. The edge
//! (`http/error.rs`) turns it into a response.

use hearth_model::capacity::Full;
use hearth_model::{Denied, ErrorKind, Kind, Op};

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpError {
    /// What sort of failure.
    pub kind: ErrorKind,
    /// What was tried on what.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// Which sort of thing it is about: `instance`, `snapshot`, `image`.
    pub resource: Option<&'static str>,
    /// Its name.
    pub name: Option<String>,
    /// The operation that was under way.
    pub op: Option<Op>,
    /// Its step that failed.
    pub step: Option<&'static str>,
    /// The causes, outermost first.
    pub causes: Vec<String>,
    /// What undoing could not remove.
    pub left_behind: Vec<String>,
}

impl OpError {
    /// An error of that kind and text, and nothing else known.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            hint: None,
            resource: None,
            name: None,
            op: None,
            step: None,
            causes: Vec::new(),
            left_behind: Vec::new(),
        }
    }

    /// The named thing does not exist; `similar` are names that do.
    pub fn not_found(resource: &'static str, name: &str, similar: &[String]) -> Self {
        let mut error = Self::new(ErrorKind::NotFound, format!("no {resource} {name:?}")).about(resource, name);
        if !similar.is_empty() {
            error.hint = Some(format!("there is {}", similar.join(", ")));
        }
        error
    }

    /// An adapter's error, outside of any operation.
    pub fn from_kind(error: &dyn Kind) -> Self {
        let mut this = Self::new(error.kind(), error.to_string());
        this.hint = error.hint();
        let mut next = error.source();
        while let Some(cause) = next {
            this.causes.push(cause.to_string());
            next = cause.source();
        }
        this
    }

    /// Says in its message what was done to which instance when it failed.
    #[must_use]
    pub fn in_operation(self, instance: &str) -> Self {
        let message = match (self.op, self.step) {
            (Some(op), Some(step)) => format!("{op} {instance}: {step}: {}", self.message),
            (Some(op), None) => format!("{op} {instance}: {}", self.message),
            (None, _) => format!("{instance}: {}", self.message),
        };
        let this = Self { message, ..self };
        if this.resource.is_none() { this.about("instance", instance) } else { this }
    }

    /// The operation was not admitted.
    pub fn denied(op: Op, name: &str, denied: &Denied) -> Self {
        Self { op: Some(op), ..Self::new(denied.kind(), format!("instance {name}: {denied}")) }
            .hinted(denied.hint())
            .about("instance", name)
    }

    /// The host has no room for it.
    pub fn full(op: Op, instance: &str, full: &Full) -> Self {
        Self { op: Some(op), ..Self::new(full.kind(), format!("{op} {instance}: {full}")) }
            .hinted(full.hint())
            .about("instance", instance)
    }

    /// Says which thing it is about.
    #[must_use]
    pub fn about(mut self, resource: &'static str, name: impl Into<String>) -> Self {
        self.resource = Some(resource);
        self.name = Some(name.into());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn hinted(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The whole of it on one line, for logs.
    pub fn chain(&self) -> String {
        let mut text = String::new();
        if let (Some(op), Some(step)) = (self.op, self.step) {
            text = format!("{op}: {step}: ");
        }
        text.push_str(&self.message);
        for cause in &self.causes {
            text.push_str(": ");
            text.push_str(cause);
        }
        if !self.left_behind.is_empty() {
            text.push_str("; left behind: ");
            text.push_str(&self.left_behind.join(", "));
        }
        text
    }
}

impl std::fmt::Display for OpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.chain())
    }
}

impl std::error::Error for OpError {}

/// Any adapter's error becomes an operation's by `?`; steps add their names.
impl<E: Kind> From<E> for OpError {
    fn from(error: E) -> Self {
        Self::from_kind(&error)
    }
}
