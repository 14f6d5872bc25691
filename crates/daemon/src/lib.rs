//! The daemon: everything assembled.
//!
//! In: configuration and HTTP requests. Out: instances. One driver task owns each instance
//! (`driver`), a request is admitted at once by a pure table (`hearth_model::admit`), run as an
//! operation (`ops/`, one file per verb) and published on a watch that every reader reads.

mod agents;
mod auth;
mod clock;
mod config;
mod console;
mod doctor;
mod driver;
mod dropping;
mod error;
mod fresh;
mod handle;
mod hatch;
mod host;
mod http;
mod images;
mod log_space;
mod metrics;
mod networks;
mod ops;
mod paths;
mod pins;
mod recover;
mod registry;
mod reservations;
mod resources;
mod restart;
mod run;
mod scrub;
mod serve;
mod settle;
#[cfg(test)]
mod world;

pub use config::{Config, ConfigError, ServeOptions};
pub use doctor::{Check, DoctorOptions, Verdict, doctor};
pub use error::OpError;
pub use hearth_vmm::answer_promptly;
#[cfg(any(test, feature = "stranger"))]
pub use http::stranger;
pub use serve::{ServeError, serve};

/// The guest's binary, built by this crate's build script.
pub(crate) static AGENT: &[u8] = include_bytes!(env!("HEARTH_AGENT_PATH"));
