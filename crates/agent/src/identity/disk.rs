//! What of an identity is in the image's files, and whose the writable disk is.
//!
//! Each file is written over in place: no reader finds it missing or empty, and on the hot path
//! that is the cheapest way.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

use super::Identity;

/// Where services keep randomness from one boot to the next.
const SEEDS: [&str; 4] = [
    "/var/lib/systemd/random-seed",
    "/var/lib/urandom/random-seed",
    "/var/lib/seedrng/seed.credit",
    "/var/lib/seedrng/seed.no-credit",
];

/// Bytes of a seed: what systemd writes.
const SEED: usize = 512;

/// Writes the names that differ from the ones before into the image's files.
pub fn write_names(new: &Identity, old: &Identity) -> Result<(), String> {
    if new.hostname != old.hostname {
        write("/etc/hostname", &format!("{}\n", new.hostname))?;
    }
    if (&new.hostname, new.address) != (&old.hostname, old.address) {
        write("/etc/hosts", &hosts(&new.hostname, new.address))?;
    }
    if new.instance_id == old.instance_id {
        return Ok(());
    }
    for path in ["/etc/machine-id", "/var/lib/dbus/machine-id"] {
        // An image without the file has no use for it; a link leads to the other one.
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
            write(path, &format!("{}\n", machine_id(&new.instance_id)))?;
        }
    }
    Ok(())
}

/// Writes the image's name servers over; an empty list leaves them.
pub fn name_servers(servers: &[String]) -> Result<(), String> {
    if servers.is_empty() {
        return Ok(());
    }
    write("/etc/resolv.conf", &servers.iter().fold(String::new(), |text, server| text + "nameserver " + server + "\n"))
}

/// Fills the seeds that are there with other randomness.
pub fn renew_seeds() -> Result<(), String> {
    for path in SEEDS {
        if fs::symlink_metadata(path).is_ok_and(|found| found.is_file()) {
            let mut seed = [0; SEED];
            File::open("/dev/urandom")
                .and_then(|mut random| random.read_exact(&mut seed))
                .and_then(|()| write_over(path, &seed))
                .map_err(|error| format!("renew {path}: {error}"))?;
        }
    }
    Ok(())
}

/// Whether the disk was last another instance's; it is this one's from [`own`] on. A disk that says
/// nothing is new.
pub fn is_of_another(owner: &Path, instance_id: &str) -> bool {
    fs::read_to_string(owner).is_ok_and(|of| of.trim() != instance_id)
}

/// Notes whose the disk is.
pub fn own(owner: &Path, instance_id: &str) -> Result<(), String> {
    write_over(owner, format!("{instance_id}\n").as_bytes())
        .map_err(|error| format!("note whose the writable disk is: {error}"))
}

fn write(path: &str, content: &str) -> Result<(), String> {
    write_over(path, content.as_bytes()).map_err(|error| format!("write {path}: {error}"))
}

/// Images have links here that lead to a file of a service that does not run.
fn write_over(path: impl AsRef<Path>, content: &[u8]) -> io::Result<()> {
    let path = path.as_ref();
    let no_follow = i32::try_from(OFlags::NOFOLLOW.bits()).map_err(io::Error::other)?;
    let options = File::options().create(true).write(true).truncate(false).custom_flags(no_follow).clone();
    let mut file = match options.open(path) {
        Err(error) if error.raw_os_error() == Some(libc::ELOOP) => {
            fs::remove_file(path)?;
            options.open(path)?
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            options.open(path)?
        }
        opened => opened?,
    };
    file.write_all(content)?;
    let length = u64::try_from(content.len()).map_err(io::Error::other)?;
    if file.metadata()?.len() == length { Ok(()) } else { file.set_len(length) }
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

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_file_is_written_over_whatever_it_was() {
        let dir = tempfile::tempdir().expect("a directory");
        let (file, below) = (dir.path().join("file"), dir.path().join("not/there/yet"));
        for content in ["long enough", "short", "", "longer than it ever was"] {
            write_over(&file, content.as_bytes()).expect("written");
            assert_eq!(fs::read_to_string(&file).expect("read"), content);
        }
        fs::remove_file(&file).expect("removed");
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "of another").expect("written");
        std::os::unix::fs::symlink(&elsewhere, &file).expect("linked");
        write_over(&file, b"own").expect("written");
        assert_eq!(fs::read_to_string(&file).expect("read"), "own");
        assert_eq!(fs::read_to_string(&elsewhere).expect("read"), "of another");
        write_over(&below, b"made").expect("written");
    }

    #[test]
    fn a_disk_is_its_first_owners_until_it_is_anothers() {
        let dir = tempfile::tempdir().expect("a directory");
        let owner = dir.path().join("owner");
        assert!(!is_of_another(&owner, "i1"), "it is new");
        own(&owner, "i1").expect("noted");
        assert!(!is_of_another(&owner, "i1") && is_of_another(&owner, "i2"));
    }
}
