//! Which backends this host has: QEMU's program, its version, its boards. Starts the program twice.

use std::path::Path;

use hearth_model::Backend;

use crate::probe::{BackendProbe, ask};
use crate::process;

/// Looks for QEMU (a path, or a name in `PATH`) and asks it what it can. Blocks for some 50 ms.
#[must_use]
pub fn probe(qemu: &Path) -> Vec<BackendProbe> {
    let Some(path) = process::look_up(qemu) else {
        let why = format!("{} is not installed", qemu.display());
        return answer(None, None, |_| Err(why.clone()));
    };
    let asked = ask(&path, &["-version"]).and_then(|text| Ok((version(&text)?, ask(&path, &["-machine", "help"])?)));
    match asked {
        Err(why) => answer(Some(&path), None, |_| Err(why.clone())),
        Ok((version, machines)) => answer(Some(&path), Some(&version), |board| {
            if machines.lines().any(|line| line.split_ascii_whitespace().next() == Some(board)) {
                Ok(format!("QEMU {version} has the board {board}"))
            } else {
                Err(format!("QEMU {version} was built without the board {board}"))
            }
        }),
    }
}

fn answer(
    path: Option<&Path>,
    version: Option<&str>,
    judge: impl Fn(&str) -> Result<String, String>,
) -> Vec<BackendProbe> {
    let one = |(backend, board)| {
        let judged = judge(board);
        BackendProbe {
            backend,
            available: judged.is_ok(),
            version: version.map(str::to_owned),
            path: path.map(Path::to_owned),
            why: judged.unwrap_or_else(|why| why),
        }
    };
    [(Backend::QemuMicrovm, "microvm"), (Backend::Qemu, "q35")].map(one).into()
}

/// "QEMU emulator version 7.2.22 (Debian …)" says 7.2.22.
fn version(text: &str) -> Result<String, String> {
    let mut words = text.split_ascii_whitespace().skip_while(|word| *word != "version").skip(1);
    let found = words.next().filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    found.map(str::to_owned).ok_or_else(|| format!("its version is not understood: {:?}", text.lines().next()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_s_version_line_is_read() {
        let line = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)\nCopyright (c) …";
        assert_eq!(version(line), Ok("7.2.22".into()));
        assert!(version("busybox").is_err());
    }

    #[test]
    fn a_missing_program_is_named() {
        for found in probe(Path::new("no-such-qemu")) {
            assert!(!found.available);
            assert!(found.why.contains("no-such-qemu"), "{}", found.why);
        }
    }
}
