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

const MACHINE_ID: &str = "/etc/machine-id";

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
    Ok(())
}

/// Has `/etc/machine-id` show what that file in memory says, as systemd does with an id for one
/// boot: so another id is a copy in memory, and needs no disk. An image without the file has no use
/// for it.
pub fn show_machine_id(in_memory: &str) -> Result<(), String> {
    if !fs::exists(MACHINE_ID).unwrap_or(false) {
        return Ok(());
    }
    write(MACHINE_ID, "").and_then(|()| {
        let error = |error| format!("show {in_memory} as {MACHINE_ID}: {}", io::Error::from(error));
        rustix::mount::mount_bind(in_memory, MACHINE_ID).map_err(error)
    })
}

/// Writes the id where it is not shown: to D-Bus's own file, which usually is a link, and to
/// `/etc/machine-id` if somebody has put a file in its place, as systemd does to keep an id.
pub fn write_machine_id(id: &str) -> Result<(), String> {
    for path in [MACHINE_ID, "/var/lib/dbus/machine-id"] {
        if fs::read_to_string(path).is_ok_and(|shown| shown != id) && is_file(path) {
            write(path, id)?;
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
    for path in seeds() {
        let mut seed = [0; SEED];
        File::open("/dev/urandom")
            .and_then(|mut random| random.read_exact(&mut seed))
            .and_then(|()| write_over(path, &seed))
            .map_err(|error| format!("renew {path}: {error}"))?;
    }
    Ok(())
}

/// The seeds that are there.
pub fn seeds() -> impl Iterator<Item = &'static str> {
    SEEDS.into_iter().filter(|path| is_file(path))
}

fn is_file(path: &str) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.is_file())
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

#[cfg(test)]
mod tests {
    use super::*;

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
