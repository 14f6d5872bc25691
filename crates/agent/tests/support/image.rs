//! What a test guest in QEMU boots from: disks with an image of one program, made on the spot.

use std::fs;
use std::path::Path;
use std::process::Command;

use hearth_kernel::GuestKernel;

use crate::kernel::{self, run};

/// The kernel for tests, or `None` after saying what is missing.
pub fn kernel() -> Option<GuestKernel> {
    match Command::new("qemu-system-x86_64").arg("--version").output() {
        Ok(_) => kernel::unpacked(),
        Err(error) => {
            eprintln!("SKIPPED: qemu-system-x86_64 cannot be run: {error}");
            None
        }
    }
}

/// What the image's file system is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rootfs {
    Ext4,
    Erofs,
    /// Nothing that can be mounted.
    Garbage,
}

/// Makes the two disks: an image with one static program, and an empty writable layer.
pub fn disks(dir: &Path, rootfs: Rootfs) {
    let root = dir.join("image");
    fs::create_dir_all(root.join("bin")).expect("made");
    fs::create_dir_all(root.join("etc")).expect("made");
    fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n")
        .expect("written");
    fs::write(root.join("etc/group"), "root:x:0:\napp:x:1000:\n").expect("written");
    fs::write(root.join("etc/machine-id"), "").expect("written");
    std::os::unix::fs::symlink("../run/nothing/resolv.conf", root.join("etc/resolv.conf")).expect("made");
    run(Command::new("rustc")
        .args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"])
        .arg(root.join("bin/box"))
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/box.rs")));
    let image = dir.join("rootfs.img");
    match rootfs {
        Rootfs::Ext4 => run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&root).arg(image).arg("16M")),
        Rootfs::Erofs => run(Command::new("mkfs.erofs").args(["--quiet", "-zlz4"]).arg(image).arg(&root)),
        Rootfs::Garbage => fs::write(image, vec![1; 1 << 20]).expect("written"),
    }
    run(Command::new("mkfs.ext4").args(["-q", "-F"]).arg(dir.join("overlay.img")).arg("64M"));
}
