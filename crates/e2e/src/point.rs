//! Where within an operation the daemon is killed: at what can be seen of its effects, or between two.
//!
//! Seen, by inotify, are names that come and go below the data directory, among the cgroups of its VMMs
//! and among the host's namespaces; files there that were written to their end; and writes of records.
//! An undisturbed run tells which changes an operation makes and when: from these the points are
//! chosen, spread over all of it. What goes by netlink or inside of a VMM leaves no name: points between
//! two changes fall there.

use std::collections::BTreeMap;
use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};
use rustix::process::{Pid, Signal, kill_process};

/// Names that come and go, and files that were written to their end.
const NAMES: WatchFlags = WatchFlags::CREATE
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVED_FROM)
    .union(WatchFlags::MOVED_TO)
    .union(WatchFlags::CLOSE_WRITE)
    .union(WatchFlags::ONLYDIR);
/// Where records are written to.
const RECORDS: &str = "state.db-wal";
/// The same again within this is one change: a record takes several writes.
const ONE: Duration = Duration::from_millis(2);
/// A gap between two changes that is worth a point of its own.
const GAP: Duration = Duration::from_millis(5);
/// How often it is looked whether the watch has ended.
const PAUSE: Duration = Duration::from_millis(5);

/// Something that was seen to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened to which file.
    pub what: String,
    /// When, from the beginning of the watch.
    pub at: Duration,
}

/// Where a kill comes: after so many changes, and so long after the last of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Point {
    /// How many changes are seen before.
    pub changes: usize,
    /// How long it waits then; nothing for most.
    pub then: Duration,
}

impl Point {
    /// So many points of an operation that makes these changes and has ended after `end`: at each change,
    /// and at a random moment of each gap that is long enough. Where there are more, one is drawn from
    /// each of as many equal parts.
    pub fn of(changes: &[Change], end: Duration, many: usize, random: &mut fastrand::Rng) -> Vec<Self> {
        let mut all = Vec::new();
        let mut last = Duration::ZERO;
        for (nth, next) in changes.iter().map(|change| change.at).chain([end]).enumerate() {
            if nth > 0 {
                all.push(Self { changes: nth, then: Duration::ZERO });
            }
            let gap = next.saturating_sub(last);
            if gap >= GAP {
                all.push(Self { changes: nth, then: gap.mul_f64(random.f64()) });
            }
            last = next;
        }
        let parts = many.min(all.len());
        (0..parts).map(|part| all[random.usize(part * all.len() / parts..(part + 1) * all.len() / parts)]).collect()
    }
}

/// A watch over what the daemon changes, which may kill it.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<Result<Vec<Change>>>,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    ends: AtomicBool,
    killed: AtomicBool,
}

impl Watch {
    /// From now on, on what is below `data` and whatever in `others` begins so.
    pub(crate) fn begin(data: &Path, others: &[(PathBuf, String)], kill: Option<(Pid, Point)>) -> Result<Self> {
        let mut eyes = Eyes::new()?;
        // Nothing else there is changed by operations; whoever reads the records opens them too.
        eyes.add(data, WatchFlags::MODIFY, Some(RECORDS.into()))?;
        for entry in fs::read_dir(data).context("list the data directory")?.flatten() {
            if ["instances", "snapshots", "imports", "images"].iter().any(|name| entry.file_name() == *name) {
                eyes.add_all(&entry.path())?;
            }
        }
        for (dir, prefix) in others.iter().filter(|(dir, _)| dir.is_dir()) {
            eyes.add(dir, NAMES, Some(prefix.clone()))?;
        }
        let state = Arc::new(State::default());
        let thread = std::thread::spawn({
            let state = Arc::clone(&state);
            move || eyes.look(&state, kill)
        });
        Ok(Self { thread, state })
    }

    /// Waits until the kill has come, for so long at most; whether it has.
    pub async fn kills_within(&self, limit: Duration) -> bool {
        let until = Instant::now() + limit;
        while !self.state.killed.load(Ordering::Acquire) && Instant::now() < until {
            tokio::time::sleep(PAUSE).await;
        }
        self.state.killed.load(Ordering::Acquire)
    }

    /// What has changed, until the kill or until now.
    ///
    /// # Errors
    /// It could not be watched.
    pub fn end(self) -> Result<Vec<Change>> {
        self.state.ends.store(true, Ordering::Release);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(_) => bail!("the watch has panicked"),
        }
    }
}

/// The directories that are looked at.
#[derive(Debug)]
struct Eyes {
    inotify: rustix::fd::OwnedFd,
    dirs: BTreeMap<i32, Dir>,
}

#[derive(Debug, Clone)]
struct Dir {
    path: PathBuf,
    /// Where others have names too: how ours begin.
    prefix: Option<String>,
    /// Whether what is made in it is looked at too.
    below: bool,
}

impl Eyes {
    fn new() -> Result<Self> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).context("begin to watch")?;
        Ok(Self { inotify, dirs: BTreeMap::new() })
    }

    fn add(&mut self, path: &Path, what: WatchFlags, prefix: Option<String>) -> Result<()> {
        let watch = inotify::add_watch(&self.inotify, path, what);
        let watch = watch.with_context(|| format!("watch {}", path.display()))?;
        self.dirs.insert(watch, Dir { path: path.to_owned(), prefix, below: false });
        Ok(())
    }

    /// With all that is below it; what is gone again is not looked at.
    fn add_all(&mut self, path: &Path) -> Result<()> {
        let watch = match inotify::add_watch(&self.inotify, path, NAMES) {
            Ok(watch) => watch,
            Err(rustix::io::Errno::NOENT) => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("watch {}", path.display())),
        };
        self.dirs.insert(watch, Dir { path: path.to_owned(), prefix: None, below: true });
        let inside = fs::read_dir(path).into_iter().flatten().flatten();
        inside.map(|entry| entry.path()).filter(|path| path.is_dir()).try_for_each(|path| self.add_all(&path))
    }

    fn look(mut self, state: &State, kill: Option<(Pid, Point)>) -> Result<Vec<Change>> {
        let began = Instant::now();
        let mut changes: Vec<Change> = Vec::new();
        // When the daemon is to die, once enough has changed.
        let mut due = None;
        loop {
            if let Some((pid, point)) = kill {
                if due.is_none() && changes.len() >= point.changes {
                    due = Some(began.elapsed() + point.then);
                }
                if due.is_some_and(|due| began.elapsed() >= due) {
                    kill_process(pid, Signal::KILL).context("kill the daemon")?;
                    state.killed.store(true, Ordering::Release);
                    return Ok(changes);
                }
            }
            if state.ends.load(Ordering::Acquire) {
                return Ok(changes);
            }
            let pause = due.map_or(PAUSE, |due| due.saturating_sub(began.elapsed()).min(PAUSE));
            let pause = rustix::event::Timespec { tv_sec: 0, tv_nsec: pause.subsec_nanos().into() };
            poll(&mut [PollFd::new(&self.inotify, PollFlags::IN)], Some(&pause)).context("wait for a change")?;
            for what in self.read()? {
                let at = began.elapsed();
                let again = changes.last().is_some_and(|last| last.what == what && at < last.at + ONE);
                if !again {
                    changes.push(Change { what, at });
                }
                // One after another: the next may be what the kill is for.
                if kill.is_some_and(|(_, point)| changes.len() >= point.changes) {
                    break;
                }
            }
        }
    }

    /// What has happened since.
    fn read(&mut self) -> Result<Vec<String>> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let (mut seen, mut made) = (Vec::new(), Vec::new());
        let mut reader = inotify::Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(rustix::io::Errno::WOULDBLOCK) => break,
                Err(error) => return Err(error).context("read what has changed"),
            };
            let (Some(dir), Some(name)) = (self.dirs.get(&event.wd()), event.file_name()) else { continue };
            let name = name.to_string_lossy();
            let ours = dir.prefix.as_ref().is_none_or(|prefix| name.starts_with(prefix.as_str()));
            if !ours {
                continue;
            }
            let path = dir.path.join(name.as_ref());
            let (events, comes) = (event.events(), ReadFlags::CREATE | ReadFlags::MOVED_TO);
            if dir.below && events.contains(ReadFlags::ISDIR) && events.intersects(comes) {
                made.push(path.clone());
            }
            seen.push(format!("{} {}", verb(events), path.display()));
        }
        made.iter().try_for_each(|path| self.add_all(path))?;
        Ok(seen)
    }
}

fn verb(events: ReadFlags) -> &'static str {
    let verbs = [
        (ReadFlags::CREATE, "made"),
        (ReadFlags::DELETE, "removed"),
        (ReadFlags::MOVED_FROM, "moved from"),
        (ReadFlags::MOVED_TO, "moved to"),
        (ReadFlags::CLOSE_WRITE, "written"),
        (ReadFlags::MODIFY, "recorded in"),
    ];
    verbs.iter().find(|(flag, _)| events.contains(*flag)).map_or("changed", |(_, verb)| verb)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_spread_over_changes_and_long_gaps() {
        let at = |ms| Change { what: "made x".into(), at: Duration::from_millis(ms) };
        let (changes, end) = ([at(20), at(21), at(22)], Duration::from_millis(122));
        let mut random = fastrand::Rng::with_seed(7);
        let all = Point::of(&changes, end, usize::MAX, &mut random);
        assert_eq!(all.iter().map(|point| point.changes).collect::<Vec<_>>(), [0, 1, 2, 3, 3]);
        let pauses: Vec<_> = all.iter().map(|point| point.then > Duration::ZERO).collect();
        assert_eq!(pauses, [true, false, false, false, true]);
        assert!(all[4].then < Duration::from_millis(100), "{all:?}");

        let two = Point::of(&changes, end, 2, &mut random);
        assert!(matches!(two[..], [Point { changes: 0..=1, .. }, Point { changes: 2..=3, .. }]), "{two:?}");
        let again = |seed| Point::of(&changes, end, 2, &mut fastrand::Rng::with_seed(seed));
        assert_eq!(again(3), again(3), "the same seed draws the same");
    }

    #[test]
    fn what_changes_is_seen_also_in_what_is_new() {
        let dir = tempfile::tempdir().expect("a directory");
        let instances = dir.path().join("instances");
        fs::create_dir(&instances).expect("made");
        let watch = Watch::begin(dir.path(), &[], None).expect("watched");
        fs::write(dir.path().join(RECORDS), "x").expect("written");
        fs::create_dir(instances.join(".new-i")).expect("made");
        fs::rename(instances.join(".new-i"), instances.join("i")).expect("put in place");
        std::thread::sleep(Duration::from_millis(50));
        fs::write(instances.join("i/memory"), "x").expect("written");
        fs::remove_file(instances.join("i/memory")).expect("removed");
        std::thread::sleep(Duration::from_millis(50));
        let seen: Vec<String> = watch.end().expect("it went well").into_iter().map(|change| change.what).collect();
        for (what, name) in [
            ("recorded in", RECORDS),
            ("moved to", "instances/i"),
            ("made", "instances/i/memory"),
            ("removed", "instances/i/memory"),
        ] {
            let wanted = format!("{what} {}", dir.path().join(name).display());
            assert!(seen.contains(&wanted), "{wanted}: {seen:#?}");
        }
    }

    #[test]
    fn a_process_is_killed_when_enough_has_changed() {
        let dir = tempfile::tempdir().expect("a directory");
        let instances = dir.path().join("instances");
        fs::create_dir(&instances).expect("made");
        let mut victim = std::process::Command::new("sleep").arg("60").spawn().expect("sleep runs");
        let pid = Pid::from_raw(victim.id().cast_signed()).expect("a pid");
        let point = Point { changes: 2, then: Duration::from_millis(10) };
        let watch = Watch::begin(dir.path(), &[], Some((pid, point))).expect("watched");
        fs::create_dir(instances.join("one")).expect("made");
        std::thread::sleep(Duration::from_millis(50));
        assert!(victim.try_wait().expect("looked").is_none(), "one change is not enough");
        fs::create_dir(instances.join("two")).expect("made");
        assert!(!victim.wait().expect("it ends").success());
        assert_eq!(watch.end().expect("it went well").len(), 2);
    }
}
