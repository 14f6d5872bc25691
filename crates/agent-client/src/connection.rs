//! One stream: a task that reads it, a task that writes it, and channels between them and callers.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hearth_agent_proto::{
    CONTROL, Decoder, Encoder, OVERHEAD, Overrun, ProgramExit, ReceiveWindow, SendWindow, ToGuest, ToHost, Welcome,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::task::AbortHandle;

use crate::error::AgentError;

/// Events that wait for their receiver; a guest has two in its life.
const EVENTS: usize = 64;

/// What a guest that does not read may leave lying here of what no window bounds: requests, signals,
/// grants. Then its connection is given up.
const MOST_UNREAD: usize = 16 << 20;

/// So much a guest may say in one [`BREATH`] of what no window bounds: junk, frames of nobody, answers.
/// What is beyond it is read in the next one, so that a guest that floods costs neither a core nor the
/// others' time: its own writes wait. More than is left in the stream of one that is restored.
const NOISE: usize = 4 << 20;
const BREATH: Duration = Duration::from_secs(1);

/// What came in on a channel.
pub type Incoming = Result<(ToHost, Bytes), Overrun>;

/// The guest's answer to the handshake.
pub type Handshake = Result<Welcome, u32>;

/// What the guest tells unasked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The program runs.
    ProgramStarted {
        /// Its process id in the guest.
        pid: u32,
    },
    /// The program has ended or could not start; the guest ends next.
    ProgramExited(ProgramExit),
}

/// Ends both tasks, and with them the stream, when the last user has gone.
#[derive(Debug)]
pub struct Connection {
    pub shared: Arc<Shared>,
    tasks: [AbortHandle; 2],
}

impl Connection {
    /// Ends the stream, for everybody who uses it.
    pub fn close(&self) {
        for task in &self.tasks {
            task.abort();
        }
        self.shared.lose();
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

#[derive(Debug)]
pub struct Shared {
    epoch: u64,
    next_channel: AtomicU32,
    channels: Mutex<HashMap<u32, Arc<Slot>>>,
    outgoing: mpsc::UnboundedSender<Queued>,
    /// Bytes in that queue which no window bounds.
    unread: AtomicUsize,
    lost: watch::Sender<bool>,
}

/// A frame on its way to the guest.
#[derive(Debug)]
struct Queued {
    frame: Vec<u8>,
    /// What it adds to [`Shared::unread`].
    counted: usize,
}

/// One channel, as the reader sees it.
#[derive(Debug)]
struct Slot {
    incoming: mpsc::UnboundedSender<Incoming>,
    windows: Mutex<Windows>,
    granted: Notify,
    /// How many messages may still come that are not flow-controlled.
    answers: AtomicU32,
}

/// More than any request has answers.
const ANSWERS: u32 = 16;

#[derive(Debug, Default)]
struct Windows {
    send: SendWindow,
    receive: ReceiveWindow,
}

/// One request's channel. Dropping it tells the guest that nobody listens any more.
#[derive(Debug)]
pub struct Channel {
    pub tried: Arc<str>,
    sender: Sender,
    incoming: mpsc::UnboundedReceiver<Incoming>,
}

/// The sending half of a channel.
#[derive(Debug, Clone)]
pub struct Sender(Arc<Open>);

#[derive(Debug)]
struct Open {
    connection: Arc<Connection>,
    id: u32,
    slot: Arc<Slot>,
}

impl Drop for Open {
    fn drop(&mut self) {
        let shared = &self.connection.shared;
        if lock(&shared.channels).remove(&self.id).is_some() {
            // It is small, and if nobody sends it any more the guest sees the stream's end.
            let _ = shared.send(self.id, &ToGuest::Close);
        }
    }
}

/// A poisoned lock guards plain data here, which is whole after every statement.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the tasks of a stream and sends the first message.
pub fn open<S>(stream: S, epoch: u64) -> (Connection, oneshot::Receiver<Handshake>, mpsc::Receiver<Event>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (outgoing, to_write) = mpsc::unbounded_channel();
    let shared = Arc::new(Shared {
        epoch,
        next_channel: AtomicU32::new(CONTROL + 1),
        channels: Mutex::default(),
        outgoing,
        unread: AtomicUsize::new(0),
        lost: watch::Sender::new(false),
    });
    let _ = shared.send(CONTROL, &ToGuest::Hello { version: hearth_agent_proto::VERSION });
    let (reading, writing) = tokio::io::split(stream);
    let (handshake, answered) = oneshot::channel();
    let (events, to_caller) = mpsc::channel(EVENTS);
    let reader =
        Reader { shared: Arc::clone(&shared), handshake: Some(handshake), fell_back: false, complained: false, events };
    let read = tokio::spawn(reader.run(reading)).abort_handle();
    let write = tokio::spawn(write(writing, to_write, Arc::clone(&shared))).abort_handle();
    (Connection { shared, tasks: [read, write] }, answered, to_caller)
}

impl Shared {
    /// Queues one message. A lost stream is noticed by whoever waits for the answer.
    pub fn send(&self, channel: u32, message: &ToGuest) -> Result<(), hearth_agent_proto::TooLarge> {
        let frame = self.frame(channel, message, &[])?;
        let counted = frame.len();
        if *self.lost.borrow() {
            return Ok(());
        }
        if self.unread.fetch_add(counted, Ordering::Relaxed) > MOST_UNREAD {
            tracing::warn!(bytes = MOST_UNREAD, "the guest does not read what it is told: its connection is given up");
            self.lose();
        }
        let _ = self.outgoing.send(Queued { frame, counted });
        Ok(())
    }

    /// The same for a message that the channel's window has room for.
    fn send_within_window(
        &self,
        channel: u32,
        message: &ToGuest,
        data: &[u8],
    ) -> Result<(), hearth_agent_proto::TooLarge> {
        let frame = self.frame(channel, message, data)?;
        let _ = self.outgoing.send(Queued { frame, counted: 0 });
        Ok(())
    }

    fn frame(&self, channel: u32, message: &ToGuest, data: &[u8]) -> Result<Vec<u8>, hearth_agent_proto::TooLarge> {
        let mut frame = Vec::with_capacity(data.len() + 64);
        Encoder::default().encode(&mut frame, self.epoch, channel, message, data)?;
        Ok(frame)
    }

    /// Resolves when the stream has ended.
    pub async fn lost(&self) {
        // The sender lives in self: this cannot fail before it is true.
        let _ = self.lost.subscribe().wait_for(|lost| *lost).await;
    }

    fn lose(&self) {
        self.lost.send_replace(true);
        // Whoever waits on a channel is woken by its end.
        lock(&self.channels).clear();
    }
}

impl Channel {
    /// Opens a channel with a request.
    pub fn open(connection: &Arc<Connection>, tried: &str, request: &ToGuest) -> Result<Self, AgentError> {
        let shared = &connection.shared;
        let id = shared.next_channel.fetch_add(1, Ordering::Relaxed);
        let (to_caller, incoming) = mpsc::unbounded_channel();
        let slot = Arc::new(Slot {
            incoming: to_caller,
            windows: Mutex::default(),
            granted: Notify::new(),
            answers: AtomicU32::new(ANSWERS),
        });
        lock(&shared.channels).insert(id, Arc::clone(&slot));
        let open = Open { connection: Arc::clone(connection), id, slot };
        let channel = Self { tried: tried.into(), sender: Sender(Arc::new(open)), incoming };
        if *shared.lost.borrow() {
            return Err(AgentError::lost(tried));
        }
        channel.sender.send(tried, request)?;
        Ok(channel)
    }

    pub fn sender(&self) -> Sender {
        self.sender.clone()
    }

    /// The next message of the guest; its data counts as consumed.
    pub async fn next(&mut self) -> Result<(ToHost, Bytes), AgentError> {
        let received = tokio::select! {
            biased;
            received = self.incoming.recv() => received,
            // What had come before the end was received above.
            () = self.sender.0.connection.shared.lost() => None,
        };
        match received {
            None => Err(AgentError::lost(&self.tried)),
            Some(Err(Overrun)) => Err(self.protocol("it ignores flow control")),
            Some(Ok((ToHost::Error(failure), _))) => Err(AgentError::refused(&self.tried, failure)),
            Some(Ok((message, data))) => {
                if let Some(bytes) = contents(&message, data.len()) {
                    let grant = lock(&self.sender.0.slot.windows).receive.consumed(bytes);
                    if let Some(grant) = grant {
                        self.sender.send(&self.tried, &ToGuest::Credit(grant))?;
                    }
                }
                Ok((message, data))
            }
        }
    }

    /// Notes that its only answer has come: there is nothing to tell the guest at the end.
    pub fn done(&self) {
        lock(&self.sender.0.connection.shared.channels).remove(&self.sender.0.id);
    }

    pub fn protocol(&self, problem: &'static str) -> AgentError {
        AgentError::Protocol { tried: self.tried.to_string(), problem }
    }
}

impl Sender {
    /// Whether the guest has closed the channel, or is gone.
    pub fn is_closed(&self) -> bool {
        !lock(&self.0.connection.shared.channels).contains_key(&self.0.id)
    }

    pub fn send(&self, tried: &str, message: &ToGuest) -> Result<(), AgentError> {
        let shared = &self.0.connection.shared;
        shared.send(self.0.id, message).map_err(|source| AgentError::TooLarge { tried: tried.to_owned(), source })
    }

    /// Sends a flow-controlled message, after the guest has room for it.
    pub async fn send_flow(&self, tried: &str, message: &ToGuest, data: &[u8]) -> Result<(), AgentError> {
        let contents = if let ToGuest::Entry(entry) = message { entry.cost() } else { data.len() };
        let (slot, shared) = (&self.0.slot, &self.0.connection.shared);
        loop {
            let mut granted = std::pin::pin!(slot.granted.notified());
            // From here on a grant is not missed, though nobody awaits it yet.
            granted.as_mut().enable();
            {
                let mut windows = lock(&slot.windows);
                if windows.send.is_open() {
                    windows.send.spend(contents);
                    break;
                }
            }
            if self.is_closed() {
                break;
            }
            tokio::select! {
                () = granted => {}
                () = shared.lost() => return Err(AgentError::lost(tried)),
            }
        }
        shared
            .send_within_window(self.0.id, message, data)
            .map_err(|source| AgentError::TooLarge { tried: tried.to_owned(), source })
    }
}

/// What a message counts against its channel's window; `None` if it is not flow-controlled.
fn contents(message: &ToHost, data: usize) -> Option<usize> {
    match message {
        ToHost::Stdout | ToHost::Stderr | ToHost::Data => Some(data),
        ToHost::Entry(entry) => Some(entry.cost()),
        ToHost::EntryEnd => Some(0),
        _ => None,
    }
}

async fn write<S: AsyncWrite>(
    mut stream: WriteHalf<S>,
    mut frames: mpsc::UnboundedReceiver<Queued>,
    shared: Arc<Shared>,
) {
    let mut batch = Vec::new();
    while let Some(first) = frames.recv().await {
        batch.clear();
        batch.extend_from_slice(&first.frame);
        let mut counted = first.counted;
        while batch.len() < 256 * 1024
            && let Ok(next) = frames.try_recv()
        {
            batch.extend_from_slice(&next.frame);
            counted += next.counted;
        }
        if let Err(error) = write_batch(&mut stream, &batch).await {
            tracing::debug!(%error, "guest channel cannot be written");
            shared.lose();
            return;
        }
        shared.unread.fetch_sub(counted, Ordering::Relaxed);
    }
}

async fn write_batch<S: AsyncWrite>(stream: &mut WriteHalf<S>, batch: &[u8]) -> io::Result<()> {
    stream.write_all(batch).await?;
    stream.flush().await
}

struct Reader {
    shared: Arc<Shared>,
    handshake: Option<oneshot::Sender<Handshake>>,
    fell_back: bool,
    /// That it cannot be understood was told.
    complained: bool,
    events: mpsc::Sender<Event>,
}

impl Reader {
    async fn run<S: AsyncRead>(mut self, mut stream: ReadHalf<S>) {
        let mut decoder = Decoder::default();
        let mut input = vec![0; 64 * 1024];
        let (mut noise, mut breath) = (0_usize, Instant::now());
        loop {
            match stream.read(&mut input).await {
                Ok(0) => break,
                Ok(bytes) => {
                    let (mut rest, mut useful) = (&input[..bytes], 0);
                    while let Some(frame) = decoder.next(&mut rest) {
                        if frame.epoch != self.shared.epoch {
                            continue;
                        }
                        match frame.message::<ToHost>() {
                            Ok((message, data)) => useful += self.take(frame.channel, message, data),
                            Err(error) => self.complain(&error),
                        }
                    }
                    // The end of a frame counts what came of it earlier: never below none.
                    noise = (noise + bytes).saturating_sub(useful);
                    let left = BREATH.saturating_sub(breath.elapsed());
                    if noise > NOISE {
                        tokio::time::sleep(left).await;
                    }
                    if noise > NOISE || left.is_zero() {
                        (noise, breath) = (0, Instant::now());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "guest channel cannot be read");
                    break;
                }
            }
        }
        self.shared.lose();
    }

    /// Once per connection: whoever sends one thing that is none sends more.
    fn complain(&mut self, problem: &dyn std::fmt::Display) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%problem, "a guest says on its channel what nobody understands; more of it is not told");
        }
    }

    /// Gives it to whom it is for: how many bytes were contents that somebody waits for.
    fn take(&mut self, channel: u32, message: ToHost, data: &[u8]) -> usize {
        if channel == CONTROL {
            self.control(message);
            return 0;
        }
        let mut channels = lock(&self.shared.channels);
        // A channel that its caller has closed may still have messages under way.
        let Some(slot) = channels.get(&channel) else { return 0 };
        if let ToHost::Credit(bytes) = message {
            lock(&slot.windows).send.grant(bytes);
            slot.granted.notify_waiters();
            return 0;
        }
        let contents = contents(&message, data.len());
        let counted = match contents {
            Some(bytes) => lock(&slot.windows).receive.received(bytes),
            // Answers: a request has two at most, so a flood of them is none.
            None => slot
                .answers
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .map_or(Err(Overrun), |_| Ok(())),
        };
        let is_last = matches!(message, ToHost::Exited(_) | ToHost::CopyDone(_) | ToHost::Error(_)) || counted.is_err();
        let _ = slot.incoming.send(counted.map(|()| (message, Bytes::copy_from_slice(data))));
        if is_last {
            slot.granted.notify_waiters();
            channels.remove(&channel);
        }
        // What a window bounds is taken as fast as its reader likes.
        contents.map_or(0, |bytes| bytes + OVERHEAD)
    }

    /// Whether to ask once more, in an older guest's version.
    fn falls_back_to(&mut self, version: u32) -> bool {
        let speaks = hearth_agent_proto::speaks(version) && version != hearth_agent_proto::VERSION;
        speaks && !std::mem::replace(&mut self.fell_back, true)
    }

    fn control(&mut self, message: ToHost) {
        let event = match message {
            ToHost::Welcome(welcome) => {
                if matches!(welcome.program, hearth_agent_proto::ProgramState::Exited(_)) {
                    let _ = self.shared.send(CONTROL, &ToGuest::ProgramExitSeen);
                }
                if let Some(handshake) = self.handshake.take() {
                    let _ = handshake.send(Ok(welcome));
                }
                return;
            }
            ToHost::Refused { version } if self.falls_back_to(version) => {
                let _ = self.shared.send(CONTROL, &ToGuest::Hello { version });
                return;
            }
            ToHost::Refused { version } => {
                if let Some(handshake) = self.handshake.take() {
                    let _ = handshake.send(Err(version));
                }
                return;
            }
            ToHost::ProgramStarted { pid } => Event::ProgramStarted { pid },
            ToHost::ProgramExited(exit) => Event::ProgramExited(exit),
            _ => {
                self.complain(&"an answer that belongs to no request");
                return;
            }
        };
        let is_exit = matches!(event, Event::ProgramExited(_));
        // Full only if the guest invents events, or if nobody wants them.
        let _ = self.events.try_send(event);
        if is_exit {
            let _ = self.shared.send(CONTROL, &ToGuest::ProgramExitSeen);
        }
    }
}
