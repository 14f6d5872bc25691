//! What a test guest boots from: kernel, initramfs and disks, made on the spot.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Modules that a guest on either QEMU machine needs; those that they need come by themselves.
const MODULES: [&str; 8] =
    ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "overlay", "erofs", "virtio_rng"];

/// An unpacked Debian kernel package.
pub struct Kernel {
    pub vmlinuz: PathBuf,
    modules: PathBuf,
}

/// The kernel for tests, or `None` after saying what is missing.
pub fn kernel() -> Option<Kernel> {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").output();
    let dir = std::env::var_os("HEARTH_TEST_KERNEL_DIR").map_or_else(|| "/usr/lib/hearth/kernel".into(), PathBuf::from);
    let only = |dir: PathBuf, prefix: &str| {
        let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
        entries.into_iter().find(|path| path.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix)))
    };
    let found = (only(dir.join("boot"), "vmlinuz-"), only(dir.join("lib/modules"), ""));
    match (qemu, found) {
        (Ok(_), (Some(vmlinuz), Some(modules))) => Some(Kernel { vmlinuz, modules }),
        (Err(error), _) => {
            eprintln!("SKIPPED: qemu-system-x86_64 cannot be run: {error}");
            None
        }
        _ => {
            eprintln!(
                "SKIPPED: no kernel in {}: set HEARTH_TEST_KERNEL_DIR to an unpacked linux-image package",
                dir.display()
            );
            None
        }
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The agent as it is shipped: static and small. Built once for all tests of a process.
pub fn agent() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        const TARGET: &str = "x86_64-unknown-linux-gnu";
        let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
        run(Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "hearth-agent", "--profile", "agent", "--target", TARGET])
            .arg("--target-dir")
            .arg(&target_dir)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("RUSTFLAGS", "-C target-feature=+crt-static"));
        target_dir.join(TARGET).join("agent/hearth-agent")
    })
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

/// Makes the initramfs.
pub fn initrd(kernel: &Kernel, to: &Path) {
    let mut archive = Cpio::default();
    for dir in ["lib", "lib/hearth", "lib/hearth/modules"] {
        archive.add(dir, 0o040_755, &[]);
    }
    archive.add("init", 0o100_755, &fs::read(agent()).expect("the agent"));
    let mut list = String::new();
    for (name, content) in in_order(&kernel.modules) {
        archive.add(&format!("lib/hearth/modules/{name}"), 0o100_644, &content);
        list += &format!("{name}\n");
    }
    archive.add("lib/hearth/modules.list", 0o100_644, list.as_bytes());
    archive.add("TRAILER!!!", 0, &[]);
    fs::write(to, archive.0).expect("written");
}

/// The modules with those that they need, each after what it needs. Read from the modules
/// themselves, since an unpacked package has no `modules.dep` yet.
fn in_order(dir: &Path) -> Vec<(String, Vec<u8>)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).expect("listed").filter_map(Result::ok) {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path());
            }
        }
    }
    fn add(name: &str, files: &[PathBuf], done: &mut BTreeSet<String>, order: &mut Vec<(String, Vec<u8>)>) {
        let file_name = format!("{}.ko", name.replace('-', "_"));
        let is_it =
            |path: &&PathBuf| path.file_name().is_some_and(|n| n.to_string_lossy().replace('-', "_") == file_name);
        let Some(path) = files.iter().find(is_it) else { return };
        if !done.insert(file_name.clone()) {
            return;
        }
        let content = fs::read(path).expect("read");
        let needs = content.split(|byte| *byte == 0).find_map(|text| text.strip_prefix(b"depends="));
        for need in String::from_utf8_lossy(needs.unwrap_or_default()).split(',').filter(|need| !need.is_empty()) {
            add(need, files, done, order);
        }
        order.push((file_name, content));
    }
    let (mut files, mut done, mut order) = (Vec::new(), BTreeSet::new(), Vec::new());
    walk(dir, &mut files);
    // virtio_ring names no need of virtio's, and erofs asks for crc32c by name only.
    for name in ["virtio_ring", "virtio", "crc32c_generic"].into_iter().chain(MODULES) {
        add(name, &files, &mut done, &mut order);
    }
    order
}

/// The archive format of an initramfs ("newc").
#[derive(Default)]
struct Cpio(Vec<u8>);

impl Cpio {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        let inode = self.0.len();
        let fields = [inode, mode as usize, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name.as_bytes());
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
