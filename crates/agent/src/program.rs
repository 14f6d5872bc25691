//! The guest's program: how it is started, and how its end is told.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use hearth_agent_proto::{ExitStatus, Program, ProgramExit};

use crate::server::Place;
use crate::spawn::{Spawn, spawn};
use crate::users;

/// Starts it on the console: its process id, or the exit that stands for not having started.
pub fn start(program: &Program, place: Place) -> Result<u32, ProgramExit> {
    let failed = |code, message| ProgramExit { code, signal: None, message };
    // Docker makes it too, and gives it to root.
    if !program.workdir.is_empty() {
        fs::create_dir_all(&program.workdir)
            .map_err(|error| failed(125, format!("cannot make directory {}: {error}", program.workdir)))?;
    }
    let (input, output) =
        streams(program, place).map_err(|error| failed(125, format!("cannot open the console: {error}")))?;
    let what = Spawn {
        argv: &program.argv,
        env: program.env.iter().map(String::as_str).collect(),
        cwd: &program.workdir,
        user: &program.user,
        terminal: false,
    };
    spawn(&what, [input.as_fd(), output.as_fd(), output.as_fd()])
        .map_err(|error| failed(error.code, error.failure.text))
}

fn streams(program: &Program, place: Place) -> io::Result<(File, File)> {
    let input = File::open("/dev/null")?;
    let output = match place {
        Place::Guest => {
            let flags = i32::try_from(rustix::fs::OFlags::NOCTTY.bits()).map_err(io::Error::other)?;
            // It may open /dev/stdout by name, which leads to the console itself.
            if let Ok(user) = users::find(&program.user) {
                std::os::unix::fs::chown("/dev/console", Some(user.uid), None)?;
            }
            File::options().read(true).write(true).custom_flags(flags).open("/dev/console")?
        }
        Place::Elsewhere => File::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?),
    };
    Ok((input, output))
}

/// How its end is told.
pub fn exit(status: ExitStatus, out_of_memory: bool) -> ProgramExit {
    let (signal, message) = match status {
        ExitStatus::Signal(signal) => {
            let name = signal_name(signal).map(|name| format!(" ({name})")).unwrap_or_default();
            let reason = if out_of_memory && signal == 9 { ": the guest ran out of memory" } else { "" };
            (Some(signal), format!("killed by signal {signal}{name}{reason}"))
        }
        ExitStatus::Code(_) | ExitStatus::TimedOut => (None, format!("exited with code {}", status.code())),
    };
    ProgramExit { code: status.code(), signal, message }
}

/// Whether the kernel has killed something for want of memory since boot.
pub fn out_of_memory() -> bool {
    let counters = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    counters.lines().filter_map(|line| line.strip_prefix("oom_kill ")).any(|count| count != "0")
}

fn signal_name(signal: u8) -> Option<&'static str> {
    Some(match signal {
        1 => "SIGHUP",
        2 => "SIGINT",
        3 => "SIGQUIT",
        4 => "SIGILL",
        5 => "SIGTRAP",
        6 => "SIGABRT",
        7 => "SIGBUS",
        8 => "SIGFPE",
        9 => "SIGKILL",
        10 => "SIGUSR1",
        11 => "SIGSEGV",
        12 => "SIGUSR2",
        13 => "SIGPIPE",
        14 => "SIGALRM",
        15 => "SIGTERM",
        31 => "SIGSYS",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_told_in_words() {
        assert_eq!(exit(ExitStatus::Code(3), false).message, "exited with code 3");
        let killed = exit(ExitStatus::Signal(9), true);
        assert_eq!((killed.code, killed.signal), (137, Some(9)));
        assert_eq!(killed.message, "killed by signal 9 (SIGKILL): the guest ran out of memory");
        assert_eq!(exit(ExitStatus::Signal(40), true).message, "killed by signal 40");
    }
}
