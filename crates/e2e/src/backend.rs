//! What runs the guests of all stories, and how slow this host is.
//!
//! In: `HEARTH_TEST_HYPERVISOR` (`qemu` if left out, or `firecracker`), `HEARTH_FIRECRACKER`,
//! `HEARTH_TEST_SLOWNESS`. Out: settings for the daemon, and a factor for every limit in time.

use std::env;
use std::path::PathBuf;

/// A VMM that stories can run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backend {
    /// Whatever the daemon takes by itself, which is QEMU.
    Qemu,
    /// Firecracker, by its program.
    Firecracker(PathBuf),
}

impl Backend {
    /// The one that was asked for.
    ///
    /// # Errors
    /// Its name, if it is none.
    pub(crate) fn asked_for() -> Result<Self, String> {
        let asked = env::var("HEARTH_TEST_HYPERVISOR").unwrap_or_default();
        let firecracker = env::var_os("HEARTH_FIRECRACKER").map_or_else(|| "firecracker".into(), PathBuf::from);
        Self::named(&asked, firecracker)
    }

    fn named(name: &str, firecracker: PathBuf) -> Result<Self, String> {
        match name {
            "" | "qemu" => Ok(Self::Qemu),
            "firecracker" => Ok(Self::Firecracker(firecracker)),
            other => Err(format!("HEARTH_TEST_HYPERVISOR is {other:?}, which is neither qemu nor firecracker")),
        }
    }

    /// What the daemon is told.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        let factor = slowness();
        let mut settings = match self {
            // A host where KVM is real tells the same stories faster.
            Self::Qemu => vec![("HEARTH_QEMU_ACCEL", "auto".to_owned())],
            Self::Firecracker(program) => vec![
                ("HEARTH_DEFAULTS_HYPERVISOR", "firecracker".to_owned()),
                ("HEARTH_FIRECRACKER_PATH", program.display().to_string()),
            ],
        };
        if factor > 1 {
            settings.push(("HEARTH_TIMEOUTS_BOOT_S", (120 * factor).to_string()));
            settings.push(("HEARTH_TIMEOUTS_AGENT_S", (30 * factor).to_string()));
        }
        settings.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
    }
}

/// What limits in time are multiplied by; 1 unless the host is said to be slower.
///
/// # Panics
/// If `HEARTH_TEST_SLOWNESS` is no number.
#[must_use]
pub fn slowness() -> u32 {
    let factor =
        env::var("HEARTH_TEST_SLOWNESS").map(|text| text.parse::<u32>().expect("HEARTH_TEST_SLOWNESS is a number"));
    factor.unwrap_or(1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_daemon_is_told_of_firecracker_only_when_it_is_asked_for() {
        let named = |name| Backend::named(name, "/fc".into());
        assert_eq!(named(""), Ok(Backend::Qemu));
        assert!(named("xen").expect_err("not one of ours").contains("xen"));
        let told = named("firecracker").expect("known").settings();
        assert!(told.contains(&("HEARTH_DEFAULTS_HYPERVISOR".into(), "firecracker".into())), "{told:?}");
        assert!(told.contains(&("HEARTH_FIRECRACKER_PATH".into(), "/fc".into())), "{told:?}");
        assert!(!Backend::Qemu.settings().iter().any(|(key, _)| key.contains("FIRECRACKER")));
    }
}
