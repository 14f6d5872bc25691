//! A cgroup for each VMM, below one of the data directory's.
//!
//! ```text
//!   <mount of version 2>/hearth-var-lib-hearth/     there while a daemon has started VMMs, or a VMM is there
//!       <name of the VMM's directory>/              made before the VMM, which is cloned into it
//! ```
//! So whoever ends the daemon's service by its cgroup does not end VMMs; what a VMM uses can be told,
//! and what it leaves running can be ended.
//!
//! Whether the kernel killed somebody in there for want of memory is told where its parent passes the
//! memory controller on, which is the host's business: none is turned on here.
//!
//! Version 2 only: moving a process into a cgroup of version 1 takes longer than all else that a
//! restore waits for. Where there is no version 2, or nobody may write to it, VMMs are in the daemon's
//! cgroup, and the reason is told.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::fault::KillError;
use crate::process;

/// How often it is tried to remove a cgroup that somebody is still in: a process that was killed
/// leaves soon.
const TRIES: u32 = 6;
/// Before the second of them; twice as long before each one after it.
const PAUSE: Duration = Duration::from_millis(2);

/// The name of a parent that is longer keeps its end.
const LONGEST: usize = 200;

/// Where VMMs get their cgroups. A clone is the same place.
#[derive(Debug, Clone)]
pub struct Cgroups {
    parent: Result<Arc<Parent>, Arc<str>>,
}

/// The directory of them. It goes with the last who could make one in it, if nobody is in one: made for each VMM
/// that is alone on its host, it would be on the way of each restore.
#[derive(Debug)]
struct Parent(PathBuf);

impl Parent {
    fn remove(&self) {
        if let Err(error) = remove_empty(&self.0) {
            tracing::warn!(cgroup = %self.0.display(), %error, "the cgroup of all VMMs stays");
        }
    }
}

impl Drop for Parent {
    fn drop(&mut self) {
        self.remove();
    }
}

/// One that was made for a VMM that is about to start.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    dir: File,
}

/// What [`Cgroups::sweep`] did.
#[derive(Debug, Default)]
pub struct SweptCgroups {
    /// How many it removed.
    pub removed: usize,
    /// Those that it could not remove, and why not.
    pub failed: Vec<(PathBuf, io::Error)>,
}

impl Default for Cgroups {
    fn default() -> Self {
        Self::none("none was asked for")
    }
}

impl Cgroups {
    /// VMMs are in the daemon's, because of `why`.
    #[must_use]
    pub fn none(why: &str) -> Self {
        Self { parent: Err(why.into()) }
    }

    /// Looks for a place for the VMMs of a data directory, and tries it out with a process.
    #[must_use]
    pub fn of(data_dir: &Path) -> Self {
        let found = mount().and_then(|mount| {
            let this = Self { parent: Ok(Arc::new(Parent(mount.join(name(data_dir))))) };
            this.try_out().map(|()| this)
        });
        found.unwrap_or_else(|why| Self::none(&why))
    }

    /// The directory that they are made in, or why there is none.
    ///
    /// # Errors
    /// The reason, for people.
    pub fn parent(&self) -> Result<&Path, &str> {
        self.parent.as_ref().map(|parent| parent.0.as_path()).map_err(|why| &**why)
    }

    /// Removes those that nobody is in: what VMMs left that ended while no daemon ran. One that cannot
    /// be removed keeps no other. To be called while none is being started.
    ///
    /// # Errors
    /// They cannot be listed.
    pub fn sweep(&self) -> io::Result<SweptCgroups> {
        let mut swept = SweptCgroups::default();
        let Ok(parent) = self.parent() else { return Ok(swept) };
        let entries = match fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(swept),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if !entry.file_type()?.is_dir() {
                continue;
            }
            match remove_empty(&entry.path()) {
                Ok(removed) => swept.removed += usize::from(removed),
                Err(error) => swept.failed.push((entry.path(), error)),
            }
        }
        Ok(swept)
    }

    /// Removes the directory of them, if nobody is in one: a daemon that ends makes no more.
    pub fn close(&self) {
        if let Ok(parent) = &self.parent {
            parent.remove();
        }
    }

    /// That of the VMM in a directory, whether it is there or not.
    pub(crate) fn path(&self, dir: &Path) -> Option<PathBuf> {
        Some(self.parent().ok()?.join(dir.file_name()?))
    }

    /// Makes one for a VMM in `dir`. None where they cannot be had: a VMM is not kept from starting
    /// for want of a cgroup.
    pub(crate) fn make(&self, dir: &Path) -> Option<Cgroup> {
        let path = self.path(dir)?;
        let made = make(&path).and_then(|()| Ok(Cgroup { dir: File::open(&path)?, path: path.clone() }));
        made.inspect_err(|error| tracing::warn!(cgroup = %path.display(), %error, "no cgroup for this VMM")).ok()
    }

    /// Removes that of the VMM in `dir`, which has ended, and ends what it left in there. Not there
    /// is success.
    pub(crate) async fn remove(&self, dir: &Path) -> Result<(), KillError> {
        match self.path(dir) {
            Some(path) => remove(&path).await,
            None => Ok(()),
        }
    }

    /// Starts a process in a cgroup that is made for it.
    fn try_out(&self) -> Result<(), String> {
        let Some(program) = process::look_up(Path::new("true")) else { return Ok(()) };
        let path = self.path(Path::new(&format!("try-{}", std::process::id()))).ok_or("no name for a cgroup")?;
        make(&path).map_err(|error| format!("make {}: {error}", path.display()))?;
        let tried = File::open(&path).and_then(|dir| process::try_in_cgroup(&program, dir.as_fd()));
        let removed = remove_empty(&path).and_then(|_| path.parent().map_or(Ok(true), remove_empty));
        tried.map_err(|error| format!("start a process in {}: {error}", path.display()))?;
        removed.map(drop).map_err(|error| format!("remove {}: {error}", path.display()))
    }
}

impl Cgroup {
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Nobody was started in it.
    pub(crate) fn discard(self) {
        if let Err(error) = remove_empty(&self.path) {
            tracing::warn!(cgroup = %self.path.display(), %error, "a cgroup that nobody is in stays");
        }
    }
}

/// Makes a cgroup, and the one above it where that is not there.
fn make(path: &Path) -> io::Result<()> {
    for _ in 0..TRIES {
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            result => return result,
        }
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        if let Err(error) = fs::create_dir(parent)
            && error.kind() != io::ErrorKind::AlreadyExists
        {
            return Err(error);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Whether the kernel has killed somebody in a cgroup for want of memory. Nobody knows where the
/// memory controller is not in it: then it is told that it has not.
pub(crate) fn ran_out_of_memory(path: &Path) -> bool {
    let events = fs::read_to_string(path.join("memory.events")).unwrap_or_default();
    events.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count.trim() != "0")
}

/// Removes a VMM's cgroup after its end, with what it left in there.
pub(crate) async fn remove(path: &Path) -> Result<(), KillError> {
    let failed = |source| KillError::Cgroup { path: path.to_owned(), source };
    for nth in 0..TRIES {
        if remove_empty(path).map_err(failed)? {
            return Ok(());
        }
        // Where the kernel has no such file (before 5.14), what is left is named in the error.
        fs::write(path.join("cgroup.kill"), "1").ok();
        tokio::time::sleep(PAUSE * 2_u32.pow(nth)).await;
    }
    Err(failed(io::ErrorKind::ResourceBusy.into()))
}

/// Removes a cgroup; false if somebody is in it, or below it. Not there is success.
fn remove_empty(path: &Path) -> io::Result<bool> {
    match fs::remove_dir(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where version 2 is mounted, alone or beside version 1.
fn mount() -> Result<PathBuf, String> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|error| format!("read the mounts: {error}"))?;
    mounts.lines().find_map(mounted_at).ok_or_else(|| "cgroups of version 2 are not mounted".to_owned())
}

/// The mount point in a line of mountinfo, if version 2 is mounted there.
fn mounted_at(line: &str) -> Option<PathBuf> {
    let (mount, kind) = line.split_once(" - ")?;
    (kind.split(' ').next()? == "cgroup2").then(|| mount.split(' ').nth(4).map(PathBuf::from))?
}

/// The parent's name: the data directory's path, without what a file's name cannot hold.
fn name(data_dir: &Path) -> String {
    let path = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let mut name = String::new();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'/' => name.push('-'),
            byte if byte.is_ascii_alphanumeric() || b"._".contains(byte) => name.push(char::from(*byte)),
            byte => name.push_str(&format!("\\x{byte:02x}")),
        }
    }
    format!("hearth{}", &name[name.len().saturating_sub(LONGEST)..])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Process;

    #[test]
    fn version_2_is_found_alone_and_beside_version_1() {
        let alone = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate";
        let beside = "35 30 0:30 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let first = "36 30 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory";
        assert_eq!(mounted_at(alone), Some("/sys/fs/cgroup".into()));
        assert_eq!(mounted_at(beside), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mounted_at(first), None);
        assert_eq!(mounted_at("garbled"), None);
    }

    #[test]
    fn two_data_directories_have_two_names() {
        assert_eq!(name(Path::new("/var/lib/no hearth")), "hearth-var-lib-no\\x20hearth");
        assert_ne!(name(Path::new("/not/there-is")), name(Path::new("/not/there/is")));
        assert!(name(Path::new(&"/long".repeat(100))).len() < 255);
    }

    /// A data directory, and a place for its cgroups; `None`, loudly, where there is none.
    fn place() -> Option<(tempfile::TempDir, Cgroups)> {
        let dir = tempfile::tempdir().expect("a directory");
        let cgroups = Cgroups::of(dir.path());
        match cgroups.parent() {
            Ok(parent) => assert!(!parent.exists(), "trying it out leaves nothing"),
            Err(why) => {
                println!("SKIPPED: no cgroups here: {why}");
                return None;
            }
        }
        Some((dir, cgroups))
    }

    fn start(cgroups: &Cgroups, dir: &Path, line: &str) -> Process {
        let program = process::Program { cgroup: cgroups.make(dir), ..process::tests::shell(dir, line) };
        assert!(program.cgroup.is_some());
        process::start(program).expect("a shell starts")
    }

    #[tokio::test]
    async fn a_vmm_s_cgroup_goes_with_it_and_with_what_it_has_left_running() {
        let Some((dir, cgroups)) = place() else { return };
        let path = cgroups.path(dir.path()).expect("a name");
        let process = start(&cgroups, dir.path(), "sleep 60 & echo $!; exec sleep 60");
        let out = dir.path().join("out");
        while !fs::read_to_string(&out).expect("its output").ends_with('\n') {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let child: u32 = fs::read_to_string(&out).expect("its output").trim().parse().expect("a pid");
        let inside = fs::read_to_string(path.join("cgroup.procs")).expect("listed");
        assert_eq!(inside.lines().count(), 2, "{inside}");

        cgroups.sweep().expect("swept");
        assert!(path.exists(), "somebody is in it");
        crate::ending::end(&process).await.expect("ends");
        assert!(!path.exists());
        assert!(process::stat(child).expect("could look").is_none_or(|stat| stat.dead), "nothing of it runs on");
        cgroups.remove(dir.path()).await.expect("not there is success");
        let parent = cgroups.parent().expect("there is one").to_owned();
        let another = cgroups.clone();
        drop(cgroups);
        assert!(parent.exists(), "more may be started");
        drop(another);
        assert!(!parent.exists(), "it was the last one");
    }

    #[tokio::test]
    async fn what_was_made_for_nobody_is_swept() {
        let Some((dir, cgroups)) = place() else { return };
        let path = cgroups.make(dir.path()).expect("made").path().to_owned();
        drop(cgroups.make(dir.path()).expect("there already is success"));
        assert!(path.exists());
        let swept = cgroups.sweep().expect("swept");
        assert_eq!((swept.removed, swept.failed.len()), (1, 0));
        assert!(!path.exists());
        let program = process::Program {
            path: "/no/such/program".into(),
            cgroup: cgroups.make(dir.path()),
            ..process::tests::shell(dir.path(), "")
        };
        process::start(program).expect_err("there is no such program");
        assert!(!path.exists());
        cgroups.close();
        assert!(!cgroups.parent().expect("there is one").exists());
    }

    #[test]
    fn one_that_cannot_be_removed_keeps_no_other() {
        // Directories of files: what is in one keeps it, and is not a process that will leave.
        let dir = tempfile::tempdir().expect("a directory");
        for name in ["a", "b", "c"] {
            fs::create_dir_all(dir.path().join(name)).expect("made");
        }
        fs::write(dir.path().join("b/file"), "").expect("written");
        let swept = Cgroups { parent: Ok(Arc::new(Parent(dir.path().into()))) }.sweep().expect("listed");
        assert_eq!(swept.removed, 2);
        let failed: Vec<_> = swept.failed.into_iter().map(|(path, _)| path).collect();
        assert_eq!(failed, [dir.path().join("b")]);
    }

    #[test]
    fn an_oom_kill_is_read_where_there_is_something_to_read() {
        let dir = tempfile::tempdir().expect("a directory");
        assert!(!ran_out_of_memory(dir.path()), "nobody tells");
        for (events, told) in [
            ("low 0\nhigh 0\nmax 12\noom 1\noom_kill 0\noom_group_kill 0\n", false),
            ("low 0\nhigh 0\nmax 12\noom 1\noom_kill 1\noom_group_kill 0\n", true),
            ("garbled", false),
        ] {
            fs::write(dir.path().join("memory.events"), events).expect("written");
            assert_eq!(ran_out_of_memory(dir.path()), told, "{events}");
        }
    }

    #[tokio::test]
    async fn without_cgroups_nothing_is_made() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = Cgroups::none("a test");
        assert_eq!(none.parent(), Err("a test"));
        assert!(none.make(dir.path()).is_none());
        none.remove(dir.path()).await.expect("nothing to remove");
        none.sweep().expect("nothing to sweep");
    }
}
