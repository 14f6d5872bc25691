//! The host keys of an SSH server: a fork has others than its source.
//!
//! The old ones go first, so that whatever becomes of the rest nobody meets the fork under its
//! source's keys; then the image's own `ssh-keygen` makes as many, within a time. A server that
//! runs has the old keys in its memory: SIGHUP makes it begin anew with those that it finds.

use std::fs;
use std::io;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::bounded;
use crate::spawn::Spawn;

const DIR: &str = "/etc/ssh";

/// The names of the host keys that are there.
pub fn host_keys() -> Result<Vec<String>, String> {
    let entries = match fs::read_dir(DIR) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("list {DIR}: {error}")),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut keys: Vec<String> = names.filter(|name| kind(name).is_some()).collect();
    // The one that takes longest is the one that may be cut off.
    keys.sort_by_key(|name| (kind(name) == Some("rsa"), name.clone()));
    Ok(keys)
}

/// Makes other keys in the place of these. What of them could not be made is told: it is not there.
pub fn renew(keys: &[String], hostname: &str, env: &[&str], deadline: Instant) -> Result<Vec<String>, String> {
    for name in keys {
        remove(name)?;
    }
    let mut complaints = Vec::new();
    for name in keys {
        let argv = [
            "ssh-keygen",
            "-q",
            "-N",
            "",
            "-t",
            kind(name).unwrap_or_default(),
            "-C",
            &format!("root@{hostname}"),
            "-f",
            &format!("{DIR}/{name}"),
        ];
        let argv = argv.map(str::to_owned);
        let made =
            bounded::run(&Spawn { argv: &argv, env: env.to_vec(), cwd: "/", user: "", terminal: false }, deadline);
        if let Err(why) = made.and_then(|ended| ended.success()) {
            complaints.push(format!("{DIR}/{name} is removed and could not be made anew: {why}"));
            // Half a key is none.
            remove(name)?;
        }
    }
    for server in listeners() {
        // One that has ended meanwhile serves nobody.
        let _ = kill_process(server, Signal::HUP);
    }
    Ok(complaints)
}

/// `ssh_host_KIND_key`.
fn kind(name: &str) -> Option<&str> {
    name.strip_prefix("ssh_host_")?.strip_suffix("_key").filter(|kind| !kind.is_empty())
}

fn remove(name: &str) -> Result<(), String> {
    for path in ["", ".pub", "-cert.pub"].map(|ending| format!("{DIR}/{name}{ending}")) {
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(format!("remove {path}: {error}"));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Servers that take connections: those whose parent is none. Who serves a session may go on.
fn listeners() -> Vec<Pid> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let servers = pids.filter(|pid| is_server(*pid) && !parent(*pid).is_some_and(is_server));
    servers.filter_map(Pid::from_raw).collect()
}

fn is_server(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "sshd")
}

fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may have anything in it; then come the state and the parent.
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_keys_are_told_by_their_names() {
        assert_eq!(kind("ssh_host_ed25519_key"), Some("ed25519"));
        for other in ["ssh_host_ed25519_key.pub", "ssh_host__key", "ssh_config", "moduli", "ssh_host_rsa_key-cert.pub"]
        {
            assert_eq!(kind(other), None, "{other}");
        }
    }

    #[test]
    fn a_process_knows_its_parent() {
        let own = i32::try_from(std::process::id()).expect("small");
        assert_eq!(parent(own), rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get()));
    }
}
