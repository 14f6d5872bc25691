//! A test guest in a real Firecracker: boot, save, restore, and its agent's vsock port.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// Everything is some twenty times slower where virtualisation is emulated.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Where the agent listens.
const PORT: u32 = 52;

/// The kernel's command line. `nomodule`, which Firecracker's own default has, would keep every
/// driver out. The keyboard controller is asked for nothing but the reset, and each line on the
/// console is an exit to Firecracker for each of its characters.
const COMMAND_LINE: &str = "console=ttyS0 quiet loglevel=1 reboot=k panic=-1 cryptomgr.notests pci=off \
    8250.nr_uarts=1 i8042.noaux i8042.nomux i8042.dumbkbd";

/// What it boots.
pub struct Boot {
    pub vmlinux: PathBuf,
    pub initrd: PathBuf,
}

pub struct Firecracker {
    dir: PathBuf,
    process: Child,
}

impl Drop for Firecracker {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("serial log:\n{}\nFirecracker's log:\n{}", self.serial(), self.read("vmm.log"));
        }
    }
}

/// The program, and a KVM that can run Linux guests; or `None` after saying what is missing.
pub fn program() -> Option<PathBuf> {
    let program = std::env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let virtualises = cpuinfo.split_ascii_whitespace().any(|flag| flag == "svm" || flag == "vmx");
    if !virtualises || fs::exists("/sys/module/kvm_pvm").unwrap_or(false) || File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: no KVM that runs Linux guests in Firecracker: see `cargo xtask lab`");
        return None;
    }
    let runs = Command::new(&program).arg("--version").stdout(Stdio::null()).status();
    if let Err(error) = runs {
        eprintln!("SKIPPED: {} cannot be run: {error}", program.display());
        return None;
    }
    Some(program)
}

impl Firecracker {
    /// Starts the program in `dir`, where every path in its configuration begins.
    pub async fn start(program: &Path, dir: &Path) -> Self {
        let log = File::create(dir.join("vmm.log")).expect("made");
        let mut process = Command::new(program)
            .args(["--api-sock", "api.sock", "--id", "guest", "--level", "Info"])
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("copied"))
            .stderr(log)
            .spawn()
            .expect("Firecracker starts");
        let give_up = Instant::now() + PATIENCE;
        while UnixStream::connect(dir.join("api.sock")).await.is_err() {
            assert!(Instant::now() < give_up && process.try_wait().expect("asked").is_none(), "no API socket");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let vmm = Self { dir: dir.to_owned(), process };
        vmm.put("/serial", json!({"serial_out_path": "serial.log"})).await;
        vmm
    }

    /// Boots the disks of `dir`. The order of the devices is that in which they are added.
    pub async fn boot(&self, boot: &Boot) {
        self.put("/machine-config", json!({"vcpu_count": 1, "mem_size_mib": 256})).await;
        let (kernel, initrd) = (&boot.vmlinux, &boot.initrd);
        let source = json!({"kernel_image_path": kernel, "initrd_path": initrd, "boot_args": COMMAND_LINE});
        self.put("/boot-source", source).await;
        for (name, read_only) in [("rootfs", true), ("overlay", false)] {
            let path = format!("{name}.img");
            let drive =
                json!({"drive_id": name, "path_on_host": path, "is_root_device": false, "is_read_only": read_only});
            self.put(&format!("/drives/{name}"), drive).await;
        }
        self.put("/vsock", json!({"guest_cid": 3, "uds_path": "vsock.sock"})).await;
        self.put("/entropy", json!({})).await;
        self.put("/actions", json!({"action_type": "InstanceStart"})).await;
    }

    /// Saves its state; it does not go on.
    pub async fn save(&self) {
        self.ask("PATCH", "/vm", json!({"state": "Paused"})).await;
        let files = json!({"snapshot_type": "Diff", "snapshot_path": "vmstate", "mem_file_path": "memory"});
        // A memory file that is there would be written into.
        for name in ["vmstate", "memory"] {
            let _ = fs::remove_file(self.dir.join(name));
        }
        self.put("/snapshot/create", files).await;
    }

    /// Goes on where it was saved.
    pub async fn resume(&self) {
        self.ask("PATCH", "/vm", json!({"state": "Resumed"})).await;
    }

    /// Loads what was saved in `from`; the guest runs when this returns.
    pub async fn load(&self, from: &Path) {
        let memory = json!({"backend_type": "File", "backend_path": from.join("memory")});
        let load = json!({"snapshot_path": from.join("vmstate"), "mem_backend": memory, "resume_vm": true});
        self.put("/snapshot/load", load).await;
    }

    async fn put(&self, path: &str, body: Value) {
        self.ask("PUT", path, body).await;
    }

    /// One request, which must succeed.
    async fn ask(&self, method: &str, path: &str, body: Value) {
        let body = body.to_string();
        let mut stream = UnixStream::connect(self.dir.join("api.sock")).await.expect("connected");
        let head = format!("{method} {path} HTTP/1.1\r\nHost: vmm\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.expect("sent");
        let mut answer = vec![0; 4096];
        let bytes = stream.read(&mut answer).await.expect("answered");
        let answer = String::from_utf8_lossy(&answer[..bytes]).into_owned();
        assert!(answer.starts_with("HTTP/1.1 204"), "{method} {path} {body}: {answer}");
    }

    /// The agent's port; tried again for as long as nobody listens there.
    pub async fn agent_port(&self) -> UnixStream {
        let give_up = Instant::now() + PATIENCE;
        loop {
            if let Some(stream) = self.dial().await {
                return stream;
            }
            assert!(Instant::now() < give_up, "the agent does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Asks once to be connected to the agent's port.
    pub async fn dial(&self) -> Option<UnixStream> {
        let mut stream = UnixStream::connect(self.dir.join("vsock.sock")).await.ok()?;
        stream.write_all(format!("CONNECT {PORT}\n").as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\n") {
            answer.push(stream.read_u8().await.ok()?);
        }
        assert!(answer.starts_with(b"OK "), "{}", String::from_utf8_lossy(&answer));
        Some(stream)
    }

    fn read(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.dir.join(name)).unwrap_or_default()).into_owned()
    }

    pub fn serial(&self) -> String {
        self.read("serial.log")
    }

    /// Waits until Firecracker has ended by itself.
    pub async fn ended(&mut self) -> bool {
        let give_up = Instant::now() + PATIENCE;
        while Instant::now() < give_up {
            if self.process.try_wait().expect("asked").is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}
