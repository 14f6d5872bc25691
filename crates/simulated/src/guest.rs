//! The guest without a kernel (`guest/`): built for a real VMM, described for a simulated one.
//!
//! What it does stands at the head of its sources. In: [`Params`]. Out: an ELF file that Firecracker
//! boots as a kernel, with any drives, a vsock or a network card beside it. It ignores them, but for
//! the vsock when it listens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{fmt, fs, io};

use serde::{Deserialize, Serialize};

const SOURCE: &str = include_str!("../guest/guest.S");
/// Its driver for a vsock device.
const LISTEN: &str = include_str!("../guest/listen.c");
/// What gcc is told for every guest: nothing that needs a kernel, a library or a wide register.
const FLAGS: &str = "-O1 -ffreestanding -fno-builtin -fno-stack-protector -fcf-protection=none -mgeneral-regs-only \
                     -mno-red-zone -fno-pic -fno-tree-loop-distribute-patterns -fno-asynchronous-unwind-tables \
                     -nostdlib -static -no-pie -Wl,--build-id=none -Wl,-N -Wl,-z,noexecstack \
                     -Wl,--no-warn-rwx-segments -Wl,-Ttext=0x100000";
/// What precedes the parameters in every kernel file of this guest.
const NOTE: &[u8] = b"hearth-guest-1 ";
/// Where its first page lies.
pub const BASE: u64 = 16 << 20;
/// The most that is mapped when it is entered.
const MAPPED: u64 = 1 << 30;
const PAGE: u64 = 4096;
/// The word at the beginning of page 0; of page i it is i more.
pub const MARK: u64 = 0x6865_6172_7468_0000;

/// What it does when it has touched its pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum After {
    /// Counts ticks and prints them; sleeps between them.
    Count,
    /// The same, and sends back what it is sent on port 52 of its vsock. It looks for that once a
    /// tick.
    Listen,
    /// Sleeps for ever.
    Halt,
    /// Takes a CPU for ever.
    Spin,
}

/// Which pages it touches, and what it does then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Params {
    /// How many pages.
    pub pages: u32,
    /// How many pages from one to the next.
    pub stride: u32,
    /// How many pages on, modulo their number, the next one is: 1 is in order. Has no divisor in
    /// common with `pages`, and is not larger.
    pub step: u32,
    /// How many it touches at each tick, going on in its order.
    pub per_tick: u32,
    /// Ticks per second, 19 at least.
    pub hz: u32,
    /// What it does when it has touched them all.
    pub after: After,
}

impl Default for Params {
    fn default() -> Self {
        Self { pages: 64, stride: 1, step: 1, per_tick: 1, hz: 50, after: After::Count }
    }
}

/// The guest could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// There is no gcc here: skip what needs the guest, loudly.
    #[error("there is no gcc here")]
    NoCompiler,
    /// Such a guest cannot be.
    #[error("a guest without a kernel cannot be so: {0}")]
    Invalid(&'static str),
    /// gcc does not take the source.
    #[error("assemble the guest: {0}")]
    Assemble(String),
    /// Its files could not be written.
    #[error("write {}", path.display())]
    Write {
        /// Which one.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl Params {
    /// How much memory its machine needs at least.
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        (BASE + u64::from(self.pages) * u64::from(self.stride) * PAGE).div_ceil(1 << 20)
    }

    /// Where page i lies.
    #[must_use]
    pub fn address(&self, page: u32) -> u64 {
        BASE + u64::from(page) * u64::from(self.stride) * PAGE
    }

    /// What a kernel file of this guest says of itself.
    #[must_use]
    pub fn of_kernel(kernel: &[u8]) -> Option<Self> {
        let at = kernel.windows(NOTE.len()).position(|window| window == NOTE)? + NOTE.len();
        let line = kernel[at..].split(|byte| *byte == b'\n').next()?;
        serde_json::from_slice(line).ok()
    }

    fn check(&self) -> Result<(), GuestError> {
        let gcd = |mut a: u32, mut b: u32| {
            while b != 0 {
                (a, b) = (b, a % b);
            }
            a
        };
        let invalid = |why| Err(GuestError::Invalid(why));
        match self {
            Self { pages: 0, .. } | Self { stride: 0, .. } | Self { step: 0, .. } => invalid("a zero"),
            _ if self.step > self.pages || gcd(self.pages, self.step) != 1 => invalid("its step misses pages"),
            _ if self.memory_mib() << 20 > MAPPED => invalid("its pages go beyond 1 GiB"),
            _ if !(19..=100_000).contains(&self.hz) => invalid("the timer cannot tick so"),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Builds the guest in `dir`: the kernel file is returned.
///
/// # Errors
/// [`GuestError`]; `NoCompiler` is no failure of anybody's.
pub fn assemble(dir: &Path, params: &Params) -> Result<PathBuf, GuestError> {
    params.check()?;
    let kernel = dir.join("guest");
    let mut sources = Vec::new();
    for (name, text) in [("guest.S", SOURCE), ("listen.c", LISTEN)] {
        if name == "guest.S" || params.after == After::Listen {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|source| GuestError::Write { path: path.clone(), source })?;
            sources.push(path);
        }
    }
    let after: &[&str] = match params.after {
        After::Count => &["-DAFTER_COUNT"],
        After::Listen => &["-DAFTER_COUNT", "-DAFTER_LISTEN"],
        After::Halt => &["-DAFTER_HALT"],
        After::Spin => &["-DAFTER_SPIN"],
    };
    let gcc = Command::new("gcc")
        .args(FLAGS.split_whitespace())
        .arg(format!("-DPAGES={}", params.pages))
        .arg(format!("-DSTRIDE={}", params.stride))
        .arg(format!("-DSTEP={}", params.step))
        .arg(format!("-DPER_TICK={}", params.per_tick))
        .arg(format!("-DHZ={}", params.hz))
        .args(after)
        .arg(format!("-DPARAMETERS={:?}", params.to_string()))
        .arg("-o")
        .arg(&kernel)
        .args(&sources)
        .output();
    match gcc {
        Ok(output) if output.status.success() => Ok(kernel),
        Ok(output) => Err(GuestError::Assemble(String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(GuestError::NoCompiler),
        Err(error) => Err(GuestError::Assemble(format!("start gcc: {error}"))),
    }
}

/// Writes what the simulated VMM needs of the guest, which is its note: no compiler is asked for.
/// No other VMM boots it.
///
/// # Errors
/// [`GuestError`].
pub fn describe(dir: &Path, params: &Params) -> Result<PathBuf, GuestError> {
    params.check()?;
    let path = dir.join("guest");
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(4096, 0);
    bytes.extend_from_slice(NOTE);
    bytes.extend_from_slice(params.to_string().as_bytes());
    bytes.push(b'\n');
    fs::write(&path, bytes).map_err(|source| GuestError::Write { path: path.clone(), source })?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_file_says_what_its_guest_does() {
        let dir = tempfile::tempdir().expect("directory");
        let params = Params { pages: 300, stride: 2, step: 7, per_tick: 3, hz: 20, after: After::Listen };
        let described = fs::read(describe(dir.path(), &params).expect("written")).expect("there");
        assert_eq!(Params::of_kernel(&described), Some(params));
        match assemble(dir.path(), &params) {
            Ok(kernel) => {
                let kernel = fs::read(kernel).expect("there");
                assert_eq!(Params::of_kernel(&kernel), Some(params));
                assert_eq!(kernel[..4], *b"\x7fELF");
            }
            Err(GuestError::NoCompiler) => eprintln!("SKIPPED: there is no gcc here, the guest is not assembled"),
            Err(error) => panic!("{error}"),
        }
        assert_eq!(Params::of_kernel(b"a kernel of somebody else"), None);
    }

    #[test]
    fn a_guest_that_could_not_do_what_is_asked_is_refused() {
        let dir = tempfile::tempdir().expect("directory");
        let good = Params::default();
        for bad in [
            Params { pages: 0, ..good },
            Params { pages: 64, step: 4, ..good },
            Params { hz: 18, ..good },
            Params { pages: 1 << 20, ..good },
        ] {
            assert!(matches!(describe(dir.path(), &bad), Err(GuestError::Invalid(_))), "{bad}");
        }
    }
}
