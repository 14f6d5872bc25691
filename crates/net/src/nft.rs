//! nftables from this process: text commands in, what they print out, by libnftables.
//!
//! The library is found when the daemon runs, not when it is built, so that one binary runs on
//! hosts without it (where there are no slots). No `nft` process is started.
//!
//! A [`Session`] belongs to the network namespace in which it was made, for as long as it lives,
//! whatever thread uses it: a slot's is made with the slot, and no later change needs to enter the
//! namespace. The commands of one call are one transaction: all of them happen, or none.
//!
//! The library keeps state that all contexts share (its parser's and its symbol tables), and does
//! not promise to be safe with threads: one lock of this process is held for each call.

mod sys;

use std::ffi::CString;
use std::io;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use hearth_model::{ErrorKind, Kind};

use crate::fault::Impossible;

/// The library.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Nft {
    library: &'static sys::Library,
}

const NO_LIBRARY: Impossible = Impossible::NoLibrary { library: sys::FILE, package: "libnftables1" };

/// A context in one network namespace.
#[derive(Debug)]
pub(crate) struct Session {
    context: Option<sys::Context>,
}

/// Rules could not be changed or read; nothing of the commands happened.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// There can be no context in this namespace now.
    #[error("open a netfilter socket for nftables")]
    Open(#[source] io::Error),
    /// The library or the kernel refused.
    #[error("nftables: {commands:?}: {problem}")]
    Refused { commands: String, problem: String },
}

impl NftError {
    /// What was to be removed or listed is not there.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, Self::Refused { problem, .. } if problem.contains("No such file or directory"))
    }

    /// What was to be added is there already, and leads elsewhere.
    pub(crate) fn is_taken(&self) -> bool {
        matches!(self, Self::Refused { problem, .. } if problem.contains("File exists"))
    }
}

impl Kind for NftError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Open(source) => hearth_model::error::io_kind(source),
            Self::Refused { problem, .. } if problem.contains("Operation not permitted") => ErrorKind::Unsupported,
            Self::Refused { .. } => ErrorKind::HostFailed,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Refused { problem, .. } if problem.contains("Operation not permitted") => {
                Some("changing rules needs CAP_NET_ADMIN in the network namespace".into())
            }
            Self::Refused { problem, .. } if problem.contains("not supported") || problem.contains("No such file") => {
                Some("the kernel may lack a part of nftables: `hearth doctor` says which are needed".into())
            }
            _ => None,
        }
    }
}

impl Nft {
    /// Finds the library, once for the process.
    pub(crate) fn load() -> Result<Self, Impossible> {
        static LIBRARY: OnceLock<Option<sys::Library>> = OnceLock::new();
        let found = LIBRARY.get_or_init(|| {
            let found = sys::Library::load();
            found.inspect_err(|error| tracing::debug!(error = error as &dyn std::error::Error, "no libnftables")).ok()
        });
        found.as_ref().map(|library| Self { library }).ok_or(NO_LIBRARY)
    }

    /// A session in the calling thread's network namespace.
    pub(crate) fn session(self) -> Result<Session, NftError> {
        self.open(0)
    }

    /// Runs commands in the calling thread's network namespace.
    pub(crate) fn run(self, commands: &str) -> Result<String, NftError> {
        self.session()?.run(commands)
    }

    /// The same for commands that list: what they print is JSON.
    pub(crate) fn list(self, commands: &str) -> Result<serde_json::Value, NftError> {
        let text = self.open(sys::OUTPUT_JSON)?.run(commands)?;
        serde_json::from_str(&text)
            .map_err(|error| refused(commands, &format!("what it lists cannot be read: {error}")))
    }

    /// Runs commands in the library's JSON, which takes names and comments that text would not.
    pub(crate) fn run_json(self, commands: &serde_json::Value) -> Result<(), NftError> {
        self.open(sys::OUTPUT_JSON)?.run(&commands.to_string()).map(drop)
    }

    fn open(self, output: u32) -> Result<Session, NftError> {
        let _one = one_at_a_time();
        netfilter_socket().map_err(NftError::Open)?;
        let context = sys::Context::new(self.library, output);
        Ok(Session { context: Some(context.ok_or_else(|| NftError::Open(io::ErrorKind::OutOfMemory.into()))?) })
    }
}

impl Session {
    /// Runs commands in the session's network namespace: all of them or none.
    pub(crate) fn run(&mut self, commands: &str) -> Result<String, NftError> {
        let text = CString::new(commands).map_err(|_| refused(commands, "a zero byte in the commands"))?;
        let context = self.context.as_mut().expect("taken by drop only");
        let _one = one_at_a_time();
        context.run(&text).map_err(|problem| refused(commands, &problem))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _one = one_at_a_time();
        drop(self.context.take());
    }
}

/// The library ends the process when it gets no netlink socket (no descriptors left, for one): so
/// one is opened before it is asked to.
fn netfilter_socket() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, netlink, socket_with};
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))?;
    drop(socket);
    Ok(())
}

fn one_at_a_time() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The library prints the message, then the line and a caret below it: the message is enough.
fn refused(commands: &str, problem: &str) -> NftError {
    let said: Vec<&str> = problem.lines().filter_map(|line| line.split_once("Error: ")).map(|(_, said)| said).collect();
    let problem = if said.is_empty() { problem.trim().to_owned() } else { said.join("; ") };
    let mut commands = commands.trim().to_owned();
    if let Some((end, _)) = commands.char_indices().nth(200) {
        commands.truncate(end);
        commands.push('…');
    }
    NftError::Refused { commands, problem }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testbed::{Netns, possible};

    #[test]
    fn a_session_stays_in_the_namespace_where_it_was_made() {
        if !possible() {
            return;
        }
        let (one, other) = (Netns::new(), Netns::new());
        let nft = Nft::load().expect("libnftables");
        let mut session = one.enter(|| nft.session()).expect("a session");
        other.enter(|| session.run("add table inet here")).expect("a table");
        assert!(one.nft("list tables").contains("here"));
        assert_eq!(other.nft("list tables"), "");
        assert_eq!(session.run("list tables").expect("listed").trim(), "table inet here", "and it is used again");
    }

    #[test]
    fn a_refusal_says_why_and_nothing_of_it_happens() {
        if !possible() {
            return;
        }
        let netns = Netns::new();
        let error = netns.try_nft("add table inet a\nadd chain inet b c").expect_err("there is no table b");
        assert!(error.is_missing() && error.to_string().contains("No such file or directory"), "{error}");
        assert_eq!(netns.nft("list tables"), "", "one transaction");
        let error = netns.try_nft("add tible").expect_err("no such word");
        assert!(error.to_string().contains("syntax error") && !error.is_missing(), "{error}");
        assert!(!error.to_string().contains('\n'), "{error}");
        let error = netns.try_nft("add\0table").expect_err("not a text of C");
        assert!(error.to_string().contains("zero byte"), "{error}");
    }

    #[test]
    fn threads_take_turns() {
        if !possible() {
            return;
        }
        let netns = Netns::new();
        netns.nft("table inet t { set s { type ipv4_addr; }; }");
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let netns = &netns;
                scope.spawn(move || {
                    for n in 0..25 {
                        netns.nft(&format!("add element inet t s {{ 10.0.{thread}.{n} }}"));
                    }
                });
            }
        });
        let listed = netns.enter(|| Nft::load().expect("libnftables").list("list set inet t s")).expect("listed");
        let elements = listed["nftables"][1]["set"]["elem"].as_array().map(Vec::len);
        assert_eq!(elements, Some(100), "{listed}");
    }
}
