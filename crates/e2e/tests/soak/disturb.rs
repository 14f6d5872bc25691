//! What goes wrong on purpose: carried out, and what it may lead to.

use std::time::Duration;

use anyhow::{Context, Result};
use hearth_e2e::{DiskFault, TestHost, eventually};
use hearth_model::ErrorKind::{self, Exhausted, GuestUnresponsive, HostFailed, Incompatible, VmmFailed};
use hearth_simulated::faults::{Effect, Fault, Plan, When};
use rustix::process::{Pid, Signal, kill_process};

use crate::draw::Fate;
use crate::figures::Figures;
use crate::model::Trouble;
use crate::realm::{Id, Realm};

/// How operations fail whose VMM does: one that refuses a snapshot is taken to know why.
const OF_A_VMM: &[ErrorKind] = &[VmmFailed, GuestUnresponsive, Incompatible];

/// How those fail that find no room, or whose VMM does.
const OF_A_DISK: &[ErrorKind] = &[Exhausted, VmmFailed, Incompatible];

/// How those fail whose calls to the disk do, or whose VMM's: of a load that the disk ends the saved state is
/// blamed, as what a VMM says of it is all that is known.
const OF_A_BAD_DISK: &[ErrorKind] = &[HostFailed, VmmFailed, Incompatible];

/// How those fail whose disk is slow, if not by so much that somebody is given up: not at all.
const OF_A_SLOW_DISK: &[ErrorKind] = &[];

/// What the simulated VMM does wrong, at what, and whether one that ran before may end of it.
const FAULTS: [(&str, When, Effect, bool); 20] = [
    ("start", When::Before, Effect::Exit, false),
    ("start", When::Before, Effect::DelayMs(200), false),
    ("listen", When::Before, Effect::Exit, false),
    ("PUT /snapshot/load", When::Before, Effect::Exit, false),
    ("PUT /snapshot/load", When::After, Effect::Exit, false),
    ("PUT /snapshot/load", When::Before, Effect::Error(400), false),
    ("PUT /snapshot/load", When::After, Effect::Error(500), false),
    ("PUT /snapshot/load", When::Before, Effect::Drop, false),
    ("PUT /snapshot/load", When::Before, Effect::DelayMs(300), false),
    ("PUT /snapshot/create", When::Before, Effect::Error(400), false),
    ("PUT /snapshot/create", When::After, Effect::Error(500), false),
    ("PUT /snapshot/create", When::Before, Effect::DelayMs(200), false),
    ("PUT /snapshot/create", When::Before, Effect::Kill, true),
    ("PUT /snapshot/create", When::After, Effect::Abort, true),
    ("PUT /actions", When::Before, Effect::Error(400), false),
    ("PUT /actions", When::After, Effect::Exit, false),
    ("PUT /drives/*", When::Before, Effect::Exit, false),
    ("PUT /vsock", When::After, Effect::Error(500), false),
    ("vsock", When::Before, Effect::Kill, true),
    ("vsock", When::Before, Effect::DelayMs(100), false),
];
/// How many there are.
pub(crate) const VMM_FAULTS: usize = FAULTS.len();

/// What a fate may lead to, of one client's slot.
pub(crate) fn trouble(fate: Fate, of: (usize, usize)) -> Trouble {
    match fate {
        Fate::Calm | Fate::Crowd { .. } => Trouble::default(),
        Fate::DaemonKilled { .. } | Fate::DaemonEnded { .. } => Trouble { cuts_off: true, ..Trouble::default() },
        Fate::VmmKilled { client, slot, .. } => {
            Trouble { fails: OF_A_VMM, ends: (client, slot) == of, ..Trouble::default() }
        }
        Fate::VmmFault { fault } => Trouble { fails: OF_A_VMM, ends: FAULTS[fault].3, ..Trouble::default() },
        Fate::AgentSilent => Trouble { fails: OF_A_VMM, ..Trouble::default() },
        Fate::DiskFull { .. } => Trouble { fails: OF_A_DISK, ..Trouble::default() },
        Fate::DiskBad(DiskFault::Slow { .. }) => Trouble { fails: OF_A_SLOW_DISK, ..Trouble::default() },
        Fate::DiskBad(DiskFault::Fails { .. }) => Trouble { fails: OF_A_BAD_DISK, stays: true, ..Trouble::default() },
        Fate::DaemonOnBadDisk { .. } => {
            Trouble { fails: OF_A_BAD_DISK, stays: true, cuts_off: true, ..Trouble::default() }
        }
    }
}

/// Lets it happen while the clients ask.
pub(crate) async fn happen(host: &TestHost, fate: Fate, id: Option<&str>, figures: &Figures) -> Result<()> {
    match fate {
        Fate::Calm => {}
        Fate::Crowd { .. } => figures.fault("crowd"),
        Fate::DaemonKilled { after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            host.crash_daemon()?;
            host.start_daemon()?;
            figures.fault("daemon killed");
        }
        Fate::DaemonEnded { after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            host.end_daemon()?;
            host.start_daemon()?;
            figures.fault("daemon ended");
        }
        Fate::VmmKilled { after_ms, .. } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            let Some(id) = id else { return Ok(()) };
            for pid in host.vmms_of(id) {
                // It may just have ended.
                kill_process(Pid::from_raw(pid).context("a pid")?, Signal::KILL).ok();
                figures.fault("VMM killed");
                // Until it has ended it looks as if it ran on.
                eventually("a VMM that was killed has ended", async || Ok(!host.vmms_of(id).contains(&pid))).await?;
            }
        }
        Fate::VmmFault { fault } => figures.fault(&told(fault)),
        Fate::AgentSilent => figures.fault("agent silent"),
        Fate::DiskFull { .. } if host.has_small_disk() => figures.fault("disk full"),
        Fate::DiskFull { .. } => {}
        Fate::DiskBad(fault) if host.has_bad_disk() => figures.fault(&in_words(fault)),
        Fate::DiskBad(_) => {}
        Fate::DaemonOnBadDisk { fault, after_ms } => {
            tokio::time::sleep(Duration::from_millis(after_ms)).await;
            host.crash_daemon()?;
            if host.has_bad_disk() {
                host.break_disk(fault)?;
            }
            match host.start_daemon() {
                Ok(()) => figures.fault("daemon started on a disk that fails"),
                Err(_) if host.has_bad_disk() => figures.fault("daemon refused a disk that fails"),
                Err(error) => return Err(error),
            }
        }
    }
    Ok(())
}

/// Has the simulated VMM fail, or the disk full, until it is [`over`].
pub(crate) fn begin(host: &TestHost, fate: Fate) -> Result<()> {
    let fault = match fate {
        Fate::VmmFault { fault } => {
            let (on, when, effect, _) = FAULTS[fault];
            // A guest that was paused for nothing is reached again by a snapshot into its own directory:
            // Firecracker 1.16.1 wants that.
            let with =
                (on == "PUT /snapshot/create" && matches!(effect, Effect::Error(_))).then(|| "/snapshots/".into());
            Fault { on: on.into(), with, nth: None, when, effect }
        }
        Fate::AgentSilent => {
            Fault { on: "vsock".into(), with: None, nth: None, when: When::Before, effect: Effect::Hang }
        }
        Fate::DiskFull { left_kib } if host.has_small_disk() => return host.fill_disk(left_kib << 10),
        Fate::DiskBad(fault) if host.has_bad_disk() => return host.break_disk(fault),
        Fate::Calm
        | Fate::Crowd { .. }
        | Fate::DaemonKilled { .. }
        | Fate::DaemonEnded { .. }
        | Fate::VmmKilled { .. }
        | Fate::DiskFull { .. }
        | Fate::DiskBad(_)
        | Fate::DaemonOnBadDisk { .. } => return Ok(()),
    };
    plan(host, Plan { faults: vec![fault], ..Plan::default() })
}

/// What was wrong is so no longer.
pub(crate) fn over(host: &TestHost, fate: Fate) -> Result<()> {
    match fate {
        Fate::VmmFault { .. } | Fate::AgentSilent => plan(host, Plan::default()),
        Fate::DiskFull { .. } if host.has_small_disk() => host.free_disk(),
        Fate::DiskBad(_) | Fate::DaemonOnBadDisk { .. } => {
            host.mend_disk();
            // One that would not have it has ended.
            if host.daemon_runs() { Ok(()) } else { host.start_daemon() }
        }
        Fate::Calm
        | Fate::Crowd { .. }
        | Fate::DaemonKilled { .. }
        | Fate::DaemonEnded { .. }
        | Fate::VmmKilled { .. }
        | Fate::DiskFull { .. } => Ok(()),
    }
}

fn in_words(fault: DiskFault) -> String {
    match fault {
        DiskFault::Slow { ms } => format!("disk slow by {ms} ms"),
        DiskFault::Fails { calls, .. } => format!("disk fails: {calls:?}"),
    }
}

/// The id of the instance whose VMM is to be killed.
pub(crate) fn victim(fate: Fate, realms: &[Realm]) -> Option<String> {
    let Fate::VmmKilled { client, slot, .. } = fate else { return None };
    match &realms[client].slots[slot].id {
        Id::Known(id) => Some(id.clone()),
        Id::New => None,
    }
}

/// VMMs read it for every request: it is put in place whole.
fn plan(host: &TestHost, plan: Plan) -> Result<()> {
    let (file, new) = (host.dir().join("firecracker.json"), host.dir().join("firecracker.json.new"));
    std::fs::write(&new, serde_json::to_string(&plan)?).context("write the VMM's faults")?;
    std::fs::rename(new, file).context("put the VMM's faults in place")
}

fn told(fault: usize) -> String {
    let (on, when, effect, _) = FAULTS[fault];
    format!("{effect:?} {} {on}", if when == When::After { "after" } else { "at" })
}
