//! How soon the product is connected to a Firecracker that has begun to listen on its API socket.
//!
//! In: a ground. Out: the time between two system calls as the kernel saw them end, `listen` in
//! Firecracker and `connect` in the daemon. Neither knows of it: nothing is added to what is measured.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::bench::Often;
use crate::bench::figures::{Figures, Samples};
use crate::bench::ground::{Ground, text};
use crate::bench::restore::{Source, WARM_UP};
use crate::process;

/// What is asked, in milliseconds.
const MOST_MS: f64 = 0.3;

/// Boots and restores instances again and again. A boot has nothing else to do until the socket is there; a
/// restore puts the guest's files in place meanwhile, and looks for the socket when that is done.
pub fn after_listening(ground: &Ground, at: &Path, often: Often<'_>, figures: &mut Figures) -> Result<()> {
    let calls = match Calls::record(at) {
        Ok(calls) => calls,
        Err(error) => {
            figures.skip("socket listening to connected", &format!("the kernel does not record it: {error:#}"));
            return Ok(());
        }
    };
    let mut client = ground.client()?;
    let rests = Source::boot(ground, &mut client, "ready-rests")?.name;
    let stopped = Source::boot(ground, &mut client, "ready-stopped")?.name;
    client.post(&format!("/instances/{stopped}/stop"), None)?;
    let (mut restores, mut boots) = (Samples::default(), Samples::default());
    for round in 0..often.n + WARM_UP {
        for (late, name, verb, back) in
            [(&mut restores, &rests, "restore", "standby"), (&mut boots, &stopped, "start", "stop")]
        {
            ground.calm()?;
            calls.forget()?;
            let id = client.post(&format!("/instances/{name}/{verb}"), None)?.body;
            let vmm = ground.vmm(text(&id, "id")?)?;
            let told = calls.told()?;
            client.post(&format!("/instances/{name}/{back}"), None)?;
            let ms = connected_after(&told, vmm, ground.daemon().pid()).with_context(|| told.clone())?;
            if round >= WARM_UP {
                late.push(ms);
            }
        }
        often.tick("readiness", round)?;
    }
    for name in [rests, stopped] {
        client.delete(&format!("/instances/{name}"))?;
    }
    figures.times("restore: socket listening to connected, files placed meanwhile", &restores);
    figures.times("boot: socket listening to connected", &boots);
    let median = boots.median();
    figures.target(
        "boot, socket listening to connected",
        format!("within {MOST_MS} ms"),
        format!("{median:.2} ms"),
        median <= MOST_MS,
    );
    Ok(())
}

/// How many milliseconds after the VMM listened the daemon was connected.
fn connected_after(told: &str, vmm: u32, daemon: u32) -> Result<f64> {
    let calls: Vec<Call> = told.lines().filter_map(Call::of).collect();
    let listens = calls.iter().find(|call| call.of == vmm && call.name == "listen").context("no listen")?;
    let mut connects = calls.iter().filter(|call| call.of == daemon && call.name == "connect");
    let connected = connects.find(|call| call.at >= listens.at && call.done).context("no connect")?;
    Ok((connected.at - listens.at) * 1000.0)
}

/// A system call that has ended.
#[derive(Debug)]
struct Call {
    /// The process.
    of: u32,
    name: String,
    /// Seconds.
    at: f64,
    /// Successfully.
    done: bool,
}

impl Call {
    /// `hearth-7 (      5) [001] ..... 12536.991175: sys_connect -> 0x0`
    fn of(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once('(')?;
        let (of, rest) = rest.split_once(')')?;
        let (before, call) = rest.split_once(": sys_")?;
        let (name, result) = call.split_once(" -> ")?;
        Some(Self {
            of: of.trim().parse().ok()?,
            name: name.to_owned(),
            at: before.rsplit(' ').next()?.parse().ok()?,
            done: result.trim() == "0x0",
        })
    }
}

/// The kernel records these calls of all processes, until this is dropped.
#[derive(Debug)]
struct Calls {
    mounted: PathBuf,
    instance: PathBuf,
}

impl Calls {
    fn record(at: &Path) -> Result<Self> {
        fs::create_dir_all(at).with_context(|| format!("make {}", at.display()))?;
        process::stdout_of(Command::new("mount").args(["-t", "tracefs", "none"]).arg(at))?;
        // An instance is apart from whatever else is traced.
        let calls = Self { mounted: at.to_owned(), instance: at.join("instances/hearth-bench") };
        match fs::create_dir(&calls.instance) {
            // A run that was killed left it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => made.with_context(|| format!("make {}", calls.instance.display()))?,
        }
        calls.set("options/record-tgid", "1")?;
        calls.set("events/syscalls/sys_exit_listen/enable", "1")?;
        calls.set("events/syscalls/sys_exit_connect/enable", "1")?;
        Ok(calls)
    }

    fn set(&self, what: &str, value: &str) -> Result<()> {
        let path = self.instance.join(what);
        fs::write(&path, value).with_context(|| format!("write {value:?} to {}", path.display()))
    }

    fn forget(&self) -> Result<()> {
        self.set("trace", "")
    }

    fn told(&self) -> Result<String> {
        fs::read_to_string(self.instance.join("trace")).context("read what the kernel recorded")
    }
}

impl Drop for Calls {
    fn drop(&mut self) {
        fs::remove_dir(&self.instance).ok();
        if let Err(error) = process::stdout_of(Command::new("umount").arg(&self.mounted)) {
            eprintln!("warning: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_connection_after_the_socket_listens_is_the_one() {
        let connect =
            |at: &str, result: &str| format!("  worker-9 (      5) [001] ..... {at}: sys_connect -> {result}\n");
        let early = connect("12.000100", "0xfffffffffffffffe");
        let listen = "firecracker-7 (      7) [000] ..... 12.001000: sys_listen -> 0x0\n";
        let late = connect("12.001250", "0x0");
        let later = connect("12.002000", "0x0");
        let others = "     curl-8 (      8) [000] ..... 12.001100: sys_connect -> 0x0\n";
        let told = format!("# tracer: nop\n{early}{listen}{others}{late}{later}");
        let ms = connected_after(&told, 7, 5).expect("all there");
        assert!((ms - 0.25).abs() < 0.001, "{ms}");
        assert!(connected_after(&early, 7, 5).is_err());
    }
}
