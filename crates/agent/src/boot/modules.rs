//! Kernel modules of the initramfs, in the order that its list gives.

use std::fs::{self, File};

use rustix::io::Errno;

use crate::note::note;

const LIST: &str = "/lib/hearth/modules.list";
const DIR: &str = "/lib/hearth/modules";

/// Loads them all; which did not load, and why: whether the guest can do without will show. Their
/// files are memory of the guest, and are given back.
pub fn load() -> Vec<String> {
    let mut missing = Vec::new();
    let list = fs::read_to_string(LIST).unwrap_or_else(|error| {
        missing.push(format!("no modules loaded: {LIST}: {error}"));
        String::new()
    });
    for name in list.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let path = format!("{DIR}/{name}");
        let loaded = File::open(&path).map_err(|error| error.to_string()).and_then(|file| {
            match rustix::system::finit_module(&file, c"", 0) {
                // Built in or loaded already; or for hardware that is not here, or not complete.
                Ok(()) | Err(Errno::EXIST | Errno::NODEV | Errno::OPNOTSUPP) => Ok(()),
                Err(error) => Err(std::io::Error::from(error).to_string()),
            }
        });
        if let Err(error) = loaded {
            missing.push(format!("module {name}: {error}"));
        }
        let _ = fs::remove_file(path);
    }
    missing.iter().for_each(note);
    missing
}
