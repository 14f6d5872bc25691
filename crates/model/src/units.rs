//! Sizes as people write them, and as the wire carries them.
//!
//! Hypeman's sizes are strings in Go's `datasize` notation: "512 MB", "1GB", "2G", where K, M and
//! G are powers of 1024 whatever their spelling.

use std::fmt;
use std::str::FromStr;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// That many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n * MIB)
    }

    /// That many GiB.
    #[must_use]
    pub const fn gib(n: u64) -> Self {
        Self(n * GIB)
    }

    /// The plain number.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("size {text:?} {problem}")]
pub struct SizeError {
    text: String,
    problem: &'static str,
}

impl FromStr for ByteSize {
    type Err = SizeError;

    /// "1GB", "512 MB", "2G", "1.5gib", "4096" (bytes).
    fn from_str(text: &str) -> Result<Self, SizeError> {
        let fail = |problem| SizeError { text: text.to_owned(), problem };
        let trimmed = text.trim();
        let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(split);
        let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" | "kib" => KIB,
            "m" | "mb" | "mib" => MIB,
            "g" | "gb" | "gib" => GIB,
            "t" | "tb" | "tib" => TIB,
            _ => return Err(fail("has an unknown unit: use B, KB, MB, GB or TB")),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() || fraction.contains('.') || fraction.len() > 9 || number.ends_with('.') {
            return Err(fail("is not a number with a unit, as in \"512 MB\""));
        }
        let whole: u64 = whole.parse().map_err(|_| fail("is too large"))?;
        let mut bytes = whole.checked_mul(unit).ok_or_else(|| fail("is too large"))?;
        if !fraction.is_empty() {
            let digits: u64 = fraction.parse().map_err(|_| fail("is too large"))?;
            let scale = 10_u128.pow(u32::try_from(fraction.len()).expect("at most nine digits"));
            let part = u64::try_from(u128::from(digits) * u128::from(unit) / scale).expect("smaller than the unit");
            bytes = bytes.checked_add(part).ok_or_else(|| fail("is too large"))?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for ByteSize {
    /// The largest unit in which the number is at least one: "512 MB", "1 GB", "1.5 GB".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, name) = match self.0 {
            n if n >= TIB => (TIB, "TB"),
            n if n >= GIB => (GIB, "GB"),
            n if n >= MIB => (MIB, "MB"),
            n if n >= KIB => (KIB, "KB"),
            _ => (1, "B"),
        };
        if self.0.is_multiple_of(unit) {
            return write!(f, "{} {name}", self.0 / unit);
        }
        let tenths = u128::from(self.0) * 10 / u128::from(unit);
        write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
    }
}

/// Guest memory in MiB, at least [`MemMib::MIN`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct MemMib(u32);

/// Why a size is not a guest's memory.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemError {
    /// Less than a Linux guest needs.
    #[error("memory of {0} is too small: a guest needs at least 128 MB")]
    TooSmall(ByteSize),
    /// More than any backend takes.
    #[error("memory of {0} is too large: at most 1 TB")]
    TooLarge(ByteSize),
    /// Not a whole number of MiB.
    #[error("memory of {} bytes is not a whole number of MiB; give a unit, as in 256MB", .0.bytes())]
    Uneven(ByteSize),
}

impl MemMib {
    /// The least a Linux guest with our initrd boots in.
    pub const MIN: Self = Self(128);

    /// From MiB.
    ///
    /// # Errors
    /// Outside 128 MiB to 1 TiB.
    pub fn new(mib: u32) -> Result<Self, MemError> {
        Self::from_size(ByteSize::mib(u64::from(mib)))
    }

    /// From a size in bytes.
    ///
    /// # Errors
    /// Outside 128 MiB to 1 TiB, or not a whole number of MiB.
    pub fn from_size(size: ByteSize) -> Result<Self, MemError> {
        let mib = u32::try_from(size.bytes() / MIB).map_err(|_| MemError::TooLarge(size))?;
        if !size.bytes().is_multiple_of(MIB) {
            return Err(MemError::Uneven(size));
        }
        if mib < Self::MIN.0 {
            return Err(MemError::TooSmall(size));
        }
        if mib > 1 << 20 {
            return Err(MemError::TooLarge(size));
        }
        Ok(Self(mib))
    }

    /// In MiB.
    #[must_use]
    pub const fn mib(self) -> u32 {
        self.0
    }

    /// In bytes.
    #[must_use]
    pub const fn size(self) -> ByteSize {
        ByteSize::mib(self.0 as u64)
    }
}

impl TryFrom<u32> for MemMib {
    type Error = MemError;
    fn try_from(mib: u32) -> Result<Self, MemError> {
        Self::new(mib)
    }
}

impl From<MemMib> for u32 {
    fn from(mem: MemMib) -> Self {
        mem.0
    }
}

impl fmt::Display for MemMib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.size().fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_as_hypeman_writes_them() {
        for (text, bytes) in [
            ("512 MB", 512 * MIB),
            ("512MB", 512 * MIB),
            ("1GB", GIB),
            ("2G", 2 * GIB),
            ("1.5 GB", GIB + 512 * MIB),
            ("10 gib", 10 * GIB),
            ("4096", 4096),
            ("1TB", TIB),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_size_says_why() {
        for (text, says) in [
            ("", "is not a number"),
            ("GB", "is not a number"),
            ("-1GB", "unknown unit"),
            ("1XB", "unknown unit"),
            ("1.2.3GB", "is not a number"),
            ("99999999999999999999GB", "too large"),
            ("17179869184GB", "too large"),
        ] {
            let error = text.parse::<ByteSize>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn memory_is_bounded() {
        assert_eq!(MemMib::new(256).expect("in range").to_string(), "256 MB");
        assert!(matches!(MemMib::new(64), Err(MemError::TooSmall(_))));
        assert!(matches!(MemMib::from_size(ByteSize(MIB * 200 + 1)), Err(MemError::Uneven(_))));
        assert!(matches!(MemMib::from_size(ByteSize(4 * TIB)), Err(MemError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn whole_units_survive_a_round_trip(n in 1_u64..1023, power in 0_u32..5) {
            let size = ByteSize(n * KIB.pow(power));
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
        }

        #[test]
        fn parsing_never_panics(text in ".{0,40}") {
            let _ = text.parse::<ByteSize>();
        }
    }
}
