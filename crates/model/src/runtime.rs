//! What runs a guest: backends, and how their vCPUs are executed.

use std::fmt;
use std::str::FromStr;

/// The VMM and its machine type, as the API's `hypervisor` names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub enum Backend {
    /// Firecracker: needs KVM that is real.
    #[serde(rename = "firecracker")]
    Firecracker,
    /// QEMU's minimal board: virtio-mmio, no PCI.
    #[serde(rename = "qemu-microvm")]
    QemuMicrovm,
    /// QEMU's standard board (q35).
    #[serde(rename = "qemu")]
    Qemu,
}

impl Backend {
    /// Every backend of this build.
    pub const ALL: [Self; 3] = [Self::QemuMicrovm, Self::Qemu, Self::Firecracker];

    /// The API's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::QemuMicrovm => "qemu-microvm",
            Self::Qemu => "qemu",
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Not a backend of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("hypervisor {0:?} is not one of this server's: qemu-microvm, qemu, firecracker")]
pub struct UnknownBackend(String);

impl FromStr for Backend {
    type Err = UnknownBackend;
    fn from_str(text: &str) -> Result<Self, UnknownBackend> {
        Self::ALL.into_iter().find(|b| b.as_str() == text).ok_or_else(|| UnknownBackend(text.to_owned()))
    }
}

/// How vCPUs are executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accel {
    /// By the processor.
    Kvm,
    /// Translated: slower, and works everywhere.
    Tcg,
}

impl Accel {
    /// The name, as QEMU's `-accel` takes it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

/// What the host shows of KVM; gathered by `vmm`, judged by [`choose_accel`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvmEvidence {
    /// Opening `/dev/kvm` and asking its API version: the version, or why not.
    pub device: Result<i32, String>,
    /// `svm` or `vmx` among the CPU's flags.
    pub cpu_flag: bool,
    /// `/sys/module/kvm_pvm` is there: KVM without hardware virtualisation, on which a stock
    /// kernel hangs in early boot.
    pub pvm_module: bool,
}

/// Decides how guests are run, and says how that was found out.
#[must_use]
pub fn choose_accel(kvm: &KvmEvidence) -> (Accel, String) {
    match &kvm.device {
        Err(why) => (Accel::Tcg, format!("/dev/kvm cannot be used: {why}")),
        Ok(version) if *version != 12 => (Accel::Tcg, format!("/dev/kvm speaks API version {version}, not 12")),
        Ok(_) if kvm.pvm_module => (
            Accel::Tcg,
            "/dev/kvm opens, but /sys/module/kvm_pvm shows that it is not hardware virtualisation: \
             a stock kernel does not boot on it"
                .into(),
        ),
        Ok(_) if !kvm.cpu_flag => (
            Accel::Tcg,
            "/dev/kvm opens, but the CPU shows neither the svm nor the vmx flag: \
             a stock kernel may not boot on it"
                .into(),
        ),
        Ok(_) => (Accel::Kvm, "/dev/kvm opens, speaks API version 12, and the CPU has svm or vmx".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kvm_device_alone_proves_nothing() {
        let real = KvmEvidence { device: Ok(12), cpu_flag: true, pvm_module: false };
        assert_eq!(choose_accel(&real).0, Accel::Kvm);
        for fooled in [
            KvmEvidence { device: Err("permission denied".into()), ..real.clone() },
            KvmEvidence { device: Ok(11), ..real.clone() },
            KvmEvidence { cpu_flag: false, ..real.clone() },
            KvmEvidence { pvm_module: true, ..real.clone() },
        ] {
            let (accel, why) = choose_accel(&fooled);
            assert_eq!(accel, Accel::Tcg, "{why}");
        }
    }

    #[test]
    fn names_are_read_back() {
        for backend in Backend::ALL {
            assert_eq!(backend.as_str().parse(), Ok(backend));
            assert_eq!(serde_json::to_value(backend).expect("a name"), backend.as_str());
        }
        assert!("vmware".parse::<Backend>().is_err());
    }
}
