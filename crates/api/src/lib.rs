//! The HTTP contract: what goes over the wire between a client and `hearth serve`.
//!
//! In: nothing but the model's words. Out: request and response types, one file per resource,
//! each with its schema for the OpenAPI document; [`unsupported`], the one table of what Hypeman's
//! clients may send and this server does not do yet; and, behind feature `client`, a typed client.
//! Routes, status codes and decisions are the daemon's.
//!
//! Resource names, fields, states and defaults are Hypeman's, so that its official clients work
//! unchanged. What is ours alone is said to be so in the field's documentation, and is always
//! optional.

pub mod capabilities;
#[cfg(feature = "client")]
pub mod client;
pub mod cp;
pub mod error;
pub mod exec;
pub mod health;
pub mod images;
pub mod instances;
pub mod logs;
pub mod recovery;
pub mod resources;
pub mod restart;
pub mod snapshots;
pub mod timeline;
pub mod unsupported;

pub use error::ErrorBody;

/// The port that Hypeman's clients expect.
pub const DEFAULT_PORT: u16 = 4973;

/// A user's key-value tags. (The wire types spell it out: a schema cannot see through the name.)
pub type Tags = std::collections::BTreeMap<String, String>;

/// Names of response headers.
pub mod headers {
    /// Names one request in every response and in the daemon's log.
    pub const REQUEST_ID: &str = "x-request-id";
    /// `true` or `false`: whether sending the same request again can help. Hypeman's clients obey
    /// it; without it they send again on every 409 and 5xx.
    pub const SHOULD_RETRY: &str = "x-should-retry";
}
