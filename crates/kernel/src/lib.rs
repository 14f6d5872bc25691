//! The guest's kernel and initrd.
//!
//! In: a directory that holds an unpacked Debian kernel package, and the bytes of the static guest
//! agent. Out: the paths that a VMM is given (`vmlinuz`, an initrd, or the ELF taken out of the
//! `vmlinuz`). This crate starts no guest and does not decide where things are kept; the only thing
//! it fetches is the kernel package, when [`install_debian`] is asked to.

mod cpio;
mod debian;
mod decompress;
mod error;
mod find;
mod initrd;
mod modinfo;
mod modules;
mod vmlinux;

pub use cpio::Archive;
pub use debian::{install_debian, install_packages};
pub use error::KernelError;
pub use find::{GuestKernel, find};
pub use initrd::{Initrd, SweptCache, build_initrd, ensure_initrd, sweep_cache};
pub use modules::{Module, ModulePlan, WANTED_MODULES, module_plan};
pub use vmlinux::{ensure_vmlinux, extract_vmlinux};
