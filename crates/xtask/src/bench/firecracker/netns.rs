//! Network namespaces for floors: each guest's card leads to a tap of one name, as the product's slots have it.
//!
//! In: how many. Out: namespaces with a tap that is up, made before any clock starts, as the product's
//! pool is. All of it is gone when they are dropped.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use hearth_model::network::inner;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process;

/// One for each floor that runs at a time.
#[derive(Debug, Default)]
pub struct Namespaces {
    names: Vec<String>,
}

impl Namespaces {
    /// Makes so many; what a run that was killed left of them is replaced.
    pub fn new(count: usize) -> Result<Self> {
        let mut made = Self::default();
        for number in 0..count {
            let name = format!("bench-floor-{number}");
            if path(&name).exists() {
                ip(&["netns", "del", &name])?;
            }
            ip(&["netns", "add", &name])?;
            made.names.push(name.clone());
            ip(&["-n", &name, "tuntap", "add", inner::TAP, "mode", "tap"])?;
            ip(&["-n", &name, "link", "set", inner::TAP, "up"])?;
        }
        Ok(made)
    }

    /// Has this thread, and what it starts from now on, in one of them.
    pub fn enter(&self, number: usize) -> Result<()> {
        let path = path(&self.names[number]);
        let namespace = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        let kind = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), kind).with_context(|| format!("enter {}", path.display()))
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            if let Err(error) = ip(&["netns", "del", name]) {
                eprintln!("warning: {error:#}");
            }
        }
    }
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/run/netns").join(name)
}

fn ip(arguments: &[&str]) -> Result<()> {
    process::stdout_of(Command::new("ip").args(arguments)).map(drop)
}
