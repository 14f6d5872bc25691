//! What a slot's guest may ask, and what follows from an answer.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_model::network::NamePattern;
use tokio::sync::Mutex;
use tokio::task::JoinError;

use crate::nft::NftError;
use crate::ruleset::NAMES_SIZE;

/// An address is let through at least for this long, however short its time to live: a connection
/// is not made in the instant in which the name was asked for.
const FLOOR: Duration = Duration::from_secs(60);
/// And somewhat longer than the guest may keep the answer.
const GRACE: Duration = Duration::from_secs(30);
/// The longest time to live that a guest is told for a name on the list.
pub(super) const MAX_TTL: u32 = 24 * 60 * 60;

/// Lets a slot's guest reach addresses for that long; blocks for about a millisecond.
pub(crate) type Admit = Arc<dyn Fn(&[(Ipv4Addr, Duration)]) -> Result<(), NftError> + Send + Sync>;

/// What a guest may ask.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    /// Everything.
    Open,
    /// Nothing.
    None,
    /// Names of a list; the addresses are let through before the guest knows them.
    Only(Arc<Only>),
}

pub(crate) struct Only {
    names: Vec<NamePattern>,
    admit: Admit,
    /// Until when what was let through is.
    admitted: Mutex<HashMap<Ipv4Addr, Instant>>,
}

impl Policy {
    /// For the names of a list. `admit` must lead to a set that is empty now, or may lose what it has.
    pub(crate) fn only(names: Vec<NamePattern>, admit: Admit) -> Self {
        Self::Only(Arc::new(Only { names, admit, admitted: Mutex::default() }))
    }

    /// Whether a name, in lower case and without a final dot, may be asked.
    pub(super) fn allows(&self, name: &str) -> bool {
        match self {
            Self::Open => true,
            Self::None => false,
            Self::Only(only) => only.names.iter().any(|pattern| pattern.matches(name)),
        }
    }

    /// Lets the guest reach these addresses for as long as it may keep the answer, in which they have
    /// that time to live.
    pub(super) async fn admit(&self, addresses: &[(Ipv4Addr, Duration)]) -> Result<(), NftError> {
        let Self::Only(only) = self else { return Ok(()) };
        // One change at a time per slot: so a guest that floods keeps one thread, not all.
        let mut admitted = only.admitted.lock().await;
        let now = Instant::now();
        let known = |address| admitted.get(address).copied();
        let news: Vec<_> = addresses
            .iter()
            .filter(|(address, ttl)| known(address).is_none_or(|until| until < now + *ttl + Duration::from_secs(1)))
            .map(|(address, ttl)| (*address, (*ttl).max(FLOOR) + GRACE))
            .collect();
        if news.is_empty() {
            return Ok(());
        }
        let (admit, change) = (Arc::clone(&only.admit), news.clone());
        match tokio::task::spawn_blocking(move || admit(&change)).await.map_err(JoinError::try_into_panic) {
            Ok(done) => done?,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            Err(Err(cancelled)) => return Err(NftError::Open(io::Error::other(cancelled))),
        }
        if admitted.len() + news.len() > NAMES_SIZE {
            admitted.retain(|_, until| *until > now);
        }
        admitted.extend(news.into_iter().map(|(address, time)| (address, now + time)));
        Ok(())
    }
}

impl fmt::Debug for Only {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Only").field("names", &self.names).finish_non_exhaustive()
    }
}
