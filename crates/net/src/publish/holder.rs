//! Which process has a port, for an error that helps. Asks the process table, which takes a while
//! and may not show everything to everybody.

use std::collections::HashSet;

use hearth_model::network::Protocol;
use procfs::net::{TcpState, tcp, tcp6, udp, udp6};
use procfs::process::{FDTarget, all_processes};

/// As in "nginx (process 812)"; `None` if it cannot be found.
pub(super) fn of(protocol: Protocol, port: u16) -> Option<String> {
    let inodes = sockets(protocol, port);
    let holds = |target: &FDTarget| matches!(target, FDTarget::Socket(inode) if inodes.contains(inode));
    let mut processes = all_processes().ok()?.filter_map(Result::ok);
    let holder = processes
        .find(|process| process.fd().is_ok_and(|fds| fds.filter_map(Result::ok).any(|fd| holds(&fd.target))))?;
    let name = holder.stat().map_or_else(|_| "a process".to_owned(), |stat| stat.comm);
    Some(format!("{name} (process {})", holder.pid))
}

fn sockets(protocol: Protocol, port: u16) -> HashSet<u64> {
    match protocol {
        Protocol::Tcp => {
            let all = [tcp(), tcp6()].into_iter().filter_map(Result::ok).flatten();
            let listening = all.filter(|entry| entry.state == TcpState::Listen && entry.local_address.port() == port);
            listening.map(|entry| entry.inode).collect()
        }
        Protocol::Udp => {
            let all = [udp(), udp6()].into_iter().filter_map(Result::ok).flatten();
            all.filter(|entry| entry.local_address.port() == port).map(|entry| entry.inode).collect()
        }
    }
}
