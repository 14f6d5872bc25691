//! Ending a VMM, and removing what it leaves: its cgroup, and its sockets.

use std::path::Path;

use crate::cgroup::{self, Cgroups};
use crate::fault::{AdoptError, KillError};
use crate::process::{self, KillProblem, Process};
use crate::socket;
use crate::spec::SOCKETS;

/// Ends it at once, waits until it is gone and removes its cgroup; already gone is success.
pub(crate) async fn end(process: &Process) -> Result<(), KillError> {
    let pid = process.pid;
    process.kill().await.map_err(|problem| match problem {
        KillProblem::Signal(source) => KillError::Signal { pid, source },
        KillProblem::Lingers(after) => KillError::Lingers { pid, after },
    })?;
    match &process.cgroup {
        Some(path) => cgroup::remove(path).await,
        None => Ok(()),
    }
}

/// Ends every VMM whose working directory this is, though nobody recorded its seat.
pub(crate) async fn kill_in(cgroups: &Cgroups, dir: &Path) -> Result<(), KillError> {
    let look = |source| KillError::Look(AdoptError::Look { pid: 0, source });
    let boot = process::boot_id().map_err(look)?;
    for (pid, start_ticks) in process::with_cwd(dir).map_err(look)? {
        let look = |source| KillError::Look(AdoptError::Look { pid, source });
        if let Some(process) = process::find(pid, start_ticks, &boot, dir, None).map_err(look)? {
            end(&process).await?;
        }
    }
    remove_traces(cgroups, dir).await
}

/// Removes what a VMM that has ended left.
pub(crate) async fn remove_traces(cgroups: &Cgroups, dir: &Path) -> Result<(), KillError> {
    cgroups.remove(dir).await?;
    remove_sockets(dir)
}

/// Removes every socket that a VMM may have left there.
pub(crate) fn remove_sockets(dir: &Path) -> Result<(), KillError> {
    for path in SOCKETS.map(|name| dir.join(name)) {
        socket::remove(&path).map_err(|source| KillError::Socket { path, source })?;
    }
    Ok(())
}

/// Leaves nothing of a launch that failed, and passes its error on.
pub(crate) async fn give_up<E>(process: &Process, dir: &Path, error: E) -> E {
    let ended = end(process).await;
    if let Err(left) = ended.and_then(|()| remove_sockets(dir)) {
        tracing::warn!(pid = process.pid, error = %hearth_model::error::chain(&left), "failed launch left something");
    }
    error
}
