//! A program for guests that says what no shell can: what `getrandom` gives, and the clock to the nanosecond.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// Where it lies in an image.
pub const PROBE: &str = "bin/probe";

/// A program of a hundred bytes: writes what `getrandom` gives (32 bytes), and the clock (two words:
/// seconds and nanoseconds).
#[must_use]
pub fn probe() -> Vec<u8> {
    const CODE: &[u8] = b"\x48\x83\xec\x40\
        \x48\x89\xe7\xbe\x20\0\0\0\x31\xd2\xb8\x3e\x01\0\0\x0f\x05\
        \x31\xff\x48\x8d\x74\x24\x20\xb8\xe4\0\0\0\x0f\x05\
        \xbf\x01\0\0\0\x48\x89\xe6\xba\x30\0\0\0\xb8\x01\0\0\0\x0f\x05\
        \x31\xff\xb8\x3c\0\0\0\x0f\x05";
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let length = HEADERS + CODE.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let mut words = |words: &[u64]| words.iter().for_each(|word| elf.extend_from_slice(&word.to_le_bytes()));
    // Entry, program headers, no sections; then sizes, and one header.
    words(&[BASE + HEADERS, 64, 0, 64 << 32 | 56 << 48, 1]);
    // To be loaded, readable and executable: offset, addresses, sizes, alignment.
    words(&[1 | 5 << 32, 0, BASE, BASE, length, length, 0x1000]);
    elf.extend_from_slice(CODE);
    elf
}

/// The clock in what the probe has written: the time since 1970.
///
/// # Errors
/// It has not written all.
pub fn clock(said: &[u8]) -> Result<Duration> {
    let words = said.last_chunk::<16>().context("the clock's two words")?;
    let word = |from: usize| words[from..from + 8].try_into().map(u64::from_le_bytes);
    Ok(Duration::from_secs(word(0)?) + Duration::from_nanos(word(8)?))
}

/// The time on the host's clock while a guest was asked for its own.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    from: Duration,
    until: Duration,
}

impl Asked {
    /// Asks; what was answered.
    ///
    /// # Errors
    /// That of asking.
    pub async fn of<T>(ask: impl Future<Output = Result<T>>) -> Result<(T, Self)> {
        let since_epoch = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let from = since_epoch()?;
        let answer = ask.await?;
        Ok((answer, Self { from, until: since_epoch()? }))
    }

    /// How long it took.
    #[must_use]
    pub fn took(&self) -> Duration {
        self.until.saturating_sub(self.from)
    }

    /// How far a guest's clock that was read meanwhile is from the host's, at least.
    #[must_use]
    pub fn off_at_least(&self, guest: Duration) -> Duration {
        self.from.saturating_sub(guest).max(guest.saturating_sub(self.until))
    }

    /// How far it is from the host's, at most: it was read anywhere in that time.
    #[must_use]
    pub fn off_at_most(&self, guest: Duration) -> Duration {
        self.from.abs_diff(guest).max(self.until.abs_diff(guest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_is_off_by_at_least_and_at_most() {
        let ms = Duration::from_millis;
        let asked = Asked { from: ms(1000), until: ms(1040) };
        let off = |guest| (asked.off_at_least(ms(guest)), asked.off_at_most(ms(guest)));
        assert_eq!(off(1010), (ms(0), ms(30)));
        assert_eq!(off(900), (ms(100), ms(140)));
        assert_eq!(off(1100), (ms(60), ms(100)));
        let mut said = vec![7; 32];
        assert!(clock(&said[..10]).is_err());
        said.extend([1_u64, 40_000_000].iter().flat_map(|word| word.to_le_bytes()));
        assert_eq!(clock(&said).expect("a clock"), ms(1040));
    }
}
