//! Archives that GNU tar made, and bytes that nobody made.

use std::fs::File;
use std::io::{Cursor, Seek, SeekFrom, Write};
use std::process::Command;

use proptest::prelude::*;

use super::*;

impl Input for Cursor<Vec<u8>> {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.get_ref().len() as u64 - self.position() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.set_position(self.position() + bytes);
        Ok(())
    }
}

#[derive(Default)]
struct Collect(Vec<u8>);

impl Sink for Collect {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }

    fn hole(&mut self, len: u64) -> io::Result<()> {
        // Random bytes may announce any hole.
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(64 << 20);
        self.0.resize(self.0.len() + len, 0);
        Ok(())
    }
}

fn read_all(bytes: Vec<u8>) -> Result<Vec<(Entry, Vec<u8>)>, TarError> {
    let mut reader = TarReader::new(Cursor::new(bytes), 1 << 20);
    let mut all = Vec::new();
    while let Some(entry) = reader.next_entry()? {
        let mut data = Collect::default();
        match reader.data(&entry, &mut data) {
            Ok(()) => {}
            Err(DataError::Tar(error)) => return Err(error),
            Err(DataError::Sink(error)) => panic!("{error}"),
        }
        all.push((entry, data.0));
    }
    Ok(all)
}

#[test]
fn sparse_files_in_every_notation_of_gnu_tar() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let mut file = File::create(dir.path().join("sparse")).expect("create");
    // Sixty islands: more than fit into one header.
    for n in 0..60 {
        file.seek(SeekFrom::Start(n * 100_000 + 4096)).expect("seek");
        write!(file, "island {n}").expect("write");
    }
    file.set_len(7_000_000).expect("a hole at the end");
    let expected = std::fs::read(dir.path().join("sparse")).expect("read");
    std::fs::write(dir.path().join("after"), "in step").expect("write");
    for format in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        let tar =
            Command::new("tar").args(format).args(["-S", "-c", "sparse", "after"]).current_dir(dir.path()).output();
        let tar = tar.expect("GNU tar").stdout;
        assert!(tar.len() < 1_000_000, "{format:?} made a dense archive");
        let all = read_all(tar).expect("readable");
        let (entry, data) = &all[0];
        assert_eq!((&entry.path[..], entry.size), (&b"sparse"[..], 7_000_000), "{format:?}");
        assert!(entry.holes() > 6_000_000);
        assert!(*data == expected, "{format:?}");
        assert_eq!(all[1].1, b"in step");
    }
}

#[test]
fn long_names_and_numbers_of_gnu_and_pax() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    std::fs::create_dir(dir.path().join("d".repeat(150))).expect("mkdir");
    std::fs::write(dir.path().join(&long), "x").expect("write");
    std::os::unix::fs::symlink("t".repeat(400), dir.path().join("link")).expect("symlink");
    for format in ["--format=gnu", "--format=pax"] {
        let tar = Command::new("tar")
            .args([format, "--owner=big:3000000", "--group=big:4000000000", "--mtime=@-5", "-c"])
            .args([&long, "link"])
            .current_dir(dir.path())
            .output()
            .expect("GNU tar");
        let all = read_all(tar.stdout).expect("readable");
        assert_eq!(all[0].0.path, long.as_bytes());
        assert_eq!((all[0].0.uid, all[0].0.gid, all[0].0.mtime), (3_000_000, 4_000_000_000, (-5, 0)), "{format}");
        assert_eq!(all[1].0.kind, EntryKind::Symlink("t".repeat(400).into()));
    }
}

#[test]
fn what_ends_in_the_middle_is_an_error() {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1000);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &[1; 1000][..]).expect("in memory");
    let whole = builder.into_inner().expect("in memory");
    assert_eq!(read_all(whole.clone()).expect("whole").len(), 1);
    for len in [1, 511, 513, 1511, 2000] {
        assert!(matches!(read_all(whole[..len].to_vec()), Err(TarError::Input(_))), "cut at {len}");
    }
}

/// Changes some bytes of a good archive and mends the header's checksum, so that the fields
/// behind it are reached.
fn twisted(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("GNU.sparse.map", &b"0,4,10,4"[..]), ("GNU.sparse.size", b"20")]).expect("pax");
    let mut header = tar::Header::new_gnu();
    header.set_size(8);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", &b"datadata"[..]).expect("in memory");
    header.set_entry_type(tar::EntryType::GNUSparse);
    builder.append_data(&mut header, "old", &b"datadata"[..]).expect("in memory");
    let mut bytes = builder.into_inner().expect("in memory");
    for (at, byte) in changes {
        let at = at % bytes.len();
        bytes[at] = *byte;
    }
    for block in bytes.as_chunks_mut::<512>().0 {
        let mut header = tar::Header::from_byte_slice(block).clone();
        header.set_cksum();
        block.copy_from_slice(header.as_bytes());
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_bytes_make_the_reader_panic(changes in proptest::collection::vec((any::<usize>(), any::<u8>()), 0..20)) {
        drop(read_all(twisted(&changes)));
    }

    #[test]
    fn no_noise_makes_the_reader_panic(noise in proptest::collection::vec(any::<u8>(), 0..3000)) {
        drop(read_all(noise));
    }
}
