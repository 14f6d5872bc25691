//! What a path holds: found by looking into it, never by its name.
//!
//! In: a path. Out: [`Source`], or an error that says what was found instead.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::blob::{Compression, Expanded, Slice, stream_problem, tar_problem};
use crate::error::{ImportError, Problem};
use crate::limits::{Budget, Limits};
use crate::tarball::{Input, TarReader, is_header};

/// A kind of source. Tars may be plain, or compressed with gzip or zstd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// An OCI layout as a directory.
    OciDir(PathBuf),
    /// An OCI layout as a tar; `docker save` since version 25 makes one.
    OciTar(PathBuf),
    /// What `docker save` made before that, and other tools still do.
    DockerTar(PathBuf),
    /// A root file system as a tar.
    RootfsTar(PathBuf),
    /// A root file system as a directory.
    RootfsDir(PathBuf),
}

/// Directories of a root file system: an archive that has one of them is no archive of blobs.
const ROOTFS_NAMES: [&[u8]; 19] = [
    b"bin", b"boot", b"dev", b"etc", b"home", b"lib", b"lib64", b"media", b"mnt", b"opt", b"proc", b"root", b"run",
    b"sbin", b"srv", b"sys", b"tmp", b"usr", b"var",
];

/// Looks what `path` holds.
///
/// # Errors
/// `not_found`; `invalid`, naming what it is instead; `corrupt` for a truncated archive.
pub fn detect(path: &Path) -> Result<Source, ImportError> {
    look(path, &Limits::default()).map_err(|problem| ImportError { path: path.to_owned(), problem })
}

pub(crate) fn look(path: &Path, limits: &Limits) -> Result<Source, Problem> {
    let read = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Problem::Absent,
        _ => Problem::Read { what: path.display().to_string(), source },
    };
    let kind = std::fs::metadata(path).map_err(read)?;
    if kind.is_dir() {
        return look_into_dir(path);
    }
    if !kind.is_file() {
        return Err(Problem::NotAnImage { found: "a device, pipe or socket".into() });
    }
    let slice = File::open(path).and_then(Slice::whole).map_err(read)?;
    let head = slice.head::<512>().map_err(read)?;
    let compression = Compression::of(&head);
    if compression == Compression::None {
        return match <&[u8; 512]>::try_from(&head[..]) {
            Ok(block) if is_tar(block) => look_into_tar(path, TarReader::new(slice, limits.max_document_bytes), limits),
            _ => Err(Problem::NotAnImage { found: describe(&slice, &head) }),
        };
    }
    let what = "the archive";
    let unpack = || compression.reader(slice.clone()).map_err(|e| stream_problem(what, e, limits));
    let mut block = [0; 512];
    match unpack()?.read_exact(&mut block) {
        Ok(()) if is_tar(&block) => {}
        Ok(()) => return Err(Problem::NotAnImage { found: "a compressed file that holds no tar archive".into() }),
        Err(error) => return Err(stream_problem(what, error, limits)),
    }
    let mut budget = Budget::new(limits);
    look_into_tar(path, TarReader::new(Expanded::new(unpack()?, &mut budget), limits.max_document_bytes), limits)
}

/// A header, or the end mark of an archive without entries.
fn is_tar(block: &[u8; 512]) -> bool {
    is_header(block) || block.iter().all(|b| *b == 0)
}

fn look_into_dir(path: &Path) -> Result<Source, Problem> {
    let has = |name: &str| path.join(name).symlink_metadata().is_ok();
    if has("index.json") && (has("oci-layout") || has("blobs")) {
        return Ok(Source::OciDir(path.to_owned()));
    }
    let read = |source| Problem::Read { what: path.display().to_string(), source };
    if std::fs::read_dir(path).map_err(read)?.next().is_none() {
        return Err(Problem::NotAnImage { found: "an empty directory".into() });
    }
    if has("manifest.json") && !has("etc") && !has("usr") && !has("bin") {
        return Err(Problem::NotAnImage {
            found: "an unpacked `docker save` archive (give the archive itself)".into(),
        });
    }
    Ok(Source::RootfsDir(path.to_owned()))
}

fn look_into_tar<R: Input>(path: &Path, mut reader: TarReader<R>, limits: &Limits) -> Result<Source, Problem> {
    let mut budget = Budget::new(limits);
    let (mut entries, mut index, mut manifest) = (0_u64, false, false);
    let mut below = None;
    while let Some(entry) = reader.next_entry().map_err(|e| tar_problem("the archive", e, limits))? {
        budget.entry(0)?;
        entries += 1;
        let mut parts = entry.path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b"."));
        let (first, second, third) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
        if ROOTFS_NAMES.contains(&first) {
            return Ok(Source::RootfsTar(path.to_owned()));
        }
        match (first, second, third) {
            (b"index.json", None, _) => index = true,
            (b"manifest.json", None, _) => manifest = true,
            (dir, Some(b"oci-layout"), None) => below = Some(String::from_utf8_lossy(dir).into_owned()),
            _ => {}
        }
    }
    match (entries, index, manifest, below) {
        (0, ..) => Err(Problem::NotAnImage { found: "a tar archive without entries".into() }),
        (_, true, ..) => Ok(Source::OciTar(path.to_owned())),
        (_, _, true, _) => Ok(Source::DockerTar(path.to_owned())),
        (.., Some(dir)) => {
            let found = format!("a tar archive with an OCI layout below {dir:?} (pack it with `tar -C {dir} -c .`)");
            Err(Problem::NotAnImage { found })
        }
        _ => Ok(Source::RootfsTar(path.to_owned())),
    }
}

/// What a file is that is no tar.
fn describe(slice: &Slice, head: &[u8]) -> String {
    let known: [(&[u8], &str); 9] = [
        (b"\xfd7zXZ\0", "an xz-compressed file (compress it with gzip or zstd)"),
        (b"BZh", "a bzip2-compressed file (compress it with gzip or zstd)"),
        (b"PK\x03\x04", "a zip archive"),
        (b"\x7fELF", "an ELF program"),
        (b"QFI\xfb", "a qcow2 disk image"),
        (b"hsqs", "a SquashFS image"),
        (b"FROM ", "a Dockerfile (build it first, then save the image)"),
        (b"070701", "a cpio archive"),
        (b"{", "a JSON document"),
    ];
    if slice.len() == 0 {
        return "an empty file".into();
    }
    if let Some((_, what)) = known.iter().find(|(magic, _)| head.starts_with(magic)) {
        return (*what).to_owned();
    }
    if head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7e)) {
        return format!("a text file that begins with {:?}", first_line(head));
    }
    let disk = slice.head::<2048>().unwrap_or_default();
    if disk.get(1080..1082) == Some(&[0x53, 0xef]) {
        return "an ext file system image".into();
    }
    if disk.get(1024..1028) == Some(&[0xe2, 0xe1, 0xf5, 0xe0]) {
        return "an EROFS image".into();
    }
    if disk.get(510..512) == Some(&[0x55, 0xaa]) {
        return "a disk image with a boot sector".into();
    }
    "a file of an unknown format".into()
}

fn first_line(head: &[u8]) -> String {
    let line = head.split(|b| *b == b'\n').next().unwrap_or_default();
    String::from_utf8_lossy(&line[..line.len().min(40)]).into_owned()
}
