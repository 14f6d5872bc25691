//! What is made and removed in the background: slots for the pool, and those that were released.
//!
//! Each take, and each slot that was made, looks whether more are wanted. All of it waits for a quiet
//! moment, off the way of whoever takes a slot or opens its gate.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_model::error::chain;

use super::{Inner, blocking};
use crate::slot::{self, MADE_AT_ONCE, Slot};

/// Making and removing devices keeps the kernel's one lock of all network changes for milliseconds at
/// a time. So the background waits until no instance has been on its way for this long,
const QUIET: Duration = Duration::from_millis(20);
/// or until it has waited this long.
const PATIENCE: Duration = Duration::from_secs(1);

/// Makes more slots for the pool, if more are wanted.
pub(super) fn refill(inner: &Arc<Inner>) {
    loop {
        let number = {
            let mut state = inner.lock();
            let enough = state.pool.len() + state.being_made >= inner.config.pool;
            if state.closed || enough || state.being_made >= MADE_AT_ONCE {
                return;
            }
            state.being_made += 1;
            state.number()
        };
        in_background(inner, move |inner| {
            let made = if inner.lock().closed { None } else { Some(Slot::make(&inner.ground, number)) };
            let mut state = inner.lock();
            state.being_made -= 1;
            match made {
                None => {}
                Some(Ok(slot)) if state.closed => {
                    drop(state);
                    drop(slot);
                    slot::remove_or_say(&inner.ground, &[number]);
                }
                Some(Ok(slot)) => {
                    state.pool.push_back(slot);
                    drop(state);
                    refill(inner);
                }
                Some(Err(error)) => {
                    drop(state);
                    // The next take tries again, and tells its caller if that fails too.
                    let error = chain(&error);
                    tracing::warn!(error, "a slot could not be made ahead");
                }
            }
        });
    }
}

/// Removes slots, together with all that are released until then.
pub(super) fn remove_later(inner: &Arc<Inner>, slots: impl IntoIterator<Item = Arc<Slot>>) {
    let begun = {
        let mut state = inner.lock();
        let begun = !state.leaving.is_empty();
        state.leaving.extend(slots);
        begun || state.leaving.is_empty()
    };
    if begun {
        return;
    }
    in_background(inner, |inner| {
        let leaving = std::mem::take(&mut inner.lock().leaving);
        let numbers: Vec<u32> = leaving.iter().map(|slot| slot.number).collect();
        // Their sockets would keep the namespaces.
        drop(leaving);
        slot::remove_or_say(&inner.ground, &numbers);
    });
}

/// Runs what has time, when nobody is in a hurry.
fn in_background(inner: &Arc<Inner>, work: impl FnOnce(&Arc<Inner>) + Send + 'static) {
    let there = Arc::clone(inner);
    inner.background.spawn(async move {
        quiet(&there).await;
        blocking(move || {
            work(&there);
            Ok(())
        })
        .await
    });
}

/// Waits until no instance has been on its way for a while, or for long enough.
async fn quiet(inner: &Inner) {
    let latest = Instant::now() + PATIENCE;
    loop {
        let calmer = inner.calmer.notified();
        let until = {
            let state = inner.lock();
            if state.closed {
                return;
            }
            let on_their_way = state.instances.values().any(|instance| instance.on_its_way);
            if on_their_way { latest } else { latest.min(state.busy + QUIET) }
        };
        if Instant::now() >= until {
            return;
        }
        // Told or not: it looks again.
        let _ = tokio::time::timeout_at(until.into(), calmer).await;
    }
}
