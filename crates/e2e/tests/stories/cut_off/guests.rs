//! What guests know, and how one finds out that they still do.

use std::{fs, io};

use anyhow::{Context, Result, ensure};
use hearth_e2e::{TestHost, Vm, eventually};

use crate::firecracker::{boot_without_agent, goes_on, tick};

/// What runs in the instances.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guests {
    /// Linux with an agent, and a program that counts when it is asked to.
    Linux,
    /// What needs no kernel and has no agent: it counts on its console, all the time.
    Bare,
}

/// What a guest had in its memory and on its disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    /// Of the process that counts.
    pub(crate) nonce: String,
    /// How far it was.
    pub(crate) count: u64,
    /// What is in a file of its.
    pub(crate) mark: String,
    /// How much was on its console then, in bytes.
    pub(crate) said: usize,
}

impl Known {
    /// That much is known of a guest that was saved elsewhere.
    pub(crate) fn ticks(count: u64) -> Self {
        Self { nonce: String::new(), count, mark: String::new(), said: 0 }
    }
}

impl Guests {
    pub(crate) async fn boot<'h>(self, host: &'h TestHost, name: &str) -> Result<Vm<'h>> {
        match self {
            Self::Linux => host.boot(name).await,
            Self::Bare => boot_without_agent(host, name).await,
        }
    }

    /// Has it know something that no other guest knows.
    pub(crate) async fn learn(self, vm: &Vm<'_>, mark: &str) -> Result<Known> {
        match self {
            Self::Linux => {
                // What was written must be on its disk: its VMM may end without it.
                vm.sh(&format!("echo {mark} > /root/mark; sync")).await?;
                let count = vm.count(3).await?;
                Ok(Known { nonce: count.nonce, count: count.count, mark: mark.to_owned(), said: 0 })
            }
            Self::Bare => {
                let seen = tick(vm).await?;
                goes_on(vm, seen + 1).await?;
                Ok(Known { said: self.said(vm).await?, ..Known::ticks(seen + 1) })
            }
        }
    }

    /// It has its memory, so it goes on from there; and its disk.
    pub(crate) async fn knows(self, vm: &Vm<'_>, known: &Known) -> Result<()> {
        match self {
            Self::Linux => {
                let now = vm.count(0).await?;
                ensure!(now.nonce == known.nonce && now.count == known.count, "{}: {now:?}, not {known:?}", vm.name);
                self.has_on_disk(vm, known).await
            }
            Self::Bare => {
                let mut ticks = Vec::new();
                eventually("the guest counts on", async || {
                    ticks = ticks_after(&console(vm).await?, known.said)?;
                    Ok(!ticks.is_empty())
                })
                .await?;
                let unbroken = ticks.windows(2).all(|pair| pair[1] == pair[0] + 1);
                ensure!(unbroken && ticks[0] > known.count, "{} knew {}, not {ticks:?}", vm.name, known.count);
                Ok(())
            }
        }
    }

    /// It was booted, with its disk.
    pub(crate) async fn has_on_disk(self, vm: &Vm<'_>, known: &Known) -> Result<()> {
        match self {
            Self::Linux => {
                let mark = vm.sh("cat /root/mark").await?;
                ensure!(mark == known.mark, "{} has {mark:?} on its disk, not {:?}", vm.name, known.mark);
                Ok(())
            }
            Self::Bare => goes_on(vm, 1).await,
        }
    }

    /// How much is on its console, where it counts there.
    pub(crate) async fn said(self, vm: &Vm<'_>) -> Result<usize> {
        match self {
            Self::Linux => Ok(0),
            Self::Bare => Ok(console(vm).await?.len()),
        }
    }

    /// It goes on from what it knew.
    pub(crate) async fn counts_on(self, vm: &Vm<'_>, known: &mut Known) -> Result<()> {
        self.knows(vm, known).await?;
        known.count = match self {
            Self::Linux => vm.count(1).await?.count,
            Self::Bare => tick(vm).await?,
        };
        known.said = self.said(vm).await?;
        Ok(())
    }

    /// It runs, whatever it knows.
    pub(crate) async fn runs(self, vm: &Vm<'_>) -> Result<()> {
        match self {
            Self::Linux => vm.count(1).await.map(drop),
            Self::Bare => goes_on(vm, 1).await,
        }
    }
}

/// What one that never ran has said is nothing.
async fn console(vm: &Vm<'_>) -> Result<String> {
    let path = vm.dir().await?.join("serial.log");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.with_context(|| format!("read {}", path.display())),
    }
}

/// What it has counted since so much was on its console.
fn ticks_after(console: &str, said: usize) -> Result<Vec<u64>> {
    let new = console.get(said..).context("its console is shorter than it was")?;
    // The first line may be the end of one that was begun before, the last is not whole yet.
    let whole = new.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let tick = |line: &str| line.strip_prefix("tick ")?.trim().parse().ok();
    Ok(whole.lines().filter_map(tick).collect())
}
