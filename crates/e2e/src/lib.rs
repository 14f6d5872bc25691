//! The framework in which stories on real VMs are told; the stories are in `tests/`.
//!
//! In: the `hearth` binary, a kernel, busybox, and root. Out: [`story`], which gives a test a
//! daemon of its own with an empty data directory, and afterwards finds out whether anything was
//! left behind or warned about. Nothing here knows how Hearth works inside: it uses the API, the
//! command line, and what the host shows of processes and files.
//!
//! Where something is missing on the host, a story prints `SKIPPED: …` and passes, unless
//! `HEARTH_TEST_MUST_RUN` is set: then it fails.

mod agree;
mod backend;
mod baddisk;
mod binary;
mod capture;
mod daemon;
mod evidence;
mod host;
mod image;
mod needs;
mod point;
mod probe;
mod range;
mod refusal;
mod seed;
mod smalldisk;
mod story;
mod traces;
mod vm;

pub use agree::{LeftMemory, Names, in_the_records, on_the_host};
pub use backend::slowness;
pub use baddisk::{Calls, DiskFault};
pub use capture::Capture;
pub use host::{Cli, TestHost};
pub use image::TestImage;
pub use point::{Change, Point, Watch};
pub use probe::{Asked, PROBE, clock, probe};
pub use refusal::{Refusal, refused};
pub use seed::seed;
pub use story::{Setup, eventually, story};
pub use traces::Traces;
pub use vm::{Count, Ran, Vm, finish};
