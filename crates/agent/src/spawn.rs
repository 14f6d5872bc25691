//! Starting a process in the guest: the program, or a command of the host.
//!
//! In: what to run, as whom and where; out: a process in a session of its own, or why not, in the
//! words and with the code that Docker has for it.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use hearth_agent_proto::{Failure, FailureKind};

use crate::sys::{self, Launch, Stage};
use crate::users;

/// What to start.
#[derive(Debug)]
pub struct Spawn<'a> {
    pub argv: &'a [String],
    /// All its variables, as `KEY=value`; later ones win.
    pub env: Vec<&'a str>,
    pub cwd: &'a str,
    pub user: &'a str,
    pub terminal: bool,
}

/// Why it could not start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpawnError {
    /// What Docker exits with: 127 not found, 126 not allowed, 125 else.
    pub code: i32,
    pub failure: Failure,
}

fn error(code: i32, kind: FailureKind, text: String) -> SpawnError {
    SpawnError { code, failure: Failure { kind, text } }
}

/// Starts it: its process id, which is also its process group and session.
pub fn spawn(spawn: &Spawn<'_>, stdio: [BorrowedFd<'_>; 3]) -> Result<u32, SpawnError> {
    let Some(command) = spawn.argv.first().filter(|command| !command.is_empty()) else {
        return Err(error(125, FailureKind::Invalid, "no command given".into()));
    };
    let user = users::find(spawn.user).map_err(|text| error(125, FailureKind::Invalid, text))?;
    let mut env = environment(&spawn.env);
    for (key, value) in [("HOME", Some(user.home.as_str())), ("TERM", spawn.terminal.then_some("xterm"))] {
        if let Some(value) = value
            && variable(&env, key).is_none()
        {
            env.push(format!("{key}={value}"));
        }
    }
    let launch = Launch {
        candidates: strings(&candidates(command, variable(&env, "PATH")))?,
        argv: strings(spawn.argv)?,
        env: strings(&env)?,
        cwd: string(if spawn.cwd.is_empty() { "/" } else { spawn.cwd })?,
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        terminal: spawn.terminal,
        change_user: rustix::process::getuid().is_root(),
    };
    sys::launch(&launch, stdio).map_err(|(stage, cause)| explain(spawn, command, stage, &cause))
}

fn explain(spawn: &Spawn<'_>, command: &str, stage: Stage, cause: &io::Error) -> SpawnError {
    match (stage, cause.kind()) {
        (Stage::Exec, io::ErrorKind::NotFound) => {
            error(127, FailureKind::NotFound, format!("command not found: {command}"))
        }
        (Stage::Exec, io::ErrorKind::PermissionDenied) => {
            error(126, FailureKind::Permission, format!("permission denied: {command}"))
        }
        (Stage::Exec, _) => error(126, FailureKind::Failed, format!("cannot execute {command}: {cause}")),
        (Stage::Directory, kind) => {
            let kind = if kind == io::ErrorKind::NotFound { FailureKind::NotFound } else { FailureKind::Failed };
            error(125, kind, format!("cannot start in directory {}: {cause}", spawn.cwd))
        }
        (Stage::User, _) => error(125, FailureKind::Failed, format!("cannot become user {}: {cause}", spawn.user)),
        (Stage::Fork, _) => error(125, FailureKind::Exhausted, format!("cannot start a process: {cause}")),
    }
}

/// The variables without those that a later one replaces.
pub fn environment(entries: &[&str]) -> Vec<String> {
    let key = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::with_capacity(entries.len());
    for entry in entries {
        let wanted = key(entry);
        match env.iter_mut().find(|known| key(known) == wanted) {
            Some(known) => (*entry).clone_into(known),
            None => env.push((*entry).to_owned()),
        }
    }
    env
}

fn variable<'a>(env: &'a [String], key: &str) -> Option<&'a str> {
    env.iter().find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='))
}

/// Where a command may be.
fn candidates(command: &str, path: Option<&str>) -> Vec<String> {
    if command.contains('/') {
        return vec![command.to_owned()];
    }
    let path = path.unwrap_or("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    path.split(':').map(|dir| format!("{}/{command}", if dir.is_empty() { "." } else { dir })).collect()
}

fn strings(list: &[String]) -> Result<Vec<CString>, SpawnError> {
    list.iter().map(|text| string(text)).collect()
}

fn string(text: &str) -> Result<CString, SpawnError> {
    CString::new(text).map_err(|_| error(125, FailureKind::Invalid, format!("zero byte in {text:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_variables_win_and_keep_their_place() {
        assert_eq!(environment(&["A=1", "B=2", "A=3", "C"]), ["A=3", "B=2", "C"]);
    }

    #[test]
    fn commands_are_looked_up_as_shells_do() {
        assert_eq!(candidates("/bin/x", Some("/a")), ["/bin/x"]);
        assert_eq!(candidates("x", Some("/a:/b")), ["/a/x", "/b/x"]);
        assert_eq!(candidates("x", None).last().map(String::as_str), Some("/bin/x"));
    }
}
