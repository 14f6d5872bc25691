//! The counters of many guests, watched from outside: none may stop, skip or fall back.
//!
//! A thread reads what the guests' consoles leave in their directories, whatever the daemon does or
//! whether there is one.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use hearth_e2e::{eventually, slowness};

/// How often the consoles are read.
const PAUSE: Duration = Duration::from_millis(20);
/// How long a guest that ticks 20 times a second may be without a tick. Other things run on the host.
const STANDS_STILL: Duration = Duration::from_secs(15);

/// The counters that are watched. Dropping it ends the watch.
#[derive(Debug)]
pub(crate) struct Counters {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    watched: Mutex<BTreeMap<String, Counter>>,
    wrong: Mutex<Vec<String>>,
    longest: Mutex<Duration>,
    ends: AtomicBool,
}

#[derive(Debug)]
struct Counter {
    console: PathBuf,
    read: u64,
    line: Vec<u8>,
    tick: Option<u64>,
    since: Instant,
}

impl Counters {
    pub(crate) fn watch() -> Self {
        let shared = Arc::new(Shared::default());
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || shared.look_again_and_again()
        });
        Self { shared, thread: Some(thread) }
    }

    /// From now on that guest's counter must go on.
    pub(crate) fn follow(&self, id: &str, dir: &Path) {
        let console = dir.join("serial.log");
        let counter = Counter { console, read: 0, line: Vec::new(), tick: None, since: Instant::now() };
        lock(&self.shared.watched).entry(id.to_owned()).or_insert(counter);
    }

    /// That guest is about to end.
    pub(crate) fn leave(&self, id: &str) {
        lock(&self.shared.watched).remove(id);
    }

    /// Waits until every guest that is watched has counted on from where it is now.
    pub(crate) async fn all_go_on(&self) -> Result<()> {
        let stood = self.ticks();
        eventually("every guest counts on", async || {
            self.nothing_is_wrong()?;
            let now = self.ticks();
            Ok(stood.iter().all(|(id, tick)| now.get(id).is_none_or(|now| now > tick)))
        })
        .await
    }

    pub(crate) fn nothing_is_wrong(&self) -> Result<()> {
        let wrong = lock(&self.shared.wrong);
        ensure!(wrong.is_empty(), "{}", wrong.join("; "));
        Ok(())
    }

    /// The longest time that any guest was without a tick.
    pub(crate) fn longest_pause(&self) -> Duration {
        *lock(&self.shared.longest)
    }

    fn ticks(&self) -> BTreeMap<String, Option<u64>> {
        lock(&self.shared.watched).iter().map(|(id, counter)| (id.clone(), counter.tick)).collect()
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it found wrong is told by now; that it panicked is too, by itself.
            thread.join().ok();
        }
    }
}

impl Shared {
    fn look_again_and_again(&self) {
        while !self.ends.load(Ordering::Relaxed) {
            // One at a time: whoever leaves a guest is not made to wait for all of them.
            let ids: Vec<String> = lock(&self.watched).keys().cloned().collect();
            for id in ids {
                let mut watched = lock(&self.watched);
                let Some(counter) = watched.get_mut(&id) else { continue };
                match counter.look() {
                    Ok(pause) => {
                        let mut longest = lock(&self.longest);
                        *longest = pause.max(*longest);
                    }
                    Err(error) => {
                        lock(&self.wrong).push(format!("the guest of {id}: {error:#}"));
                        watched.remove(&id);
                    }
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
}

impl Counter {
    /// Reads on, and returns how long there was no tick.
    fn look(&mut self) -> Result<Duration> {
        let mut file = File::open(&self.console)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut new = Vec::new();
        self.read += file.read_to_end(&mut new)? as u64;
        self.line.extend_from_slice(&new);
        let mut ticked = false;
        while let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            if let Some(tick) = tick(&line) {
                self.take(tick)?;
                ticked = true;
            }
        }
        let pause = self.since.elapsed();
        if ticked {
            self.since = Instant::now();
        }
        ensure!(pause < STANDS_STILL * slowness(), "it stands at {:?} for {} s", self.tick, pause.as_secs());
        Ok(pause)
    }

    fn take(&mut self, tick: u64) -> Result<()> {
        match self.tick.replace(tick) {
            None => Ok(()),
            Some(before) if tick == before + 1 => Ok(()),
            Some(before) => bail!("after tick {before} came tick {tick}"),
        }
    }
}

/// A fork's first line may be the end of one that its source had begun.
fn tick(line: &[u8]) -> Option<u64> {
    std::str::from_utf8(line).ok()?.strip_prefix("tick ")?.trim_end().parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
