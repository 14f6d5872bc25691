//! A daemon of one's own, with an empty data directory, and the ways to talk to it.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail, ensure};
use hearth_api::Tags;
use hearth_api::client::{Client, ClientError};
use hearth_api::images::{Image, ImportImage};
use hearth_api::instances::{CreateInstance, ForkInstance, Forked, Instance, InstanceState, TargetState, WaitQuery};
use hearth_api::snapshots::{ForkSnapshot, ListSnapshots, Snapshot};
use tempfile::TempDir;

use crate::backend::{Backend, slowness};
use crate::baddisk::{BadDisk, DiskFault};
use crate::daemon::{Around, Daemon, DaemonLog};
use crate::range::Range;
use crate::smalldisk::SmallDisk;
use crate::story::Setup;
use crate::traces::{self, Traces};
use crate::{Point, TestImage, Vm, Watch};

/// The image that stories use when they say nothing else.
const IMAGE: &str = "counter:1";
/// What their guests get: it is little, so that many fit.
const MEMORY: &str = "128MB";

/// A host of stories: one data directory, and the daemon that serves it.
#[derive(Debug)]
pub struct TestHost {
    // Dropped in this order: the daemon, what is mounted, the directory.
    daemon: RefCell<Option<Daemon>>,
    disk: Option<SmallDisk>,
    bad_disk: Option<BadDisk>,
    dir: TempDir,
    _range: Range,
    hearth: PathBuf,
    env: Vec<(String, String)>,
    client: RefCell<Client>,
    imported: Cell<bool>,
    /// Which boot of the host its daemons see, since the power came back.
    boot: RefCell<Option<PathBuf>>,
    pub(crate) log: DaemonLog,
    pub(crate) expected: RefCell<Vec<String>>,
}

/// How long the server is asked to wait for a state.
pub(crate) fn wait_limit() -> String {
    format!("{}s", 90 * slowness())
}

/// How a command of the command line ended.
#[derive(Debug, Clone)]
pub struct Cli {
    /// Its exit code.
    pub code: i32,
    /// What it printed.
    pub stdout: String,
    /// What it said.
    pub stderr: String,
}

impl Cli {
    /// What it printed, if it succeeded.
    ///
    /// # Errors
    /// What it said, if it did not.
    pub fn ok(self) -> Result<String> {
        if self.code != 0 {
            bail!("exit code {}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout)
    }

    /// What it printed, as JSON.
    ///
    /// # Errors
    /// If it did not succeed, or printed something else.
    pub fn json(self) -> Result<serde_json::Value> {
        let text = self.ok()?;
        serde_json::from_str(&text).with_context(|| format!("read as JSON: {text}"))
    }
}

impl TestHost {
    /// Starts the daemon.
    pub(crate) fn start(setup: Setup, hearth: PathBuf, kernel: &Path, log: DaemonLog) -> Result<Self> {
        let dir = setup.dir;
        let data = dir.path().join("data");
        let disk = match setup.disk {
            Some((kind, mib)) => Some(SmallDisk::mount(&dir.path().join("disk.img"), &data, kind, mib)?),
            None => None,
        };
        let mut env = vec![("HEARTH_KERNEL_DIR".to_owned(), kernel.display().to_string())];
        env.extend(Backend::asked_for().map_err(anyhow::Error::msg)?.settings());
        let range = Range::take()?;
        env.push(("HEARTH_NETWORK_CIDR".to_owned(), range.cidr()));
        // Every daemon makes its own, and few are needed at once.
        env.push(("HEARTH_NETWORK_POOL".to_owned(), "2".to_owned()));
        env.extend(setup.env);
        let bad_disk = setup.bad_disk;
        let around = Around { boot: None, disk: bad_disk.as_ref() };
        let daemon = Daemon::start(&hearth, dir.path(), &data, "127.0.0.1:0", &env, &log, around)?;
        let client = Client::new(&daemon.url, None)?;
        Ok(Self {
            daemon: RefCell::new(Some(daemon)),
            disk,
            bad_disk,
            dir,
            _range: range,
            hearth,
            env,
            client: RefCell::new(client),
            imported: Cell::new(false),
            boot: RefCell::default(),
            log,
            expected: RefCell::new(setup.expected),
        })
    }

    /// A client of the daemon that runs now.
    pub fn client(&self) -> Client {
        self.client.borrow().clone()
    }

    /// What its daemons have in their environment: a kernel, and a range that nobody else uses.
    pub fn settings(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(name, value)| (&**name, &**value))
    }

    /// A directory of the story's own, outside of the data directory.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Whether the data directory has a small disk of its own.
    pub fn has_small_disk(&self) -> bool {
        self.disk.is_some()
    }

    /// Writes to the small disk until nothing more goes in, but for `left` bytes.
    pub fn fill_disk(&self, left: u64) -> Result<()> {
        let mut file = std::fs::File::create(self.ballast()).context("make the ballast")?;
        let chunk = vec![0x55; 1 << 16];
        let mut size = 0_u64;
        while let Ok(written) = file.write(&chunk) {
            size += written as u64;
        }
        file.set_len(size.saturating_sub(left)).context("cut the ballast")?;
        file.sync_all().context("sync the ballast")
    }

    /// What [`TestHost::fill_disk`] has written goes. XFS gives the room of a removed file back in its
    /// own time, that of a cut one at once.
    pub fn free_disk(&self) -> Result<()> {
        std::fs::File::create(self.ballast()).context("cut the ballast")?;
        std::fs::remove_file(self.ballast()).context("remove the ballast")
    }

    /// Whether the data directory's disk can fail.
    pub fn has_bad_disk(&self) -> bool {
        self.bad_disk.is_some()
    }

    /// Something is wrong with the data directory's disk, for the daemon and its VMMs, until it is
    /// [mended](Self::mend_disk).
    ///
    /// # Errors
    /// [It cannot fail](Setup::bad_disk_if_possible).
    pub fn break_disk(&self, fault: DiskFault) -> Result<()> {
        let disk = self.bad_disk.as_ref().context("a disk that can fail")?;
        disk.set(Some((fault, self.data())));
        Ok(())
    }

    /// It works again. Returns how many calls the fault has hit.
    pub fn mend_disk(&self) -> u64 {
        self.bad_disk.as_ref().map_or(0, |disk| disk.set(None))
    }

    fn ballast(&self) -> PathBuf {
        self.data().join("ballast")
    }

    /// The processes that work in an instance's directory.
    pub fn vmms_of(&self, id: &str) -> Vec<i32> {
        traces::vmms(&self.data().join("instances").join(id)).into_iter().map(|(pid, _)| pid).collect()
    }

    /// What is there of instances now.
    pub fn traces(&self) -> Traces {
        Traces::of(&self.data())
    }

    /// Slots of the network, those that wait for an instance among them. None once the daemon has
    /// ended with no instance left.
    pub fn slots(&self) -> Vec<String> {
        let lines = self.log.lines();
        let events = lines.iter().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let names = events.filter_map(|event| event["fields"]["names"].as_str().map(str::to_owned)).next();
        names.map_or_else(Vec::new, |names| traces::slots(names.trim_end_matches('*')))
    }

    /// What the daemon shows at `/metrics`.
    ///
    /// # Errors
    /// It cannot be asked.
    pub fn metrics(&self) -> Result<String> {
        use std::io::Read as _;
        let client = self.client();
        let address = client.url().trim_start_matches("http://").trim_end_matches('/').to_owned();
        let mut stream = std::net::TcpStream::connect(&address).with_context(|| format!("connect to {address}"))?;
        stream.write_all(format!("GET /metrics HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    }

    /// How many lines of the daemon's log have that text.
    pub fn log_lines(&self, text: &str) -> usize {
        self.log.lines().iter().filter(|line| line.contains(text)).count()
    }

    /// Lines of the daemon's log with this text are no fault.
    pub fn expect_log(&self, text: &str) {
        self.expected.borrow_mut().push(text.into());
    }

    /// Imports an image under a name.
    pub async fn import(&self, image: &TestImage, name: &str) -> Result<Image> {
        let dir = TempDir::new_in(self.dir())?;
        let path = image.write_oci(dir.path())?.display().to_string();
        let request = ImportImage { path, name: name.into(), tags: None };
        Ok(self.client().import_image(&request).await?)
    }

    /// Asks for an instance and waits until it runs.
    ///
    /// # Errors
    /// What the server says, to either.
    pub async fn create(&self, request: &CreateInstance) -> Result<Vm<'_>, ClientError> {
        let instance = self.client().create_instance(request).await?;
        let wait = WaitQuery { state: InstanceState::Running, timeout: Some(wait_limit()) };
        self.client().wait(&instance.id, &wait).await?;
        Ok(self.vm(&instance.name))
    }

    /// A request for an instance of an image, with little memory.
    #[must_use]
    pub fn request(name: &str, image: &str) -> CreateInstance {
        CreateInstance {
            name: name.into(),
            image: image.into(),
            size: Some(MEMORY.into()),
            ..CreateInstance::default()
        }
    }

    /// Boots an instance of the counter image, which is imported when it is first needed.
    pub async fn boot(&self, name: &str) -> Result<Vm<'_>> {
        self.boot_with(name, |_| {}).await
    }

    /// The same, with a change to the request.
    pub async fn boot_with(&self, name: &str, change: impl FnOnce(&mut CreateInstance)) -> Result<Vm<'_>> {
        self.import_counter().await?;
        let mut request = Self::request(name, IMAGE);
        change(&mut request);
        let vm = self.create(&request).await?;
        vm.is(InstanceState::Running).await?;
        Ok(vm)
    }

    /// Boots an instance that runs this program instead of the counter, and may end at once.
    pub async fn boot_with_program(&self, name: &str, program: &[&str]) -> Result<Vm<'_>> {
        self.import_counter().await?;
        let mut request = Self::request(name, IMAGE);
        request.cmd = Some(program.iter().map(|word| (*word).to_owned()).collect());
        Ok(self.create(&request).await?)
    }

    /// Imports the counter image as `counter:1`, once.
    pub async fn import_counter(&self) -> Result<()> {
        if !self.imported.replace(true) {
            self.import(&TestImage::counter()?, IMAGE).await?;
        }
        Ok(())
    }

    /// The instance of that name.
    pub fn vm(&self, name: &str) -> Vm<'_> {
        Vm { host: self, name: name.into() }
    }

    /// Forks an instance, or many, and has them running.
    pub async fn fork(&self, source: &str, name: &str, count: u32) -> Result<Vec<Vm<'_>>> {
        let request = ForkInstance {
            name: name.into(),
            from_running: Some(true),
            target_state: Some(TargetState::Running),
            count: Some(count),
            ..ForkInstance::default()
        };
        self.forked(self.client().fork(source, &request).await?)
    }

    /// Forks a snapshot, or many times, and has the forks running.
    pub async fn fork_snapshot(&self, snapshot: &str, name: &str, count: u32) -> Result<Vec<Vm<'_>>> {
        let request = ForkSnapshot {
            name: name.into(),
            target_state: Some(TargetState::Running),
            count: Some(count),
            ..ForkSnapshot::default()
        };
        self.forked(self.client().fork_snapshot(snapshot, &request).await?)
    }

    fn forked(&self, forked: Forked) -> Result<Vec<Vm<'_>>> {
        if !forked.errors.is_empty() {
            bail!("forks failed: {:?}", forked.errors);
        }
        Ok(forked.instances.iter().map(|instance| self.vm(&instance.name)).collect())
    }

    /// All instances.
    pub async fn instances(&self) -> Result<Vec<Instance>> {
        Ok(self.client().instances(None, &Tags::new()).await?)
    }

    /// All snapshots that are shown.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>> {
        Ok(self.client().snapshots(&ListSnapshots::default(), &Tags::new()).await?)
    }

    /// Kills the daemon as a crash would.
    pub fn crash_daemon(&self) -> Result<()> {
        self.daemon.take().context("a daemon that runs")?.kill()
    }

    /// Watches what the daemon changes of the host from now on, and kills it at that point.
    ///
    /// # Errors
    /// No daemon runs, or it cannot be watched.
    pub fn watch(&self, kill: Option<Point>) -> Result<Watch> {
        let slots = self.slots();
        let namespace = slots.iter().find(|name| name.starts_with("hearth-")).context("a slot")?;
        let (tag, _) = namespace.rsplit_once('-').context("a slot has a number")?;
        let namespaces = [(PathBuf::from("/run/netns"), format!("{tag}-"))];
        let cgroups = traces::cgroup_parents(&self.data()).into_iter().map(|dir| (dir, String::new()));
        let others: Vec<_> = cgroups.chain(namespaces).collect();
        let daemon = self.daemon.borrow();
        let pid = daemon.as_ref().context("a daemon that runs")?.pid()?;
        Watch::begin(&self.data(), &others, kill.map(|point| (pid, point)))
    }

    /// Ends the daemon with SIGTERM, which it must obey with success.
    pub fn end_daemon(&self) -> Result<()> {
        let status = self.daemon.take().context("a daemon that runs")?.terminate()?;
        if !status.success() {
            bail!("the daemon ended with {status}");
        }
        Ok(())
    }

    /// Starts a daemon on the same data directory.
    pub fn start_daemon(&self) -> Result<()> {
        let boot = self.boot.borrow();
        let (data, log) = (self.data(), &self.log);
        let around = Around { boot: boot.as_deref(), disk: self.bad_disk.as_ref() };
        let daemon = Daemon::start(&self.hearth, self.dir(), &data, "127.0.0.1:0", &self.env, log, around)?;
        self.client.replace(Client::new(&daemon.url, None)?);
        self.daemon.replace(Some(daemon));
        Ok(())
    }

    /// Notes what the data directory's disk holds at this moment, for [`Self::come_back`]; of a host
    /// with a [disk that loses power](Setup::disk_that_loses_power).
    pub fn cut_power(&self, name: &str) -> Result<PathBuf> {
        self.disk.as_ref().context("a disk of its own")?.cut(name)
    }

    /// The host boots after the power went at that moment: nothing runs, and what was not on the
    /// disk is gone. Starts the daemon.
    pub fn come_back(&self, cut: &Path) -> Result<()> {
        drop(self.daemon.take());
        traces::kill_vmms(&self.data());
        self.disk.as_ref().context("a disk of its own")?.come_back(cut)?;
        let boot = cut.with_extension("boot_id");
        // As the kernel writes it: another one for each cut.
        let id = format!("00000000-0000-4000-8000-{:012x}\n", std::fs::metadata(cut)?.ino());
        std::fs::write(&boot, id).context("another boot's id")?;
        self.boot.replace(Some(boot));
        self.start_daemon()
    }

    /// Whether a daemon was started and not ended since.
    pub fn daemon_runs(&self) -> bool {
        self.daemon.borrow().is_some()
    }

    /// Runs `hearth` with these arguments.
    pub fn hearth(&self, arguments: &[&str]) -> Result<Cli> {
        self.hearth_with_input(arguments, b"")
    }

    /// Runs `hearth` with these arguments, and this on its standard input.
    pub fn hearth_with_input(&self, arguments: &[&str], input: &[u8]) -> Result<Cli> {
        let output = self.hearth_output(arguments, input)?;
        Ok(Cli {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The same for a command that must succeed and whose output is no text.
    pub fn hearth_bytes(&self, arguments: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let output = self.hearth_output(arguments, input)?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "hearth {}: {} {told}", arguments.join(" "), output.status);
        Ok(output.stdout)
    }

    fn hearth_output(&self, arguments: &[&str], input: &[u8]) -> Result<Output> {
        let mut command = self.hearth_command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {command:?}"))?;
        let mut stdin = child.stdin.take().context("its stdin")?;
        Ok(std::thread::scope(|scope| {
            scope.spawn(move || {
                // A command that reads nothing closes it.
                stdin.write_all(input).ok();
            });
            child.wait_with_output()
        })?)
    }

    /// `hearth` with these arguments and this daemon's address, not yet started.
    #[must_use]
    pub fn hearth_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.hearth);
        command.args(arguments).env("HEARTH_URL", self.client().url()).current_dir(self.dir());
        for foreign in ["HEARTH_TOKEN", "HYPEMAN_BASE_URL", "HYPEMAN_API_KEY"] {
            command.env_remove(foreign);
        }
        command
    }
}

impl Drop for TestHost {
    fn drop(&mut self) {
        drop(self.daemon.take());
        traces::kill_vmms(&self.data());
    }
}
