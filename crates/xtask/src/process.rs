//! Runs other programs and says which one failed.
//!
//! In: a command. Out: its output, or an error with the command line. Standard input is always
//! empty: nothing here may wait for an answer.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// The command as one would type it.
pub fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Shows the command, runs it with our output, and fails if it fails.
pub fn run(command: &mut Command) -> Result<()> {
    println!("$ {}", line(command));
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// As [`run`], and hands each line that it prints to `look` too.
pub fn run_and_look(command: &mut Command, mut look: impl FnMut(&str)) -> Result<()> {
    println!("$ {}", line(command));
    let (reader, writer) = std::io::pipe().context("make a pipe")?;
    command.stdin(Stdio::null()).stdout(writer.try_clone().context("copy a pipe's end")?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("start `{}`", line(command)))?;
    // The command holds the pipe's other end, and we would wait for ourselves.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut out = std::io::stdout().lock();
    for bytes in BufReader::new(reader).split(b'\n') {
        let bytes = bytes.with_context(|| format!("read what `{}` prints", line(command)))?;
        out.write_all(&bytes).and_then(|()| out.write_all(b"\n")).context("write to standard output")?;
        look(&String::from_utf8_lossy(&bytes));
    }
    let status = child.wait().with_context(|| format!("wait for `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", line(command));
    }
    Ok(())
}

/// Runs it quietly and returns what it printed; its standard error is ours.
pub fn stdout_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("start `{}`", line(command)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", line(command), output.status);
    }
    String::from_utf8(output.stdout).with_context(|| format!("read what `{}` printed", line(command)))
}

/// Whether it can be started and succeeds; prints nothing.
pub fn works(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_command() {
        let error = run(Command::new("sh").args(["-c", "exit 3"])).expect_err("fails");
        assert_eq!(error.to_string(), "`sh -c exit 3` failed (exit status: 3)");
        let error = run(&mut Command::new("hearth-no-such-program")).expect_err("cannot start");
        assert!(format!("{error:#}").contains("start `hearth-no-such-program`"), "{error:#}");
    }

    #[test]
    fn every_line_of_both_streams_is_seen_even_when_it_fails() {
        let mut seen = Vec::new();
        let script = "echo one; echo two >&2; cat; exit 1";
        let done = run_and_look(Command::new("sh").args(["-c", script]), |line| seen.push(line.to_owned()));
        assert!(done.is_err());
        assert_eq!(seen, ["one", "two"]);
    }
}
