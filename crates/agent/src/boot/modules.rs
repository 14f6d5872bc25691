//! Kernel modules of the initramfs, in the order that its list gives.

use std::fs::{self, File};

use rustix::io::Errno;

const LIST: &str = "/lib/hearth/modules.list";
const DIR: &str = "/lib/hearth/modules";

/// Loads them all. One that does not load is said on the console: whether the guest can do without
/// it will show. Their files are memory of the guest, and are given back.
pub fn load() {
    let list = match fs::read_to_string(LIST) {
        Ok(list) => list,
        Err(error) => {
            eprintln!("hearth-agent: no modules loaded: {LIST}: {error}");
            return;
        }
    };
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
            eprintln!("hearth-agent: module {name}: {error}");
        }
        let _ = fs::remove_file(path);
    }
}
