//! Addresses for the daemon of one story: stories run side by side, and each has a host's network
//! below it that no other may use.

use std::fs::{self, File};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};

/// How many stories may run at once.
const RANGES: u32 = 256;

/// A network of 254 addresses, ours until it is dropped.
#[derive(Debug)]
pub(crate) struct Range {
    number: u32,
    // Locked; the lock goes with it, also when the process is killed.
    _lock: File,
}

impl Range {
    /// The first one that nobody uses.
    pub(crate) fn take() -> Result<Self> {
        let dir: PathBuf = std::env::temp_dir().join("hearth-e2e-ranges");
        fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        for number in 0..RANGES {
            let path = dir.join(number.to_string());
            let lock = File::create(&path).with_context(|| format!("open {}", path.display()))?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // A story that was killed may have left its slots.
                Ok(()) if routed(number)? => {}
                Ok(()) => return Ok(Self { number, _lock: lock }),
                Err(rustix::io::Errno::WOULDBLOCK) => {}
                Err(error) => return Err(error).with_context(|| format!("lock {}", path.display())),
            }
        }
        bail!("all {RANGES} ranges of addresses are used by other stories")
    }

    /// As `network.cidr` takes it.
    pub(crate) fn cidr(&self) -> String {
        format!("10.111.{}.0/24", self.number)
    }
}

/// Whether the host has a route into that range.
fn routed(number: u32) -> Result<bool> {
    // The second column is the destination, in hexadecimal digits of the host's byte order.
    let routes = fs::read_to_string("/proc/net/route").context("read the host's routes")?;
    let mut destinations = routes.lines().skip(1).filter_map(|line| line.split_whitespace().nth(1));
    let first = u32::from_be_bytes([10, 111, u8::try_from(number)?, 0]);
    Ok(destinations.any(|hex| u32::from_str_radix(hex, 16).is_ok_and(|it| u32::from_be(it) & 0xffff_ff00 == first)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_gets_a_range_that_is_in_use() {
        let (one, two) = (Range::take().expect("free"), Range::take().expect("free"));
        assert_ne!(one.cidr(), two.cidr());
    }
}
