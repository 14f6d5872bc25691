//! What an instance must not share with another: its names, its randomness, its clock, its keys.
//!
//! The refresh after a restore is on the hot path, and everything that it runs is cold: each new
//! way into the kernel costs more than the work itself. So an instance that comes back as itself
//! takes a handful of system calls on descriptors that are open already, and some copies in memory
//! ([`Published`]). A fork whose image has seeds ([`disk`]) and SSH host keys ([`ssh`]) has others.
//!
//! It fails as a whole if any part of it does, since a guest that is half itself must not be let
//! on the network.

pub mod disk;
pub mod ssh;

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::{OpenOptionsExt as _, fchown};

use hearth_agent_proto::Entropy;
use rustix::time::{ClockId, Timespec, clock_settime};

use crate::sys;

/// Who this guest is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    pub hostname: String,
    pub instance_id: String,
    pub generation: u64,
    pub address: Option<Ipv4Addr>,
}

/// The machine's id, which the image's file shows.
pub const MACHINE_ID: &str = "/run/hearth/machine-id";

/// Length of each published file, in bytes: fixed, so that another identity is one copy in memory.
const PUBLISHED: usize = 512;

/// What programs in the guest can read of their identity, in `/run/hearth`, and the random number
/// generator: kept open, and mapped, for the refresh.
#[derive(Debug)]
pub struct Published {
    random: File,
    instance: sys::Shared,
    machine_id: sys::Shared,
    generation: sys::Shared,
}

impl Published {
    pub fn open() -> io::Result<Self> {
        fs::create_dir_all("/run/hearth")?;
        let map = |path: &str, length: usize| {
            let options = File::options().create(true).read(true).write(true).truncate(false).clone();
            let file = options.open(path)?;
            file.set_len(length as u64)?;
            sys::Shared::map(&file, length)
        };
        let random = File::options().write(true).open("/dev/urandom")?;
        Ok(Self {
            random,
            instance: map("/run/hearth/instance.json", PUBLISHED)?,
            machine_id: map(MACHINE_ID, machine_id("").len())?,
            generation: map("/run/hearth/generation", PUBLISHED)?,
        })
    }

    /// Who it is, without the generation.
    pub fn write(&mut self, identity: &Identity) -> Result<(), String> {
        let instance = json(identity);
        if instance.len() >= PUBLISHED {
            return Err("host name and instance id are too long".to_owned());
        }
        self.instance.write(&padded(&instance));
        self.machine_id.write(machine_id(&identity.instance_id).as_bytes());
        Ok(())
    }

    /// Comes last: who sees it change finds the rest changed.
    pub fn write_generation(&mut self, identity: &Identity) {
        self.generation.write(&padded(&identity.generation.to_string()));
    }

    /// Mixes the host's randomness into the kernel's, which starts anew from it.
    pub fn reseed(&self, entropy: &Entropy) -> Result<(), String> {
        sys::reseed(&self.random, &entropy.bytes()).map_err(|error| format!("reseed the random numbers: {error}"))
    }

    /// The instance's own variables, for its program's user alone; a shell can read them in.
    pub fn write_env(&self, env: &[String], (uid, gid): (u32, u32)) -> Result<(), String> {
        const ASIDE: &str = "/run/hearth/.env";
        let write = || {
            let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(ASIDE)?;
            fchown(&file, Some(uid), Some(gid))?;
            file.write_all(for_shells(env).as_bytes())?;
            fs::rename(ASIDE, "/run/hearth/env")
        };
        write().map_err(|error: io::Error| format!("write /run/hearth/env: {error}"))
    }
}

/// Sets the kernel's clock.
pub fn set_clock(realtime_ns: u64) -> Result<(), String> {
    let time = Timespec {
        tv_sec: i64::try_from(realtime_ns / 1_000_000_000).map_err(|_| "the host's clock is out of range")?,
        tv_nsec: i64::try_from(realtime_ns % 1_000_000_000).map_err(|_| "the host's clock is out of range")?,
    };
    clock_settime(ClockId::Realtime, time).map_err(|error| format!("set the clock: {}", io::Error::from(error)))
}

/// Sets the kernel's name of this machine.
pub fn set_hostname(name: &str) -> Result<(), String> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| format!("set host name {name:?}: {}", io::Error::from(error)))
}

/// The text, blanks, and a newline: any reader of numbers or JSON takes it.
fn padded(text: &str) -> [u8; PUBLISHED] {
    let mut bytes = [b' '; PUBLISHED];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[PUBLISHED - 1] = b'\n';
    bytes
}

/// `NAME='value'` lines, without the names that a shell cannot have.
fn for_shells(env: &[String]) -> String {
    let variables = env.iter().filter_map(|variable| variable.split_once('='));
    let named = variables.filter(|(name, _)| {
        !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            && !name.is_empty()
    });
    named.fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "{name}='{}'", value.replace('\'', r"'\''"));
        text
    })
}

/// The same for the same instance, over any number of restores; another for each fork. A line.
pub fn machine_id(instance_id: &str) -> String {
    // FNV-1a with 128 bits: spreads well, and needs no more code than this.
    let hash = instance_id.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:032x}\n")
}

fn json(identity: &Identity) -> String {
    let mut text = String::from("{");
    for (key, value) in [("instance_id", &identity.instance_id), ("hostname", &identity.hostname)] {
        let _ = write!(text, "\"{key}\":\"");
        for c in value.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                c if c.is_control() => {
                    let _ = write!(text, "\\u{:04x}", u32::from(c));
                }
                c => text.push(c),
            }
        }
        text.push_str("\",");
    }
    let _ = write!(text, "\"generation\":{}}}", identity.generation);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_identity_is_json_whatever_the_names_are() {
        let odd = Identity { hostname: "a\"b\\c\n".into(), instance_id: "i1".into(), generation: 3, address: None };
        let parsed: serde_json::Value = serde_json::from_str(&json(&odd)).expect("valid");
        assert_eq!(parsed["hostname"], "a\"b\\c\n");
        assert_eq!(parsed["generation"], 3);
    }

    #[test]
    fn machine_ids_differ_between_instances_and_stay_the_same_for_one() {
        assert_eq!(machine_id("i1"), machine_id("i1"));
        assert_ne!(machine_id("i1"), machine_id("i2"));
        assert_eq!(machine_id("i1").trim_end().len(), 32);
    }

    #[test]
    fn a_shell_reads_the_variables_as_they_are() {
        let env = ["A=it's", "B=two\nlines $HOME", "not.a.name=1", "1=2", "C="].map(str::to_owned);
        let script = format!("{}printf '%s|' \"$A\" \"$B\" \"$C\"", for_shells(&env));
        let told = std::process::Command::new("/bin/sh").args(["-c", &script]).output().expect("run");
        assert_eq!(String::from_utf8(told.stdout).expect("text"), "it's|two\nlines $HOME||");
    }
}
