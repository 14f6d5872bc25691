//! The vmstate file: a header, the state as JSON, a checksum. Not Firecracker's format, but refused
//! for the same damages in the same words. Paths are in it as they were given.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::machine::Devices;
use crate::running::Vcpu;

const MAGIC: u64 = 0x0710_1984_8664_0000;
/// The format of Firecracker 1.16.1's snapshots.
pub(crate) const VERSION: &str = "10.0.0";
const HEADER: usize = 16;
const CHECKSUM: usize = 8;

/// What is not memory.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct VmState {
    pub(crate) version: String,
    /// Whether the clock's state has the wall clock in it.
    pub(crate) realtime: bool,
    /// The host's port of the vsock's next connection.
    pub(crate) next_port: u32,
    pub(crate) devices: Devices,
    pub(crate) vcpu: Vcpu,
}

impl VmState {
    /// Its bytes.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let json = serde_json::to_vec(self).expect("a state has nothing that JSON has not");
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.extend_from_slice(&(json.len() as u64).to_le_bytes());
        bytes.extend_from_slice(&json);
        let sum = u64::from(crc32fast::hash(&bytes));
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Writes it over whatever is there.
    pub(crate) fn save(&self, path: &Path) -> Result<(), String> {
        let backing = |what: &'static str| {
            move |error: io::Error| format!("Cannot perform {what} on the snapshot backing file: {error}")
        };
        let mut file = std::fs::File::create(path).map_err(backing("open"))?;
        io::Write::write_all(&mut file, &self.to_bytes()).map_err(backing("flush"))
    }

    /// Reads it.
    pub(crate) fn load(path: &Path) -> Result<Self, String> {
        let bytes = std::fs::read(path).map_err(|error| format!("Failed to open snapshot file: {error}"))?;
        Self::from_bytes(&bytes).map_err(|why| format!("Failed to load snapshot state from file: {why}"))
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        const NO_STATE: &str = "An error occurred during bitcode serialization: bitcode error";
        let Some((state, sum)) = bytes.split_last_chunk::<CHECKSUM>().map(|(state, sum)| (state, *sum)) else {
            return Err("IO Error: File too short to contain CRC".to_owned());
        };
        let word = |at: usize| state.get(at..at + 8).and_then(|word| word.try_into().ok()).map(u64::from_le_bytes);
        let (Some(magic), Some(len)) = (word(0), word(8)) else { return Err(NO_STATE.to_owned()) };
        if len != (state.len() - HEADER) as u64 {
            return Err(NO_STATE.to_owned());
        }
        if magic != MAGIC {
            return Err(format!("Magic value does not match arch: {magic}"));
        }
        if u64::from(crc32fast::hash(state)) != u64::from_le_bytes(sum) {
            return Err("CRC64 validation failed".to_owned());
        }
        let found: Self = serde_json::from_slice(&state[HEADER..]).map_err(|_| NO_STATE.to_owned())?;
        if found.version != VERSION {
            return Err(format!("Invalid data version: {}", found.version));
        }
        Ok(found)
    }
}
