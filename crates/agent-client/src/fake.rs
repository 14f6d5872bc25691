//! A guest's agent without a guest: speaks the protocol over any stream, and remembers.
//!
//! For tests of whoever uses this crate. It holds what a guest's memory would hold (its
//! configuration, identity, files and program), outlives its connections as a guest does, and can
//! be forked, saved and restored as one can. It runs a few commands of its own: `echo`, `cat`,
//! `cat PATH`, `sleep S`, `true`, `false`, `exit N`, `fail TEXT` (stderr, then 1), `env`,
//! `generation` (of the last refresh), `write PATH TEXT`, `end N` (of its program, by itself);
//! others are not found.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hearth_agent_proto::{
    CONTROL, Configured, CopyDone, CopyEntry, Decoder, Encoder, ExecStart, ExitStatus, Failure, FailureKind, FileKind,
    GuestConfig, GuestStats, MAX_DATA, PathStat, ProgramExit, ProgramState, Refresh, RefreshPart, Refreshed, ToGuest,
    ToHost, VERSION, Welcome,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// The process id that the program always has.
pub const PROGRAM_PID: u32 = 100;

/// A guest's agent without a guest. Clones are the same guest.
#[derive(Debug, Clone, Default)]
pub struct FakeGuest {
    memory: Arc<Mutex<Memory>>,
    /// Told whenever something happened that [`FakeGuest::ended`] waits for.
    news: watch::Sender<()>,
}

/// What was saved is no guest.
#[derive(Debug, thiserror::Error)]
#[error("read a saved guest")]
pub struct NoGuest(#[source] postcard::Error);

/// What a snapshot of the guest would hold, and the connection, which it would not.
#[derive(Debug, Default)]
struct Memory {
    state: State,
    silent: bool,
    at_refresh: AtRefresh,
    connection: Option<Connection>,
}

/// What the guest does when it is told who it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AtRefresh {
    /// It becomes that.
    #[default]
    Becomes,
    /// It refuses, with that text.
    Fails(String),
    /// It becomes that, and says so so much later.
    IsSlow(Duration),
    /// It says that it has come to that part, and nothing more.
    IsStuckAt(Option<RefreshPart>),
    /// It acknowledges another generation.
    Lies,
    /// Its agent ends, and with it the connection.
    Dies,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct State {
    /// The protocol's version that it speaks.
    version: u32,
    boot_id: String,
    config: Option<GuestConfig>,
    refreshes: Vec<Refresh>,
    program: ProgramState,
    files: BTreeMap<String, Vec<u8>>,
    exit_was_seen: bool,
    ended: bool,
}

impl Default for State {
    fn default() -> Self {
        let mut random = [0; 8];
        let _ = getrandom::fill(&mut random);
        Self {
            version: VERSION,
            boot_id: format!("{:016x}", u64::from_le_bytes(random)),
            config: None,
            refreshes: Vec::new(),
            program: ProgramState::NotStarted,
            files: BTreeMap::new(),
            exit_was_seen: false,
            ended: false,
        }
    }
}

#[derive(Debug, Clone)]
struct Connection {
    epoch: u64,
    /// An empty frame ends the stream.
    outgoing: mpsc::UnboundedSender<Vec<u8>>,
}

impl Connection {
    fn send(&self, channel: u32, message: &ToHost, data: &[u8]) {
        let mut frame = Vec::new();
        if Encoder::default().encode(&mut frame, self.epoch, channel, message, data).is_ok() {
            let _ = self.outgoing.send(frame);
        }
    }

    fn hang_up(&self) {
        let _ = self.outgoing.send(Vec::new());
    }

    fn fail(&self, channel: u32, kind: FailureKind, text: &str) {
        self.send(channel, &ToHost::Error(Failure { kind, text: text.to_owned() }), &[]);
    }
}

impl FakeGuest {
    /// A guest that has just booted.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Another guest with the same memory, as one restored from this one's snapshot.
    #[must_use]
    pub fn fork(&self) -> Self {
        let memory = self.memory();
        let (state, silent, at_refresh) = (memory.state.clone(), memory.silent, memory.at_refresh.clone());
        let memory = Arc::new(Mutex::new(Memory { state, silent, at_refresh, connection: None }));
        Self { memory, news: watch::Sender::default() }
    }

    /// What a snapshot of its memory would hold. Files are in it as they are.
    ///
    /// # Panics
    /// Never: every state can be written.
    #[must_use]
    pub fn save(&self) -> Vec<u8> {
        postcard::to_stdvec(&self.memory().state).expect("a state has nothing that cannot be written")
    }

    /// The guest that [`Self::save`] saw.
    ///
    /// # Errors
    /// These bytes are none.
    pub fn restore(saved: &[u8]) -> Result<Self, NoGuest> {
        let state = postcard::from_bytes(saved).map_err(NoGuest)?;
        let memory = Arc::new(Mutex::new(Memory { state, ..Memory::default() }));
        Ok(Self { memory, news: watch::Sender::default() })
    }

    /// Serves one stream until its end. Needs a tokio runtime.
    pub fn serve<S>(&self, stream: S) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        tokio::spawn(self.clone().run(stream))
    }

    /// Whether it answers nothing from now on.
    pub fn set_silent(&self, silent: bool) {
        self.memory().silent = silent;
    }

    /// What it does when it is told who it is, from now on.
    pub fn at_refresh(&self, at_refresh: AtRefresh) {
        self.memory().at_refresh = at_refresh;
    }

    /// Which version of the protocol it speaks from the next connection on.
    pub fn set_version(&self, version: u32) {
        self.memory().state.version = version;
    }

    /// What it was configured as.
    #[must_use]
    pub fn config(&self) -> Option<GuestConfig> {
        self.memory().state.config.clone()
    }

    /// The refreshes that it took.
    #[must_use]
    pub fn refreshes(&self) -> Vec<Refresh> {
        self.memory().state.refreshes.clone()
    }

    /// A file's content.
    #[must_use]
    pub fn file(&self, path: &str) -> Option<Vec<u8>> {
        self.memory().state.files.get(path).cloned()
    }

    /// Puts a file there.
    pub fn write_file(&self, path: &str, content: &[u8]) {
        self.memory().state.files.insert(path.to_owned(), content.to_vec());
    }

    /// Whether the host has taken note of the program's end.
    #[must_use]
    pub fn exit_was_seen(&self) -> bool {
        self.memory().state.exit_was_seen
    }

    /// Whether it was shut down, or its program has ended: the VMM's double should end too.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.memory().state.ended
    }

    /// Resolves once [`Self::has_ended`]. A guest whose program has ended waits a moment for the
    /// host to take note of it.
    ///
    /// # Panics
    /// Never: the guest itself holds the sender.
    pub async fn ended(&self) {
        const NOTE: Duration = Duration::from_secs(1);
        let mut news = self.news.subscribe();
        news.wait_for(|()| self.has_ended()).await.expect("self holds the sender");
        let noted = news.wait_for(|()| self.exit_was_seen());
        let _ = tokio::time::timeout(NOTE, noted).await;
    }

    /// Ends its program, as if by itself.
    pub fn exit_program(&self, exit: ProgramExit) {
        self.memory().exit_program(exit);
        self.news.send_replace(());
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) {
        let (outgoing, mut to_write) = mpsc::unbounded_channel::<Vec<u8>>();
        let mut sessions = Sessions::default();
        let mut decoder = Decoder::default();
        let mut input = vec![0; 64 * 1024];
        loop {
            tokio::select! {
                frame = to_write.recv() => {
                    let Some(frame) = frame.filter(|frame| !frame.is_empty()) else { return };
                    if stream.write_all(&frame).await.is_err() {
                        return;
                    }
                }
                read = stream.read(&mut input) => {
                    let Ok(bytes @ 1..) = read else { return };
                    let mut rest = &input[..bytes];
                    while let Some(frame) = decoder.next(&mut rest) {
                        if let Ok((message, data)) = frame.message::<ToGuest>() {
                            self.take(frame.epoch, frame.channel, message, data, &outgoing, &mut sessions);
                            self.news.send_replace(());
                        }
                    }
                }
            }
        }
    }

    fn take(
        &self,
        epoch: u64,
        channel: u32,
        message: ToGuest,
        data: &[u8],
        outgoing: &mpsc::UnboundedSender<Vec<u8>>,
        sessions: &mut Sessions,
    ) {
        let mut memory = self.memory();
        if memory.silent {
            return;
        }
        if let ToGuest::Hello { version } = message {
            let connection = Connection { epoch, outgoing: outgoing.clone() };
            *sessions = Sessions::default();
            if version == memory.state.version {
                connection.send(CONTROL, &ToHost::Welcome(memory.state.welcome()), &[]);
                memory.connection = Some(connection);
            } else {
                let version = memory.state.version;
                connection.send(CONTROL, &ToHost::Refused { version }, &[]);
            }
            return;
        }
        let Some(connection) = memory.connection.clone().filter(|connection| connection.epoch == epoch) else { return };
        let memory = &mut *memory;
        if let ToGuest::Exec(request) = &message {
            exec(&connection, channel, request, sessions, memory);
        }
        let state = &mut memory.state;
        match message {
            ToGuest::Configure(config) => {
                let answer = if state.config.is_some() { Configured::Already } else { Configured::Now };
                connection.send(channel, &ToHost::Configured(answer), &[]);
                if answer == Configured::Now {
                    state.config = Some(config);
                    state.program = ProgramState::Running { pid: PROGRAM_PID };
                    connection.send(CONTROL, &ToHost::ProgramStarted { pid: PROGRAM_PID }, &[]);
                }
            }
            ToGuest::Refresh(_) | ToGuest::SetClock { .. } if state.version < 2 => {
                connection.fail(channel, FailureKind::Invalid, "this agent does not know that message");
            }
            ToGuest::Refresh(refresh) => state.refresh(&connection, channel, refresh, &memory.at_refresh),
            ToGuest::RefreshV1(old) => {
                let generation = old.generation;
                state.refreshes.push(Refresh {
                    generation,
                    realtime_ns: old.realtime_ns,
                    entropy: old.entropy,
                    hostname: old.hostname,
                    instance_id: old.instance_id,
                    env: Vec::new(),
                    dns: Vec::new(),
                    hooks_ms: None,
                });
                connection.send(channel, &ToHost::RefreshedV1 { generation }, &[]);
            }
            ToGuest::SetClock { realtime_ns } => {
                if let Some(refresh) = state.refreshes.last_mut() {
                    refresh.realtime_ns = realtime_ns;
                }
                connection.send(channel, &ToHost::ClockSet, &[]);
            }
            ToGuest::Ping => connection.send(channel, &ToHost::Pong, &[]),
            ToGuest::Stats => {
                let stats = GuestStats { memory_total: 1 << 28, memory_available: 1 << 27, ..GuestStats::default() };
                connection.send(channel, &ToHost::Stats(stats), &[]);
            }
            ToGuest::Shutdown { .. } => {
                connection.send(channel, &ToHost::ShuttingDown, &[]);
                if matches!(state.program, ProgramState::Running { .. }) {
                    let exit = ProgramExit {
                        code: 143,
                        signal: Some(15),
                        message: "killed by signal 15 (SIGTERM)".to_owned(),
                    };
                    state.program = ProgramState::Exited(exit.clone());
                    connection.send(CONTROL, &ToHost::ProgramExited(exit), &[]);
                }
                state.ended = true;
            }
            ToGuest::ProgramExitSeen => state.exit_was_seen = true,
            ToGuest::Stat(request) => match state.stat(&request.path) {
                Some(stat) => connection.send(channel, &ToHost::Stat(stat), &[]),
                None => connection.fail(channel, FailureKind::NotFound, "no such file or directory"),
            },
            ToGuest::Exec(_) => {}
            ToGuest::CopyTo(start) => {
                sessions.copies.insert(channel, Copy { root: start.path, file: None, done: CopyDone::default() });
                connection.send(channel, &ToHost::CopyReady, &[]);
            }
            ToGuest::CopyFrom(start) => state.copy_from(&connection, channel, &start.path),
            message => sessions.take(&connection, channel, message, data, state),
        }
    }
}

impl Memory {
    fn exit_program(&mut self, exit: ProgramExit) {
        self.state.program = ProgramState::Exited(exit.clone());
        self.state.ended = true;
        if let Some(connection) = &self.connection {
            connection.send(CONTROL, &ToHost::ProgramExited(exit), &[]);
        }
    }
}

impl State {
    fn refresh(&mut self, connection: &Connection, channel: u32, refresh: Refresh, at_refresh: &AtRefresh) {
        let own = match self.refreshes.last() {
            Some(last) => Some(last.instance_id.as_str()),
            None => self.config.as_ref().map(|config| config.instance_id.as_str()),
        };
        let generation = refresh.generation;
        let forked = own.is_some_and(|own| own != refresh.instance_id);
        let refreshed = ToHost::Refreshed(Refreshed { generation, forked, ..Refreshed::default() });
        match at_refresh {
            AtRefresh::Becomes => connection.send(channel, &refreshed, &[]),
            AtRefresh::Fails(text) => return connection.fail(channel, FailureKind::Failed, text),
            AtRefresh::IsSlow(by) => {
                let (connection, by) = (connection.clone(), *by);
                tokio::spawn(async move {
                    tokio::time::sleep(by).await;
                    connection.send(channel, &refreshed, &[]);
                });
            }
            AtRefresh::IsStuckAt(Some(part)) => return connection.send(channel, &ToHost::Refreshing(*part), &[]),
            AtRefresh::IsStuckAt(None) => return,
            AtRefresh::Lies => {
                let other = Refreshed { generation: generation.wrapping_sub(1), ..Refreshed::default() };
                return connection.send(channel, &ToHost::Refreshed(other), &[]);
            }
            AtRefresh::Dies => return connection.hang_up(),
        }
        self.refreshes.push(refresh);
    }

    fn welcome(&self) -> Welcome {
        Welcome {
            version: self.version,
            boot_id: self.boot_id.clone(),
            agent_version: "fake".to_owned(),
            configured: self.config.is_some(),
            program: self.program.clone(),
            boot_failure: None,
        }
    }

    /// Files are what was written; directories are what must be above them.
    fn stat(&self, path: &str) -> Option<PathStat> {
        let below = format!("{}/", path.trim_end_matches('/'));
        let (kind, mode, size) = match self.files.get(path) {
            Some(content) => (FileKind::File, 0o644, content.len() as u64),
            None if path == "/" || self.files.keys().any(|file| file.starts_with(&below)) => (FileKind::Dir, 0o755, 0),
            None => return None,
        };
        Some(PathStat { kind, mode, size, mtime_s: 0, uid: 0, gid: 0 })
    }

    fn copy_from(&self, connection: &Connection, channel: u32, path: &str) {
        let Some(top) = self.stat(path) else {
            connection.fail(channel, FailureKind::NotFound, "no such file or directory");
            return;
        };
        let entry = |path: &str, stat: PathStat| CopyEntry {
            path: path.to_owned(),
            kind: stat.kind,
            mode: stat.mode,
            size: stat.size,
            mtime_s: stat.mtime_s,
            uid: 0,
            gid: 0,
        };
        let mut done = CopyDone::default();
        let mut send = |entry: CopyEntry, content: &[u8]| {
            connection.send(channel, &ToHost::Entry(entry), &[]);
            for piece in content.chunks(MAX_DATA) {
                connection.send(channel, &ToHost::Data, piece);
            }
            connection.send(channel, &ToHost::EntryEnd, &[]);
            done.entries += 1;
            done.bytes += content.len() as u64;
        };
        let content = self.files.get(path).cloned().unwrap_or_default();
        send(entry("", top), &content);
        let below = format!("{}/", path.trim_end_matches('/'));
        for (file, content) in &self.files {
            if let (Some(relative), Some(stat)) = (file.strip_prefix(&below), self.stat(file)) {
                send(entry(relative, stat), content);
            }
        }
        connection.send(channel, &ToHost::CopyDone(done), &[]);
    }
}

/// What one connection has under way.
#[derive(Default)]
struct Sessions {
    cats: Vec<u32>,
    sleeps: BTreeMap<u32, JoinHandle<()>>,
    copies: BTreeMap<u32, Copy>,
}

struct Copy {
    root: String,
    file: Option<(String, Vec<u8>)>,
    done: CopyDone,
}

impl Sessions {
    fn take(&mut self, connection: &Connection, channel: u32, message: ToGuest, data: &[u8], state: &mut State) {
        match message {
            ToGuest::Stdin if self.cats.contains(&channel) => {
                connection.send(channel, &ToHost::Stdout, data);
                self.credit(connection, channel, data.len());
            }
            ToGuest::StdinEof if self.cats.contains(&channel) => {
                self.cats.retain(|cat| *cat != channel);
                connection.send(channel, &ToHost::Exited(ExitStatus::Code(0)), &[]);
            }
            ToGuest::Signal(signal) => {
                let sleep = self.sleeps.remove(&channel);
                if let Some(sleep) = &sleep {
                    sleep.abort();
                }
                if sleep.is_some() || self.cats.contains(&channel) {
                    self.cats.retain(|cat| *cat != channel);
                    connection.send(channel, &ToHost::Exited(ExitStatus::Signal(signal)), &[]);
                }
            }
            ToGuest::Close => {
                self.cats.retain(|cat| *cat != channel);
                self.copies.remove(&channel);
            }
            message => self.copy(connection, channel, message, data, state),
        }
    }

    fn copy(&mut self, connection: &Connection, channel: u32, message: ToGuest, data: &[u8], state: &mut State) {
        let Some(copy) = self.copies.get_mut(&channel) else { return };
        match message {
            ToGuest::Entry(entry) => {
                copy.done.entries += 1;
                let path = match entry.path.as_str() {
                    "" => copy.root.clone(),
                    below => format!("{}/{below}", copy.root.trim_end_matches('/')),
                };
                copy.file = (entry.kind == FileKind::File).then(|| (path, Vec::new()));
                self.credit(connection, channel, entry.cost());
            }
            ToGuest::Data => {
                if let Some((_, content)) = &mut copy.file {
                    content.extend_from_slice(data);
                    copy.done.bytes += data.len() as u64;
                }
                self.credit(connection, channel, data.len());
            }
            ToGuest::EntryEnd => {
                state.files.extend(copy.file.take());
                self.credit(connection, channel, 0);
            }
            ToGuest::CopyEnd => {
                connection.send(channel, &ToHost::CopyDone(copy.done), &[]);
                self.copies.remove(&channel);
            }
            _ => {}
        }
    }

    fn credit(&self, connection: &Connection, channel: u32, bytes: usize) {
        let cost = u32::try_from(bytes + hearth_agent_proto::OVERHEAD).unwrap_or(u32::MAX);
        connection.send(channel, &ToHost::Credit(cost), &[]);
    }
}

fn exec(connection: &Connection, channel: u32, request: &ExecStart, sessions: &mut Sessions, memory: &mut Memory) {
    let argv: Vec<&str> = request.argv.iter().map(String::as_str).collect();
    let started = || connection.send(channel, &ToHost::ExecStarted { pid: 200 + channel }, &[]);
    let exited = |code| connection.send(channel, &ToHost::Exited(ExitStatus::Code(code)), &[]);
    match argv.as_slice() {
        ["cat"] => {
            started();
            sessions.cats.push(channel);
        }
        ["sleep", seconds] => {
            started();
            let time = Duration::from_secs_f64(seconds.parse().unwrap_or(0.0));
            let connection = connection.clone();
            let sleep = async move {
                tokio::time::sleep(time).await;
                connection.send(channel, &ToHost::Exited(ExitStatus::Code(0)), &[]);
            };
            sessions.sleeps.insert(channel, tokio::spawn(sleep));
        }
        ["echo", words @ ..] => {
            started();
            connection.send(channel, &ToHost::Stdout, format!("{}\n", words.join(" ")).as_bytes());
            exited(0);
        }
        ["fail", words @ ..] => {
            started();
            connection.send(channel, &ToHost::Stderr, format!("{}\n", words.join(" ")).as_bytes());
            exited(1);
        }
        ["cat", path] => {
            started();
            match memory.state.files.get(*path) {
                Some(content) => {
                    connection.send(channel, &ToHost::Stdout, content);
                    exited(0);
                }
                None => {
                    connection.send(channel, &ToHost::Stderr, b"no such file or directory\n");
                    exited(1);
                }
            }
        }
        ["write", path, words @ ..] => {
            started();
            memory.state.files.insert((*path).to_owned(), words.join(" ").into_bytes());
            exited(0);
        }
        ["generation"] => {
            started();
            let generation = memory.state.refreshes.last().map_or(0, |refresh| refresh.generation);
            connection.send(channel, &ToHost::Stdout, format!("{generation}\n").as_bytes());
            exited(0);
        }
        ["end", code] => {
            started();
            exited(0);
            let code = code.parse().unwrap_or(2);
            memory.exit_program(ProgramExit { code, signal: None, message: format!("exited with code {code}") });
        }
        ["env"] => {
            started();
            let own = memory.state.refreshes.last().map(|refresh| refresh.env.as_slice()).unwrap_or_default();
            for variable in own.iter().chain(&request.env) {
                connection.send(channel, &ToHost::Stdout, format!("{variable}\n").as_bytes());
            }
            exited(0);
        }
        ["true"] | ["false"] | ["exit", _] => {
            started();
            exited(match argv.as_slice() {
                ["exit", code] => code.parse().unwrap_or(2),
                [word, ..] => u8::from(*word == "false"),
                [] => 0,
            });
        }
        [] => connection.fail(channel, FailureKind::Invalid, "no command given"),
        [command, ..] => {
            connection.fail(channel, FailureKind::NotFound, &format!("command not found: {command}"));
        }
    }
}
