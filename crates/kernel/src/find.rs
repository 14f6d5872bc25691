//! Finds the guest kernel in a directory.
//!
//! In: the directory (an unpacked package, or `/`). Out: the newest version that has both an image
//! and modules. It does not look into either.

use std::cmp::Ordering;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::KernelError;

/// A kernel image and the modules that belong to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestKernel {
    /// As in `uname -r`.
    pub version: String,
    /// The bzImage.
    pub vmlinuz: PathBuf,
    /// `lib/modules/<version>`, or `usr/lib/modules/<version>` as packaged since Debian 13.
    pub modules_dir: PathBuf,
}

impl GuestKernel {
    /// Tells this build of the kernel from others, for names in caches. Debian keeps a version
    /// string over rebuilds with the same module interface, so the image's size and time (which the
    /// package sets) take part.
    pub(crate) fn build_id(&self) -> Result<String, KernelError> {
        let image = fs::metadata(&self.vmlinuz).map_err(KernelError::io("look at", &self.vmlinuz))?;
        Ok(format!("{}-{:x}-{:x}", self.version, image.len(), image.mtime()))
    }
}

/// Where packages keep modules, in the order in which they are looked for.
const MODULE_ROOTS: [&str; 2] = ["lib/modules", "usr/lib/modules"];

/// The newest kernel in `dir`.
///
/// # Errors
/// `not_found` when there is none (the reason says which half is missing), `host_failed` when the
/// directory could not be read.
pub fn find(dir: &Path) -> Result<GuestKernel, KernelError> {
    let not_found = |reason: String| KernelError::NotFound { dir: dir.to_owned(), reason };
    let boot = dir.join("boot");
    let entries = match fs::read_dir(&boot) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Err(not_found("there is no directory boot".to_owned()));
        }
        Err(error) => return Err(KernelError::io("read directory", &boot)(error)),
    };

    let mut versions = Vec::new();
    for entry in entries {
        let name = entry.map_err(KernelError::io("read directory", &boot))?.file_name();
        if let Some(version) = name.to_str().and_then(|name| name.strip_prefix("vmlinuz-")) {
            versions.push(version.to_owned());
        }
    }
    versions.sort_by(|a, b| by_version(b, a));

    for version in &versions {
        let modules = MODULE_ROOTS.iter().map(|root| dir.join(root).join(version)).find(|path| path.is_dir());
        if let Some(modules_dir) = modules {
            let vmlinuz = boot.join(format!("vmlinuz-{version}"));
            return Ok(GuestKernel { version: version.clone(), vmlinuz, modules_dir });
        }
    }
    Err(not_found(match versions.first() {
        None => "there is no boot/vmlinuz-*".to_owned(),
        Some(newest) => format!("boot/vmlinuz-{newest} is there, lib/modules/{newest} is not"),
    }))
}

/// Numbers in the text compare as numbers: 6.1 is older than 6.12.
fn by_version(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let (text_a, rest_a) = a.split_at(a.find(|c: char| c.is_ascii_digit()).unwrap_or(a.len()));
        let (text_b, rest_b) = b.split_at(b.find(|c: char| c.is_ascii_digit()).unwrap_or(b.len()));
        let (number_a, rest_a) = split_number(rest_a);
        let (number_b, rest_b) = split_number(rest_b);
        let order = text_a.cmp(text_b).then(number_a.cmp(&number_b));
        if order.is_ne() || (rest_a.is_empty() && rest_b.is_empty()) {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// The digits at the start as a number (nothing is less than 0), and what follows them.
fn split_number(text: &str) -> (Option<u64>, &str) {
    let (digits, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    (digits.parse().ok(), rest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{ErrorKind, Kind};

    fn unpacked(image: &[&str], modules: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir_all(dir.path().join("boot")).expect("boot");
        for version in image {
            fs::write(dir.path().join(format!("boot/vmlinuz-{version}")), "image").expect("image");
        }
        for path in modules {
            fs::create_dir_all(dir.path().join(path)).expect("modules");
        }
        dir
    }

    #[test]
    fn the_newest_kernel_with_modules_wins() {
        let dir = unpacked(
            &["6.1.0-9-cloud-amd64", "6.1.0-56-cloud-amd64", "6.12.107+deb13-cloud-amd64", "6.13.1"],
            &["lib/modules/6.1.0-56-cloud-amd64", "usr/lib/modules/6.12.107+deb13-cloud-amd64"],
        );
        let kernel = find(dir.path()).expect("a kernel");
        assert_eq!(kernel.version, "6.12.107+deb13-cloud-amd64");
        assert_eq!(kernel.vmlinuz, dir.path().join("boot/vmlinuz-6.12.107+deb13-cloud-amd64"));
        assert_eq!(kernel.modules_dir, dir.path().join("usr/lib/modules/6.12.107+deb13-cloud-amd64"));
    }

    #[test]
    fn numbers_in_versions_are_numbers() {
        let mut versions = ["6.12.1", "6.1.0-9", "6.1.0-56", "6.1", "6.2-rc1", "6.1.0-56-cloud"];
        versions.sort_by(|a, b| by_version(a, b));
        assert_eq!(versions, ["6.1", "6.1.0-9", "6.1.0-56", "6.1.0-56-cloud", "6.2-rc1", "6.12.1"]);
    }

    #[test]
    fn a_missing_kernel_says_what_is_missing_and_what_to_do() {
        let cases = [
            (tempfile::tempdir().expect("temp dir"), "no directory boot"),
            (unpacked(&[], &[]), "no boot/vmlinuz-*"),
            (unpacked(&["6.1.0"], &["lib/modules/6.2.0"]), "lib/modules/6.1.0 is not"),
        ];
        for (dir, reason) in cases {
            let error = find(dir.path()).expect_err("no kernel");
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains(reason), "{error}");
            let hint = error.hint().expect("a hint");
            assert!(hint.contains("hearth doctor --fix") && hint.contains("kernel.dir"), "{hint}");
        }
    }
}
