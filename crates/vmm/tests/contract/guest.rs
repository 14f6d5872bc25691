//! The guest of the real stories: a stock kernel, and an initrd of the kernel's modules and the
//! one program in `guest.c`, made here. And the host's end of a conversation with it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use hearth_vmm::Vmm;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Where an unpacked kernel package is: `boot/vmlinuz-*` and `lib/modules/*`, which lies below `usr`
/// since Debian 13.
pub const KERNEL_DIR: &str = "HEARTH_TEST_KERNEL_DIR";

const MODULES: [&str; 6] = ["virtio_mmio", "virtio_pci", "virtio_blk", "virtio_console", "virtio_net", "virtio_rng"];

/// Kernel and initrd; why not, where a tool or the kernel is missing.
pub fn make(into: &Path) -> Result<(PathBuf, PathBuf), String> {
    let kernel_dir = std::env::var_os(KERNEL_DIR).map(PathBuf::from).ok_or(format!("{KERNEL_DIR} is not set"))?;
    let kernel = only(&kernel_dir.join("boot"), "vmlinuz-")?;
    let modules =
        only(&kernel_dir.join("lib/modules"), "").or_else(|_| only(&kernel_dir.join("usr/lib/modules"), ""))?;
    let init = into.join("init");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/guest.c");
    let gcc = Command::new("gcc").args(["-O1", "-static", "-Wall", "-Werror", "-o"]).arg(&init).arg(source).output();
    let gcc = gcc.map_err(|error| format!("gcc: {error}"))?;
    assert!(gcc.status.success(), "guest.c: {}", String::from_utf8_lossy(&gcc.stderr));

    let mut cpio = Cpio::default();
    for dir in ["dev", "modules", "proc", "sys"] {
        cpio.entry(dir, 0o40_755, &[], (0, 0));
    }
    cpio.entry("dev/console", 0o20_600, &[], (5, 1));
    cpio.entry("init", 0o100_755, &fs::read(init).expect("just made"), (0, 0));
    let mut order = String::new();
    for (name, content) in in_order(&modules)? {
        cpio.entry(&format!("modules/{name}"), 0o100_644, &content, (0, 0));
        order.push_str(&format!("/modules/{name}\n"));
    }
    cpio.entry("modules/order", 0o100_644, order.as_bytes(), (0, 0));
    cpio.entry("TRAILER!!!", 0, &[], (0, 0));
    let initrd = into.join("initrd");
    fs::write(&initrd, cpio.0).expect("written");
    Ok((kernel, initrd))
}

fn only(dir: &Path, prefix: &str) -> Result<PathBuf, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut paths = entries.filter_map(|e| Some(e.ok()?.path()));
    let fits = |path: &PathBuf| path.file_name().and_then(OsStr::to_str).is_some_and(|n| n.starts_with(prefix));
    paths.find(fits).ok_or(format!("{}: nothing named {prefix}*", dir.display()))
}

/// The modules with what they depend on, dependencies first. From the modules themselves: an
/// unpacked package has no `modules.dep`. One that is not there is built in.
fn in_order(root: &Path) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut files = HashMap::new();
    let mut dirs = vec![root.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?.flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                dirs.push(path);
            } else if let Some((name, "ko" | "ko.xz")) =
                path.file_name().and_then(OsStr::to_str).and_then(|name| name.split_once('.'))
            {
                files.insert(name.replace('-', "_"), path);
            }
        }
    }
    fn need(name: &str, files: &HashMap<String, PathBuf>, order: &mut Vec<(String, Vec<u8>)>) {
        let file = format!("{name}.ko");
        let Some(path) = files.get(name).filter(|_| !order.iter().any(|(done, _)| *done == file)) else { return };
        let content = module(path);
        let text = content.split(|byte| *byte == 0).find_map(|field| field.strip_prefix(b"depends="));
        let depends = String::from_utf8_lossy(text.unwrap_or_default()).replace('-', "_");
        depends.split(',').filter(|name| !name.is_empty()).for_each(|name| need(name, files, order));
        order.push((file, content));
    }
    let mut order = Vec::new();
    MODULES.iter().for_each(|name| need(name, &files, &mut order));
    Ok(order)
}

/// A module as the kernel takes it; Debian 13 packs them.
fn module(path: &Path) -> Vec<u8> {
    if path.extension() == Some(OsStr::new("ko")) {
        return fs::read(path).expect("a module can be read");
    }
    let unpacked = Command::new("xz").arg("-dc").arg(path).output().expect("xz is there");
    assert!(unpacked.status.success(), "{}: {}", path.display(), String::from_utf8_lossy(&unpacked.stderr));
    unpacked.stdout
}

/// An archive in the "newc" format.
#[derive(Default)]
struct Cpio(Vec<u8>, u32);

impl Cpio {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.1 += 1;
        let size = u32::try_from(content.len()).expect("small");
        let name_size = u32::try_from(name.len()).expect("short") + 1;
        let fields = [self.1, mode, 0, 0, 1, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.0.extend(b"070701");
        fields.iter().for_each(|field| self.0.extend(format!("{field:08X}").bytes()));
        self.0.extend(name.bytes().chain([0]));
        self.pad();
        self.0.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}

/// A conversation with the guest, one line each way.
pub struct Guest(BufReader<UnixStream>);

impl Guest {
    pub async fn dial(vmm: &Vmm) -> Self {
        Self(BufReader::new(vmm.dial_guest().await.expect("the guest's socket")))
    }

    /// Asks, and returns the answer.
    pub async fn ask(&mut self, line: &str) -> String {
        let both = async {
            self.0.write_all(format!("{line}\n").as_bytes()).await.expect("the question is taken");
            let mut answer = String::new();
            self.0.read_line(&mut answer).await.expect("an answer");
            answer.trim_end().to_owned()
        };
        tokio::time::timeout(Duration::from_secs(60), both).await.unwrap_or_else(|_| panic!("no answer to {line:?}"))
    }

    /// Asks for a number: "count" is answered by "count 17".
    pub async fn number(&mut self, line: &str) -> u64 {
        let answer = self.ask(line).await;
        answer.rsplit(' ').next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{line:?}: {answer:?}"))
    }
}
