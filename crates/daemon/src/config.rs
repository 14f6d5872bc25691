//! The configuration: what the daemon is told before it starts.
//!
//! In: command line, environment, one TOML file. Out: a [`Config`] in which every value has been
//! checked, or an error that names the setting and where it was given. Command line goes before
//! environment, environment before file, file before default.
//!
//! Every setting of the file (`memory` below `[defaults]`) can be given as an environment variable
//! (`HEARTH_DEFAULTS_MEMORY`). What is given and not known is refused, never ignored.

mod error;
mod given;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hearth_model::load::ResumeOnLoad;
use hearth_model::network::Protocol;
use hearth_model::spec::MAX_VCPUS;
use hearth_model::{Backend, ByteSize, MemMib};
use hearth_vmm::KvmTrust;
use ipnet::Ipv4Net;

pub use error::ConfigError;
use given::{Given, Source};

/// Read if it is there and no other file is named.
const DEFAULT_FILE: &str = "/etc/hearth/config.toml";

/// What the command line says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServeOptions {
    /// The file to read; it must be there.
    pub config: Option<PathBuf>,
    /// Instead of the configured data directory.
    pub data_dir: Option<PathBuf>,
    /// Instead of the configured address.
    pub listen: Option<String>,
    /// When the daemon ends, instances are stopped.
    pub stop_instances: bool,
}

/// What the daemon was told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read, or would have been if it were there.
    pub file: Option<PathBuf>,
    /// Where everything is kept.
    pub data_dir: PathBuf,
    /// Where it listens.
    pub listen: SocketAddr,
    /// `[log]`
    pub log: Log,
    /// `[auth]`
    pub auth: Auth,
    /// `[metrics]`
    pub metrics: Metrics,
    /// `[kernel]`
    pub kernel: Kernel,
    /// `[qemu]`
    pub qemu: Qemu,
    /// `[firecracker]`
    pub firecracker: Firecracker,
    /// `[network]`
    pub network: Network,
    /// `[defaults]`
    pub defaults: Defaults,
    /// `[cpu]`
    pub cpu: Cpu,
    /// `[memory]`
    pub memory: Memory,
    /// `[disk]`
    pub disk: Disk,
    /// `[snapshots]`
    pub snapshots: Snapshots,
    /// `[limits]`
    pub limits: Limits,
    /// `[timeouts]`
    pub timeouts: Timeouts,
}

/// How it logs, to stderr.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// For people or for programs.
    pub format: LogFormat,
    /// A level, or directives as `tracing` takes them; also `HEARTH_LOG`.
    pub level: String,
}

/// For whom it logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// People.
    Text,
    /// Programs.
    Json,
}

/// Who may use the API.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Auth {
    /// What tokens are signed with; without one everybody on this host may use the API.
    pub token_secret: Option<Secret>,
}

/// Who may read `/metrics`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metrics {
    /// Everybody who reaches the API, without a token.
    pub public: bool,
}

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// One that is known from elsewhere.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The bytes to sign with.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(secret)")
    }
}

/// What guests boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Kernel {
    /// An unpacked kernel package; `kernel` below the data directory if left out.
    pub dir: Option<PathBuf>,
    /// A kernel (bzImage or ELF) in the place of the package's.
    pub image: Option<PathBuf>,
    /// What it boots with.
    pub initrd: InitrdChoice,
}

/// What a kernel boots with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum InitrdChoice {
    /// One that holds the agent and the modules of the kernel package.
    #[default]
    Built,
    /// None: for a kernel that is a guest by itself.
    None,
    /// This one.
    File(PathBuf),
}

/// Firecracker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Firecracker {
    /// Its program, looked for in `PATH` if it is a bare name.
    pub path: PathBuf,
    /// Which KVM is good enough.
    pub kvm: KvmTrust,
    /// Whether guests are resumed inside the load: the escape hatch. It is looked up anew for every
    /// restore, see [`crate::hatch`].
    pub resume_on_load: ResumeOnLoad,
    /// Whether snapshots of a restored guest hold only what it wrote; costs it a fault a page.
    pub track_dirty_pages: bool,
}

/// How guests reach the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// By what.
    pub mode: NetworkMode,
    /// The instances' addresses; the first one is the host's.
    pub cidr: Ipv4Net,
    /// How many places are kept ready.
    pub pool: usize,
    /// Whether instances are kept from each other.
    pub isolated: bool,
    /// Ports of the host that guests reach.
    pub host_ports: Vec<(Protocol, u16)>,
    /// Whom our forwarder asks; the host's own servers if there are none.
    pub dns: Vec<SocketAddr>,
    /// Whether a rule of ours is put into others' chains that refuse what is forwarded.
    pub admit_in_foreign_chains: bool,
    /// How long an address is not given to another instance, in seconds.
    pub reuse_after_s: u32,
}

/// By what guests reach the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkMode {
    /// A network namespace for each where this process may make them, else QEMU's own stack.
    Auto,
    /// A network namespace for each, or the daemon does not start.
    Slots,
    /// QEMU's own stack.
    User,
}

/// QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Qemu {
    /// Its program, looked for in `PATH` if it is a bare name.
    pub path: PathBuf,
    /// How vCPUs are executed.
    pub accel: AccelChoice,
}

/// How vCPUs are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccelChoice {
    /// By KVM if it is real, else by TCG.
    Auto,
    /// By KVM, whatever the probe says.
    Kvm,
    /// By TCG.
    Tcg,
}

/// What an instance gets when a request does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Defaults {
    /// What runs it.
    pub hypervisor: Backend,
    /// Its memory.
    pub memory: MemMib,
    /// Its vCPUs.
    pub vcpus: u8,
    /// Size of its writable layer.
    pub overlay: ByteSize,
}

/// How many vCPUs guests may have together.
#[derive(Debug, Clone, PartialEq)]
pub struct Cpu {
    /// How many for each of the host's.
    pub oversubscription: f64,
}

/// How much memory guests may have together.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// What of the host's is for guests; all of it if left out.
    pub capacity: Option<ByteSize>,
    /// How many times over it is given.
    pub oversubscription: f64,
    /// What the host keeps available: no guest begins that would find less.
    pub reserve: Option<ByteSize>,
}

impl Memory {
    /// What is kept available of so much.
    #[must_use]
    pub fn reserve_of(&self, total: u64) -> ByteSize {
        self.reserve.unwrap_or(ByteSize(ByteSize::mib(512).bytes().min(total / 20)))
    }
}

/// How much of the data directory's file system may be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// What is left free: nothing new begins that would leave less.
    pub reserve: Option<ByteSize>,
}

impl Disk {
    /// What is left free of so much.
    #[must_use]
    pub fn reserve_of(&self, total: u64) -> ByteSize {
        self.reserve.unwrap_or(ByteSize(ByteSize::gib(1).bytes().min(total / 20)))
    }
}

/// What is done with snapshots that nobody uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshots {
    /// How often each is compared with its checksums, in seconds; 0 is never.
    pub scrub_interval_s: u32,
}

impl Snapshots {
    /// How often each is compared with its checksums, if ever.
    #[must_use]
    pub fn scrub_interval(&self) -> Option<Duration> {
        (self.scrub_interval_s > 0).then(|| Duration::from_secs(self.scrub_interval_s.into()))
    }
}

/// How much one request may ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Size of a request's body.
    pub body: ByteSize,
    /// Instances made by one fork.
    pub fork_count: u32,
    /// What a log of an instance may take on the disk.
    pub log: ByteSize,
    /// Commands, copies and followed logs that are open at a time in one instance.
    pub sessions_per_instance: u32,
    /// The same in all of them.
    pub sessions: u32,
}

/// How long the daemon waits for others, in seconds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a guest to boot and its program to start.
    pub boot_s: u32,
    /// For an agent that should be there to answer.
    pub agent_s: u32,
    /// For a guest's hooks when it comes back, and as long for a fork's SSH host keys.
    pub hooks_s: u32,
    /// For a guest that was asked to shut down.
    pub shutdown_grace_s: u32,
}

impl Timeouts {
    /// For a guest to boot and its program to start.
    #[must_use]
    pub fn boot(&self) -> Duration {
        Duration::from_secs(self.boot_s.into())
    }

    /// For an agent that should be there to answer.
    #[must_use]
    pub fn agent(&self) -> Duration {
        Duration::from_secs(self.agent_s.into())
    }

    /// For a guest's hooks when it comes back, and as long for a fork's SSH host keys.
    #[must_use]
    pub fn hooks(&self) -> Duration {
        Duration::from_secs(self.hooks_s.into())
    }

    /// For a guest that was asked to shut down.
    #[must_use]
    pub fn shutdown_grace(&self) -> Duration {
        Duration::from_secs(self.shutdown_grace_s.into())
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: None,
            data_dir: "/var/lib/hearth".into(),
            listen: SocketAddr::from(([127, 0, 0, 1], hearth_api::DEFAULT_PORT)),
            log: Log { format: LogFormat::Text, level: "info".into() },
            auth: Auth::default(),
            metrics: Metrics::default(),
            kernel: Kernel::default(),
            qemu: Qemu { path: "qemu-system-x86_64".into(), accel: AccelChoice::Auto },
            firecracker: Firecracker {
                path: "firecracker".into(),
                kvm: KvmTrust::Probe,
                resume_on_load: ResumeOnLoad::On,
                track_dirty_pages: true,
            },
            network: Network {
                mode: NetworkMode::Auto,
                cidr: Ipv4Net::new_assert(Ipv4Addr::new(10, 100, 0, 0), 16),
                pool: 8,
                isolated: true,
                host_ports: Vec::new(),
                dns: Vec::new(),
                admit_in_foreign_chains: true,
                reuse_after_s: 60,
            },
            defaults: Defaults {
                hypervisor: Backend::QemuMicrovm,
                memory: MemMib::new(256).expect("256 MB is in range"),
                vcpus: 1,
                overlay: ByteSize::gib(10),
            },
            // What a vCPU costs is time, which is shared. So this is no more than a stop to what goes
            // on without end: 256 forks, the most that one request makes, fit on two cores.
            cpu: Cpu { oversubscription: 128.0 },
            // A fork shares its snapshot's pages and has a few MB of its own when it has come up; a
            // guest that was booted touches a part of its memory. Four times over leaves each of them a
            // quarter, and the reserve refuses new ones where that was too much.
            memory: Memory { capacity: None, oversubscription: 4.0, reserve: None },
            disk: Disk { reserve: None },
            // A week: rot is found while last week's backup still has the file. It costs one read of
            // each bundle, past the page cache, for a tenth of the time at most.
            snapshots: Snapshots { scrub_interval_s: 7 * 24 * 3600 },
            limits: Limits {
                body: ByteSize::mib(1),
                fork_count: 256,
                log: ByteSize::mib(16),
                sessions_per_instance: 128,
                sessions: 2048,
            },
            timeouts: Timeouts { boot_s: 120, agent_s: 30, hooks_s: 5, shutdown_grace_s: 10 },
        }
    }
}

/// Every setting, as a path into the file.
const KEYS: [&str; 43] = [
    "data_dir",
    "listen",
    "log.format",
    "log.level",
    "auth.token_secret",
    "auth.token_secret_file",
    "metrics.public",
    "kernel.dir",
    "kernel.image",
    "kernel.initrd",
    "qemu.path",
    "qemu.accel",
    "firecracker.path",
    "firecracker.kvm",
    "firecracker.resume_on_load",
    "firecracker.track_dirty_pages",
    "network.mode",
    "network.cidr",
    "network.pool",
    "network.isolated",
    "network.host_ports",
    "network.dns",
    "network.admit_in_foreign_chains",
    "network.reuse_after_s",
    "defaults.hypervisor",
    "defaults.memory",
    "defaults.vcpus",
    "defaults.overlay",
    "cpu.oversubscription",
    "memory.capacity",
    "memory.oversubscription",
    "memory.reserve",
    "disk.reserve",
    "snapshots.scrub_interval_s",
    "limits.body",
    "limits.fork_count",
    "limits.log",
    "limits.sessions",
    "limits.sessions_per_instance",
    "timeouts.boot_s",
    "timeouts.agent_s",
    "timeouts.hooks_s",
    "timeouts.shutdown_grace_s",
];

impl Config {
    /// Reads the file and the environment of this process.
    ///
    /// # Errors
    /// [`ConfigError`], which names the setting and where it was given.
    pub fn load(options: &ServeOptions) -> Result<Self, ConfigError> {
        let file = read_file(options.config.as_deref())?;
        let file = file.as_ref().map(|(path, text)| (path.as_path(), text.as_str()));
        let mut config = Self::from_sources(options, std::env::vars_os(), file)?;
        config.file = Some(options.config.clone().unwrap_or_else(|| DEFAULT_FILE.into()));
        Ok(config)
    }

    /// Decides, from what was read.
    fn from_sources(
        options: &ServeOptions,
        environment: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
        file: Option<(&Path, &str)>,
    ) -> Result<Self, ConfigError> {
        let mut given = match file {
            Some((path, text)) => given::from_file(path, text, &KEYS)?,
            None => Vec::new(),
        };
        given.extend(given::from_environment(environment, &KEYS)?);
        given.extend(from_options(options)?);

        let mut config = Self::default();
        let mut secret_file = None;
        for given in given {
            config.set(&given, &mut secret_file).map_err(|problem| ConfigError::Value {
                key: given.key,
                source_of_value: given.source.to_string(),
                problem,
            })?;
        }
        if let Some(path) = secret_file {
            config.auth.token_secret = Some(read_secret(&path)?);
        }
        check_exposure(config.listen, config.auth.token_secret.is_some())?;
        Ok(config)
    }

    /// Takes one setting over; later ones win.
    fn set(&mut self, given: &Given, secret_file: &mut Option<PathBuf>) -> Result<(), String> {
        let text = given.text.as_str();
        match given.key {
            "data_dir" => self.data_dir = absolute(text)?,
            "listen" => self.listen = parse_listen(text)?,
            "log.format" => {
                self.log.format = one_of(text, [("text", LogFormat::Text), ("json", LogFormat::Json)])?;
            }
            "log.level" => {
                tracing_subscriber::EnvFilter::try_new(text)
                    .map_err(|error| format!("{text:?} is not a level or a list of directives: {error}"))?;
                text.clone_into(&mut self.log.level);
            }
            "auth.token_secret" if text.is_empty() => return Err("must not be empty".into()),
            // The later of the two wins, as with any setting.
            "auth.token_secret" => {
                self.auth.token_secret = Some(Secret(text.to_owned()));
                *secret_file = None;
            }
            "auth.token_secret_file" => *secret_file = Some(absolute(text)?),
            "metrics.public" => self.metrics.public = one_of(text, [("true", true), ("false", false)])?,
            "kernel.dir" => self.kernel.dir = Some(absolute(text)?),
            "kernel.image" => self.kernel.image = Some(absolute(text)?),
            "kernel.initrd" => {
                self.kernel.initrd = match text {
                    "built" => InitrdChoice::Built,
                    "none" => InitrdChoice::None,
                    path => InitrdChoice::File(absolute(path)?),
                };
            }
            "qemu.path" if text.is_empty() => return Err("must not be empty".into()),
            "qemu.path" => self.qemu.path = text.into(),
            "qemu.accel" => {
                let choices = [("auto", AccelChoice::Auto), ("kvm", AccelChoice::Kvm), ("tcg", AccelChoice::Tcg)];
                self.qemu.accel = one_of(text, choices)?;
            }
            "firecracker.path" if text.is_empty() => return Err("must not be empty".into()),
            "firecracker.path" => self.firecracker.path = text.into(),
            "firecracker.kvm" => {
                self.firecracker.kvm = one_of(text, [("probe", KvmTrust::Probe), ("trust", KvmTrust::Trust)])?;
            }
            "firecracker.resume_on_load" => self.firecracker.resume_on_load = ResumeOnLoad::parse(text),
            "firecracker.track_dirty_pages" => {
                self.firecracker.track_dirty_pages = one_of(text, [("true", true), ("false", false)])?;
            }
            "network.mode" => {
                let modes = [("auto", NetworkMode::Auto), ("slots", NetworkMode::Slots), ("user", NetworkMode::User)];
                self.network.mode = one_of(text, modes)?;
            }
            "network.cidr" => self.network.cidr = range(text)?,
            "network.pool" => self.network.pool = number(text, 0, 1024)?,
            "network.isolated" => self.network.isolated = one_of(text, [("true", true), ("false", false)])?,
            "network.host_ports" => self.network.host_ports = list(text, host_port)?,
            "network.dns" => self.network.dns = list(text, name_server)?,
            "network.admit_in_foreign_chains" => {
                self.network.admit_in_foreign_chains = one_of(text, [("true", true), ("false", false)])?;
            }
            "network.reuse_after_s" => self.network.reuse_after_s = number(text, 0, 86_400)?,
            "defaults.hypervisor" => self.defaults.hypervisor = parse(text)?,
            "defaults.memory" => {
                self.defaults.memory = MemMib::from_size(parse(text)?).map_err(|error| error.to_string())?;
            }
            "defaults.vcpus" => self.defaults.vcpus = number(text, 1, MAX_VCPUS)?,
            "defaults.overlay" => self.defaults.overlay = size(text, ByteSize::mib(1))?,
            "cpu.oversubscription" => self.cpu.oversubscription = ratio(text)?,
            "memory.capacity" => self.memory.capacity = Some(size(text, MemMib::MIN.size())?),
            "memory.oversubscription" => self.memory.oversubscription = ratio(text)?,
            "memory.reserve" => self.memory.reserve = Some(size(text, ByteSize(0))?),
            "disk.reserve" => self.disk.reserve = Some(size(text, ByteSize(0))?),
            "snapshots.scrub_interval_s" => self.snapshots.scrub_interval_s = number(text, 0, 366 * 24 * 3600)?,
            "limits.body" => self.limits.body = size(text, ByteSize(1024))?,
            "limits.fork_count" => self.limits.fork_count = number(text, 1, 10_000)?,
            "limits.log" => self.limits.log = size(text, ByteSize::mib(1))?,
            "limits.sessions" => self.limits.sessions = number(text, 1, 1_000_000)?,
            "limits.sessions_per_instance" => self.limits.sessions_per_instance = number(text, 1, 1_000_000)?,
            "timeouts.boot_s" => self.timeouts.boot_s = number(text, 1, 3600)?,
            "timeouts.agent_s" => self.timeouts.agent_s = number(text, 1, 3600)?,
            "timeouts.hooks_s" => self.timeouts.hooks_s = number(text, 1, 3600)?,
            "timeouts.shutdown_grace_s" => self.timeouts.shutdown_grace_s = number(text, 0, 3600)?,
            other => return Err(format!("{other} is listed as a setting but not read")),
        }
        Ok(())
    }
}

/// What the file says of `firecracker.resume_on_load` now; a file that is not there says nothing.
///
/// # Errors
/// The file cannot be read, or is not one of settings.
pub(crate) fn resume_on_load_in(file: &Path) -> Result<Option<ResumeOnLoad>, ConfigError> {
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(ConfigError::Read { path: file.to_owned(), source }),
    };
    let given = given::from_file(file, &text, &KEYS)?;
    let said = given.iter().rfind(|given| given.key == "firecracker.resume_on_load");
    Ok(said.map(|given| ResumeOnLoad::parse(&given.text)))
}

fn read_file(named: Option<&Path>) -> Result<Option<(PathBuf, String)>, ConfigError> {
    let path = named.unwrap_or(Path::new(DEFAULT_FILE));
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some((path.to_owned(), text))),
        Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
    }
}

fn from_options(options: &ServeOptions) -> Result<Vec<Given>, ConfigError> {
    let mut given = Vec::new();
    if let Some(dir) = &options.data_dir {
        // Relative to where the command was typed.
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
        let text = dir.to_str().ok_or_else(|| ConfigError::Value {
            key: "data_dir",
            source_of_value: Source::Flag("--data-dir").to_string(),
            problem: "is not UTF-8".into(),
        })?;
        given.push(Given { key: "data_dir", text: text.to_owned(), source: Source::Flag("--data-dir") });
    }
    if let Some(listen) = &options.listen {
        given.push(Given { key: "listen", text: listen.clone(), source: Source::Flag("--listen") });
    }
    Ok(given)
}

fn read_secret(path: &Path) -> Result<Secret, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(ConfigError::EmptySecret { path: path.to_owned() }),
        secret => Ok(Secret(secret.to_owned())),
    }
}

/// Without a secret, whoever reaches the API owns the host's guests: then only this host may.
fn check_exposure(listen: SocketAddr, has_secret: bool) -> Result<(), ConfigError> {
    if has_secret || listen.ip().to_canonical().is_loopback() { Ok(()) } else { Err(ConfigError::Exposed { listen }) }
}

fn parse<T: FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let address = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    address
        .as_deref()
        .unwrap_or(text)
        .parse()
        .map_err(|_| format!("{text:?} is not an address and a port, as in \"127.0.0.1:4973\""))
}

fn absolute(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() { Ok(path) } else { Err(format!("{text:?} is not an absolute path")) }
}

fn one_of<T: Copy, const N: usize>(text: &str, choices: [(&str, T); N]) -> Result<T, String> {
    choices
        .iter()
        .find(|(name, _)| *name == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| format!("{text:?} is not one of {}", choices.map(|(name, _)| name).join(", ")))
}

fn number<T: FromStr + PartialOrd + std::fmt::Display>(text: &str, min: T, max: T) -> Result<T, String> {
    match text.parse::<T>() {
        Ok(number) if (&min..=&max).contains(&&number) => Ok(number),
        _ => Err(format!("{text:?} is not a whole number from {min} to {max}")),
    }
}

/// A network with room for a host and some guests, written by its first address.
fn range(text: &str) -> Result<Ipv4Net, String> {
    let net: Ipv4Net = text.parse().map_err(|_| format!("{text:?} is not a network, as in 10.100.0.0/16"))?;
    if net != net.trunc() {
        return Err(format!("{text:?} is not the first address of its network: that is {}", net.trunc()));
    }
    if (8..=28).contains(&net.prefix_len()) { Ok(net) } else { Err(format!("{text:?}: a prefix is from 8 to 28 long")) }
}

/// Values with commas between them; an empty text is an empty list.
fn list<T>(text: &str, one: impl Fn(&str) -> Result<T, String>) -> Result<Vec<T>, String> {
    text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(one).collect()
}

/// `5432`, `53/udp`.
fn host_port(text: &str) -> Result<(Protocol, u16), String> {
    let (port, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = one_of(protocol, [("tcp", Protocol::Tcp), ("udp", Protocol::Udp)])?;
    Ok((protocol, number(port, 1, u16::MAX)?))
}

/// `192.0.2.53`, `127.0.0.1:5353`.
fn name_server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::from((ip, 53)));
    address.or_else(|_| text.parse()).map_err(|_| format!("{text:?} is not an address, as in 192.0.2.53"))
}

/// How many times over something is given.
fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.1..=10_000.0).contains(&ratio) => Ok(ratio),
        _ => Err(format!("{text:?} is not a number from 0.1 to 10000")),
    }
}

fn size(text: &str, min: ByteSize) -> Result<ByteSize, String> {
    let size: ByteSize = parse(text)?;
    if size < min { Err(format!("{text:?} is less than {min}")) } else { Ok(size) }
}
