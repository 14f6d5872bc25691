//! Which disk is which, and what is on it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::time::Instant;

use super::uevents::Uevents;
use super::{BootError, failed};

/// The two disks of every guest.
#[derive(Debug)]
pub struct Found {
    pub rootfs: Disk,
    pub overlay: Disk,
}

#[derive(Debug)]
pub struct Disk {
    pub path: String,
    pub file_system: &'static str,
}

/// Finds them by their serials; where disks have none of ours, they are the first and the second.
pub fn find(uevents: &Uevents, give_up: Instant) -> Result<Found, BootError> {
    let names = uevents.wait_for(give_up, || {
        let disks = serials();
        let of = |serial: &str| disks.iter().find(|(_, s)| s == serial).map(|(name, _)| name.clone());
        match (of("rootfs"), of("overlay")) {
            (Some(rootfs), Some(overlay)) => Some((rootfs, overlay)),
            (None, None) if ["vda", "vdb"].iter().all(|name| disks.iter().any(|(disk, _)| disk == name)) => {
                Some(("vda".into(), "vdb".into()))
            }
            _ => None,
        }
    });
    let Some((rootfs, overlay)) = names else {
        let seen: Vec<String> = serials().iter().map(|(name, serial)| format!("{name} ({serial:?})")).collect();
        let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
        return Err(BootError(format!("the disks with serials rootfs and overlay are not there; seen: {seen}")));
    };
    Ok(Found { rootfs: disk(&rootfs)?, overlay: disk(&overlay)? })
}

fn serials() -> Vec<(String, String)> {
    let Ok(blocks) = fs::read_dir("/sys/block") else { return Vec::new() };
    let names = blocks.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let disks = names.filter(|name| fs::exists(format!("/dev/{name}")).unwrap_or(false));
    disks
        .map(|name| {
            let serial = fs::read_to_string(format!("/sys/block/{name}/serial")).unwrap_or_default();
            (name, serial.trim().to_owned())
        })
        .collect()
}

fn disk(name: &str) -> Result<Disk, BootError> {
    let path = format!("/dev/{name}");
    let file_system = file_system(&path).map_err(failed(format!("read {path}")))?;
    let file_system = file_system.ok_or_else(|| BootError(format!("{path} holds neither ext4 nor erofs")))?;
    Ok(Disk { path, file_system })
}

fn file_system(path: &str) -> io::Result<Option<&'static str>> {
    let mut start = [0; 2048];
    File::open(path)?.read_exact(&mut start)?;
    Ok(if start[1080..1082] == 0xEF53_u16.to_le_bytes() {
        Some("ext4")
    } else if start[1024..1028] == 0xE0F5_E1E2_u32.to_le_bytes() {
        Some("erofs")
    } else {
        None
    })
}
