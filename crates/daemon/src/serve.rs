//! `hearth serve`: the daemon from its configuration to its last drained operation.
//!
//! Instances outlive it: their VMMs are processes of their own, found again at the next start. Only
//! with `--stop-instances` they are stopped at its end.

use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hearth_model::runtime::Accel;
use hearth_model::{ErrorKind, Kind, error::io_kind};
use hearth_store::Store;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::{AccelChoice, Config, ConfigError, ServeOptions};
use crate::error::OpError;
use crate::host::{Host, Vmms};
use crate::images::Images;
use crate::networks::Networks;
use crate::paths::DataDir;
use crate::registry::Registry;

/// How long operations that run at SIGTERM may take to end.
const DRAIN: Duration = Duration::from_secs(60);

/// How long all instances may take to stop when that is asked for at SIGTERM.
const STOP_ALL: Duration = Duration::from_secs(120);

/// Why the daemon could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration cannot be used.
    #[error("configuration")]
    Config(#[from] ConfigError),
    /// The data directory cannot be used.
    #[error("make directory {}", path.display())]
    Directory {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The records cannot be used.
    #[error("open the records")]
    Store(#[from] hearth_store::OpenError),
    /// The address is taken or not ours.
    #[error("listen on {listen}")]
    Listen {
        /// Which one.
        listen: SocketAddr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Instances could not be recovered.
    #[error("recover instances")]
    Recover(#[source] OpError),
    /// The host's network could not be prepared.
    #[error("prepare the network")]
    Network(#[source] OpError),
    /// The runtime or a signal handler failed.
    #[error("serve")]
    Io(#[from] std::io::Error),
}

impl Kind for ServeError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Config(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Directory { source, .. } | Self::Listen { source, .. } | Self::Io(source) => io_kind(source),
            Self::Recover(error) | Self::Network(error) => error.kind,
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            Self::Config(error) => error.hint(),
            Self::Store(error) => error.hint(),
            Self::Directory { .. } => Some("choose another place with --data-dir, or run as root".into()),
            Self::Listen { listen, source } if source.kind() == std::io::ErrorKind::AddrInUse => Some(format!(
                "something listens on {listen} already, perhaps another daemon; choose another with --listen"
            )),
            Self::Listen { .. } | Self::Io(_) => None,
            Self::Recover(error) | Self::Network(error) => error.hint.clone(),
        }
    }
}

/// What every request handler may use.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) host: Arc<Host>,
    pub(crate) registry: Registry,
    pub(crate) images: Images,
    pub(crate) sessions: crate::http::Sessions,
    /// The registry's.
    pub(crate) draining: CancellationToken,
}

impl App {
    pub(crate) fn new(host: Arc<Host>, registry: Registry) -> Self {
        Self {
            config: host.config.clone(),
            images: Images::new(Arc::clone(&host)),
            sessions: crate::http::Sessions::default(),
            draining: registry.draining().clone(),
            host,
            registry,
        }
    }
}

/// Serves until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// [`ServeError`], before anything is served; nothing is left half begun.
pub async fn serve(options: ServeOptions) -> Result<(), ServeError> {
    let stop_instances = options.stop_instances;
    let config = Config::load(&options)?;
    init_log(&config);
    let data = DataDir::new(config.data_dir.clone());
    for path in data.all() {
        std::fs::create_dir_all(&path).map_err(|source| ServeError::Directory { path, source })?;
    }
    // Where directories come and go all the time.
    for path in [data.instances(), data.snapshots()] {
        match hearth_disk::spread_directories(&path) {
            Ok(spread) => debug!(path = %path.display(), spread, "directories far from each other, by ext4"),
            Err(error) => debug!(error = %hearth_model::error::chain(&error), "it only takes longer so"),
        }
    }
    let store = Store::open(data.root())?;
    let listen = config.listen;
    // Bound before recovery, so that a taken port is known before the host is touched.
    let listener = TcpListener::bind(listen).await.map_err(|source| ServeError::Listen { listen, source })?;
    let local = listener.local_addr()?;

    open_many_files();
    let vmms = probe(&config).await;
    info!(accel = vmms.accel.as_str(), why = vmms.accel_why, "guests are run with");
    match vmms.launcher.cgroups() {
        Ok(parent) => info!(parent = %parent.display(), "each VMM has a cgroup of its own"),
        Err(why) => info!(why, "VMMs are in this daemon's cgroup: whoever ends all of that ends them"),
    }
    let networks = Networks::open(&config, &store.instances().map_err(|e| ServeError::Recover(e.into()))?).await;
    let networks = networks.map_err(ServeError::Network)?;
    let host = Host::new(config, data, store, vmms, networks)?;
    let registry = Registry::new(Arc::clone(&host));
    crate::recover::recover_all(&host, &registry).await.map_err(ServeError::Recover)?;

    let app = Arc::new(App::new(Arc::clone(&host), registry.clone()));
    let draining = app.draining.clone();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    eprintln!("hearth: ready on http://{local}, data in {}", app.host.data.root().display());
    let serving = axum::serve(listener, crate::http::router(Arc::clone(&app))).with_graceful_shutdown(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("draining: no new requests are taken");
        draining.cancel();
    });
    // On a thread of the runtime's: this one would be one more that a new connection passes through.
    tokio::spawn(serving.into_future()).await.map_err(std::io::Error::other)??;
    if tokio::time::timeout(DRAIN, registry.drained()).await.is_err() {
        warn!(seconds = DRAIN.as_secs(), "operations still run; they are recovered at the next start");
    }
    if stop_instances {
        info!("stopping all instances");
        if tokio::time::timeout(STOP_ALL, registry.stop_all()).await.is_err() {
            warn!(seconds = STOP_ALL.as_secs(), "some instances have not stopped in time, and run on");
        }
    }
    if host.records_are_on_disk().await {
        crate::fresh::settle_all(&host).await;
        crate::dropping::drop_all(&host).await;
    }
    host.networks.close().await;
    host.vmms.launcher.close();
    info!(stop_instances, "drained");
    Ok(())
}

/// Each instance takes some descriptors: of its VMM, its agent, its slot of the network. What the
/// session allows is often no more than 1024, and what it may be raised to far more. VMMs get the
/// same, and need far less.
pub(crate) fn open_many_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        warn!(%error, "the number of open files stays as it is");
    }
}

/// Which VMMs there are, and whether KVM is real.
pub(crate) async fn probe(config: &Config) -> Vmms {
    let (qemu, firecracker) = (config.qemu.path.clone(), config.firecracker.clone());
    let probes = tokio::task::spawn_blocking(move || {
        let mut probes = hearth_vmm::probe_qemu(&qemu);
        probes.push(hearth_vmm::probe_firecracker(&firecracker.path, &hearth_vmm::evidence(), firecracker.kvm));
        probes
    });
    let probes = probes.await.unwrap_or_default();
    let (accel, accel_why) = match config.qemu.accel {
        AccelChoice::Auto => hearth_vmm::accel(),
        AccelChoice::Kvm => (Accel::Kvm, "the configuration says so".into()),
        AccelChoice::Tcg => (Accel::Tcg, "the configuration says so".into()),
    };
    let cgroups = hearth_vmm::Cgroups::of(&config.data_dir);
    Vmms { accel, accel_why, probes, launcher: hearth_vmm::Launcher::Real(cgroups) }
}

fn init_log(config: &Config) {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log.level)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let to_people = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(to_people);
    let set = match config.log.format {
        crate::config::LogFormat::Text => log.try_init(),
        crate::config::LogFormat::Json => log.json().try_init(),
    };
    // Only a test that serves twice in one process has set one before.
    set.ok();
}
