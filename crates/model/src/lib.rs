//! What things are and what is allowed.
//!
//! In: values parsed at the edge. Out: decisions. There is no I/O here, no async and no clock:
//! whoever calls passes in what was observed and carries out what was decided.

pub mod admission;
pub mod capacity;
pub mod error;
pub mod foreign;
pub mod id;
pub mod image_ref;
pub mod load;
pub mod name;
pub mod network;
pub mod recovery;
pub mod restart;
pub mod runtime;
pub mod spec;
pub mod state;
pub mod units;

pub use admission::{Admitted, Denied, admit};
pub use error::{ErrorKind, Kind};
pub use id::{InstanceId, SnapshotId};
pub use image_ref::ImageRef;
pub use load::{LoadPlan, load_plan};
pub use name::InstanceName;
pub use network::Network;
pub use restart::{RestartPolicy, RestartStatus};
pub use runtime::{Accel, Backend};
pub use spec::InstanceSpec;
pub use state::{InstanceState, Op, Phase};
pub use units::{ByteSize, MemMib};
