//! Where the stories happen: a directory, one of the two programs, and a client for its API.
//!
//! The client knows nothing of what is right: it sends JSON and tells status and body. One kept-alive
//! connection per VMM, so that every story shows that it lasts.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use hearth_simulated::guest::{self, GuestError, Params};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{HeaderMap, Request};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tokio::process::{Child, Command};

/// The version that the suite knows the answers of.
const VERSION: &str = "Firecracker v1.16.1";
/// How long anything may take.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// What every machine of the stories has.
pub const MEMORY_MIB: u64 = 64;
pub const MEMORY_LEN: u64 = MEMORY_MIB << 20;

/// One story's place.
pub struct Lab {
    dir: TempDir,
    program: PathBuf,
    pub kernel: PathBuf,
    pub params: Params,
    pub simulated: bool,
    /// What the program is started by, if not by itself.
    started_by: Vec<String>,
}

/// A process that speaks the API.
pub struct Vmm {
    pub dir: PathBuf,
    process: Child,
    client: SendRequest<Full<Bytes>>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub body: String,
    pub headers: HeaderMap,
    to: String,
}

/// A snapshot of a guest that counted.
pub struct Bundle {
    pub dir: PathBuf,
    /// The last tick that it had printed.
    pub tick: u64,
}

impl Lab {
    /// On the simulated VMM.
    pub fn simulated() -> Self {
        Self::new(PathBuf::from(env!("CARGO_BIN_EXE_hearth-simulated-vmm")), guest::describe, true)
            .expect("the simulated VMM needs nothing")
    }

    /// On the real Firecracker; `None` where it cannot be, which is said.
    pub fn firecracker() -> Option<Self> {
        let skipped = |why: &str| {
            eprintln!("SKIPPED: the contract on real Firecracker: {why}");
            None
        };
        let program = std::env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
        let version = match std::process::Command::new(&program).arg("--version").output() {
            Ok(output) => String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned(),
            Err(_) => return skipped("there is none, neither on PATH nor in HEARTH_FIRECRACKER"),
        };
        if version != VERSION {
            return skipped(&format!("it is {version}, and the suite knows {VERSION}"));
        }
        if let Err(error) = File::options().read(true).write(true).open("/dev/kvm") {
            return skipped(&format!("/dev/kvm does not open: {error}"));
        }
        match Self::new(program, guest::assemble, false) {
            Ok(lab) => Some(lab),
            Err(GuestError::NoCompiler) => skipped("there is no gcc to assemble its guest"),
            Err(error) => panic!("{error}"),
        }
    }

    fn new(
        program: PathBuf,
        make: impl Fn(&Path, &Params) -> Result<PathBuf, GuestError>,
        simulated: bool,
    ) -> Result<Self, GuestError> {
        let dir = tempfile::tempdir().expect("a directory");
        let params = Params { pages: 40, stride: 3, step: 7, per_tick: 2, hz: 100, ..Params::default() };
        assert!(params.memory_mib() <= MEMORY_MIB);
        let kernel = make(dir.path(), &params)?;
        Ok(Self { dir, program, kernel, params, simulated, started_by: Vec::new() })
    }

    /// With another guest.
    pub fn with_guest(mut self, params: Params) -> Self {
        let make = if self.simulated { guest::describe } else { guest::assemble };
        self.kernel = make(self.dir.path(), &params).expect("it could be made before");
        self.params = params;
        self
    }

    /// Starts every VMM in a network of its own, where it may make taps; `None` where that may not
    /// be, which is said. The simulated one opens none.
    pub fn with_networks(mut self) -> Option<Self> {
        if self.simulated {
            return Some(self);
        }
        self.started_by = ["unshare", "--net", "--"].map(str::to_owned).to_vec();
        let tried = std::process::Command::new("unshare").args(["--net", "--", "test", "-c", "/dev/net/tun"]).status();
        if tried.is_ok_and(|status| status.success()) {
            return Some(self);
        }
        eprintln!("SKIPPED: the contract's taps: no network namespaces (root and /dev/net/tun are needed)");
        None
    }

    /// A path in the story's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// An instance's directory, with its disks.
    pub fn instance(&self, name: &str) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir_all(dir.join("disks")).expect("a directory");
        for disk in ["disks/rootfs", "disks/overlay.img"] {
            File::create(dir.join(disk)).and_then(|file| file.set_len(1 << 20)).expect("a disk");
        }
        dir
    }

    /// The program, with these arguments, in this directory.
    pub fn command(&self, dir: &Path, arguments: &[&str]) -> Command {
        let mut words = self.started_by.iter().map(OsStr::new).chain([self.program.as_os_str()]);
        let mut command = Command::new(words.next().expect("at least the program"));
        command.args(words).args(arguments).current_dir(dir).stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// A VMM in a new instance's directory, to which nothing has been said yet.
    pub async fn launch(&self, name: &str) -> Vmm {
        self.launch_in(self.instance(name)).await
    }

    /// The same in a directory that is there.
    pub async fn launch_in(&self, dir: PathBuf) -> Vmm {
        let log = File::create(dir.join("vmm.log")).expect("a log");
        let mut process = self
            .command(&dir, &["--api-sock", "api.sock", "--id", "lab-1"])
            .stdout(log.try_clone().expect("a log"))
            .stderr(log)
            .spawn()
            .expect("it starts");
        let socket = dir.join("api.sock");
        let connected = until("the API socket", async || match UnixStream::connect(&socket).await {
            Ok(stream) => Some(Ok(stream)),
            Err(_) => process.try_wait().expect("a child").map(Err),
        });
        let stream = match connected.await {
            Ok(stream) => stream,
            Err(exit) => panic!("it ended ({exit}): {}", read(&dir.join("vmm.log"))),
        };
        let (client, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP");
        tokio::spawn(connection);
        Vmm { dir, process, client }
    }

    /// A VMM whose guest counts.
    pub async fn boot(&self, name: &str) -> Vmm {
        self.boot_with(name, json!({})).await
    }

    /// The same with more in its machine's configuration.
    pub async fn boot_with(&self, name: &str, machine: Value) -> Vmm {
        let mut vmm = self.launch(name).await;
        vmm.configure(&self.kernel, machine).await;
        vmm.put("/actions", json!({ "action_type": "InstanceStart" })).await.done();
        vmm.ticks_beyond(0).await;
        vmm
    }

    /// A snapshot of a guest that has counted a little; its VMM is gone.
    pub async fn bundle(&self) -> Bundle {
        let mut vmm = self.boot("source").await;
        vmm.ticks_beyond(2).await;
        let bundle = self.save(&mut vmm, "bundle", "Diff").await;
        vmm.kill().await;
        bundle
    }

    /// Pauses it, and saves it into a new directory.
    pub async fn save(&self, vmm: &mut Vmm, name: &str, kind: &str) -> Bundle {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("a directory");
        vmm.pause().await.done();
        vmm.save(kind, &dir.join("vmstate"), &dir.join("memory")).await.done();
        Bundle { dir, tick: vmm.tick() }
    }

    /// The same onto a clone of the memory that it was loaded from.
    pub async fn save_onto(&self, base: &Bundle, vmm: &mut Vmm, name: &str) -> Bundle {
        let dir = self.path(name);
        fs::create_dir_all(&dir).expect("a directory");
        let mut copy = std::process::Command::new("cp");
        copy.arg("--sparse=always").arg(base.memory()).arg(dir.join("memory"));
        assert!(copy.status().expect("cp").success());
        self.save(vmm, name, "Diff").await
    }

    /// A VMM in a new directory, its console named, and this bundle loaded into it with `more`.
    pub async fn load(&self, name: &str, bundle: &Bundle, more: Value) -> (Vmm, Answer) {
        let mut vmm = self.launch(name).await;
        vmm.put("/serial", json!({ "serial_out_path": "serial.log" })).await.done();
        let answer = vmm.put("/snapshot/load", bundle.body(more)).await;
        (vmm, answer)
    }

    /// The same, with the guest running.
    pub async fn restore(&self, name: &str, bundle: &Bundle) -> Vmm {
        let (vmm, answer) = self.load(name, bundle, json!({ "resume_vm": true })).await;
        answer.done();
        vmm
    }
}

impl Bundle {
    pub fn vmstate(&self) -> PathBuf {
        self.dir.join("vmstate")
    }

    pub fn memory(&self) -> PathBuf {
        self.dir.join("memory")
    }

    /// What is asked for to load it, with `more` in it.
    pub fn body(&self, more: Value) -> Value {
        let mut body = json!({
            "snapshot_path": self.vmstate(),
            "mem_backend": { "backend_type": "File", "backend_path": self.memory() },
        });
        merge(&mut body, more);
        body
    }
}

impl Vmm {
    pub async fn get(&mut self, path: &str) -> Answer {
        self.request("GET", path, String::new()).await
    }

    pub async fn put(&mut self, path: &str, body: Value) -> Answer {
        self.request("PUT", path, body.to_string()).await
    }

    pub async fn patch(&mut self, path: &str, body: Value) -> Answer {
        self.request("PATCH", path, body.to_string()).await
    }

    /// Sends anything.
    pub async fn request(&mut self, method: &str, path: &str, body: String) -> Answer {
        self.try_request(method, path, body).await.expect("answered")
    }

    /// Sends anything, and waits for what comes of it.
    pub async fn try_request(&mut self, method: &str, path: &str, body: String) -> Result<Answer, hyper::Error> {
        let to = format!("{method} {path} {body}");
        let request = Request::builder().method(method).uri(path).header("Host", "localhost");
        let request = request.body(Full::from(body)).expect("a request");
        let exchange = async {
            self.client.ready().await?;
            let response = self.client.send_request(request).await?;
            let (parts, body) = response.into_parts();
            let body = String::from_utf8(body.collect().await?.to_bytes().to_vec()).expect("text");
            Ok(Answer { status: parts.status.as_u16(), body, headers: parts.headers, to: to.clone() })
        };
        tokio::time::timeout(PATIENCE, exchange).await.unwrap_or_else(|_| panic!("{to}: no answer"))
    }

    pub async fn pause(&mut self) -> Answer {
        self.patch("/vm", json!({ "state": "Paused" })).await
    }

    pub async fn resume(&mut self) -> Answer {
        self.patch("/vm", json!({ "state": "Resumed" })).await
    }

    pub async fn save(&mut self, kind: &str, vmstate: &Path, memory: &Path) -> Answer {
        let body = json!({ "snapshot_type": kind, "snapshot_path": vmstate, "mem_file_path": memory });
        self.put("/snapshot/create", body).await
    }

    /// Says everything before the start.
    pub async fn configure(&mut self, kernel: &Path, more: Value) {
        let mut machine = json!({ "vcpu_count": 1, "mem_size_mib": MEMORY_MIB });
        merge(&mut machine, more);
        self.put("/machine-config", machine).await.done();
        self.put("/boot-source", json!({ "kernel_image_path": kernel, "boot_args": "console=ttyS0" })).await.done();
        let rootfs = json!({
            "drive_id": "rootfs", "path_on_host": "disks/rootfs", "is_root_device": true, "is_read_only": true,
        });
        self.put("/drives/rootfs", rootfs).await.done();
        let overlay = json!({ "drive_id": "overlay", "path_on_host": "disks/overlay.img", "is_root_device": false });
        self.put("/drives/overlay", overlay).await.done();
        self.put("/vsock", json!({ "guest_cid": 3, "uds_path": "vsock.sock" })).await.done();
        self.put("/serial", json!({ "serial_out_path": "serial.log" })).await.done();
        self.put("/entropy", json!({})).await.done();
    }

    /// What `GET /` says of its state.
    pub async fn state(&mut self) -> String {
        let answer = self.get("/").await;
        assert_eq!(answer.status, 200);
        answer.json()["state"].as_str().expect("a state").to_owned()
    }

    /// What the guest has printed.
    pub fn serial(&self) -> String {
        read(&self.dir.join("serial.log"))
    }

    /// The numbers of the ticks that it has printed.
    pub fn ticks(&self) -> Vec<u64> {
        self.serial()
            .split_inclusive('\n')
            .filter_map(|line| line.strip_prefix("tick ")?.trim_end_matches('\n').parse().ok())
            .collect()
    }

    /// The last of them.
    pub fn tick(&self) -> u64 {
        self.ticks().last().copied().unwrap_or(0)
    }

    /// Waits until it has printed a later one.
    pub async fn ticks_beyond(&self, tick: u64) {
        until(&format!("a tick after {tick} in {:?}", self.serial()), async || {
            self.ticks().last().filter(|last| **last > tick).copied()
        })
        .await;
    }

    /// Whether a file of its directory is open in it.
    pub fn has_open(&self, name: &str) -> bool {
        let wanted = fs::metadata(self.dir.join(name)).expect("the file is there");
        let fds = fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("it lives");
        fds.filter_map(|fd| fs::metadata(fd.ok()?.path()).ok())
            .any(|open| (open.dev(), open.ino()) == (wanted.dev(), wanted.ino()))
    }

    pub fn pid(&self) -> u32 {
        self.process.id().expect("it lives")
    }

    /// That it has not ended.
    pub fn lives(&mut self) {
        let ended = self.process.try_wait().expect("a child");
        assert!(ended.is_none(), "{ended:?}: {}", read(&self.dir.join("vmm.log")));
    }

    /// How it ends.
    pub async fn exit(&mut self) -> ExitStatus {
        tokio::time::timeout(PATIENCE, self.process.wait()).await.expect("it ends").expect("a child")
    }

    pub async fn kill(mut self) {
        self.process.kill().await.expect("a child");
    }

    /// What it has said.
    pub fn log(&self) -> String {
        read(&self.dir.join("vmm.log"))
    }
}

impl Answer {
    /// 204, and nothing in it.
    #[track_caller]
    pub fn done(&self) {
        assert_eq!((self.status, self.body.as_str()), (204, ""), "{}", self.to);
    }

    /// 400, with exactly this message and nothing else.
    #[track_caller]
    pub fn refused(&self, message: &str) {
        assert_eq!(self.status, 400, "{}: {}", self.to, self.body);
        assert_eq!(self.json(), json!({ "fault_message": message }), "{}", self.to);
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{}: {error}: {}", self.to, self.body))
    }
}

/// Asks until there is an answer.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let asked = async {
        loop {
            if let Some(found) = ask().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asked).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// A file's text; nothing where there is none.
pub fn read(path: &Path) -> String {
    match fs::read(path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        Err(error) => panic!("read {}: {error}", path.display()),
    }
}

/// How many bytes of a file are on disk.
pub fn on_disk(path: &Path) -> u64 {
    fs::metadata(path).expect("the file is there").blocks() * 512
}

/// The names in a directory, sorted.
pub fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

fn merge(into: &mut Value, more: Value) {
    let (Some(into), Value::Object(more)) = (into.as_object_mut(), more) else { panic!("two objects") };
    into.extend(more);
}
