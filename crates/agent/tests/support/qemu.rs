//! A test guest in QEMU, without hardware virtualisation: boot, save, restore.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use hearth_kernel::GuestKernel;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

pub const PATIENCE: Duration = Duration::from_secs(60);

/// Which board.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Machine {
    Microvm,
    Q35,
}

/// How it comes to life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Start {
    Boot,
    /// From the state saved in its directory, with its own private copy of that memory.
    Restore,
}

pub struct Qemu {
    /// Of sockets and the serial log.
    pub dir: PathBuf,
    process: Child,
    lines: Lines<BufReader<OwnedReadHalf>>,
    commands: OwnedWriteHalf,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if std::thread::panicking() {
            eprintln!("serial log:\n{}", self.serial());
        }
    }
}

impl Qemu {
    /// Starts QEMU in `dir`, with the disks, initrd and saved state of `from`.
    pub async fn start(kernel: &GuestKernel, machine: Machine, from: &Path, dir: &Path, start: Start) -> Self {
        let file = |name: &str| from.join(name).display().to_string();
        let own = |name: &str| dir.join(name).display().to_string();
        let (bus, board) = match machine {
            Machine::Microvm => ("device", "microvm"),
            Machine::Q35 => ("pci", "q35"),
        };
        let share = if start == Start::Boot { "on" } else { "off" };
        let mut command = Command::new("qemu-system-x86_64");
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "256M", "-cpu", "max"]);
        let mut option = |flag: &str, value: String| {
            command.args([flag, &value]);
        };
        option("-machine", format!("{board},accel=tcg,memory-backend=ram"));
        option("-object", format!("memory-backend-file,id=ram,size=256M,mem-path={},share={share}", file("ram")));
        option("-kernel", kernel.vmlinuz.display().to_string());
        option("-initrd", file("initrd"));
        let khz = tsc_khz();
        let line = format!("console=ttyS0 panic=-1 reboot=t tsc_early_khz={khz} no_timer_check tsc=reliable quiet");
        option("-append", line);
        option("-serial", format!("file:{}", own("serial.log")));
        for (name, path, read_only) in [("rootfs", file("rootfs.img"), "on"), ("overlay", own("overlay.img"), "off")] {
            option("-drive", format!("if=none,id={name},format=raw,file={path},readonly={read_only}"));
            option("-device", format!("virtio-blk-{bus},drive={name},serial={name}"));
        }
        option("-netdev", "user,id=net,ipv6=off".into());
        option("-device", format!("virtio-net-{bus},netdev=net,guest_announce=off"));
        option("-device", format!("virtio-serial-{bus}"));
        option("-chardev", format!("socket,id=agent,server=on,wait=off,path={}", own("agent.sock")));
        option("-device", "virtserialport,chardev=agent,name=hearth.agent".into());
        option("-qmp", format!("unix:{},server=on,wait=off", own("qmp.sock")));
        if start == Start::Restore {
            option("-incoming", "defer".into());
        }
        if dir != from {
            std::fs::copy(from.join("overlay.img"), dir.join("overlay.img")).expect("copied");
        }
        let log = std::fs::File::create(dir.join("qemu.log")).expect("made");
        let mut process = command.stdin(Stdio::null()).stderr(log).spawn().expect("QEMU starts");
        let give_up = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(own("qmp.sock")).await {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < give_up, "QMP: {error}"),
            }
            if let Some(status) = process.try_wait().expect("asked") {
                panic!("QEMU ended: {status}: {}", std::fs::read_to_string(own("qemu.log")).unwrap_or_default());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        };
        let (read, commands) = stream.into_split();
        let mut qemu = Self { dir: dir.to_owned(), process, lines: BufReader::new(read).lines(), commands };
        qemu.line().await;
        qemu.qmp("qmp_capabilities", json!({})).await;
        qemu
    }

    async fn line(&mut self) -> Value {
        let line = timeout(PATIENCE, self.lines.next_line()).await.expect("in time").expect("read").expect("a line");
        serde_json::from_str(&line).expect("JSON")
    }

    /// Gives a command and waits for its answer.
    pub async fn qmp(&mut self, command: &str, arguments: Value) -> Value {
        let text = json!({"execute": command, "arguments": arguments}).to_string();
        self.commands.write_all(text.as_bytes()).await.expect("sent");
        loop {
            let answer = self.line().await;
            if let Some(value) = answer.get("return") {
                return value.clone();
            }
            assert!(answer.get("error").is_none(), "{command}: {answer}");
        }
    }

    /// Stops the guest and saves its state beside its memory; both stay as they are.
    pub async fn save(&mut self) {
        self.qmp("stop", json!({})).await;
        self.ignore_shared().await;
        let uri = format!("exec:cat >{}", self.dir.join("state").display());
        self.qmp("migrate", json!({"uri": uri})).await;
        self.migrated().await;
    }

    /// Loads a saved state; the guest does not run yet.
    pub async fn load(&mut self, from: &Path) {
        self.ignore_shared().await;
        let uri = format!("exec:cat {}", from.join("state").display());
        self.qmp("migrate-incoming", json!({"uri": uri})).await;
        self.migrated().await;
    }

    async fn ignore_shared(&mut self) {
        let capabilities = json!({"capabilities": [{"capability": "x-ignore-shared", "state": true}]});
        self.qmp("migrate-set-capabilities", capabilities).await;
    }

    async fn migrated(&mut self) {
        loop {
            let answer = self.qmp("query-migrate", json!({})).await;
            match answer["status"].as_str() {
                Some("completed") => return,
                Some("failed") => panic!("{answer}"),
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    }

    /// The host's end of the agent port.
    pub async fn agent_port(&self) -> UnixStream {
        UnixStream::connect(self.dir.join("agent.sock")).await.expect("connected")
    }

    pub fn serial(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.dir.join("serial.log")).unwrap_or_default()).into_owned()
    }

    /// Waits until QEMU has ended by itself.
    pub async fn ended(&mut self) -> bool {
        let give_up = Instant::now() + Duration::from_secs(20);
        while Instant::now() < give_up {
            if self.process.try_wait().expect("asked").is_some() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        false
    }
}

/// Without this hint the guest kernel measures the counter's rate itself, and under emulation
/// sometimes never ends doing so.
fn tsc_khz() -> u64 {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mhz = cpuinfo.lines().find(|line| line.starts_with("cpu MHz")).and_then(|line| line.split(':').nth(1));
    let mhz: &str = mhz.map_or("2000", str::trim);
    let (whole, fraction) = mhz.split_once('.').unwrap_or((mhz, "0"));
    whole.parse::<u64>().unwrap_or(2000) * 1000 + fraction.parse::<u64>().unwrap_or(0)
}
