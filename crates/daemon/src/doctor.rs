//! `hearth doctor`: one line for each thing that Hearth needs of its host, with the remedy.
//!
//! Works without a daemon. With `fix` it installs what Debian has; everything else is only said.

use std::io;
use std::net::TcpListener;
use std::path::PathBuf;

use hearth_model::load::ResumeOnLoad;
use hearth_model::runtime::Accel;
use hearth_model::{Backend, ByteSize, Kind as _};
use hearth_vmm::BackendProbe;

use crate::config::{Config, NetworkMode, ServeOptions};
use crate::hatch::Hatch;
use crate::host::Vmms;
use crate::resources;

/// What to look at.
#[derive(Debug, Clone, Default)]
pub struct DoctorOptions {
    /// As for `serve`.
    pub config: Option<PathBuf>,
    /// As for `serve`.
    pub data_dir: Option<PathBuf>,
    /// Install what is missing, where Debian has it.
    pub fix: bool,
}

/// How one check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, slower or with less.
    Warn,
    /// Something will not work.
    Fail,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub verdict: Verdict,
    /// What was found, and how.
    pub detail: String,
    /// What to do, if anything.
    pub remedy: Option<String>,
}

impl Check {
    fn new(name: impl Into<String>, verdict: Verdict, detail: impl Into<String>) -> Self {
        Self { name: name.into(), verdict, detail: detail.into(), remedy: None }
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }
}

/// Debian packages, and a program by which each is known to be there.
const TOOLS: [(&str, &str, Verdict, &str); 2] = [
    ("mkfs.ext4", "e2fsprogs", Verdict::Fail, "makes the writable layer of instances"),
    ("qemu-system-x86_64", "qemu-system-x86", Verdict::Fail, "runs instances"),
];

/// Looks at everything; with `fix`, after installing what is missing. `progress` gets a line for
/// each thing that takes a while.
pub async fn doctor(options: DoctorOptions, progress: impl Fn(&str) + Send + Sync + 'static) -> Vec<Check> {
    let (file, dir) = (options.config.clone(), options.data_dir.clone());
    let serve = ServeOptions { config: file, data_dir: dir, ..ServeOptions::default() };
    let config = match Config::load(&serve) {
        Ok(config) => config,
        Err(error) => {
            return vec![
                Check::new("configuration", Verdict::Fail, hearth_model::error::chain(&error))
                    .remedy("correct the file or the variable that it names"),
            ];
        }
    };
    let mut checks = vec![Check::new("configuration", Verdict::Ok, format!("data in {}", config.data_dir.display()))];
    if options.fix {
        let for_fix = config.clone();
        let fixed = tokio::task::spawn_blocking(move || fix(&for_fix, &progress)).await;
        checks.extend(fixed.unwrap_or_default());
    }

    let vmms = crate::serve::probe(&config).await;
    for probe in &vmms.probes {
        let version = probe.version.as_deref().unwrap_or("unknown version");
        checks.push(if probe.available {
            Check::new(probe.backend.to_string(), Verdict::Ok, format!("{version}: {}", probe.why))
        } else {
            not_available(probe)
        });
    }
    let (cgroups, no_cgroups) = (cgroups(&vmms), vmms.launcher.cgroups().is_err());
    checks.push(match vmms.accel {
        Accel::Kvm => Check::new("KVM", Verdict::Ok, vmms.accel_why),
        Accel::Tcg => Check::new("KVM", Verdict::Warn, format!("{}; guests are translated (TCG)", vmms.accel_why))
            .remedy("for speed, use a host with hardware virtualisation"),
    });
    checks.push(cgroups);
    checks.push(hatch(&config));
    checks.push(kernel(&config));
    checks.extend(TOOLS.iter().map(|(tool, package, missing, what_for)| {
        match which(tool) {
            Some(path) => Check::new(*tool, Verdict::Ok, path.display().to_string()),
            None => Check::new(*tool, *missing, format!("not found; it {what_for}"))
                .remedy(format!("`hearth doctor --fix`, or install the package {package}")),
        }
    }));
    checks.push(network(&config));
    checks.push(data_dir(&config));
    checks.push(how_many(&config, no_cgroups));
    checks.push(privileges());
    checks.push(port(&config));
    checks
}

fn kernel_dir(config: &Config) -> PathBuf {
    config.kernel.dir.clone().unwrap_or_else(|| crate::paths::DataDir::new(config.data_dir.clone()).kernel())
}

/// Instances run on QEMU where there is no Firecracker.
fn not_available(probe: &BackendProbe) -> Check {
    let (verdict, remedy) = match probe.backend {
        Backend::Firecracker if probe.path.is_none() => {
            (Verdict::Warn, "put a release of Firecracker on PATH, or set firecracker.path")
        }
        Backend::Firecracker => (Verdict::Warn, "until then use hypervisor qemu-microvm"),
        Backend::QemuMicrovm | Backend::Qemu => (Verdict::Fail, "`hearth doctor --fix`, or set qemu.path"),
    };
    Check::new(probe.backend.to_string(), verdict, probe.why.clone()).remedy(remedy)
}

fn cgroups(vmms: &Vmms) -> Check {
    let name = "cgroups";
    match vmms.launcher.cgroups() {
        Ok(parent) => {
            Check::new(name, Verdict::Ok, format!("version 2: each VMM has its own below {}", parent.display()))
        }
        Err(why) => Check::new(name, Verdict::Warn, format!("{why}; VMMs are in the daemon's own")).remedy(
            "mount cgroups of version 2, writable, and run as root; or end the daemon alone (KillMode=process)",
        ),
    }
}

fn hatch(config: &Config) -> Check {
    let name = "resume on load";
    match Hatch::new(config).now() {
        ResumeOnLoad::On => Check::new(name, Verdict::Ok, "on: a Firecracker guest runs when its load returns"),
        ResumeOnLoad::Off => Check::new(name, Verdict::Warn, "off: a Firecracker guest is loaded, then resumed")
            .remedy(format!("firecracker.resume_on_load or {} turned it off", crate::hatch::VARIABLE)),
    }
}

fn kernel(config: &Config) -> Check {
    if let Some(image) = &config.kernel.image {
        let found = format!("{} (kernel.image)", image.display());
        return match std::fs::File::open(image) {
            Ok(_) => Check::new("guest kernel", Verdict::Ok, found),
            Err(error) => Check::new("guest kernel", Verdict::Fail, format!("{found}: {error}"))
                .remedy("correct kernel.image, or leave it out"),
        };
    }
    let dir = kernel_dir(config);
    match hearth_kernel::find(&dir) {
        Ok(kernel) => {
            Check::new("guest kernel", Verdict::Ok, format!("{} ({})", kernel.vmlinuz.display(), kernel.version))
        }
        Err(error) => Check::new("guest kernel", Verdict::Fail, hearth_model::error::chain(&error))
            .remedy("`hearth doctor --fix` unpacks Debian's, or set kernel.dir"),
    }
}

fn network(config: &Config) -> Check {
    let name = "network";
    let range = config.network.cidr;
    match (config.network.mode, hearth_net::Network::possible()) {
        (NetworkMode::User, _) => {
            Check::new(name, Verdict::Warn, "QEMU's own, for guests of QEMU only: network.mode says so")
                .remedy("set network.mode to auto for addresses of their own, isolation and limits")
        }
        (NetworkMode::Auto, Err(why)) => {
            let check = Check::new(name, Verdict::Warn, format!("QEMU's own, for guests of QEMU only: {why}"));
            check.remedy(why.hint().unwrap_or_else(|| "run `hearth serve` as root".into()))
        }
        (NetworkMode::Slots, Err(why)) => {
            let check = Check::new(name, Verdict::Fail, format!("network.mode is slots, but {why}"));
            check.remedy(why.hint().unwrap_or_else(|| "run `hearth serve` as root".into()))
        }
        (NetworkMode::Auto | NetworkMode::Slots, Ok(())) => {
            let slots = format!("a namespace for each instance, addresses of {range}");
            match hearth_net::Network::look(&crate::networks::slots_config(config)) {
                Ok(found) if found.is_empty() => Check::new(name, Verdict::Ok, slots),
                Ok(found) => Check::new(name, Verdict::Ok, format!("{slots}; {}", found.join("; "))),
                Err(error) => {
                    let check = Check::new(name, Verdict::Fail, hearth_model::error::chain(&error));
                    check.remedy(error.hint().unwrap_or_else(|| "see docs/networking.md".into()))
                }
            }
        }
    }
}

/// So many instances are few enough to be in somebody's way.
const FEW: u64 = 64;

/// How many instances the host's tables have room for, whatever their size.
fn how_many(config: &Config, own_cgroup: bool) -> Check {
    let name = "limits";
    // As the daemon does it at its start.
    crate::serve::open_many_files();
    let (files, processes) = (resources::files(), resources::processes(own_cgroup));
    let instances = resources::instances_for(files, processes);
    let memory = resources::limits(config, &resources::capacity(&config.data_dir), own_cgroup).most.memory;
    let found = format!(
        "{files} open files and {processes} processes: {instances} instances, with {} of memory together",
        ByteSize(memory)
    );
    if instances >= FEW {
        return Check::new(name, Verdict::Ok, found);
    }
    let remedy = if resources::instances_for(files, u64::MAX) < FEW {
        "raise the limit of open files (LimitNOFILE= of the service, `ulimit -Hn`)"
    } else {
        "raise the limit of processes (TasksMax= of the service, pids.max of its cgroup, kernel.pid_max)"
    };
    Check::new(name, Verdict::Warn, found).remedy(remedy)
}

fn data_dir(config: &Config) -> Check {
    let dir = &config.data_dir;
    // The directory may not be there yet: then its nearest parent is what counts.
    let Some(there) = dir.ancestors().find(|path| path.is_dir()) else {
        return Check::new("data directory", Verdict::Fail, format!("{}: no parent exists", dir.display()));
    };
    let space = match hearth_disk::free_space(there) {
        Ok(space) => {
            let (free, reserve) = (ByteSize(space.free), config.disk.reserve_of(space.total));
            if free <= reserve {
                let found = format!("{}: {free} free, no more than the reserve of {reserve}", dir.display());
                return Check::new("data directory", Verdict::Fail, found)
                    .remedy("remove what nobody needs from its file system, or lower disk.reserve");
            }
            format!("{free} free, {reserve} of it a reserve")
        }
        Err(error) => hearth_model::error::chain(&error),
    };
    match hearth_disk::reflink_supported(there) {
        Ok(true) => Check::new("data directory", Verdict::Ok, format!("{}: {space}, reflink", dir.display())),
        Ok(false) => Check::new(
            "data directory",
            Verdict::Warn,
            format!("{}: {space}, no reflink: clones are copies", dir.display()),
        )
        .remedy("put it on XFS or Btrfs, where a clone of a disk takes no time and no space"),
        Err(error) => Check::new(
            "data directory",
            Verdict::Fail,
            format!("{}: {}", dir.display(), hearth_model::error::chain(&error)),
        )
        .remedy("make it writable, or choose another with --data-dir"),
    }
}

fn privileges() -> Check {
    if rustix::process::geteuid().is_root() {
        Check::new("privileges", Verdict::Ok, "root")
    } else {
        Check::new("privileges", Verdict::Warn, "not root: images cannot be imported with their owners")
            .remedy("run `hearth serve` as root")
    }
}

fn port(config: &Config) -> Check {
    match TcpListener::bind(config.listen) {
        Ok(_) => Check::new("port", Verdict::Ok, format!("{} is free", config.listen)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Check::new(
            "port",
            Verdict::Warn,
            format!("{} is in use: a daemon runs, or something else listens there", config.listen),
        )
        .remedy("`hearth ps` tells whether it is a daemon; another port: --listen or the config key listen"),
        Err(error) => Check::new("port", Verdict::Fail, format!("{}: {error}", config.listen))
            .remedy("choose another address: --listen or the config key listen"),
    }
}

/// Installs the packages and the kernel that are missing; returns what failed.
fn fix(config: &Config, progress: &(impl Fn(&str) + Send)) -> Vec<Check> {
    let mut failed = Vec::new();
    let missing: Vec<&str> =
        TOOLS.iter().filter(|(tool, ..)| which(tool).is_none()).map(|(_, package, ..)| *package).collect();
    if !missing.is_empty()
        && let Err(error) = hearth_kernel::install_packages(&missing, &mut |line| progress(line))
    {
        failed.push(Check::new("fix: packages", Verdict::Fail, hearth_model::error::chain(&error)));
    }
    let dir = kernel_dir(config);
    if hearth_kernel::find(&dir).is_err()
        && let Err(error) = hearth_kernel::install_debian(&dir, &mut |line| progress(line))
    {
        failed.push(Check::new("fix: guest kernel", Verdict::Fail, hearth_model::error::chain(&error)));
    }
    failed
}

/// The program of that name on PATH, or where Debian keeps administrators' programs.
fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
}
