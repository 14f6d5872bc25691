//! Stories on real VMs: what a user does, and what must come of it.
//!
//! One file for each chapter, one test for each story. What a story needs around it is in the
//! crate's library; see `docs/testing.md` for how to run them and how to read a failure.

mod at_once;
mod bad_hosts;
mod bad_images;
mod bad_requests;
mod boot;
mod command_line;
mod counters;
mod crash;
mod cut_off;
mod daemon;
mod exec;
mod firecracker;
mod fork;
mod full_disk;
mod full_host;
mod identity;
mod import;
mod network;
mod power;
mod reflink;
mod restart;
mod snapshots;
mod standby;
