//! The last lines of a guest's console: what tells most about an end that nobody asked for.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

/// So many lines are quoted.
const QUOTED: usize = 8;
/// Of a line that is longer, so many characters.
const LONGEST: usize = 400;
/// They are looked for in so many bytes.
const TAIL: u64 = 4096;

/// The last lines of a console's log that are not empty; none if it cannot be read.
pub(crate) fn last_lines(log: &Path) -> Vec<String> {
    let text = last_words(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
    let tail = &lines[lines.len().saturating_sub(QUOTED)..];
    // The guest's words, whoever it is: what would steer a terminal is left out.
    let plain = |line: &&str| line.chars().filter(|c| !c.is_control()).take(LONGEST).collect();
    tail.iter().map(plain).collect()
}

fn last_words(log: &Path) -> io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_told_without_what_steers_a_terminal() {
        let log = tempfile::NamedTempFile::new().expect("a file");
        assert_eq!(last_lines(log.path()), Vec::<String>::new());
        let early: String = (0..2000).map(|number| format!("line {number}\r\n")).collect();
        std::fs::write(log.path(), format!("{early}\n\x1b[31mred\n{}\nlast", "x".repeat(1000))).expect("written");
        let lines = last_lines(log.path());
        assert_eq!(lines.len(), QUOTED);
        assert_eq!((lines[4].as_str(), lines[5].as_str()), ("line 1999", "[31mred"));
        assert_eq!((lines[6].len(), lines[7].as_str()), (LONGEST, "last"));
        assert_eq!(last_lines(Path::new("/no/such/log")), Vec::<String>::new());
    }
}
