//! Which Firecracker this host has, what that version can, and whether it can run guests here.

use std::fmt;
use std::path::Path;

use hearth_model::Backend;
use hearth_model::runtime::{Accel, KvmEvidence, choose_accel};

use crate::probe::{BackendProbe, ask};
use crate::process;

/// The oldest version that is used: diff snapshots of guests above 3 GiB are corrupt before
/// 1.14.2 and 1.15.0, `vsock_override` is there since 1.16.0, and 1.16.1 mends lost vsock data.
pub(crate) const OLDEST: Version = Version { major: 1, minor: 16, patch: 1 };

/// A release of Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
}

impl Version {
    /// "1.16.1", "v1.16.1", "1.17.0-dev".
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('v').unwrap_or(text);
        let numbers = text.split(['-', '+']).next()?;
        let mut numbers = numbers.split('.').map(|number| number.parse::<u32>().ok());
        let version = Self { major: numbers.next()??, minor: numbers.next()??, patch: numbers.next()?? };
        numbers.next().is_none().then_some(version)
    }

    /// Connections from the host work after a pause without a snapshot: since 1.16.2.
    pub(crate) fn wakes_vsock_after_a_bare_pause(self) -> bool {
        self > OLDEST
    }

    /// What requests may say to this version, beyond what [`OLDEST`] knows. An unknown field is an
    /// error to Firecracker, so none is ever sent on trust.
    /// Source: Firecracker's changelog.
    pub(crate) fn capabilities(self) -> Vec<&'static str> {
        let since = |minor, what| (self >= Self { major: 1, minor, patch: 0 }).then_some(what);
        [
            since(16, "vsock_override"),
            since(16, "clock_realtime"),
            since(17, "huge_pages"),
            since(17, "sync_snapshot_files"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

/// Whether a KVM that is not hardware virtualisation is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvmTrust {
    /// Only a KVM that the probe takes for real.
    #[default]
    Probe,
    /// Any KVM that opens: some kernels boot on it that the stock one is none of.
    Trust,
}

/// Looks for Firecracker (a path, or a name in `PATH`), asks its version, and judges KVM. Blocks
/// for some milliseconds.
#[must_use]
pub fn probe(program: &Path, kvm: &KvmEvidence, trust: KvmTrust) -> BackendProbe {
    let path = process::look_up(program);
    let version = path.as_deref().map(version);
    let judged = match (&version, judge_kvm(kvm, trust)) {
        (None, _) => Err(format!("{} is not installed", program.display())),
        (Some(Err(why)), _) => Err(why.clone()),
        (Some(Ok(version)), _) if *version < OLDEST => {
            Err(format!("Firecracker {version} is too old: {OLDEST} is the oldest that keeps its promises"))
        }
        (Some(Ok(_)), Err(why)) => Err(why),
        (Some(Ok(version)), Ok(why)) => {
            Ok(format!("Firecracker {version} can {}; {why}", version.capabilities().join(", ")))
        }
    };
    BackendProbe {
        backend: Backend::Firecracker,
        available: judged.is_ok(),
        version: version.and_then(Result::ok).map(|version| version.to_string()),
        path,
        why: judged.unwrap_or_else(|why| why),
    }
}

fn judge_kvm(kvm: &KvmEvidence, trust: KvmTrust) -> Result<String, String> {
    let (accel, why) = choose_accel(kvm);
    match (accel, trust, &kvm.device) {
        (Accel::Kvm, KvmTrust::Probe | KvmTrust::Trust, _) => Ok(why),
        (Accel::Tcg, KvmTrust::Trust, Ok(_)) => Ok(format!("firecracker.kvm = \"trust\" though {why}")),
        (Accel::Tcg, KvmTrust::Trust, Err(_)) | (Accel::Tcg, KvmTrust::Probe, _) => {
            Err(format!("Firecracker needs KVM, and {why}"))
        }
    }
}

fn version(program: &Path) -> Result<Version, String> {
    let text = ask(program, &["--version"])?;
    version_in(&text)
        .ok_or_else(|| format!("{}: its version is not understood: {:?}", program.display(), text.lines().next()))
}

/// In what `--version` prints.
pub(super) fn version_in(text: &str) -> Option<Version> {
    let word = text.lines().next().and_then(|line| line.strip_prefix("Firecracker ")).map(str::trim);
    word.and_then(Version::parse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).expect(text)
    }

    #[test]
    fn versions_are_ordered_and_say_what_they_can() {
        assert!(version("v1.16.1") > version("1.16.0") && version("1.9.9") < OLDEST && version("1.17.0-dev") > OLDEST);
        assert_eq!(version("1.16.1").capabilities(), ["vsock_override", "clock_realtime"]);
        assert!(version("1.17.0").capabilities().contains(&"huge_pages"));
        assert!(!version("1.16.1").wakes_vsock_after_a_bare_pause());
        assert!(version("1.16.2").wakes_vsock_after_a_bare_pause());
        for bad in ["", "1", "1.16", "a.b.c", "1.2.3.4"] {
            assert_eq!(Version::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_older_one_and_a_missing_one_are_refused_with_the_reason() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().expect("a directory");
        let real = KvmEvidence { device: Ok(12), cpu_flag: true, pvm_module: false };
        let fake = |says: &str| {
            let path = dir.path().join(says);
            std::fs::write(&path, format!("#!/bin/sh\necho 'Firecracker {says}'\n")).expect("written");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("made runnable");
            probe(&path, &real, KvmTrust::Probe)
        };
        let old = fake("v1.15.0");
        assert!(!old.available && old.why.contains("1.15.0 is too old") && old.why.contains("1.16.1"), "{old:?}");
        let new = fake("v1.16.1");
        assert!(new.available && new.version.as_deref() == Some("1.16.1"), "{new:?}");
        let garbled = fake("later");
        assert!(!garbled.available && garbled.why.contains("not understood"), "{garbled:?}");
        let missing = probe(Path::new("no-such-firecracker"), &real, KvmTrust::Probe);
        assert!(!missing.available && missing.why.contains("no-such-firecracker"), "{missing:?}");
    }

    #[test]
    fn kvm_that_is_not_hardware_is_used_only_on_trust() {
        let fooled = KvmEvidence { device: Ok(12), cpu_flag: false, pvm_module: true };
        assert!(judge_kvm(&fooled, KvmTrust::Probe).expect_err("not real").contains("kvm_pvm"));
        assert!(judge_kvm(&fooled, KvmTrust::Trust).expect("trusted").contains("kvm_pvm"));
        let none = KvmEvidence { device: Err("no such file".into()), cpu_flag: true, pvm_module: false };
        assert!(judge_kvm(&none, KvmTrust::Trust).is_err(), "what is not there cannot be trusted");
    }
}
