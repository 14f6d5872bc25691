//! Names of what a daemon makes on the host. They begin with a tag of its data directory, so that
//! daemons do not meet, and are computed before anything is made, so that whoever cleans up after a
//! crash has the same list.

use std::fmt;
use std::path::Path;

/// Four hexadecimal digits that stand for a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Tag(u16);

impl Tag {
    /// The same for every way to write the path, as long as the directory exists.
    pub(crate) fn of(data_dir: &Path) -> Self {
        let path = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
        // FNV-1a: must be the same in every version, which the standard library does not promise.
        let hash = path
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
        Self(u16::from_be_bytes([a ^ c ^ e ^ g, b ^ d ^ f ^ h]))
    }

    /// How the names of all our namespaces begin.
    pub(crate) fn namespaces(self) -> String {
        format!("hearth-{self}-")
    }

    pub(crate) fn namespace(self, slot: u32) -> String {
        format!("{}{slot}", self.namespaces())
    }

    /// How the names of all our links in the host's namespace begin.
    pub(crate) fn links(self) -> String {
        format!("hv{self}")
    }

    pub(crate) fn link(self, slot: u32) -> String {
        format!("{}{slot}", self.links())
    }

    /// The mark of links that are to be removed: a group that no other program uses.
    pub(crate) fn leaving(self) -> u32 {
        u32::from_be_bytes(*b"hv\0\0") | u32::from(self.0)
    }

    /// The slot that a name of ours belongs to.
    pub(crate) fn slot(self, name: &str) -> Option<u32> {
        let number = name.strip_prefix(&self.namespaces()).or_else(|| name.strip_prefix(&self.links()))?;
        number.parse().ok().filter(|slot: &u32| slot.to_string() == number)
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_lead_back_to_their_slot() {
        let tag = Tag::of(Path::new("/no/such/directory"));
        assert_eq!(tag.to_string(), "5a65", "a name that was given once stays");
        for slot in [0, 7, 999_999_999] {
            assert!(tag.link(slot).len() <= 15);
            assert_eq!(tag.slot(&tag.link(slot)), Some(slot));
            assert_eq!(tag.slot(&tag.namespace(slot)), Some(slot));
        }
        for other in ["", "eth0", "hv", &format!("hv{tag}"), &format!("hv{tag}x"), &format!("hv{tag}07"), "hearth-x-1"]
        {
            assert_eq!(tag.slot(other), None, "{other:?}");
        }
    }
}
