//! What guests know, and how one finds out that they still do.

use std::fs;

use anyhow::{Context, Result, ensure};
use hearth_e2e::{TestHost, Vm};

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
}

impl Known {
    /// That much is known of a guest that was saved elsewhere.
    pub(crate) fn ticks(count: u64) -> Self {
        Self { nonce: String::new(), count, mark: String::new() }
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
                Ok(Known { nonce: count.nonce, count: count.count, mark: mark.to_owned() })
            }
            Self::Bare => {
                let seen = tick(vm).await?;
                goes_on(vm, seen + 1).await?;
                Ok(Known::ticks(seen + 1))
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
                goes_on(vm, known.count).await?;
                let console = fs::read_to_string(vm.dir().await?.join("serial.log")).context("read its console")?;
                let tick = |line: &str| line.strip_prefix("tick ")?.trim().parse().ok();
                let ticks: Vec<u64> = console.lines().filter_map(tick).collect();
                // It may go back to what was saved, never to before that.
                let goes_on = |from: u64, to: u64| to == from + 1 || (to <= from && to > known.count);
                let broken = ticks.windows(2).find(|pair| !goes_on(pair[0], pair[1]));
                ensure!(broken.is_none(), "{} knew {}, and went on by {broken:?}", vm.name, known.count);
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

    /// It goes on from what it knew.
    pub(crate) async fn counts_on(self, vm: &Vm<'_>, known: &mut Known) -> Result<()> {
        self.knows(vm, known).await?;
        known.count = match self {
            Self::Linux => vm.count(1).await?.count,
            Self::Bare => tick(vm).await?,
        };
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
