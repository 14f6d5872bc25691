//! What a VMM's process uses of the host, read from the process table when asked.

use std::fs;
use std::io;

use crate::fault::UsageError;
use crate::process;
use crate::spec::Seat;

/// What a VMM uses: the process itself, guest RAM included.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct Usage {
    /// CPU time since its start, user and system.
    pub cpu_seconds: f64,
    /// Resident memory, shared pages included.
    pub rss_bytes: u64,
    /// Address space.
    pub vms_bytes: u64,
    /// Resident memory that is the process's alone.
    pub private_bytes: u64,
}

/// Reads what the VMM in that seat uses.
///
/// # Errors
/// It has ended, or the process table cannot be read.
pub fn resource_usage(seat: &Seat) -> Result<Usage, UsageError> {
    let pid = seat.pid;
    let read = |source: io::Error| {
        if process::gone(&source) { UsageError::Gone { pid } } else { UsageError::Read { pid, source } }
    };
    let stat = match process::stat(pid).map_err(read)? {
        Some(stat) if stat.start_ticks == seat.start_ticks && !stat.dead => stat,
        _ => return Err(UsageError::Gone { pid }),
    };
    let status = fs::read_to_string(format!("/proc/{pid}/status")).map_err(read)?;
    #[allow(clippy::cast_precision_loss, reason = "seconds with two decimals")]
    let cpu_seconds = stat.cpu_ticks as f64 / rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage {
        cpu_seconds,
        rss_bytes: field(&status, "VmRSS:"),
        vms_bytes: field(&status, "VmSize:"),
        private_bytes: field(&status, "RssAnon:"),
    })
}

/// A line of `/proc/PID/status`, in bytes; 0 for a kernel thread or a dead process.
fn field(status: &str, name: &str) -> u64 {
    let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_bytes() {
        let status = "Name:\tqemu\nVmSize:\t    1000 kB\nRssAnon:\t      20 kB\n";
        assert_eq!(field(status, "VmSize:"), 1_024_000);
        assert_eq!(field(status, "RssAnon:"), 20_480);
        assert_eq!(field(status, "VmRSS:"), 0);
    }
}
