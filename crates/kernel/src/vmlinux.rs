//! Takes the ELF out of a bzImage, for VMMs that do not load bzImages (Firecracker up to 1.16), and
//! for those that need not unpack it in the guest (QEMU boots an ELF by its PVH entry: under TCG
//! that is a sixth of the whole boot).
//!
//! In: the `vmlinuz`. Out: a file with the uncompressed `vmlinux`. The boot header says where the
//! packed kernel is, so there is no search for magic numbers. The ELF is not changed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::decompress::Packing;
use crate::initrd::write_whole;
use crate::{GuestKernel, KernelError};

const ELF: &[u8] = b"\x7fELF";

// Documentation/arch/x86/boot.rst of Linux.
const SETUP_SECTORS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PROTOCOL: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR_BYTES: usize = 512;
/// The first protocol whose header tells where the payload is.
const PROTOCOL_WITH_PAYLOAD: u16 = 0x208;

/// Writes the kernel in `vmlinuz` to `out` as an ELF file, whole or not at all.
///
/// # Errors
/// `unsupported` when it is no bzImage or packed in an unknown way, `corrupt` when it does not
/// unpack, `exhausted` or `host_failed` when a file cannot be read or written.
pub fn extract_vmlinux(vmlinuz: &Path, out: &Path) -> Result<(), KernelError> {
    let image = fs::read(vmlinuz).map_err(KernelError::io("read", vmlinuz))?;
    let unknown = |reason: &str| KernelError::UnknownFormat { path: vmlinuz.to_owned(), reason: reason.to_owned() };
    if image.starts_with(ELF) {
        return write_whole(out, |file| file.write_all(&image));
    }
    if image.get(HEADER_MAGIC..PROTOCOL) != Some(b"HdrS") {
        return Err(unknown("it is neither a bzImage nor an ELF file"));
    }
    let cut_short = || KernelError::damaged(vmlinuz, "it is cut short");
    let protocol = image[PROTOCOL..].first_chunk().map(|bytes| u16::from_le_bytes(*bytes)).ok_or_else(cut_short)?;
    if protocol < PROTOCOL_WITH_PAYLOAD {
        return Err(unknown("its boot protocol is older than 2.08"));
    }
    let payload = payload(&image).ok_or_else(cut_short)?;
    if payload.starts_with(ELF) {
        return write_whole(out, |file| file.write_all(payload));
    }
    let packing = Packing::of(payload)
        .ok_or_else(|| unknown("its payload is packed with something else than lz4, zstd, gzip or xz"))?;
    // The build appends the unpacked size, except to gzip, whose own last word that is.
    let stream = match packing {
        Packing::Gzip => payload,
        Packing::Xz | Packing::Zstd | Packing::Lz4Legacy => &payload[..payload.len().saturating_sub(4)],
    };
    let elf = packing.unpack(stream).map_err(|error| KernelError::damaged(vmlinuz, error.to_string()))?;
    if !elf.starts_with(ELF) {
        return Err(unknown("what is packed in it is no ELF file"));
    }
    write_whole(out, |file| file.write_all(&elf))
}

/// The kernel's ELF file from `cache_dir`, taken out of the bzImage if it is not there yet.
///
/// # Errors
/// As [`extract_vmlinux`].
pub fn ensure_vmlinux(kernel: &GuestKernel, cache_dir: &Path) -> Result<PathBuf, KernelError> {
    let path = cache_dir.join(format!("vmlinux-{}", kernel.build_id()?));
    if path.try_exists().map_err(KernelError::io("look for", &path))? {
        return Ok(path);
    }
    fs::create_dir_all(cache_dir).map_err(KernelError::io("create directory", cache_dir))?;
    extract_vmlinux(&kernel.vmlinuz, &path)?;
    Ok(path)
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |offset: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(*image.get(offset..)?.first_chunk()?)).ok()
    };
    // Zero means four, for compatibility with very old loaders.
    let setup_sectors = match usize::from(*image.get(SETUP_SECTORS)?) {
        0 => 4,
        sectors => sectors,
    };
    let start = ((setup_sectors + 1) * SECTOR_BYTES).checked_add(number(PAYLOAD_OFFSET)?)?;
    image.get(start..)?.get(..number(PAYLOAD_LENGTH)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decompress::tests::{ALL, pack};
    use hearth_model::{ErrorKind, Kind};

    fn bz_image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 2 * SECTOR_BYTES + 100];
        image[SETUP_SECTORS] = 1;
        image[HEADER_MAGIC..PROTOCOL].copy_from_slice(b"HdrS");
        image[PROTOCOL..PROTOCOL + 2].copy_from_slice(&0x20f_u16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&100_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("small");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    /// The outcome for an image with these bytes, and whether a file was left.
    fn extract(image: &[u8]) -> (Result<Vec<u8>, KernelError>, bool) {
        let dir = tempfile::tempdir().expect("temp dir");
        let (from, to) = (dir.path().join("vmlinuz"), dir.path().join("vmlinux"));
        fs::write(&from, image).expect("image");
        let done = extract_vmlinux(&from, &to);
        let left = fs::read_dir(dir.path()).expect("dir").count() > 1;
        (done.map(|()| fs::read(&to).expect("written")), left)
    }

    #[test]
    fn the_elf_comes_out_of_every_packing() {
        let elf: Vec<u8> = ELF.iter().copied().chain((0..=99_u8).cycle().take(50_000)).collect();
        for packing in ALL {
            let mut payload = pack(packing, &elf);
            if packing != Packing::Gzip {
                payload.extend_from_slice(&50_004_u32.to_le_bytes());
            }
            assert!(extract(&bz_image(&payload)).0.expect("an ELF") == elf, "{packing:?}");
        }
        assert!(extract(&bz_image(&elf)).0.expect("not packed") == elf);
        assert!(extract(&elf).0.expect("an ELF already") == elf);
    }

    #[test]
    fn the_cache_extracts_once_for_each_kernel() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (vmlinuz, cache) = (dir.path().join("vmlinuz-6.1.0"), dir.path().join("cache"));
        let kernel = GuestKernel { version: "6.1.0".to_owned(), vmlinuz, modules_dir: dir.path().join("modules") };
        fs::write(&kernel.vmlinuz, bz_image(&pack(Packing::Gzip, ELF))).expect("image");
        let first = ensure_vmlinux(&kernel, &cache).expect("extracted");
        assert_eq!(fs::read(&first).expect("there"), ELF);
        fs::write(&first, "marked").expect("writable");
        assert_eq!(ensure_vmlinux(&kernel, &cache).expect("kept"), first);
        assert_eq!(fs::read(&first).expect("there"), b"marked");
        fs::write(&kernel.vmlinuz, bz_image(ELF)).expect("another image");
        assert_ne!(ensure_vmlinux(&kernel, &cache).expect("extracted"), first);
    }

    #[test]
    fn what_is_no_kernel_is_refused_and_leaves_no_file() {
        let mut cut = bz_image(&pack(Packing::Zstd, ELF));
        cut.truncate(2 * SECTOR_BYTES + 110);
        let cases = [
            (b"#!/bin/sh".to_vec(), ErrorKind::Unsupported, "neither a bzImage nor an ELF"),
            (bz_image(b"BZh91AY"), ErrorKind::Unsupported, "something else than lz4, zstd, gzip or xz"),
            (bz_image(&pack(Packing::Gzip, b"no ELF")), ErrorKind::Unsupported, "no ELF file"),
            (cut, ErrorKind::Corrupt, "cut short"),
            (bz_image(&[0x1f, 0x8b, 8, 0, 0]), ErrorKind::Corrupt, "damaged"),
        ];
        for (image, kind, text) in cases {
            let (done, left) = extract(&image);
            let error = done.expect_err(text);
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
            assert!(!left);
        }
    }
}
