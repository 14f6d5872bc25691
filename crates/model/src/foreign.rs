//! Guests that were made and saved elsewhere: what their state names, and what takes its place.
//!
//! Such a state names drives and a vsock by paths that somebody else chose. It is loaded paused,
//! and every drive is replaced by one of the instance's own before the guest runs; whatever the
//! paths are, they are never trusted. A state that was saved here afterwards names what it was
//! given, relative to the instance's directory: it is like any other, but for the drives' names.

use std::fmt;

use crate::error::{ErrorKind, Kind};
use crate::load::{DrivePatch, Replacements};
use crate::spec::MAX_VCPUS;
use crate::units::{ByteSize, MemMib};

/// A drive's name, as Firecracker takes it. It is the name of a file as well, so it has letters,
/// digits and `_` only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DriveId(String);

/// A text is no drive's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} cannot be a drive's id: 1 to 64 letters, digits and _")]
pub struct DriveIdError(String);

impl DriveId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Where the drive is, relative to the directory of an instance or of a bundle.
    #[must_use]
    pub fn path(&self) -> String {
        format!("disks/{}", self.0)
    }
}

impl TryFrom<String> for DriveId {
    type Error = DriveIdError;
    fn try_from(text: String) -> Result<Self, DriveIdError> {
        let ok = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if ok { Ok(Self(text)) } else { Err(DriveIdError(text)) }
    }
}

impl From<DriveId> for String {
    fn from(id: DriveId) -> Self {
        id.0
    }
}

impl fmt::Display for DriveId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

/// The devices of a guest that was made elsewhere: it keeps them for life.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForeignDevices {
    /// Its drives, by id.
    pub drives: Vec<ForeignDrive>,
    /// Whether it has a vsock.
    pub vsock: bool,
}

/// One of its drives.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForeignDrive {
    /// Its name to the VMM.
    pub id: DriveId,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// A state that was saved elsewhere, and what it names.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ForeignState {
    /// Its drives, by id.
    pub drives: Vec<NamedDrive>,
    /// Whether it has a vsock.
    pub vsock: bool,
}

/// A drive, and the path by which a state names it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct NamedDrive {
    /// Its name to the VMM.
    pub id: DriveId,
    /// The file that the VMM opens when it loads the state.
    pub path: String,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

impl ForeignState {
    /// The guest's devices, without the paths.
    #[must_use]
    pub fn devices(&self) -> ForeignDevices {
        let drive = |drive: &NamedDrive| ForeignDrive { id: drive.id.clone(), read_only: drive.read_only };
        ForeignDevices { drives: self.drives.iter().map(drive).collect(), vsock: self.vsock }
    }

    /// What takes the place of what it names: every drive, whatever its path. `None` of a state
    /// that names nothing.
    #[must_use]
    pub fn replacements(&self) -> Option<Replacements> {
        let patch = |drive: &NamedDrive| DrivePatch { id: drive.id.to_string(), path: drive.id.path() };
        Replacements::new(self.drives.iter().map(patch).collect(), self.vsock)
    }

    /// Whether it names every drive as it is named here. It is replaced all the same.
    #[must_use]
    pub fn is_named_as_here(&self) -> bool {
        !self.drives.is_empty() && self.drives.iter().all(|drive| drive.path == drive.id.path())
    }
}

/// What a VMM that has loaded a state says of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Described {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Drives, in any order.
    pub drives: Vec<DescribedDrive>,
    /// Whether there is a vsock.
    pub vsock: bool,
    /// Network cards, by id.
    pub networks: Vec<String>,
    /// Other devices that name something on the host, or change the guest's memory.
    pub others: Vec<String>,
}

/// A drive, as the VMM describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DescribedDrive {
    /// Its name to the VMM.
    pub id: String,
    /// Its file; `None` where it is served by another process.
    pub path: Option<String>,
    /// Whether the guest can only read it.
    pub read_only: bool,
}

/// A guest that can be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignGuest {
    /// Its state.
    pub state: ForeignState,
    /// Virtual CPUs.
    pub vcpus: u8,
    /// Its memory.
    pub memory: MemMib,
}

/// A guest that cannot be taken over, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Theirs have other addresses than ours, and lead to taps of other names.
    #[error("the guest has network interfaces ({}), which are not taken over yet", .0.join(", "))]
    Networks(Vec<String>),
    /// A device whose file or process cannot be replaced.
    #[error("the guest has devices that cannot be replaced: {}", .0.join(", "))]
    Devices(Vec<String>),
    /// A drive that no file backs.
    #[error("drive {0:?} of the guest is not a file but served by another process")]
    Served(String),
    /// A drive's id would be no file name.
    #[error("the guest's drives: {0}")]
    Id(#[from] DriveIdError),
    /// A relative path that leads out of its directory, or to a file of the VMM's own.
    #[error("drive {id} of the guest is named by the path {path:?}, which leads nowhere in an instance's directory")]
    Path {
        /// The drive.
        id: DriveId,
        /// Its path.
        path: String,
    },
    /// Two drives of one id.
    #[error("the guest has two drives of id {0}")]
    Twice(DriveId),
    /// Too many, or none.
    #[error("the guest has {0} vCPUs, and 1 to {MAX_VCPUS} are possible")]
    Vcpus(u64),
    /// Too little or too much memory.
    #[error("the guest has {0} MiB of memory, and 128 MiB to 1 TiB are possible")]
    Memory(u64),
    /// The memory file is another one's.
    #[error("the memory file has {found}, and the guest {wanted}")]
    Length {
        /// The file's.
        found: ByteSize,
        /// The guest's.
        wanted: ByteSize,
    },
    /// An agent is reached over a vsock.
    #[error("the guest has no vsock, so no agent in it can be reached")]
    NoVsock,
}

impl Kind for Foreign {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Networks(_) | Self::Devices(_) | Self::Served(_) | Self::Vcpus(_) | Self::Memory(_) => {
                ErrorKind::Unsupported
            }
            Self::Id(_) | Self::Path { .. } | Self::Twice(_) | Self::Length { .. } | Self::NoVsock => {
                ErrorKind::Invalid
            }
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Networks(_) => "save the guest again without a network interface".into(),
            Self::Devices(_) | Self::Served(_) => "save the guest again without them".into(),
            Self::Id(_) | Self::Twice(_) => "save the guest again with other drive ids".into(),
            Self::Path { .. } => "save the guest again with absolute paths".into(),
            Self::Vcpus(_) | Self::Memory(_) => return None,
            Self::Length { .. } => "name the memory file that was written with this state".into(),
            Self::NoVsock => "say that there is no agent: --no-agent, or \"agent\": false".into(),
        })
    }
}

/// Whether a relative path stays where it starts, and hits no file that the VMM or Hearth makes.
fn stays_inside(path: &str) -> bool {
    const OURS: [&str; 9] = [
        "memory",
        "memory.base",
        "vmstate",
        "serial.log",
        "vmm.log",
        "vmm.err",
        "hearth.log",
        "api.sock",
        "vsock.sock",
    ];
    let words_ok = path.split('/').all(|word| !word.is_empty() && word != "." && word != "..");
    words_ok && !OURS.contains(&path) && path != "disks"
}

/// Decides whether the guest that a VMM describes can be taken over. `memory_file`: how long the
/// file is that its memory is in. `agent`: whether one is to be met in it.
///
/// # Errors
/// [`Foreign`]: why not.
pub fn take_over(described: Described, memory_file: ByteSize, agent: bool) -> Result<ForeignGuest, Foreign> {
    let Described { vcpus, memory_mib, drives, vsock, networks, others } = described;
    if !networks.is_empty() {
        return Err(Foreign::Networks(networks));
    }
    if !others.is_empty() {
        return Err(Foreign::Devices(others));
    }
    let mut named = Vec::new();
    for DescribedDrive { id, path, read_only } in drives {
        let Some(path) = path else { return Err(Foreign::Served(id)) };
        let id = DriveId::try_from(id)?;
        if !path.starts_with('/') && !stays_inside(&path) {
            return Err(Foreign::Path { id, path });
        }
        named.push(NamedDrive { id, path, read_only });
    }
    // A VMM lists them in any order.
    named.sort_by(|a, b| a.id.cmp(&b.id));
    if let Some(twice) = named.windows(2).find(|pair| pair[0].id == pair[1].id) {
        return Err(Foreign::Twice(twice[0].id.clone()));
    }
    let count = u8::try_from(vcpus).ok().filter(|count| (1..=MAX_VCPUS).contains(count));
    let memory = u32::try_from(memory_mib).ok().and_then(|mib| MemMib::new(mib).ok());
    let guest = ForeignGuest {
        state: ForeignState { drives: named, vsock },
        vcpus: count.ok_or(Foreign::Vcpus(vcpus))?,
        memory: memory.ok_or(Foreign::Memory(memory_mib))?,
    };
    if guest.memory.size() != memory_file {
        return Err(Foreign::Length { found: memory_file, wanted: guest.memory.size() });
    }
    if agent && !vsock { Err(Foreign::NoVsock) } else { Ok(guest) }
}

/// A file in a directory that a VMM wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Its name.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether it begins as a VMM's state does.
    pub is_state: bool,
}

/// Which files are state and memory cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoPair {
    /// There is none.
    #[error("there is no {what} in it")]
    None {
        /// State or memory.
        what: &'static str,
    },
    /// There are several.
    #[error("several files in it may be the {what}: {}", .names.join(", "))]
    Several {
        /// State or memory.
        what: &'static str,
        /// Them.
        names: Vec<String>,
    },
}

/// The names of state and memory in a directory, where there is one obvious pair: one file that
/// begins as a state does, and one whose name says that it is memory, or, failing that, one that
/// is as long as memory can be.
///
/// # Errors
/// [`NoPair`]; what is given is taken as it is.
pub fn guess(files: &[Seen], state: Option<String>, memory: Option<String>) -> Result<(String, String), NoPair> {
    let one = |what, mut names: Vec<String>| match (names.pop(), names.is_empty()) {
        (Some(name), true) => Ok(name),
        (Some(name), false) => {
            names.push(name);
            names.sort();
            Err(NoPair::Several { what, names })
        }
        (None, _) => Err(NoPair::None { what }),
    };
    let names = |wanted: &dyn Fn(&Seen) -> bool| -> Vec<String> {
        files.iter().filter(|file| wanted(file)).map(|file| file.name.clone()).collect()
    };
    let state = match state {
        Some(state) => state,
        None => one("vmstate file", names(&|file| file.is_state))?,
    };
    let memory = match memory {
        Some(memory) => memory,
        None => {
            let may_be = |file: &Seen| file.name != state && !file.is_state && file.bytes > 0;
            let called = names(&|file| may_be(file) && file.name.to_ascii_lowercase().contains("mem"));
            let as_long = || names(&|file| may_be(file) && file.bytes.is_multiple_of(1 << 20));
            one("memory file", if called.is_empty() { as_long() } else { called })?
        }
    };
    Ok((state, memory))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drive(id: &str, path: &str, read_only: bool) -> DescribedDrive {
        DescribedDrive { id: id.into(), path: Some(path.into()), read_only }
    }

    fn described() -> Described {
        Described {
            vcpus: 2,
            memory_mib: 256,
            drives: vec![drive("root", "/srv/root.img", true), drive("data", "/srv/data.img", false)],
            vsock: true,
            ..Described::default()
        }
    }

    fn refused(change: impl FnOnce(&mut Described)) -> Foreign {
        let mut described = described();
        change(&mut described);
        take_over(described, ByteSize::mib(256), true).expect_err("refused")
    }

    #[test]
    fn every_drive_is_replaced_and_so_is_the_vsock_whatever_the_paths_are() {
        let guest = take_over(described(), ByteSize::mib(256), true).expect("taken over");
        assert_eq!((guest.vcpus, guest.memory.mib()), (2, 256));
        let replaced = guest.state.replacements().expect("there is something to replace");
        let patches: Vec<_> = replaced.drives().iter().map(|p| (p.id.as_str(), p.path.as_str())).collect();
        assert_eq!(patches, [("data", "disks/data"), ("root", "disks/root")], "by id, as files are");
        assert!(replaced.vsock() && !guest.state.is_named_as_here());

        let mut ours = described();
        ours.drives = vec![drive("rootfs", "disks/rootfs", true)];
        let guest = take_over(ours, ByteSize::mib(256), true).expect("taken over");
        assert!(guest.state.is_named_as_here());
        assert_eq!(guest.state.replacements().expect("never trusted").drives().len(), 1);
    }

    #[test]
    fn a_state_that_names_nothing_has_nothing_replaced() {
        let bare = Described { drives: vec![], vsock: false, ..described() };
        let guest = take_over(bare, ByteSize::mib(256), false).expect("taken over");
        assert_eq!(guest.state.replacements(), None);
        let vsock = Described { drives: vec![], ..described() };
        let guest = take_over(vsock, ByteSize::mib(256), true).expect("taken over");
        assert!(guest.state.replacements().expect("the vsock is").vsock());
    }

    #[test]
    fn what_cannot_be_taken_over_says_why() {
        use Foreign as F;
        assert_eq!(refused(|d| d.networks = vec!["eth0".into()]), F::Networks(vec!["eth0".into()]));
        assert_eq!(refused(|d| d.others = vec!["pmem p".into()]), F::Devices(vec!["pmem p".into()]));
        assert_eq!(refused(|d| d.drives[0].path = None), F::Served("root".into()));
        assert!(matches!(refused(|d| d.drives[1].id = "root".into()), F::Twice(id) if id.as_str() == "root"));
        assert_eq!(refused(|d| d.vcpus = 0), F::Vcpus(0));
        assert_eq!(refused(|d| d.vcpus = 300), F::Vcpus(300));
        assert_eq!(refused(|d| d.memory_mib = 64), F::Memory(64));
        assert!(matches!(refused(|d| d.memory_mib = 512), F::Length { .. }));
        assert_eq!(refused(|d| d.vsock = false), F::NoVsock);
        for bad in ["", "a/b", "..", "../x", "a.b", "ä", &"a".repeat(65)] {
            assert!(matches!(refused(|d| d.drives[0].id = bad.into()), F::Id(_)), "{bad:?}");
        }
        for bad in ["", "../x", "a/../../x", "./x", "a//b", "vmstate", "memory.base", "vsock.sock", "disks"] {
            assert!(matches!(refused(|d| d.drives[0].path = Some(bad.into())), F::Path { .. }), "{bad:?}");
        }
        for error in [refused(|d| d.networks = vec!["eth0".into()]), refused(|d| d.vsock = false)] {
            assert!(error.hint().is_some(), "{error}");
        }
    }

    #[test]
    fn the_pair_is_guessed_where_it_is_obvious() {
        let file = |name: &str, mib: u64, is_state| Seen { name: name.into(), bytes: mib << 20, is_state };
        let state = || Seen { bytes: 20_000, ..file("vmstate", 0, true) };
        let pair = |files: &[Seen]| guess(files, None, None);
        let found = |state: &str, memory: &str| Ok((state.to_owned(), memory.to_owned()));

        let usual = [state(), file("mem_file", 256, false), file("root.img", 64, false)];
        assert_eq!(pair(&usual), found("vmstate", "mem_file"));
        assert_eq!(pair(&[state(), file("ram", 256, false)]), found("vmstate", "ram"));
        assert_eq!(pair(&[file("mem", 256, false)]), Err(NoPair::None { what: "vmstate file" }));
        assert_eq!(pair(&[state()]), Err(NoPair::None { what: "memory file" }));
        let two = [state(), file("b", 256, false), file("a", 64, false)];
        let several = |what, names: [&str; 2]| Err(NoPair::Several { what, names: names.map(Into::into).to_vec() });
        assert_eq!(pair(&two), several("memory file", ["a", "b"]));
        assert_eq!(guess(&two, None, Some("a".into())), found("vmstate", "a"));
        let states = [state(), Seen { name: "old".into(), ..state() }, file("mem", 256, false)];
        assert_eq!(pair(&states), several("vmstate file", ["old", "vmstate"]));
        assert_eq!(guess(&states, Some("old".into()), None), found("old", "mem"));
    }
}
