//! What is known of one client's instances and snapshots.

use std::collections::{BTreeMap, BTreeSet};

use crate::draw::{PLACES, SLOTS};
use crate::model::{Life, Lives, Saved};

/// One client's instances and snapshots.
#[derive(Debug, Clone)]
pub(crate) struct Realm {
    pub(crate) client: usize,
    pub(crate) slots: [Slot; SLOTS],
    pub(crate) places: [Option<Kept>; PLACES],
    /// How many snapshots it has asked for: each has another name.
    pub(crate) saves: u32,
}

/// An instance, or none, by its name.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    pub(crate) name: String,
    pub(crate) lives: Lives,
    /// The ids that it may have; while it is known to be there, this is one.
    pub(crate) id: Id,
}

/// Which instance of that name it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Id {
    Known(String),
    /// Whatever is seen next.
    New,
}

/// A snapshot that is there, or may be.
#[derive(Debug, Clone)]
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) holds: BTreeSet<Saved>,
    /// Of which instance; `None` is not known.
    pub(crate) source: Option<String>,
    /// Its making or removal was cut off.
    pub(crate) unsure: bool,
    /// It was called damaged while its disk could not be read: so it stays until it is verified again.
    pub(crate) suspect: bool,
    /// Its removal has failed, and may have been begun.
    pub(crate) half_gone: bool,
}

impl Realm {
    pub(crate) fn new(client: usize) -> Self {
        let slot = |nth| Slot { name: format!("c{client}-{nth}"), lives: Lives::from([Life::Absent]), id: Id::New };
        Self { client, slots: std::array::from_fn(slot), places: [const { None }; PLACES], saves: 0 }
    }
}

impl Slot {
    /// Takes in what is seen of it: where it rests, and its id.
    ///
    /// # Errors
    /// It may not be so.
    pub(crate) fn see(&mut self, seen: Option<(&str, Rests)>) -> Result<(), String> {
        let rests = seen.map_or(Rests::Nowhere, |(_, rests)| rests);
        let fits: Lives = self.lives.iter().copied().filter(|life| Rests::of(*life) == rests).collect();
        if fits.is_empty() {
            return Err(format!("{} is {rests:?}, and may be {:?}", self.name, self.lives));
        }
        match (seen, &self.id) {
            (None, _) => self.id = Id::New,
            (Some((id, _)), Id::New) => self.id = Id::Known(id.to_owned()),
            (Some((id, _)), Id::Known(known)) if id == known => {}
            (Some((id, _)), Id::Known(known)) => return Err(format!("{} was {known}, and is {id}", self.name)),
        }
        self.lives = fits;
        Ok(())
    }
}

/// Where an instance rests, as far as it is seen from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rests {
    Nowhere,
    Stopped,
    Running,
    Standby,
    /// Nobody knows; there is a reason.
    Failed,
}

impl Rests {
    fn of(life: Life) -> Self {
        match life {
            Life::Absent => Self::Nowhere,
            Life::Stopped => Self::Stopped,
            Life::Running(_) => Self::Running,
            Life::Standby(_) => Self::Standby,
            Life::Failed => Self::Failed,
        }
    }
}

/// Takes in which snapshots are seen, by name.
///
/// # Errors
/// One is missing, or nobody's.
pub(crate) fn see_snapshots(realms: &mut [Realm], mut seen: BTreeMap<String, Seen>) -> Result<(), String> {
    for place in realms.iter_mut().flat_map(|realm| realm.places.iter_mut()) {
        let Some(kept) = place else { continue };
        match seen.remove(&kept.name) {
            Some(Seen { memory }) => {
                kept.unsure = false;
                kept.holds.retain(|saved| memory == matches!(saved, Saved::Memory(_)));
                if kept.holds.is_empty() {
                    return Err(format!("snapshot {} is of another kind than it was asked for", kept.name));
                }
            }
            None if kept.unsure => *place = None,
            None => return Err(format!("snapshot {} is lost", kept.name)),
        }
    }
    if seen.is_empty() { Ok(()) } else { Err(format!("nobody has made these snapshots: {:?}", seen.keys())) }
}

/// What is seen of a snapshot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) memory: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_seen_narrows_what_may_be() {
        let mut slot = Realm::new(0).slots[1].clone();
        assert_eq!(slot.name, "c0-1");
        slot.lives = [Life::Absent, Life::Running(1), Life::Running(2), Life::Standby(1)].into();
        slot.see(Some(("a", Rests::Running))).expect("it may run");
        assert_eq!((slot.lives.len(), &slot.id), (2, &Id::Known("a".into())));
        assert!(slot.see(Some(("a", Rests::Stopped))).is_err(), "nobody has stopped it");
        assert!(slot.see(Some(("b", Rests::Running))).is_err(), "another one in its place");
        assert!(slot.see(None).is_err(), "it is lost");
    }

    #[test]
    fn snapshots_are_there_unless_that_was_cut_off() {
        let mut realms = [Realm::new(0)];
        let seen = |names: &[&str]| names.iter().map(|name| ((*name).to_owned(), Seen { memory: true })).collect();
        assert!(see_snapshots(&mut realms, seen(&["s"])).is_err(), "nobody's");
        let kept = Kept {
            name: "s".into(),
            holds: [Saved::Memory(1)].into(),
            source: None,
            unsure: true,
            suspect: false,
            half_gone: false,
        };
        realms[0].places[0] = Some(kept);
        see_snapshots(&mut realms, seen(&["s"])).expect("it is there");
        assert!(see_snapshots(&mut realms, seen(&[])).is_err(), "and gone");
    }
}
