//! What runs in the machine: boot, run, halt, save, restore.
//!
//! What a guest is lies in guest memory, and what its CPU holds in the vmstate. Each part has a
//! mark of the other: a guest that was put together of two different moments is torn, as it would
//! be, and shows it.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_agent_client::fake::FakeGuest;
use serde::{Deserialize, Serialize};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::guest::{After, MARK, Params};
use crate::memory::{Memory, PAGE};
use crate::serial::Serial;

/// Where a kernel is loaded.
const KERNEL: u64 = 1 << 20;
/// How much of one is: enough to show that it is touched memory.
const KERNEL_LEN: usize = 1 << 20;
/// Where the ticks are counted.
const TICKS: u64 = KERNEL + KERNEL_LEN as u64;
/// Where the agent's guest lies: a magic word, its length, itself.
const AGENT: u64 = 8 << 20;
const AGENT_MAGIC: &[u8; 8] = b"hearthfg";
/// Pages that the VMM itself writes for a guest that it boots.
const TABLES: [u64; 6] = [0x0, 0x6000, 0x7000, 0x9000, 0xa000, 0xb000];
const TOO_SMALL: &str = "Unable to read kernel image";

/// Memory that the guest and the VMM share.
#[derive(Debug, Clone)]
pub(crate) struct Shared(Arc<Mutex<Memory>>);

impl Shared {
    pub(crate) fn new(memory: Memory) -> Self {
        Self(Arc::new(Mutex::new(memory)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Memory> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is saved of a CPU.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Vcpu {
    /// Of the guest with an agent: the checksum of what it has in memory.
    Agent { moment: u32 },
    /// Of the guest without a kernel: its registers.
    Counter { params: Params, tick: u64, next: u32 },
    /// Of one that was torn.
    Dead,
}

/// What runs.
#[derive(Debug)]
pub(crate) enum Guest {
    /// A guest with an agent.
    Agent(FakeGuest),
    /// The guest without a kernel.
    Counter(Arc<Mutex<Counter>>),
    /// One that was torn: it does nothing any more.
    Dead,
}

/// The guest without a kernel.
#[derive(Debug)]
pub(crate) struct Counter {
    params: Params,
    tick: u64,
    next: u32,
}

impl Guest {
    /// Boots a kernel. The error is the loader's.
    pub(crate) fn boot(mut kernel: &File, memory: &Shared, serial: &Serial) -> Result<Self, String> {
        let unread = |_| "Unable to read elf header".to_owned();
        let mut image = Vec::new();
        io::Seek::rewind(&mut kernel).map_err(unread)?;
        kernel.read_to_end(&mut image).map_err(unread)?;
        if image.len() < 64 {
            return Err("Unable to read elf header".to_owned());
        }
        if !image.starts_with(b"\x7fELF") {
            return Err("Invalid Elf magic number".to_owned());
        }
        if image[5] != 1 {
            return Err("Trying to load big-endian binary on little-endian machine".to_owned());
        }
        let mut shared = memory.lock();
        if !shared.has(AGENT, 1) {
            return Err(TOO_SMALL.to_owned());
        }
        let loaded = &image[..image.len().min(KERNEL_LEN)];
        shared.write(KERNEL, loaded).map_err(|_| TOO_SMALL.to_owned())?;
        for table in TABLES {
            shared.write(table, &[0]).map_err(|_| TOO_SMALL.to_owned())?;
        }
        drop(shared);
        match Params::of_kernel(&image) {
            Some(params) => {
                let mut counter = Counter { params, tick: 0, next: 0 };
                serial.write(&format!("hearth guest: pages {}\n", params.pages));
                counter.touch(memory, params.pages).map_err(|error| error.to_string())?;
                memory.lock().write(TICKS, &0u64.to_le_bytes()).map_err(|error| error.to_string())?;
                match params.after {
                    After::Count => {}
                    After::Listen => serial.write("listening\n"),
                    After::Halt => serial.write("halted\n"),
                    After::Spin => serial.write("spinning\n"),
                }
                Ok(Self::Counter(Arc::new(Mutex::new(counter))))
            }
            None => {
                serial.write("hearth simulated guest: the agent listens\n");
                Ok(Self::Agent(FakeGuest::new()))
            }
        }
    }

    /// Puts what it has into memory, and says what its CPU holds.
    pub(crate) fn save(&self, memory: &Shared) -> Result<Vcpu, String> {
        match self {
            Self::Agent(guest) => {
                let saved = guest.save();
                let mut bytes = AGENT_MAGIC.to_vec();
                bytes.extend_from_slice(&(saved.len() as u64).to_le_bytes());
                bytes.extend_from_slice(&saved);
                let mut memory = memory.lock();
                if !memory.has(AGENT, bytes.len()) {
                    return Err("the simulated guest has more in it than its memory holds".to_owned());
                }
                memory.write(AGENT, &bytes).map_err(|error| error.to_string())?;
                Ok(Vcpu::Agent { moment: crc32fast::hash(&bytes) })
            }
            Self::Counter(counter) => {
                let Counter { params, tick, next } = *lock(counter);
                Ok(Vcpu::Counter { params, tick, next })
            }
            Self::Dead => Ok(Vcpu::Dead),
        }
    }

    /// The guest that was saved so.
    pub(crate) fn restore(vcpu: &Vcpu, memory: &Shared) -> io::Result<Self> {
        Ok(match vcpu {
            Vcpu::Agent { moment } => restore_agent(*moment, memory)?.map_or(Self::Dead, Self::Agent),
            Vcpu::Counter { params, tick, next } => {
                Self::Counter(Arc::new(Mutex::new(Counter { params: *params, tick: *tick, next: *next })))
            }
            Vcpu::Dead => Self::Dead,
        })
    }

    /// Lets it run, until the task is aborted. Its end is told by `exit`.
    pub(crate) fn run(&self, memory: &Shared, serial: &Serial, exit: &mpsc::UnboundedSender<u8>) -> JoinHandle<()> {
        let (memory, serial, exit) = (memory.clone(), serial.clone(), exit.clone());
        match self {
            Self::Agent(guest) => {
                let guest = guest.clone();
                tokio::spawn(async move {
                    guest.ended().await;
                    let _ = exit.send(0);
                })
            }
            Self::Counter(counter) => {
                let counter = Arc::clone(counter);
                tokio::spawn(async move {
                    let Params { hz, after: After::Count | After::Listen, .. } = lock(&counter).params else { return };
                    let mut clock = tokio::time::interval(Duration::from_secs(1) / hz);
                    clock.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
                    clock.tick().await;
                    loop {
                        clock.tick().await;
                        let line = lock(&counter).tick(&memory);
                        serial.write(&line.unwrap_or_else(|error| format!("memory: {error}\n")));
                    }
                })
            }
            Self::Dead => tokio::spawn(async {}),
        }
    }

    /// Who listens behind its vsock, if somebody does.
    pub(crate) fn listener(&self) -> Option<Listener> {
        match self {
            Self::Agent(guest) => Some(Listener::Agent(guest.clone())),
            Self::Counter(counter) => (lock(counter).params.after == After::Listen).then_some(Listener::Echo),
            Self::Dead => None,
        }
    }

    /// It has found that its vsock was reset.
    pub(crate) fn was_reset(&self, serial: &Serial) {
        if matches!(self.listener(), Some(Listener::Echo)) {
            serial.write("reset\n");
        }
    }

    /// Whether it ends when the three keys are pressed.
    pub(crate) fn ends_on_ctrl_alt_del(&self) -> bool {
        matches!(self, Self::Agent(_))
    }
}

/// Who listens on the guest's port of the vsock.
#[derive(Debug, Clone)]
pub(crate) enum Listener {
    /// Hearth's agent.
    Agent(FakeGuest),
    /// One that sends back what it is sent.
    Echo,
}

impl Listener {
    /// Serves one connection until its end.
    pub(crate) fn serve(&self, stream: DuplexStream) -> JoinHandle<()> {
        match self {
            Self::Agent(guest) => guest.serve(stream),
            Self::Echo => tokio::spawn(async move {
                let (mut from, mut to) = tokio::io::split(stream);
                // A connection's errors are its end.
                let _ = tokio::io::copy(&mut from, &mut to).await;
            }),
        }
    }
}

fn restore_agent(moment: u32, memory: &Shared) -> io::Result<Option<FakeGuest>> {
    let header_len = AGENT_MAGIC.len() + 8;
    let memory = memory.lock();
    let header = memory.read(AGENT, header_len)?;
    let Some((AGENT_MAGIC, len)) = header.split_first_chunk() else { return Ok(None) };
    let len = len.try_into().map(u64::from_le_bytes).ok().and_then(|len| usize::try_from(len).ok());
    let Some(len) = len.and_then(|len| len.checked_add(header_len)).filter(|len| memory.has(AGENT, *len)) else {
        return Ok(None);
    };
    let bytes = memory.read(AGENT, len)?;
    if crc32fast::hash(&bytes) != moment {
        return Ok(None);
    }
    Ok(FakeGuest::restore(&bytes[header_len..]).ok())
}

impl Counter {
    /// Counts, and returns what is printed.
    fn tick(&mut self, memory: &Shared) -> io::Result<String> {
        let mut in_memory = [0; 8];
        in_memory.copy_from_slice(&memory.lock().read(TICKS, 8)?);
        if u64::from_le_bytes(in_memory) != self.tick {
            return Ok("torn\n".to_owned());
        }
        self.tick += 1;
        memory.lock().write(TICKS, &self.tick.to_le_bytes())?;
        self.touch(memory, self.params.per_tick)?;
        Ok(format!("tick {}\n", self.tick))
    }

    fn touch(&mut self, memory: &Shared, pages: u32) -> io::Result<()> {
        let mut memory = memory.lock();
        for _ in 0..pages {
            let mut words = [0; 16];
            words[..8].copy_from_slice(&(MARK + u64::from(self.next)).to_le_bytes());
            words[8..].copy_from_slice(&self.tick.to_le_bytes());
            memory.write(self.params.address(self.next), &words)?;
            self.next = (self.next + self.params.step) % self.params.pages;
        }
        Ok(())
    }
}

fn lock(counter: &Mutex<Counter>) -> MutexGuard<'_, Counter> {
    counter.lock().unwrap_or_else(PoisonError::into_inner)
}

const _: () = assert!(PAGE == 4096, "the tables above are pages");
