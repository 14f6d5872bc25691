//! Writes a cpio archive in the format that the kernel unpacks as an initrd ("newc").
//!
//! In: entries in the order in which they shall appear. Out: the same bytes for the same entries:
//! no times, no owners but root, inode numbers counted from 1.

use std::io::{self, Write};

/// An archive that is being written.
#[derive(Debug)]
pub struct Archive<W: Write> {
    out: W,
    inode: u32,
}

const DIRECTORY: u32 = 0o040_000;
const CHAR_DEVICE: u32 = 0o020_000;
const FILE: u32 = 0o100_000;

impl<W: Write> Archive<W> {
    /// Begins one.
    pub fn new(out: W) -> Self {
        Self { out, inode: 0 }
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// Of the writer.
    pub fn directory(&mut self, name: &str, mode: u32) -> io::Result<()> {
        self.entry(name, DIRECTORY | mode, (0, 0), &[])
    }

    /// Adds a file with this content.
    ///
    /// # Errors
    /// Of the writer.
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(name, FILE | mode, (0, 0), content)
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// Of the writer.
    pub fn char_device(&mut self, name: &str, mode: u32, major_minor: (u32, u32)) -> io::Result<()> {
        self.entry(name, CHAR_DEVICE | mode, major_minor, &[])
    }

    /// Ends the archive and gives the writer back.
    ///
    /// # Errors
    /// Of the writer.
    pub fn finish(mut self) -> io::Result<W> {
        self.inode = 0;
        self.write("TRAILER!!!", 0, 0, (0, 0), &[])?;
        Ok(self.out)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        self.inode += 1;
        self.write(name, self.inode, mode, device, content)
    }

    fn write(&mut self, name: &str, inode: u32, mode: u32, device: (u32, u32), content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let (major, minor) = device;
        let name_size = name.len() + 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // magic ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        write!(
            self.out,
            "070701{inode:08x}{mode:08x}{zero:08x}{zero:08x}{links:08x}{zero:08x}{size:08x}{zero:08x}{zero:08x}{major:08x}{minor:08x}{name_size:08x}{zero:08x}",
            zero = 0,
        )?;
        const HEADER_BYTES: usize = 110;
        self.out.write_all(name.as_bytes())?;
        self.pad(HEADER_BYTES + name_size, 1)?;
        self.out.write_all(content)?;
        self.pad(content.len(), 0)
    }

    /// `nul` bytes, and as many as bring `written` to a multiple of four.
    fn pad(&mut self, written: usize, nul: usize) -> io::Result<()> {
        self.out.write_all(&[0; 4][..nul + written.next_multiple_of(4) - written])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_those_of_the_format() {
        let mut archive = Archive::new(Vec::new());
        archive.directory("dev", 0o755).expect("memory");
        archive.char_device("dev/console", 0o600, (5, 1)).expect("memory");
        archive.file("init", 0o755, b"hello").expect("memory");
        let bytes = archive.finish().expect("memory");
        let zero = "00000000";
        let text = [
            &format!(
                "07070100000001000041ed{zero}{zero}00000002{zero}{zero}{zero}{zero}{zero}{zero}00000004{zero}dev\0\0\0"
            ),
            &format!(
                "0707010000000200002180{zero}{zero}00000001{zero}{zero}{zero}{zero}00000005000000010000000c{zero}dev/console\0\0\0"
            ),
            &format!(
                "07070100000003000081ed{zero}{zero}00000001{zero}00000005{zero}{zero}{zero}{zero}00000005{zero}init\0\0hello\0\0\0"
            ),
            &format!(
                "07070100000000{zero}{zero}{zero}00000001{zero}{zero}{zero}{zero}{zero}{zero}0000000b{zero}TRAILER!!!\0\0\0\0"
            ),
        ];
        let expected: String = text.iter().map(|s| s.as_str()).collect();
        assert_eq!(String::from_utf8_lossy(&bytes), expected);
    }
}
