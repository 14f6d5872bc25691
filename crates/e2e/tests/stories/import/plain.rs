//! Plain Firecracker, without Hearth: a minimal client that boots a guest and saves it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use hearth_e2e::eventually;
use hearth_simulated::guest::{self, GuestError, Params};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

/// How long its drives are.
pub const DRIVE: u64 = 1 << 20;
/// A little more than a guest must have, so that there is something to cut off.
pub const MEMORY_MIB: u64 = 130;

/// Firecracker, or its double.
#[derive(Debug)]
pub struct Program {
    pub path: PathBuf,
    real: bool,
    /// Where the double is, alone.
    _dir: Option<TempDir>,
}

impl Program {
    pub fn simulated() -> Result<Self, String> {
        let program = hearth_simulated::program().map_err(|error| error.to_string())?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let path = dir.path().join("double");
        let placed = fs::hard_link(&program, &path).or_else(|_| fs::copy(&program, &path).map(drop));
        placed.map_err(|error| format!("place {}: {error}", program.display()))?;
        Ok(Self { path, real: false, _dir: Some(dir) })
    }

    pub fn firecracker() -> Result<Self, String> {
        let path = std::env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
        let quiet = Command::new(&path).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !quiet.is_ok_and(|status| status.success()) {
            return Err(format!("there is no {}: put it on PATH or name it in HEARTH_FIRECRACKER", path.display()));
        }
        let gcc = Command::new("gcc").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if !gcc.is_ok_and(|status| status.success()) {
            return Err("there is no gcc, which builds the guest".into());
        }
        Ok(Self { path, real: true, _dir: None })
    }

    /// From now on this goes wrong in it; only a double can be told so.
    pub fn plan(&self, faults: Value) -> Result<()> {
        ensure!(!self.real, "nothing goes wrong on request in the real one");
        Ok(fs::write(self.path.with_extension("json"), faults.to_string())?)
    }

    fn kernel(&self, dir: &Path) -> Result<PathBuf, GuestError> {
        let params = Params::default();
        if self.real { guest::assemble(dir, &params) } else { guest::describe(dir, &params) }
    }
}

/// A directory as Firecracker left it: `state`, `mem`, and drives somewhere.
#[derive(Debug)]
pub struct Plain {
    pub dir: PathBuf,
    drives: Vec<PathBuf>,
    /// What its guest had counted to, at least.
    pub tick: u64,
}

/// What its guest has beside drives.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Vsock,
    Network,
    Nothing,
}

impl Plain {
    /// With drives named by absolute paths, in another directory.
    pub async fn save(program: &Program, dir: &Path, drives: &Path) -> Result<Self> {
        fs::create_dir_all(drives)?;
        let path = |name: &str| drives.join(name).display().to_string();
        Self::save_named(program, dir, &path("root.img"), &path("data.img")).await
    }

    /// With drives named so; relative to `dir`.
    pub async fn save_named(program: &Program, dir: &Path, root: &str, data: &str) -> Result<Self> {
        Self::save_with(program, dir, &[("root_a", root, true), ("data", data, false)], Beside::Vsock).await
    }

    /// Without a drive or a vsock.
    pub async fn save_bare(program: &Program, dir: &Path) -> Result<Self> {
        Self::save_with(program, dir, &[], Beside::Nothing).await
    }

    /// With a network card. Only the double does without a tap for it.
    pub async fn save_networked(program: &Program, dir: &Path) -> Result<Self> {
        ensure!(!program.real, "it would make a tap");
        Self::save_with(program, dir, &[], Beside::Network).await
    }

    /// The directory of the drives.
    pub fn drives(&self) -> PathBuf {
        self.drives.first().and_then(|drive| drive.parent()).unwrap_or(&self.dir).to_owned()
    }

    /// Every file that must stay as it is.
    pub fn everything(&self) -> Vec<PathBuf> {
        let saved = ["state", "mem"].map(|name| self.dir.join(name));
        saved.into_iter().chain(self.drives.iter().cloned()).collect()
    }

    async fn save_with(program: &Program, dir: &Path, drives: &[(&str, &str, bool)], beside: Beside) -> Result<Self> {
        fs::create_dir_all(dir)?;
        let kernels = tempfile::tempdir()?;
        let kernel = program.kernel(kernels.path())?;
        let mut files = Vec::new();
        for (id, path, _) in drives {
            let path = dir.join(path);
            fs::create_dir_all(path.parent().context("it is in a directory")?)?;
            fs::write(&path, format!("the drive {id}"))?;
            File::options().write(true).open(&path)?.set_len(DRIVE)?;
            files.push(path);
        }
        let vmm = Vmm::start(program, dir).await?;
        vmm.put("/machine-config", json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB })).await?;
        vmm.put("/boot-source", json!({ "kernel_image_path": kernel })).await?;
        for (id, path, read_only) in drives {
            let drive = json!({
                "drive_id": id, "path_on_host": path, "is_root_device": false, "is_read_only": read_only,
            });
            vmm.put(&format!("/drives/{id}"), drive).await?;
        }
        match beside {
            Beside::Vsock => {
                vmm.put("/vsock", json!({ "guest_cid": 3, "uds_path": dir.join("their.sock") })).await?;
            }
            Beside::Network => {
                let card = json!({ "iface_id": "eth0", "host_dev_name": "tap0" });
                vmm.put("/network-interfaces/eth0", card).await?;
            }
            Beside::Nothing => {}
        }
        vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await?;
        let console = dir.join("console");
        let tick = || super::last_tick(&fs::read_to_string(&console).unwrap_or_default());
        eventually("the guest counts", async || Ok(tick().is_some_and(|tick| tick > 3))).await?;
        vmm.request("PATCH", "/vm", json!({ "state": "Paused" })).await?;
        let tick = tick().context("it counted")?;
        let saved = json!({ "snapshot_type": "Full", "snapshot_path": "state", "mem_file_path": "mem" });
        vmm.put("/snapshot/create", saved).await?;
        drop(vmm);
        Ok(Self { dir: dir.to_owned(), drives: files, tick })
    }
}

/// Killed when it is dropped; it leaves its sockets, as it does.
struct Vmm {
    child: Child,
    socket: PathBuf,
}

impl Vmm {
    async fn start(program: &Program, dir: &Path) -> Result<Self> {
        let mut command = Command::new(&program.path);
        command.args(["--api-sock", "their-api.sock"]).current_dir(dir).stdin(Stdio::null());
        command.stdout(File::create(dir.join("console"))?).stderr(Stdio::null());
        let child = command.spawn().with_context(|| format!("start {}", program.path.display()))?;
        let vmm = Self { child, socket: dir.join("their-api.sock") };
        eventually("its socket answers", async || Ok(UnixStream::connect(&vmm.socket).await.is_ok())).await?;
        Ok(vmm)
    }

    async fn put(&self, path: &str, body: Value) -> Result<()> {
        self.request("PUT", path, body).await
    }

    async fn request(&self, method: &str, path: &str, body: Value) -> Result<()> {
        let body = body.to_string();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = UnixStream::connect(&self.socket).await?;
        stream.write_all((head + &body).as_bytes()).await?;
        // It keeps the connection whatever one asks for; all of its answers to these fit into one read.
        let mut answer = vec![0; 4096];
        let length = stream.read(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer[..length]).into_owned();
        ensure!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
        Ok(())
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
