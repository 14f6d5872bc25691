//! What an instance must not share with another: its names, its randomness, its clock.
//!
//! The refresh after a restore is on the hot path, and everything that it runs is cold: each new
//! way into the kernel costs more than the work itself. So it is a handful of system calls on
//! descriptors that are open already and two copies in memory ([`Published`]), and what needs the
//! disk comes after the answer, before anything else that the host asks ([`write_names`]).
//!
//! It fails as a whole if any part of it does, since a guest that is half itself must not be let
//! on the network.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;

use hearth_agent_proto::Refresh;
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

/// Length of each published file, in bytes: fixed, so that another identity is one copy in memory.
const PUBLISHED: usize = 512;

/// What programs in the guest can read of their identity, in `/run/hearth`, and the random number
/// generator: kept open, and mapped, for the refresh.
#[derive(Debug)]
pub struct Published {
    random: File,
    instance: sys::Shared,
    generation: sys::Shared,
}

impl Published {
    pub fn open() -> io::Result<Self> {
        fs::create_dir_all("/run/hearth")?;
        let map = |name| {
            let options = File::options().create(true).read(true).write(true).truncate(false).clone();
            let file = options.open(format!("/run/hearth/{name}"))?;
            file.set_len(PUBLISHED as u64)?;
            sys::Shared::map(&file, PUBLISHED)
        };
        let random = File::options().write(true).open("/dev/urandom")?;
        Ok(Self { random, instance: map("instance.json")?, generation: map("generation")? })
    }

    /// The generation comes last: who sees it change finds the rest changed.
    pub fn write(&mut self, identity: &Identity) -> Result<(), String> {
        let instance = json(identity);
        if instance.len() >= PUBLISHED {
            return Err("host name and instance id are too long".to_owned());
        }
        self.instance.write(&padded(&instance));
        self.generation.write(&padded(&identity.generation.to_string()));
        Ok(())
    }

    /// Takes the clock and the entropy of a refresh, and the host name if it is another.
    pub fn renew(&self, refresh: &Refresh, old: &Identity) -> Result<(), String> {
        let (seconds, nanos) = (refresh.realtime_ns / 1_000_000_000, refresh.realtime_ns % 1_000_000_000);
        let time = Timespec {
            tv_sec: i64::try_from(seconds).map_err(|_| "the host's clock is out of range")?,
            tv_nsec: i64::try_from(nanos).map_err(|_| "the host's clock is out of range")?,
        };
        clock_settime(ClockId::Realtime, time).map_err(|error| format!("set the clock: {}", io::Error::from(error)))?;
        sys::reseed(&self.random, &refresh.entropy.bytes())
            .map_err(|error| format!("reseed the random numbers: {error}"))?;
        if refresh.hostname == old.hostname { Ok(()) } else { set_hostname(&refresh.hostname) }
    }
}

/// Sets the kernel's name of this machine.
pub fn set_hostname(name: &str) -> Result<(), String> {
    rustix::system::sethostname(name.as_bytes())
        .map_err(|error| format!("set host name {name:?}: {}", io::Error::from(error)))
}

/// Writes the names that differ from the ones before into the image's files.
pub fn write_names(new: &Identity, old: &Identity) -> Result<(), String> {
    let write =
        |path: &str, content: &str| replace_file(path, content).map_err(|error| format!("write {path}: {error}"));
    if new.hostname != old.hostname {
        write("/etc/hostname", &format!("{}\n", new.hostname))?;
    }
    if (&new.hostname, new.address) != (&old.hostname, old.address) {
        write("/etc/hosts", &hosts(&new.hostname, new.address))?;
    }
    // An image without the file has no use for it.
    if new.instance_id != old.instance_id && fs::exists("/etc/machine-id").unwrap_or(false) {
        write("/etc/machine-id", &format!("{}\n", machine_id(&new.instance_id)))?;
    }
    Ok(())
}

/// Writes the image's name servers over; an empty list leaves them.
pub fn name_servers(servers: &[String]) -> Result<(), String> {
    if servers.is_empty() {
        return Ok(());
    }
    let text = servers.iter().fold(String::new(), |text, server| text + "nameserver " + server + "\n");
    replace_file("/etc/resolv.conf", &text).map_err(|error| format!("write /etc/resolv.conf: {error}"))
}

/// Images have links here that lead to a file of a service that does not run.
fn replace_file(path: &str, content: &str) -> io::Result<()> {
    fs::create_dir_all("/etc")?;
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_symlink()) {
        fs::remove_file(path)?;
    }
    fs::write(path, content)
}

/// The text, blanks, and a newline: any reader of numbers or JSON takes it.
fn padded(text: &str) -> [u8; PUBLISHED] {
    let mut bytes = [b' '; PUBLISHED];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    bytes[PUBLISHED - 1] = b'\n';
    bytes
}

fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{own}\t{hostname}\n")
}

/// The same for the same instance, over any number of restores; another for each fork.
fn machine_id(instance_id: &str) -> String {
    // FNV-1a with 128 bits: spreads well, and needs no more code than this.
    let hash = instance_id.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    format!("{hash:032x}")
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
        assert_eq!(machine_id("i1").len(), 32);
    }

    #[test]
    fn a_guest_knows_its_own_name() {
        assert!(hosts("web", Some(Ipv4Addr::new(10, 0, 2, 15))).ends_with("10.0.2.15\tweb\n"));
        assert!(hosts("web", None).contains("127.0.1.1\tweb\n"));
    }
}
