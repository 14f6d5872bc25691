//! The host as operations see it: adapters, directories and limits, in one place.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_model::foreign::{Described, ForeignState};
use hearth_model::runtime::Accel;
use hearth_model::{Backend, ByteSize, ErrorKind, InstanceSpec, LoadPlan, load_plan};
use hearth_snapshot::{CpuFingerprint, HostFacts, Manifest};
use hearth_store::{InstanceRecord, Store};
use hearth_vmm::{
    Adopted, BackendProbe, ControlError, LaunchError, LaunchSpec, Launcher, Machine, Nic, ReadyToBoot, SavedState,
    Seat, SocketWait, Started, Vmm,
};
use tokio::sync::OnceCell;

use crate::config::{Config, InitrdChoice};
use crate::dropping::Doomed;
use crate::error::OpError;
use crate::hatch::Hatch;
use crate::log_space::LogSpace;
use crate::metrics::{self, Metrics};
use crate::networks::{Networks, Place};
use crate::ops::faults::Faults;
use crate::paths::{DataDir, InstanceDir};
use crate::pins::Pins;
use crate::recover::Report;
use crate::reservations::Reservations;
use crate::run::blocking;
use crate::scrub::Scrubber;
use crate::settle::Settler;

/// How long records may take to the disk: it is some milliseconds, mostly.
const ON_DISK: Duration = Duration::from_secs(10);

/// Everything an operation may touch.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) config: Config,
    pub(crate) data: DataDir,
    pub(crate) store: Store,
    pub(crate) pins: Pins,
    pub(crate) doomed: Doomed,
    pub(crate) room: Arc<Reservations>,
    pub(crate) vmms: Vmms,
    pub(crate) networks: Networks,
    pub(crate) settler: Settler,
    pub(crate) scrubber: Scrubber,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) recovery: Report,
    pub(crate) hatch: Hatch,
    _log_space: LogSpace,
    boot_files: OnceCell<BootFiles>,
    cpu: CpuFingerprint,
    kernel_release: String,
    memory: ByteSize,
    pub(crate) faults: Faults,
}

/// Which VMMs there are, and how they run guests.
#[derive(Debug)]
pub(crate) struct Vmms {
    pub(crate) accel: Accel,
    /// How that was found out.
    pub(crate) accel_why: String,
    pub(crate) probes: Vec<BackendProbe>,
    pub(crate) launcher: Launcher,
}

impl Vmms {
    /// The backends that this host can run.
    pub(crate) fn usable(&self) -> Vec<Backend> {
        self.probes.iter().filter(|probe| probe.available).map(|probe| probe.backend).collect()
    }
}

/// What a guest boots from.
#[derive(Debug, Clone, Default)]
pub(crate) struct BootFiles {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
}

impl Host {
    pub(crate) fn new(
        config: Config,
        data: DataDir,
        store: Store,
        vmms: Vmms,
        networks: Networks,
    ) -> std::io::Result<Arc<Self>> {
        let pins = Pins::default();
        let doomed = Doomed::default();
        let settler = Settler::start(data.snapshots(), pins.clone(), doomed.clone())?;
        let metrics = Arc::new(Metrics::new(vmms.usable()));
        let scrubber = Scrubber::start(data.snapshots(), config.snapshots.scrub_interval(), Arc::clone(&metrics))?;
        let room = Reservations::new(&config, data.root(), vmms.launcher.cgroups().is_err(), Arc::clone(&metrics));
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let kernel_release = rustix::system::uname().release().to_string_lossy().into_owned();
        Ok(Arc::new(Self {
            cpu: CpuFingerprint::from_cpuinfo(&cpuinfo),
            kernel_release,
            memory: ByteSize(crate::resources::capacity(data.root()).memory),
            hatch: Hatch::new(&config),
            _log_space: LogSpace::start(data.instances(), config.limits.log.bytes())?,
            config,
            data,
            store,
            pins,
            doomed,
            room: Arc::new(room),
            settler,
            scrubber,
            metrics,
            recovery: Report::default(),
            vmms,
            networks,
            boot_files: OnceCell::new(),
            faults: Faults::default(),
        }))
    }

    /// Kernel and initrd; looked for when first needed, so that a daemon starts without them.
    pub(crate) async fn boot_files(&self) -> Result<BootFiles, OpError> {
        #[cfg(test)]
        if let Launcher::Fake(_) = self.vmms.launcher {
            return Ok(BootFiles { kernel: "/dev/null".into(), initrd: Some("/dev/null".into()) });
        }
        let files = self.boot_files.get_or_try_init(|| async {
            let kernel_dir = self.config.kernel.dir.clone().unwrap_or_else(|| self.data.kernel());
            let (initrds, config) = (self.data.initrds(), self.config.kernel.clone());
            blocking(move || {
                let (mut kernel, mut initrd) = (config.image, None);
                match config.initrd {
                    InitrdChoice::Built => {
                        let package = hearth_kernel::find(&kernel_dir)?;
                        initrd = Some(hearth_kernel::ensure_initrd(&package, crate::AGENT, &initrds)?);
                    }
                    InitrdChoice::None => {}
                    InitrdChoice::File(path) => initrd = Some(path),
                }
                if kernel.is_none() {
                    let package = hearth_kernel::find(&kernel_dir)?;
                    // The ELF inside boots faster than the bzImage, and Firecracker takes no other.
                    kernel = Some(hearth_kernel::ensure_vmlinux(&package, &initrds)?);
                }
                Ok::<_, hearth_kernel::KernelError>(BootFiles { kernel: kernel.unwrap_or_default(), initrd })
            })
            .await
        });
        files.await.cloned()
    }

    /// Brings the records to the disk as they are now, and waits for it. False if they do not get there.
    pub(crate) async fn records_are_on_disk(&self) -> bool {
        let (now, mut on_disk) = (Instant::now(), self.store.on_disk());
        self.store.sync_now();
        let there = on_disk.wait_for(|disk| disk.has(now) || disk.is_full());
        matches!(tokio::time::timeout(ON_DISK, there).await, Ok(Ok(disk)) if disk.has(now))
    }

    /// The backend to use when none is asked for.
    pub(crate) fn default_backend(&self) -> Backend {
        self.config.defaults.hypervisor
    }

    /// Refuses a backend that this host cannot run, with the reason.
    pub(crate) fn check_backend(&self, backend: Backend) -> Result<(), OpError> {
        let Some(probe) = self.vmms.probes.iter().find(|p| p.backend == backend) else {
            return Err(OpError::new(ErrorKind::Unsupported, format!("hypervisor {backend} was not probed")));
        };
        if probe.available {
            return Ok(());
        }
        Err(OpError::new(ErrorKind::Unsupported, format!("hypervisor {backend} cannot be used here: {}", probe.why))
            .hinted("`hearth doctor --fix` installs what is missing"))
    }

    /// What this host would load a bundle of that backend with.
    pub(crate) fn facts(&self, backend: Backend) -> HostFacts {
        HostFacts {
            backend,
            vmm_version: self.probe(backend).and_then(|probe| probe.version.clone()),
            accel: self.accel(backend),
            cpu: self.cpu.clone(),
            memory: self.memory,
        }
    }

    /// How guests of that backend are run here.
    pub(crate) fn accel(&self, backend: Backend) -> Accel {
        match backend {
            Backend::Firecracker => Accel::Kvm,
            Backend::QemuMicrovm | Backend::Qemu => self.vmms.accel,
        }
    }

    /// How a bundle is loaded now.
    pub(crate) fn load_plan(&self, bundle: &Manifest) -> LoadPlan {
        let foreign = bundle.foreign.as_ref().and_then(ForeignState::replacements);
        load_plan(bundle.backend == Backend::Firecracker, self.hatch.now(), foreign)
    }

    /// What a state names that Firecracker saved elsewhere; asked in a directory of its own.
    pub(crate) async fn inspect(
        &self,
        dir: &InstanceDir,
        spec: &InstanceSpec,
        from: &SavedState,
    ) -> Result<Described, OpError> {
        let launch = self.launch_spec(dir, spec, BootFiles::default(), Place::default());
        Ok(self.vmms.launcher.inspect(&launch, from).await?)
    }

    /// The host kernel's release, as `uname -r` says.
    pub(crate) fn kernel_release(&self) -> &str {
        &self.kernel_release
    }

    pub(crate) fn probe(&self, backend: Backend) -> Option<&BackendProbe> {
        self.vmms.probes.iter().find(|p| p.backend == backend)
    }

    /// Boots a guest in its directory; its vCPUs run when this returns.
    pub(crate) async fn boot(&self, dir: &InstanceDir, spec: &InstanceSpec, place: Place) -> Result<Vmm, OpError> {
        let launch = self.launch_spec(dir, spec, self.boot_files().await?, place);
        let ready = self.vmms.launcher.ready_to_boot(&launch);
        let ready = self.counting_the_wait(spec.backend, ready, ReadyToBoot::socket_wait).await?;
        Ok(ready.boot().await?)
    }

    /// Waits for a VMM that was started, and counts how its API socket came to answer, or did not.
    pub(crate) async fn counting_the_wait<T>(
        &self,
        backend: Backend,
        waiting: impl Future<Output = Result<T, LaunchError>>,
        told: impl FnOnce(&T) -> Option<(&SocketWait, Duration)>,
    ) -> Result<T, OpError> {
        let began = Instant::now();
        let waited = waiting.await;
        let end = match &waited {
            Ok(ready) => told(ready).map(|(wait, took)| (metrics::SocketWait::from(wait), took)),
            Err(LaunchError::Died { .. }) if backend == Backend::Firecracker => {
                Some((metrics::SocketWait::VmmDied, began.elapsed()))
            }
            Err(LaunchError::Control(ControlError::Silent { .. })) if backend == Backend::Firecracker => {
                Some((metrics::SocketWait::Deadline, began.elapsed()))
            }
            Err(_) => None,
        };
        if let Some((end, took)) = end {
            self.metrics.socket_waited(end, took);
        }
        waited.map_err(OpError::from)
    }

    /// Starts a VMM that will load a saved guest in its directory.
    pub(crate) async fn start(&self, dir: &InstanceDir, spec: &InstanceSpec, place: Place) -> Result<Started, OpError> {
        // What is loaded has its kernel in its memory.
        let launch = self.launch_spec(dir, spec, BootFiles::default(), place);
        Ok(self.vmms.launcher.start(&launch).await?)
    }

    /// Takes over the VMM that a seat names; `None` if it is not there.
    pub(crate) async fn adopt(&self, seat: &Seat) -> Result<Option<Vmm>, OpError> {
        match self.vmms.launcher.adopt(seat).await? {
            Adopted::Alive(vmm) => Ok(Some(vmm)),
            Adopted::Gone => Ok(None),
        }
    }

    /// The machine a specification means here, apart from what it boots.
    pub(crate) fn machine_of(&self, spec: &InstanceSpec) -> Machine {
        self.machine(spec, BootFiles::default(), self.networks.nic(spec))
    }

    fn machine(&self, spec: &InstanceSpec, files: BootFiles, network: Nic) -> Machine {
        Machine {
            backend: spec.backend,
            accel: self.accel(spec.backend),
            vcpus: spec.vcpus,
            memory: spec.memory,
            kernel: files.kernel,
            initrd: files.initrd,
            network,
            foreign: spec.foreign.clone(),
        }
    }

    fn launch_spec(&self, dir: &InstanceDir, spec: &InstanceSpec, files: BootFiles, place: Place) -> LaunchSpec {
        let program = match spec.backend {
            Backend::Firecracker => &self.config.firecracker.path,
            Backend::QemuMicrovm | Backend::Qemu => &self.config.qemu.path,
        };
        LaunchSpec {
            dir: dir.path().to_owned(),
            program: program.clone(),
            machine: self.machine(spec, files, place.nic),
            netns: place.netns,
            track_dirty_pages: self.config.firecracker.track_dirty_pages,
        }
    }
}

/// Ends whatever VMM runs in a directory and removes its sockets. Nothing there is success.
///
/// Takes the host by value so that it can be said as an undo before the step.
pub(crate) async fn end_vmm(host: Arc<Host>, dir: InstanceDir, seat: Option<Seat>) -> Result<(), OpError> {
    Ok(host.vmms.launcher.clean_up(dir.path(), seat.as_ref()).await?)
}

/// The seat that a record holds.
pub(crate) fn recorded_seat(record: &InstanceRecord) -> Option<Seat> {
    let seat = record.seat.clone()?;
    serde_json::from_value(seat).ok()
}

/// A VMM's seat, as a record holds it.
pub(crate) fn seat_value(vmm: &Vmm) -> Option<serde_json::Value> {
    serde_json::to_value(vmm.seat()).ok()
}
