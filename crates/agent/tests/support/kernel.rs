//! What every test guest boots: an unpacked Debian kernel, and an initrd with the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use hearth_kernel::GuestKernel;

/// The kernel for tests, or `None` after saying that there is none.
pub fn unpacked() -> Option<GuestKernel> {
    let dir = std::env::var_os("HEARTH_TEST_KERNEL_DIR").map_or_else(|| "/usr/lib/hearth/kernel".into(), PathBuf::from);
    let found = hearth_kernel::find(&dir);
    if let Err(error) = &found {
        eprintln!("SKIPPED: {error}: set HEARTH_TEST_KERNEL_DIR to an unpacked linux-image package");
    }
    found.ok()
}

/// Makes the initrd.
pub fn initrd(kernel: &GuestKernel, to: &Path) {
    let agent = fs::read(agent()).expect("the agent");
    hearth_kernel::build_initrd(kernel, &agent, to).expect("built");
}

/// Runs a program that must succeed.
pub fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The agent as it is shipped: static and small. Built once for all tests of a process.
/// `HEARTH_AGENT` names one that was built before, as for the daemon's build.
fn agent() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        if let Some(given) = std::env::var_os("HEARTH_AGENT") {
            return given.into();
        }
        const TARGET: &str = "x86_64-unknown-linux-gnu";
        let target_dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("agent");
        run(Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "hearth-agent", "--profile", "agent", "--target", TARGET])
            .arg("--target-dir")
            .arg(&target_dir)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .env("RUSTFLAGS", "-C target-feature=+crt-static"));
        target_dir.join(TARGET).join("agent/hearth-agent")
    })
}
