//! What `ci`, `demo`, `bench` and `lab` need from the host: Debian packages, and the guest's kernel.
//!
//! In: a list of needs. Out: a host that has them. Only what is missing is installed, so on a
//! complete host nothing needs root or the network. Works on Debian 12 and 13.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};
use hearth_model::Kind;

use crate::apt;
use crate::process;
use crate::workspace::Workspace;

/// A Debian package, and how to see that it is not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    package: &'static str,
    probe: Probe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// Something of this name can be started, whoever installed it.
    Program(&'static str),
    /// This file is there.
    File(&'static str),
    /// `python3` can import it.
    Python(&'static str),
}

const fn program(package: &'static str, name: &'static str) -> Need {
    Need { package, probe: Probe::Program(name) }
}

/// What a host needs to run instances.
pub const RUN: &[Need] = &[
    program("qemu-system-x86", "qemu-system-x86_64"),
    program("e2fsprogs", "mkfs.ext4"),
    program("erofs-utils", "mkfs.erofs"),
    // The library is loaded when the daemon runs; its package's own record says that it is there.
    Need { package: "libnftables1", probe: Probe::File("/usr/share/doc/libnftables1") },
];

/// What it takes to make an image from Debian itself.
pub const MAKE_IMAGES: &[Need] = &[program("debootstrap", "debootstrap")];

/// What `bench` measures with.
pub const BENCH: &[Need] = &[
    Need { package: "busybox-static", probe: Probe::File("/usr/share/doc/busybox-static") },
    program("xfsprogs", "mkfs.xfs"),
];

/// What assembles the guest without a kernel.
pub const GUEST: &[Need] = &[program("gcc", "gcc")];

/// What the tests need on top of it.
pub const TEST: &[Need] = &[
    program("gcc", "cc"),
    Need { package: "libc6-dev", probe: Probe::File("/usr/include/stdio.h") },
    // dpkg's own record: `/bin/busybox` may be the dynamically linked one.
    Need { package: "busybox-static", probe: Probe::File("/var/lib/dpkg/info/busybox-static.list") },
    program("xfsprogs", "mkfs.xfs"),
    program("python3", "python3"),
    Need { package: "python3-venv", probe: Probe::Python("ensurepip") },
    program("nodejs", "node"),
    program("npm", "npm"),
    program("iproute2", "ip"),
    program("nftables", "nft"),
];

impl Need {
    fn is_met(&self) -> bool {
        match self.probe {
            Probe::Program(name) => in_path(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Python(module) => process::works(Command::new("python3").args(["-c", &format!("import {module}")])),
        }
    }
}

/// Where a program is; also looks where root's programs are.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
}

/// Installs the packages whose needs are not met.
pub fn ensure_packages(needs: &[&[Need]]) -> Result<()> {
    let missing: Vec<&str> = needs.concat().iter().filter(|need| !need.is_met()).map(|need| need.package).collect();
    if missing.is_empty() {
        println!("all Debian packages are there");
        return Ok(());
    }
    println!("missing Debian packages: {}", missing.join(" "));
    if !rustix::process::geteuid().is_root() {
        bail!("only root can install packages; run as root: apt-get install {}", missing.join(" "));
    }
    if in_path("apt-get").is_none() {
        bail!("this is no Debian (there is no apt-get); install what these packages hold: {}", missing.join(" "));
    }
    apt::install(&missing)?;
    let still: Vec<&str> = needs.concat().iter().filter(|need| !need.is_met()).map(|need| need.package).collect();
    if !still.is_empty() {
        bail!("installed, but not found afterwards: {}", still.join(" "));
    }
    Ok(())
}

/// The guest kernel in `dir`, downloaded and unpacked if it is not there.
pub fn ensure_kernel(dir: &Path) -> Result<()> {
    let installed = hearth_kernel::install_debian(dir, &mut |line| println!("{line}"));
    installed.map(drop).map_err(|error| {
        let hint = error.hint().map(|hint| format!("\nhint: {hint}")).unwrap_or_default();
        let chain = hearth_model::error::chain(&error);
        anyhow!("{chain}{hint}").context(format!("install the guest kernel in {}", dir.display()))
    })
}

/// Prometheus' tool: the host's own, or one unpacked to `dir` earlier.
pub fn promtool_in(dir: &Path) -> Option<PathBuf> {
    in_path("promtool").or_else(|| Some(dir.join(PROMTOOL)).filter(|file| file.is_file()))
}

/// Where Debian's package has it.
const PROMTOOL: &str = "usr/bin/promtool";

/// Prometheus' tool, downloaded and unpacked to `dir` if it is not there. Debian's package is not
/// installed, as it would start a Prometheus on this host.
pub fn ensure_promtool(dir: &Path) -> Result<PathBuf> {
    if let Some(there) = promtool_in(dir) {
        return Ok(there);
    }
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let download = || {
        // apt's own download user cannot write to our directory, and says so at length.
        process::run(apt::get().args(["-o", "APT::Sandbox::User=root", "download", "prometheus"]).current_dir(dir))
    };
    download().or_else(|_| {
        // The usual reasons are lists that were never fetched, or that name a version long gone.
        process::run(apt::get().arg("update"))?;
        download()
    })?;
    let package = std::fs::read_dir(dir)
        .with_context(|| format!("read {}", dir.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .with_context(|| format!("apt downloaded no package to {}", dir.display()))?;
    // Only the tool: the rest is 50 MB of server.
    process::run(Command::new("sh").args(["-c", UNPACK, "sh"]).arg(&package).arg(dir))?;
    std::fs::remove_file(&package).with_context(|| format!("remove {}", package.display()))?;
    promtool_in(dir).with_context(|| format!("the package holds no {PROMTOOL}"))
}

const UNPACK: &str = r#"dpkg-deb --fsys-tarfile "$1" | tar -x -C "$2" ./usr/bin/promtool"#;

/// How tests are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TestRunner {
    /// `cargo nextest`.
    Nextest,
    /// `cargo test`: nextest could not be had.
    Cargo,
}

/// What there is to run tests with.
pub fn test_runner(workspace: &Workspace) -> TestRunner {
    let nextest = process::works(workspace.cargo().args(["nextest", "--version"]));
    if nextest { TestRunner::Nextest } else { TestRunner::Cargo }
}

/// Gets cargo's parts that a minimal toolchain lacks, and nextest, which tests can do without.
pub fn ensure_cargo_parts(workspace: &Workspace) -> Result<()> {
    for (subcommand, component) in [("fmt", "rustfmt"), ("clippy", "clippy")] {
        if !process::works(workspace.cargo().args([subcommand, "--version"])) {
            process::run(Command::new("rustup").args(["component", "add", component]).current_dir(&workspace.root))
                .with_context(|| format!("`cargo {subcommand}` is missing"))?;
        }
    }
    if test_runner(workspace) == TestRunner::Cargo {
        println!("cargo-nextest is missing: building it (some minutes, once)");
        if let Err(error) = process::run(workspace.cargo().args(["install", "--locked", "cargo-nextest"])) {
            eprintln!("warning: {error:#}; `cargo test` runs the tests instead");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_need_is_met_by_what_it_looks_for() {
        let met = |probe| Need { package: "any", probe }.is_met();
        assert!(met(Probe::Program("sh")));
        assert!(!met(Probe::Program("hearth-no-such-program")));
        assert!(met(Probe::File("/proc")));
        assert!(!met(Probe::File("/proc/hearth")));
        assert!(!met(Probe::Python("hearth_no_such_module")));
    }

    #[test]
    fn a_complete_host_is_left_alone() {
        ensure_packages(&[&[program("no-such-package", "sh")], &[]]).expect("nothing to do");
    }
}
