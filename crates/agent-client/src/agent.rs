//! One guest's agent, and what can be asked of it.

use std::sync::Arc;
use std::time::Duration;

use hearth_agent_proto::{
    Configured, CopyFromStart, CopyToStart, ExecStart, GuestConfig, GuestStats, PathStat, Refresh, RefreshV1,
    Refreshed, StatRequest, ToGuest, ToHost, Welcome,
};
use hearth_model::ErrorKind;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

pub use crate::connection::Event;
use crate::connection::{self, Channel, Connection};
use crate::copy::{CopyFrom, CopyTo};
use crate::error::AgentError;
use crate::exec::ExecSession;

/// How long the agent may take for what needs no waiting in the guest.
const PROMPT: Duration = Duration::from_secs(10);

/// How long a guest may take that is told what it is: on a disk that was another's it makes keys and
/// runs its image's hooks first.
const CONFIGURED: Duration = Duration::from_secs(30);

/// One connection to a guest's agent. The stream ends with its last clone and session.
#[derive(Debug, Clone)]
pub struct Agent {
    connection: Arc<Connection>,
    version: u32,
}

/// What the guest tells unasked.
#[derive(Debug)]
pub struct EventReceiver {
    events: mpsc::Receiver<Event>,
}

impl EventReceiver {
    /// The next event; `None` when the connection has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }
}

impl Agent {
    /// Shakes hands over a stream, and waits for the answer as long as `within`: a guest that is
    /// still booting answers once its agent runs.
    ///
    /// # Errors
    /// [`AgentError::Silent`], [`AgentError::Lost`], [`AgentError::Version`].
    pub async fn connect<S>(stream: S, within: Duration) -> Result<(Self, Welcome, EventReceiver), AgentError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        const TRIED: &str = "connect to the guest";
        let mut epoch = [0; 8];
        getrandom::fill(&mut epoch)
            .map_err(|error| AgentError::Lost { tried: TRIED.into(), source: Some(std::io::Error::other(error)) })?;
        let (connection, answered, events) = connection::open(stream, u64::from_le_bytes(epoch));
        let mut agent = Self { connection: Arc::new(connection), version: hearth_agent_proto::VERSION };
        let answer = tokio::select! {
            biased;
            answer = timeout(within, answered) => answer,
            () = agent.closed() => return Err(AgentError::lost(TRIED)),
        };
        match answer {
            Err(_) => Err(AgentError::Silent { tried: TRIED.into(), within }),
            Ok(Err(_)) => Err(AgentError::lost(TRIED)),
            Ok(Ok(Err(guest))) => Err(AgentError::Version { guest }),
            Ok(Ok(Ok(welcome))) if !hearth_agent_proto::speaks(welcome.version) => {
                Err(AgentError::Version { guest: welcome.version })
            }
            Ok(Ok(Ok(welcome))) => {
                agent.version = welcome.version;
                Ok((agent, welcome, EventReceiver { events }))
            }
        }
    }

    /// Tells a booted guest what it is; its program starts.
    ///
    /// # Errors
    /// [`AgentError`]; `Refused` when the guest could not boot or cannot be so.
    pub async fn configure(&self, config: &GuestConfig) -> Result<Configured, AgentError> {
        let (what, request) = ("configure the guest", ToGuest::Configure(config.clone()));
        let configured = |answer| if let ToHost::Configured(c) = answer { Some(c) } else { None };
        self.ask(what, &request, CONFIGURED, configured).await
    }

    /// Whether it can make itself, of another instance's guest, a fork: replace all that the two must
    /// not share before it acknowledges.
    #[must_use]
    pub fn can_fork(&self) -> bool {
        self.version >= 2
    }

    /// Gives a guest its own identity, clock and randomness. One of version 1, which cannot be
    /// forked, takes of it what it knows: not the variables, the name servers or the hooks. A guest
    /// that says that it has come to programs of its image has their time on top.
    ///
    /// # Errors
    /// [`AgentError`]; then the guest must not be let on the network.
    pub async fn refresh(&self, refresh: &Refresh, within: Duration) -> Result<Refreshed, AgentError> {
        const TRIED: &str = "refresh the guest";
        let request = if self.can_fork() { ToGuest::Refresh(refresh.clone()) } else { of_version_1(refresh) };
        let mut channel = Channel::open(&self.connection, TRIED, &request)?;
        let (mut patience, mut come_to) = (within, None);
        let refreshed = loop {
            let Ok(answer) = timeout(patience, channel.next()).await else {
                return Err(AgentError::NotRefreshed { within: patience, come_to });
            };
            match answer?.0 {
                ToHost::Refreshing(part) => {
                    come_to = Some(part);
                    patience = within + Duration::from_millis(refresh.hooks_ms.unwrap_or(0).into());
                }
                ToHost::Refreshed(refreshed) => break refreshed,
                ToHost::RefreshedV1 { generation } => break Refreshed { generation, ..Refreshed::default() },
                _ => return Err(channel.protocol("it gives another answer")),
            }
        };
        channel.done();
        if refreshed.generation == refresh.generation {
            Ok(refreshed)
        } else {
            Err(AgentError::OtherGeneration { asked: refresh.generation, told: refreshed.generation })
        }
    }

    /// Sets the guest's clock alone.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn set_clock(&self, realtime_ns: u64, within: Duration) -> Result<(), AgentError> {
        let set = |answer| (answer == ToHost::ClockSet).then_some(());
        self.ask("set the guest's clock", &ToGuest::SetClock { realtime_ns }, within, set).await
    }

    /// Asks for a sign of life.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn ping(&self, within: Duration) -> Result<(), AgentError> {
        self.ask("ping the guest", &ToGuest::Ping, within, |answer| (answer == ToHost::Pong).then_some(())).await
    }

    /// Tells the guest to end: SIGTERM to its program, and SIGKILL to all after `grace`. Returns
    /// when that has begun; the end itself is seen by the program's event and the VMM's.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn shutdown(&self, grace: Duration) -> Result<(), AgentError> {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        let begun = |answer| (answer == ToHost::ShuttingDown).then_some(());
        self.ask("shut the guest down", &ToGuest::Shutdown { grace_ms }, PROMPT, begun).await
    }

    /// What the guest knows of its resources.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn stats(&self) -> Result<GuestStats, AgentError> {
        let stats = |answer| if let ToHost::Stats(stats) = answer { Some(stats) } else { None };
        self.ask("ask the guest for its resources", &ToGuest::Stats, PROMPT, stats).await
    }

    /// Runs a command in the guest. Dropping the session leaves the command running, without input.
    ///
    /// # Errors
    /// [`AgentError`]; `not_found` when there is no such command.
    pub async fn exec(&self, request: ExecStart) -> Result<ExecSession, AgentError> {
        let tried = format!("run {} in the guest", request.argv.first().map_or("nothing", String::as_str));
        let mut channel = Channel::open(&self.connection, &tried, &ToGuest::Exec(request))?;
        match within(PROMPT, &mut channel).await? {
            ToHost::ExecStarted { pid } => Ok(ExecSession::new(channel, pid)),
            _ => Err(channel.protocol("it gives another answer")),
        }
    }

    /// What is at a path of the guest; `None` if nothing is.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn stat(&self, path: &str, follow: bool) -> Result<Option<PathStat>, AgentError> {
        let request = ToGuest::Stat(StatRequest { path: path.to_owned(), follow });
        let stat = |answer| if let ToHost::Stat(stat) = answer { Some(stat) } else { None };
        match self.ask(&format!("look at {path} in the guest"), &request, PROMPT, stat).await {
            Err(AgentError::Refused { kind: ErrorKind::NotFound, .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    /// Begins a copy into the guest.
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn copy_to(&self, start: CopyToStart) -> Result<CopyTo, AgentError> {
        let tried = format!("copy to {} in the guest", start.path);
        let mut channel = Channel::open(&self.connection, &tried, &ToGuest::CopyTo(start))?;
        match within(PROMPT, &mut channel).await? {
            ToHost::CopyReady => Ok(CopyTo::new(channel)),
            _ => Err(channel.protocol("it gives another answer")),
        }
    }

    /// Begins a copy out of the guest: the first entry is the path itself. That the path is not
    /// there is told by the first [`CopyFrom::next`].
    ///
    /// # Errors
    /// [`AgentError`].
    pub async fn copy_from(&self, path: &str, follow_links: bool) -> Result<CopyFrom, AgentError> {
        let request = ToGuest::CopyFrom(CopyFromStart { path: path.to_owned(), follow_links });
        Ok(CopyFrom::new(Channel::open(&self.connection, &format!("copy {path} from the guest"), &request)?))
    }

    /// Ends the connection now, whoever still holds a clone or a session. A QEMU port takes the
    /// next connection only then.
    pub fn close(&self) {
        self.connection.close();
    }

    /// Resolves when the connection is lost.
    pub async fn closed(&self) {
        self.connection.shared.lost().await;
    }

    /// One request, one answer.
    async fn ask<T>(
        &self,
        tried: &str,
        request: &ToGuest,
        patience: Duration,
        read: impl FnOnce(ToHost) -> Option<T>,
    ) -> Result<T, AgentError> {
        let mut channel = Channel::open(&self.connection, tried, request)?;
        let answer = within(patience, &mut channel).await?;
        channel.done();
        read(answer).ok_or_else(|| channel.protocol("it gives another answer"))
    }
}

fn of_version_1(refresh: &Refresh) -> ToGuest {
    ToGuest::RefreshV1(RefreshV1 {
        generation: refresh.generation,
        realtime_ns: refresh.realtime_ns,
        entropy: refresh.entropy.clone(),
        hostname: refresh.hostname.clone(),
        instance_id: refresh.instance_id.clone(),
    })
}

async fn within(patience: Duration, channel: &mut Channel) -> Result<ToHost, AgentError> {
    match timeout(patience, channel.next()).await {
        Ok(answer) => answer.map(|(message, _)| message),
        Err(_) => Err(AgentError::Silent { tried: channel.tried.to_string(), within: patience }),
    }
}
