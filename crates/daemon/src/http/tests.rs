//! The API as its clients meet it: real HTTP on loopback, real files and records, in-process VMMs
//! and guests.

mod exposition;
mod life;
mod logs;
mod metrics;
mod monitoring;
mod recovery;
mod refusals;
mod rot;
mod server;
mod streams;
