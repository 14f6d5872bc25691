//! Snapshots that somebody is loading right now: their removal waits until the last pin is gone.
//!
//! Once loaded, an instance holds hard links to what it needs; a pin is held for milliseconds.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use hearth_model::SnapshotId;
use tokio::sync::Notify;

#[derive(Debug, Clone, Default)]
pub(crate) struct Pins {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    held: Mutex<HashMap<SnapshotId, usize>>,
    released: Notify,
}

/// While this lives, the snapshot's files stay.
#[derive(Debug)]
pub(crate) struct Pin {
    snapshot: SnapshotId,
    inner: Arc<Inner>,
}

impl Pins {
    pub(crate) fn pin(&self, snapshot: &SnapshotId) -> Pin {
        *lock(&self.inner).entry(snapshot.clone()).or_insert(0) += 1;
        Pin { snapshot: snapshot.clone(), inner: Arc::clone(&self.inner) }
    }

    /// Resolves when nobody pins the snapshot.
    pub(crate) async fn free(&self, snapshot: &SnapshotId) {
        loop {
            let released = self.inner.released.notified();
            if !lock(&self.inner).contains_key(snapshot) {
                return;
            }
            released.await;
        }
    }
}

impl Pin {
    pub(crate) fn snapshot(&self) -> &SnapshotId {
        &self.snapshot
    }
}

#[cfg(test)]
impl Pins {
    /// What the death of the daemon does.
    pub(crate) fn forget_all(&self) {
        lock(&self.inner).clear();
        self.inner.released.notify_waiters();
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut held = lock(&self.inner);
        if let Some(count) = held.get_mut(&self.snapshot) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.snapshot);
            }
        }
        drop(held);
        self.inner.released.notify_waiters();
    }
}

fn lock(inner: &Inner) -> std::sync::MutexGuard<'_, HashMap<SnapshotId, usize>> {
    inner.held.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn removal_waits_for_the_last_pin() {
        let pins = Pins::default();
        let id = SnapshotId::from_entropy([1; 16]);
        let (first, second) = (pins.pin(&id), pins.pin(&id));
        let waiting = tokio::spawn({
            let (pins, id) = (pins.clone(), id.clone());
            async move { pins.free(&id).await }
        });
        drop(first);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(second);
        waiting.await.expect("no panic");
        pins.free(&id).await;
    }
}
