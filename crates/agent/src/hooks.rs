//! Hooks: what the image wants done when its guest comes back, or is another's fork.
//!
//! In: a directory, whose executables run one after another in the order of their names, as root;
//! until when. Out: how many ran, and the first that failed. What they say goes to the console,
//! each line with the hook's name before it.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use crate::bounded;
use crate::identity::Identity;
use crate::spawn::Spawn;

/// Below this the directories of hooks are.
const DIR: &str = "/etc/hearth";

/// When hooks run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// The guest is a fork, and has become itself.
    Fork,
    /// The guest's memory has come back; after those of a fork.
    Restore,
}

impl When {
    fn dir(self) -> &'static str {
        match self {
            Self::Fork => "on-fork.d",
            Self::Restore => "on-restore.d",
        }
    }
}

/// One that can be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hook {
    /// Its directory's name, and its own.
    name: String,
}

/// Whether the image has any. Asked first, since most have none: one look at a path.
pub fn any() -> bool {
    fs::metadata(DIR).is_ok()
}

/// Those of a directory, in their order.
pub fn list(when: When) -> Result<Vec<Hook>, String> {
    list_in(DIR, when)
}

fn list_in(base: &str, when: When) -> Result<Vec<Hook>, String> {
    let dir = format!("{base}/{}", when.dir());
    let entries = match fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(format!("list {dir}: {error}")),
    };
    let mut hooks = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("list {dir}: {error}"))?;
        let executable = |found: fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        if let Ok(name) = entry.file_name().into_string()
            && !name.starts_with('.')
            && fs::metadata(entry.path()).is_ok_and(executable)
        {
            hooks.push(Hook { name: format!("{}/{name}", when.dir()) });
        }
    }
    hooks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(hooks)
}

impl Hook {
    /// Runs it. `env` is what the program has; what it is told of who it is comes on top.
    pub fn run(&self, identity: &Identity, env: &[String], deadline: Instant) -> Result<(), String> {
        self.run_in(DIR, identity, env, deadline)
    }

    fn run_in(&self, base: &str, identity: &Identity, env: &[String], deadline: Instant) -> Result<(), String> {
        let path = format!("{base}/{}", self.name);
        let failed = |why: String| format!("run hook {path}: {why}");
        if Instant::now() >= deadline {
            return Err(failed("no time was left for it".to_owned()));
        }
        let own = [
            format!("HEARTH_GENERATION={}", identity.generation),
            format!("HEARTH_INSTANCE_ID={}", identity.instance_id),
            format!("HEARTH_HOSTNAME={}", identity.hostname),
        ];
        let argv = [path.clone()];
        let env = env.iter().chain(&own).map(String::as_str).collect();
        let ended =
            bounded::run(&Spawn { argv: &argv, env, cwd: "/", user: "", terminal: false }, deadline).map_err(failed)?;
        self.tell(&ended.output);
        ended.success().map_err(failed)
    }

    /// Its words, on the console.
    fn tell(&self, output: &[u8]) {
        let text = String::from_utf8_lossy(output);
        let lines: String = text.lines().map(|line| format!("[{}] {line}\n", self.name)).collect();
        // A console that takes nothing has nobody to miss it.
        let _ = rustix::io::write(rustix::stdio::stdout(), lines.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn hook(base: &Path, name: &str, mode: u32, script: &str) {
        let path = base.join("on-fork.d").join(name);
        fs::create_dir_all(path.parent().expect("below")).expect("made");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("set");
    }

    #[test]
    fn executables_run_in_the_order_of_their_names_and_know_who_they_are() {
        let dir = tempfile::tempdir().expect("a directory");
        let (base, seen) = (dir.path(), dir.path().join("seen"));
        let say = format!("echo $0 $HEARTH_GENERATION $HEARTH_INSTANCE_ID $HEARTH_HOSTNAME $A >> {}", seen.display());
        hook(base, "20-second", 0o755, &say);
        hook(base, "10-first", 0o755, &say);
        hook(base, "15-not-executable", 0o644, &say);
        hook(base, ".hidden", 0o755, &say);
        hook(base, "30-fails", 0o755, "echo the reason; exit 4");
        fs::create_dir(base.join("on-fork.d/40-directory")).expect("made");
        let base_name = base.to_str().expect("text");
        let hooks = list_in(base_name, When::Fork).expect("listed");
        assert_eq!(hooks.len(), 3, "{hooks:?}");
        assert_eq!(list_in(base_name, When::Restore), Ok(Vec::new()));

        let identity = Identity { hostname: "h".into(), instance_id: "i".into(), generation: 7, ..Identity::default() };
        let deadline = Instant::now() + Duration::from_secs(20);
        let run = |hook: &Hook| hook.run_in(base_name, &identity, &["A=1".to_owned()], deadline);
        assert_eq!((run(&hooks[0]), run(&hooks[1])), (Ok(()), Ok(())));
        let told = fs::read_to_string(&seen).expect("read");
        assert_eq!(told, format!("{0}/10-first 7 i h 1\n{0}/20-second 7 i h 1\n", base.join("on-fork.d").display()));
        let why = run(&hooks[2]).expect_err("it fails");
        assert!(why.ends_with("on-fork.d/30-fails: exited with code 4; it said: the reason"), "{why}");
        let late = hooks[0].run_in(base_name, &identity, &[], Instant::now()).expect_err("too late");
        assert!(late.ends_with("10-first: no time was left for it"), "{late}");
    }
}
