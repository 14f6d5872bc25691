//! A double of Firecracker 1.16.1, and a guest without a kernel, for tests.
//!
//! The binary `hearth-simulated-vmm` has Firecracker's command line and speaks its API on a Unix
//! socket. It needs no KVM and no root, starts at once, and does everything that a client
//! can see: states, refusals with their exact text, exits and exit codes, files written and
//! required, paths resolved against its working directory, sockets bound, left behind and in the
//! way. What it runs depends on the kernel it is given:
//!
//! - the guest of [`guest`]: its serial output, its ticks, its touched pages and what it sends back
//!   over vsock, without executing it;
//! - any other ELF file: a guest with Hearth's agent behind vsock port 52
//!   ([`hearth_agent_client::fake::FakeGuest`]). Its state lies in guest memory, so a snapshot
//!   carries it, and forks of it go different ways.
//!
//! Faults and delays are asked for in a file, see [`faults`].
//!
//! `tests/contract` holds it to the real Firecracker: one suite, both programs, the same answers.
//! Known differences: nothing is executed, so a spinning guest takes no CPU; nothing is synced to
//! disk; taps are not opened, so any name will do; of the API there is what Hearth uses.
//!
//! ```text
//!   main ─► run ─► server (HTTP) ─► request (parse) ─► machine (states) ─┬─► boot, load, save
//!                       │                                                ├─► guest, memory
//!                    faults                                              └─► vsock
//! ```

mod arguments;
pub mod faults;
pub mod guest;
mod load;
mod log;
mod machine;
mod memory;
mod program;
mod request;
mod run;
mod running;
mod save;
mod serial;
mod server;
mod vmstate;
mod vsock;

pub use program::{Unbuilt, program};
pub use run::run;
