//! How a story is told: a host of its own before it, and afterwards a look at what it left.
//!
//! ```text
//!   needs ─► daemon ─► the story ─► remove what it made ─► nothing may be left ─► SIGTERM ─► log
//! ```
//! A story fails on its own assertions, on anything that stays on the host once its instances and
//! snapshots are removed, and on warnings and errors in the daemon's log that it did not expect.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hearth_api::instances::DeleteInstance;
use tempfile::TempDir;

use crate::backend::slowness;
use crate::baddisk::BadDisk;
use crate::daemon::DaemonLog;
use crate::smalldisk::FileSystem;
use crate::{TestHost, binary, evidence, needs, traces};

/// How long a story may take; less than what the test runner allows, so that it can clean up.
const LIMIT: Duration = Duration::from_secs(200);
/// How long a level may take to be reached.
const SOON: Duration = Duration::from_secs(20);

/// What a host is to be like.
#[derive(Debug)]
pub struct Setup {
    pub(crate) dir: TempDir,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) disk: Option<(FileSystem, u64)>,
    pub(crate) bad_disk: Option<BadDisk>,
    pub(crate) kernel: Option<PathBuf>,
    pub(crate) expected: Vec<String>,
    needs: Needs,
    limit: Duration,
}

/// What a host must have for the guests to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    /// A VMM, a kernel and what images are made of.
    Everything,
    /// KVM.
    Kvm,
    /// Root.
    Root,
}

impl Default for Setup {
    fn default() -> Self {
        let dir = tempfile::Builder::new().prefix("hearth-e2e-").tempdir().expect("a temporary directory");
        Self {
            dir,
            env: Vec::new(),
            disk: None,
            bad_disk: None,
            kernel: None,
            expected: Vec::new(),
            needs: Needs::Everything,
            limit: LIMIT,
        }
    }
}

impl Setup {
    /// The story's own directory.
    #[must_use]
    pub fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// With a setting, as an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// With this program for Firecracker, and guests that need neither a kernel nor an image: they
    /// run on any KVM that opens.
    #[must_use]
    pub fn without_a_kernel(mut self, firecracker: &Path) -> Self {
        self.needs = Needs::Kvm;
        self.env("HEARTH_FIRECRACKER_PATH", &firecracker.display().to_string()).env("HEARTH_FIRECRACKER_KVM", "trust")
    }

    /// With guests that nothing runs, of a simulated VMM: of the host they need its network alone.
    #[must_use]
    pub fn without_guests(mut self) -> Self {
        self.needs = Needs::Root;
        self
    }

    /// With a data directory on a disk of that size, where clones are copies.
    #[must_use]
    pub fn disk(mut self, mib: u64) -> Self {
        self.disk = Some((FileSystem::Ext4, mib));
        self
    }

    /// With a data directory on a disk of that size, where clones share their blocks.
    #[must_use]
    pub fn reflink_disk(mut self, mib: u64) -> Self {
        self.disk = Some((FileSystem::Xfs, mib));
        self
    }

    /// The same where such a disk can be had; where not, that is said, and nothing fills up.
    #[must_use]
    pub fn reflink_disk_if_possible(self, mib: u64) -> Self {
        match needs::small_disk(FileSystem::Xfs) {
            Ok(()) => self.reflink_disk(mib),
            Err(missing) => {
                eprintln!("SKIPPED: a full disk: {missing}");
                self
            }
        }
    }

    /// With a data directory whose disk can [fail or be slow](TestHost::break_disk), where the kernel lets
    /// that be; where not, that is said, and it works always.
    #[must_use]
    pub fn bad_disk_if_possible(mut self) -> Self {
        match BadDisk::new() {
            Ok(disk) => self.bad_disk = Some(disk),
            Err(error) => eprintln!("SKIPPED: a disk that fails or is slow: {error:#}"),
        }
        self
    }

    /// With a data directory on a disk of that size that can lose its power.
    #[must_use]
    pub fn disk_that_loses_power(mut self, mib: u64) -> Self {
        self.disk = Some((FileSystem::Ext4ThatLosesPower, mib));
        self
    }

    /// With another kernel directory, below the story's own.
    #[must_use]
    pub fn kernel(mut self, name: &str) -> Self {
        self.kernel = Some(self.dir.path().join(name));
        self
    }

    /// With a file in the story's own directory.
    #[must_use]
    pub fn file(self, name: &str, content: &[u8]) -> Self {
        std::fs::write(self.dir.path().join(name), content).expect("a file is written");
        self
    }

    /// With a script in place of QEMU's program. `$QEMU` in it is the real one, `$HERE` the
    /// story's own directory.
    #[must_use]
    pub fn qemu_script(self, script: &str) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let path = self.dir.path().join("qemu");
        let script = format!("#!/bin/sh\nQEMU=qemu-system-x86_64\nHERE=${{0%/*}}\n{script}\n");
        std::fs::write(&path, script).expect("a script is written");
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).expect("a script is made executable");
        let path = path.display().to_string();
        self.env("HEARTH_QEMU_PATH", &path)
    }

    /// Lines of the daemon's log with this text are no fault.
    #[must_use]
    pub fn expect_log(mut self, text: &str) -> Self {
        self.expected.push(text.into());
        self
    }

    /// With another limit to how long it may take.
    #[must_use]
    pub fn limit_s(mut self, seconds: u64) -> Self {
        self.limit = Duration::from_secs(seconds);
        self
    }

    /// Tells the story on such a host.
    ///
    /// # Panics
    /// If it fails.
    pub fn story(self, tell: impl AsyncFnOnce(&TestHost) -> Result<()>) {
        let disk = self.disk.map_or(Ok(()), |(kind, _)| needs::small_disk(kind));
        let needed = match self.needs {
            Needs::Everything => needs::find(),
            Needs::Kvm => needs::kvm().map(|()| self.dir.path().join("kernel")),
            Needs::Root => needs::root().map(|()| self.dir.path().join("kernel")),
        };
        let kernel = match disk.and(needed) {
            Ok(kernel) => kernel,
            Err(missing) => {
                assert!(std::env::var_os("HEARTH_TEST_MUST_RUN").is_none(), "cannot run here: {missing}");
                eprintln!("SKIPPED: {missing}");
                return;
            }
        };
        let (name, limit) = (name(), self.limit * slowness());
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the story");
        let log = DaemonLog::default();
        let kernel = self.kernel.clone().unwrap_or(kernel);
        let started = binary::hearth().and_then(|hearth| TestHost::start(self, hearth, &kernel, log.clone()));
        let host = match started {
            Ok(host) => host,
            Err(error) => panic!("no daemon: {error:#}\n{}", log.lines().join("\n")),
        };
        let told = catch_unwind(AssertUnwindSafe(|| {
            runtime.block_on(async {
                match tokio::time::timeout(limit, tell(&host)).await {
                    Ok(result) => result?,
                    Err(_) => bail!("the story did not end within {} s", limit.as_secs()),
                }
                leave_nothing(&host).await
            })
        }));
        if !matches!(told, Ok(Ok(()))) {
            // A panic has said so itself. What went wrong stands before the evidence, and again after it.
            if let Ok(Err(error)) = &told {
                eprintln!("{name}: {error:#}");
            }
            runtime.block_on(evidence::keep(&host, &name));
            // So that the next story does not find what this one has made of the host.
            runtime.block_on(async { tokio::time::timeout(SOON, leave_nothing(&host)).await.ok() });
        }
        match told {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("{name}: {error:#}"),
            Err(panic) => resume_unwind(panic),
        }
    }
}

/// Tells a story on a host like any other.
///
/// # Panics
/// If it fails.
pub fn story(tell: impl AsyncFnOnce(&TestHost) -> Result<()>) {
    Setup::default().story(tell);
}

/// Waits until something is so.
///
/// # Errors
/// If that takes too long, or looking fails.
pub async fn eventually(what: &str, mut look: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let limit = SOON * slowness();
    let until = Instant::now() + limit;
    while !look().await? {
        ensure!(Instant::now() < until, "not within {} s: {what}", limit.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

/// Removes every instance and snapshot, ends the daemon, and finds nothing of them and no
/// complaint.
async fn leave_nothing(host: &TestHost) -> Result<()> {
    if !host.daemon_runs() {
        host.start_daemon()?;
    }
    for instance in host.instances().await? {
        let removed = host.client().delete_instance(&instance.id, &DeleteInstance::default()).await;
        removed.with_context(|| format!("remove instance {}", instance.name))?;
    }
    for snapshot in host.snapshots().await? {
        let removed = host.client().delete_snapshot(&snapshot.id).await;
        removed.with_context(|| format!("remove snapshot {}", snapshot.id))?;
    }
    let nothing = eventually("nothing is left", async || Ok(host.traces().no_instances())).await;
    nothing.with_context(|| format!("left behind: {:?}", host.traces()))?;
    host.end_daemon()?;
    ensure!(host.slots().is_empty(), "left of the network: {:?}", host.slots());
    let cgroups = traces::cgroup_parents(&host.data());
    ensure!(cgroups.is_empty(), "left of cgroups: {cgroups:?}");
    let expected = host.expected.borrow();
    let mut complaints = host.log.complaints();
    complaints.retain(|line| !expected.iter().any(|text| line.contains(text)));
    ensure!(complaints.is_empty(), "the daemon complained:\n{}", complaints.join("\n"));
    Ok(())
}

fn name() -> String {
    let thread = std::thread::current().name().map(str::to_owned);
    thread.filter(|name| name != "main").or_else(|| std::env::var("NEXTEST_TEST_NAME").ok()).unwrap_or("story".into())
}
