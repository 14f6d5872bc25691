//! Whether a bundle with memory can be loaded on this host. Pure: facts in, differences out.

use std::collections::BTreeMap;
use std::fmt;

use hearth_model::error::{ErrorKind, Kind};
use hearth_model::{Accel, Backend, ByteSize, SnapshotId};
use sha2::{Digest, Sha256};

use crate::checksum::hex;
use crate::manifest::{BundleKind, Manifest};

/// A CPU, as far as a guest's state depends on it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct CpuFingerprint {
    /// `AuthenticAMD`, `GenuineIntel`, …
    pub vendor: String,
    /// The CPU's family number.
    pub family: String,
    /// Its model number.
    pub model: String,
    /// SHA-256 of its feature flags, sorted.
    pub flags_sha256: String,
}

impl CpuFingerprint {
    /// From the text of `/proc/cpuinfo`, by its first CPU. What is not there is empty.
    #[must_use]
    pub fn from_cpuinfo(text: &str) -> Self {
        let first: BTreeMap<&str, &str> = text
            .lines()
            .take_while(|line| !line.trim().is_empty())
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.trim(), value.trim()))
            .collect();
        let field = |name: &str| first.get(name).copied().unwrap_or_default().to_owned();
        let flags = field("flags");
        let mut flags: Vec<&str> = flags.split_whitespace().collect();
        flags.sort_unstable();
        Self {
            vendor: field("vendor_id"),
            family: field("cpu family"),
            model: field("model"),
            flags_sha256: hex(&Sha256::digest(flags.join(" "))),
        }
    }
}

impl fmt::Display for CpuFingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = self.flags_sha256.get(..8).unwrap_or(&self.flags_sha256);
        write!(f, "{} family {} model {} flags {flags}", self.vendor, self.family, self.model)
    }
}

/// What this host would load a bundle with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// The VMM.
    pub backend: Backend,
    /// Its version; `None` if it is not installed.
    pub vmm_version: Option<String>,
    /// How vCPUs are executed.
    pub accel: Accel,
    /// The host's CPU.
    pub cpu: CpuFingerprint,
    /// All of the host's memory.
    pub memory: ByteSize,
}

/// One thing that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What differs.
    pub what: &'static str,
    /// The bundle's.
    pub saved: String,
    /// This host's.
    pub here: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} in the snapshot and {} here", self.what, self.saved, self.here)
    }
}

/// The bundle does not fit; everything that differs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("snapshot {id} does not fit this host: {}", list(.differences))]
pub struct Incompatible {
    /// The bundle.
    pub id: SnapshotId,
    /// What differs; never empty.
    pub differences: Vec<Difference>,
}

fn list(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

impl Kind for Incompatible {
    fn kind(&self) -> ErrorKind {
        ErrorKind::Incompatible
    }

    fn hint(&self) -> Option<String> {
        Some("restore it on a host like the one that saved it, or fork it to a stopped instance and boot that".into())
    }
}

/// Decides whether `manifest`'s memory and device state can be loaded on `host`, by a VMM that is
/// launched with `devices`. Disks fit everywhere.
///
/// # Errors
/// [`Incompatible`], with everything that differs.
pub fn compatible(manifest: &Manifest, host: &HostFacts, devices: &[String]) -> Result<(), Incompatible> {
    if manifest.kind == BundleKind::Stopped {
        return Ok(());
    }
    let mut differences = Vec::new();
    let mut compare = |what, saved: String, here: String, fits: bool| {
        if !fits {
            differences.push(Difference { what, saved, here });
        }
    };
    compare("hypervisor", manifest.backend.to_string(), host.backend.to_string(), manifest.backend == host.backend);
    compare(
        "VMM version",
        manifest.vmm_version.clone(),
        host.vmm_version.clone().unwrap_or_else(|| "not installed".into()),
        host.vmm_version.as_ref() == Some(&manifest.vmm_version),
    );
    compare("acceleration", manifest.accel.as_str().into(), host.accel.as_str().into(), manifest.accel == host.accel);
    compare("device set", manifest.device_set.join(" "), devices.join(" "), manifest.device_set == devices);
    // Translated vCPUs are the same on every host; real ones show the guest what it was booted on.
    let same_cpu = manifest.accel == Accel::Tcg || manifest.cpu == host.cpu;
    compare("CPU", manifest.cpu.to_string(), host.cpu.to_string(), same_cpu);
    compare(
        "memory",
        manifest.memory.to_string(),
        format!("{} in all", host.memory),
        manifest.memory.size() <= host.memory,
    );
    if differences.is_empty() { Ok(()) } else { Err(Incompatible { id: manifest.id.clone(), differences }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cpu_is_known_by_its_flags_in_any_order() {
        let one = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 1\nflags\t\t: fpu svm avx\n\nprocessor\t: 1\nmodel\t\t: 9\n";
        let two = one.replace("fpu svm avx", "avx fpu svm");
        let three = one.replace("svm ", "");
        let cpu = CpuFingerprint::from_cpuinfo(one);
        assert_eq!((cpu.vendor.as_str(), cpu.family.as_str(), cpu.model.as_str()), ("AuthenticAMD", "25", "1"));
        assert_eq!(cpu, CpuFingerprint::from_cpuinfo(&two));
        assert_ne!(cpu, CpuFingerprint::from_cpuinfo(&three));
    }
}
