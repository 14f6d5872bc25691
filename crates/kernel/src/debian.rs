//! Installs Debian's cloud kernel as the guest's kernel.
//!
//! In: the directory to install to. Out: that directory with the unpacked package, there completely
//! or not at all. The package is unpacked, not installed: it touches neither the host's `/boot` nor
//! its package database, and needs root only when apt's lists have to be fetched first.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{GuestKernel, KernelError, find};

/// Depends on the newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// What the parts of a kernel are called; other dependencies are for booting a host with it.
const PARTS: [&str; 3] = ["linux-image-", "linux-modules-", "linux-binary-"];

/// Downloads the newest cloud kernel of the Debian release that apt is configured for, and unpacks
/// it to `dir`. A kernel that is there already is kept: remove the directory to get a newer one.
/// `progress` gets a line of text before each step that takes time.
///
/// # Errors
/// `host_failed` when apt or dpkg-deb fail (with their last words), `already_exists` when `dir`
/// holds something else, `exhausted` when the disk is full.
pub fn install_debian(dir: &Path, progress: &mut dyn FnMut(&str)) -> Result<GuestKernel, KernelError> {
    match find(dir) {
        Ok(kernel) => {
            progress(&format!("guest kernel {} is in {}", kernel.version, dir.display()));
            return Ok(kernel);
        }
        Err(KernelError::NotFound { .. }) => {}
        Err(error) => return Err(error),
    }
    if !is_free(dir)? {
        return Err(KernelError::Occupied { dir: dir.to_owned() });
    }
    let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(KernelError::io("create directory", parent))?;
    // Beside the goal, so that the rename stays in one file system; removed on every way out.
    let work = tempfile::Builder::new()
        .prefix(".kernel-")
        .tempdir_in(parent)
        .map_err(KernelError::io("create a temporary directory in", parent))?;

    let packages = download(work.path(), progress).or_else(|error| {
        // The usual reasons are lists that were never fetched, or that name a version long gone.
        progress(&format!("fetch apt's package lists ({error})"));
        run(Command::new("apt-get").args(["-q", "update"]))?;
        download(work.path(), progress)
    })?;
    let unpacked = work.path().join("unpacked");
    for package in &packages {
        progress(&format!("unpack {}", package.file_name().unwrap_or(OsStr::new("the package")).display()));
        run(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked))?;
    }
    find(&unpacked)?;
    match fs::rename(&unpacked, dir) {
        // Somebody else was faster; theirs is as good.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        renamed => renamed.map_err(KernelError::io("move the unpacked kernel to", dir))?,
    }
    find(dir)
}

/// Installs packages on this host, which takes root.
///
/// # Errors
/// `host_failed` when apt fails, with its last words.
pub fn install_packages(names: &[&str], progress: &mut dyn FnMut(&str)) -> Result<(), KernelError> {
    progress(&format!("install {}", names.join(", ")));
    let install = || run(Command::new("apt-get").args(["-q", "-y", "--no-install-recommends", "install"]).args(names));
    install()
        .or_else(|error| {
            progress(&format!("fetch apt's package lists ({error})"));
            run(Command::new("apt-get").args(["-q", "update"]))?;
            install()
        })
        .map(drop)
}

/// Whether a directory can be moved to this place.
fn is_free(dir: &Path) -> Result<bool, KernelError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(false),
        Err(error) => Err(KernelError::io("read directory", dir)(error)),
    }
}

/// Downloads the packages of the newest kernel into `work`.
fn download(work: &Path, progress: &mut dyn FnMut(&str)) -> Result<Vec<PathBuf>, KernelError> {
    let names = kernel_packages()?;
    for name in &names {
        progress(&format!("download {name}"));
        // apt's own download user cannot write to our directory, and says so at length.
        run(Command::new("apt-get")
            .args(["-q", "-o", "APT::Sandbox::User=root", "download"])
            .arg(name)
            .current_dir(work))?;
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(work).map_err(KernelError::io("read directory", work))? {
        let path = entry.map_err(KernelError::io("read directory", work))?.path();
        if path.extension() == Some(OsStr::new("deb")) {
            files.push(path);
        }
    }
    Ok(files)
}

/// The kernel's package, and those with its other parts if it is split.
fn kernel_packages() -> Result<Vec<String>, KernelError> {
    let mut names = Vec::new();
    let mut ask = vec![META_PACKAGE.to_owned()];
    while let Some(package) = ask.pop() {
        let command = ["-q", "depends", "--important", &package];
        for name in parts_named_in(&run(Command::new("apt-cache").args(command))?) {
            if !names.contains(&name) {
                names.push(name.clone());
                ask.push(name);
            }
        }
    }
    if names.is_empty() {
        return Err(KernelError::Tool {
            command: format!("apt-cache depends {META_PACKAGE}"),
            detail: "it names no kernel package".to_owned(),
        });
    }
    Ok(names)
}

/// The kernel's parts among the dependencies that `apt-cache depends` prints.
fn parts_named_in(depends: &str) -> Vec<String> {
    depends
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("Depends: "))
        .filter(|name| PARTS.iter().any(|part| name.starts_with(part)))
        .map(str::to_owned)
        .collect()
}

/// Runs a host tool and returns what it printed.
fn run(command: &mut Command) -> Result<String, KernelError> {
    command.env("LC_ALL", "C").env("DEBIAN_FRONTEND", "noninteractive").stdin(std::process::Stdio::null());
    let line = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ");
    let failed = |detail: String| KernelError::Tool { command: line.clone(), detail };
    let output = command.output().map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let last_words: Vec<&str> = stderr.lines().filter(|line| !line.trim().is_empty()).collect();
    let last_words = &last_words[last_words.len().saturating_sub(3)..];
    Err(failed(if last_words.is_empty() { output.status.to_string() } else { last_words.join("; ") }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::{ErrorKind, Kind};

    #[test]
    fn a_kernel_that_is_there_is_kept_without_asking_apt() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::create_dir_all(dir.path().join("boot")).expect("boot");
        fs::write(dir.path().join("boot/vmlinuz-6.1.0"), "image").expect("image");
        fs::create_dir_all(dir.path().join("lib/modules/6.1.0")).expect("modules");
        let mut lines = Vec::new();
        let kernel = install_debian(dir.path(), &mut |line| lines.push(line.to_owned())).expect("kept");
        assert_eq!(kernel.version, "6.1.0");
        assert_eq!(lines, [format!("guest kernel 6.1.0 is in {}", dir.path().display())]);
    }

    #[test]
    fn a_directory_with_other_things_in_it_is_not_replaced() {
        let dir = tempfile::tempdir().expect("temp dir");
        let precious = dir.path().join("precious");
        fs::write(&precious, "data").expect("file");
        for place in [dir.path(), &precious] {
            let error = install_debian(place, &mut |_| {}).expect_err("occupied");
            assert_eq!(error.kind(), ErrorKind::AlreadyExists);
            assert!(error.to_string().contains(&place.display().to_string()), "{error}");
        }
        assert_eq!(fs::read(&precious).expect("still there"), b"data");
    }

    #[test]
    fn only_the_parts_of_the_kernel_are_downloaded() {
        let depends = "linux-image-6.12.107+deb13-cloud-amd64\n  PreDepends: linux-base\n  Depends: kmod\n \
                       |Depends: initramfs-tools\n  Depends: <linux-initramfs-tool>\n    dracut\n  \
                       Depends: linux-modules-6.12.107+deb13-cloud-amd64\n  Suggests: linux-doc-6.12\n";
        assert_eq!(parts_named_in(depends), ["linux-modules-6.12.107+deb13-cloud-amd64"]);
    }

    #[test]
    fn a_failing_tool_is_quoted() {
        let error = run(Command::new("dpkg-deb").args(["-x", "/no/such/package.deb", "/no/such/dir"]))
            .expect_err("no such package");
        assert_eq!(error.kind(), ErrorKind::HostFailed);
        assert!(error.to_string().starts_with("dpkg-deb -x /no/such/package.deb"), "{error}");
        let error = run(&mut Command::new("hearth-no-such-tool")).expect_err("no such tool");
        assert!(error.to_string().contains("hearth-no-such-tool failed: No such file"), "{error}");
        assert!(error.hint().is_some());
    }
}
