//! The crate on a real unpacked Debian kernel package, named by `HEARTH_TEST_KERNEL_DIR`.
//!
//! Says `SKIPPED:` without it. Boots nothing: that is the business of the end-to-end stories.

use std::path::PathBuf;
use std::{env, fs};

use hearth_kernel::{GuestKernel, WANTED_MODULES, build_initrd, extract_vmlinux, find, module_plan};

fn real_kernel() -> Option<GuestKernel> {
    let Some(dir) = env::var_os("HEARTH_TEST_KERNEL_DIR").map(PathBuf::from) else {
        eprintln!("SKIPPED: no real kernel: set HEARTH_TEST_KERNEL_DIR to an unpacked linux-image package");
        return None;
    };
    Some(find(&dir).expect("HEARTH_TEST_KERNEL_DIR holds a kernel"))
}

#[test]
fn a_real_kernel_has_all_modules_and_each_stands_after_what_it_needs() {
    let Some(kernel) = real_kernel() else { return };
    let plan = module_plan(&kernel, WANTED_MODULES).expect("a plan");
    assert_eq!(plan.missing, Vec::<String>::new());
    let names: Vec<&str> = plan.modules.iter().map(|module| module.name.as_str()).collect();
    let place =
        |wanted: &str| names.iter().position(|name| *name == wanted).unwrap_or_else(|| panic!("{wanted} in {names:?}"));
    assert!(place("net_failover") < place("virtio_net"), "{names:?}");
    assert!(place("libcrc32c") < place("erofs"), "{names:?}");
    assert!(place("vsock") < place("vmw_vsock_virtio_transport"), "{names:?}");
    assert!(plan.modules.iter().all(|module| module.elf.starts_with(b"\x7fELF")));
}

#[test]
fn the_initrd_of_a_real_kernel_is_small_and_reproducible() {
    let Some(kernel) = real_kernel() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let one = build_initrd(&kernel, b"agent", &dir.path().join("one")).expect("built");
    let two = build_initrd(&kernel, b"agent", &dir.path().join("two")).expect("built");
    assert_eq!(one.sha256, two.sha256);
    let bytes = fs::metadata(&one.path).expect("there").len();
    assert!(bytes < 8 << 20, "{bytes} bytes");
}

#[test]
fn the_elf_of_a_real_kernel_comes_out_of_its_bzimage() {
    let Some(kernel) = real_kernel() else { return };
    let dir = tempfile::tempdir().expect("temp dir");
    let out = dir.path().join("vmlinux");
    extract_vmlinux(&kernel.vmlinuz, &out).expect("an ELF");
    let elf = fs::read(&out).expect("readable");
    assert!(elf.starts_with(b"\x7fELF\x02\x01"));
    let banner = format!("Linux version {} ", kernel.version);
    assert!(elf.windows(banner.len()).any(|window| window == banner.as_bytes()), "no {banner:?} in it");
}
