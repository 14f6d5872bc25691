//! The API as its clients meet it: real HTTP on loopback, real files and records, in-process VMMs
//! and guests.

mod life;
mod refusals;
mod server;
mod streams;
