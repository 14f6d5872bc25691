//! Whether this host's KVM is real: evidence is gathered here, [`choose_accel`] judges it.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::Path;

use hearth_model::Accel;
use hearth_model::runtime::{KvmEvidence, choose_accel};

use crate::sys;

/// How guests are run on this host, and how that was found out.
#[must_use]
pub fn accel() -> (Accel, String) {
    choose_accel(&evidence())
}

/// What the host shows of KVM.
#[must_use]
pub fn evidence() -> KvmEvidence {
    KvmEvidence {
        device: ask_device(),
        cpu_flag: has_flag(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        pvm_module: Path::new("/sys/module/kvm_pvm").exists(),
    }
}

fn ask_device() -> Result<i32, String> {
    let device = File::options().read(true).write(true).open("/dev/kvm").map_err(|error| error.to_string())?;
    sys::kvm_api_version(device.as_fd()).map_err(|error| error.to_string())
}

fn has_flag(cpuinfo: &str) -> bool {
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_ascii_whitespace().any(|flag| flag == "svm" || flag == "vmx")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flag_is_a_word_among_the_flags() {
        assert!(has_flag("processor\t: 0\nflags\t\t: fpu vmx sse\n"));
        assert!(!has_flag("flags\t\t: fpu vmx_like sse\n"));
        assert!(!has_flag("model name\t: svm\nflags\t\t: fpu\n"));
    }
}
