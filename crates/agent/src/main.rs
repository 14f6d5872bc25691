//! The guest's first process: brings the machine up, then serves the host until the program ends.
//!
//! As PID 1 it boots ([`boot`]), waits for the host on the agent port ([`link`]), and does what it
//! is told ([`server`]). One thread, one poll loop, no allocation that grows with what the host or
//! a program sends.
//!
//! `hearth-agent --serve SOCKET` serves the files and commands of the machine on which it runs, on
//! a Unix socket: for tests of the protocol. It then changes no clock, name, network or power.

mod boot;
mod bounded;
mod copy_from;
mod copy_to;
mod exec;
mod hooks;
mod identity;
mod link;
mod network;
mod note;
mod outbox;
mod power;
mod program;
mod server;
mod spawn;
mod stat;
mod sys;
mod users;

use std::os::fd::OwnedFd;
use std::process::ExitCode;

use link::Link;
use server::{Place, Server};

fn main() -> ExitCode {
    if rustix::process::getpid().is_init() {
        guest();
    }
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.get(1..) {
        Some([flag, path]) if flag == "--serve" => serve(path),
        _ => {
            eprintln!("hearth-agent {}: the first process of a Hearth guest", env!("CARGO_PKG_VERSION"));
            ExitCode::from(2)
        }
    }
}

fn guest() -> ! {
    let (disks, failure) = match boot::boot() {
        Ok(disks) => (Some(disks), None),
        Err(error) => {
            eprintln!("hearth-agent: cannot boot: {error}");
            (None, Some(error.to_string()))
        }
    };
    if let Err(error) = sys::stay_resident() {
        note::note(format_args!("cannot stay in memory: {error}"));
    }
    let served = boot::agent_link().and_then(|link| {
        let server = Server::new(link, Place::Guest, failure)?;
        match &disks {
            Some(disks) => server.on_disk_of(disks.owner_file()).run(),
            None => server.run(),
        }
    });
    if let Err(error) = served {
        eprintln!("hearth-agent: cannot serve the host: {error}");
    }
    power::off(disks)
}

fn serve(path: &str) -> ExitCode {
    let listen = || {
        let listener = std::os::unix::net::UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        Server::new(Link::listener(OwnedFd::from(listener))?, Place::Elsewhere, None)?.run()
    };
    match listen() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hearth-agent: cannot serve on {path}: {error}");
            ExitCode::FAILURE
        }
    }
}
