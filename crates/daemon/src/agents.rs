//! Meeting the agent in a guest, and telling it who it is.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hearth_agent_client::{
    Agent, Entropy, Event, EventReceiver, GuestConfig, NetworkConfig, Program, Refresh, Refreshed,
};
use hearth_model::ErrorKind;
use hearth_model::network::inner;
use hearth_store::{InstanceRecord, ProgramExit};
use hearth_vmm::Vmm;

use crate::error::OpError;
use crate::registry::random;

/// Dials the guest and waits for its agent's word, for each so long. A VMM that ends meanwhile is the
/// answer, at once.
pub(crate) async fn meet(vmm: &Arc<Vmm>, within: Duration) -> Result<(Agent, EventReceiver), OpError> {
    let greet = async {
        // Dropping it closes a socket, and nothing else.
        let dialled = tokio::time::timeout(within, vmm.dial_guest()).await;
        let stream = dialled.map_err(|_| {
            let message = format!("the guest has taken no connection for {} s", within.as_secs());
            OpError::new(ErrorKind::GuestUnresponsive, message)
        })??;
        let (agent, welcome, events) = Agent::connect(stream, within).await?;
        if let Some(why) = welcome.boot_failure {
            return Err(OpError::new(ErrorKind::GuestUnresponsive, format!("the guest could not come up: {why}")));
        }
        Ok((agent, events))
    };
    tokio::select! {
        biased;
        met = greet => met,
        exit = vmm.exited() => Err(died(&exit)),
    }
}

/// A VMM that ended while something was wanted of its guest.
pub(crate) fn died(exit: &hearth_vmm::Exit) -> OpError {
    OpError::new(ErrorKind::VmmFailed, format!("the VMM ended: {}", exit_text(exit)))
        .hinted("the instance's VMM and console logs say why; is the kernel one that boots here? see `hearth doctor`")
}

/// How a VMM ended, and its last words.
pub(crate) fn exit_text(exit: &hearth_vmm::Exit) -> String {
    let memory = if exit.out_of_memory { "; the host ran out of memory for it" } else { "" };
    match exit.log_tail.trim() {
        "" => format!("{}{memory}", exit.ended),
        log => format!("{}{memory}; its log: {log}", exit.ended),
    }
}

/// How long a guest that has gone silent may take to welcome somebody else.
const SECOND_LOOK: Duration = Duration::from_secs(2);

/// From a VMM's sockets being closed to its end being known.
pub(crate) const ENDING: Duration = Duration::from_secs(1);

/// Says of a guest that has gone silent what it does with another connection: whether it stands still
/// as a whole, or only what was asked of it; or that its VMM has ended, and how.
pub(crate) async fn look_again(vmm: &Arc<Vmm>, error: OpError) -> OpError {
    if error.kind != ErrorKind::GuestUnresponsive {
        return error;
    }
    let seen = match meet(vmm, SECOND_LOOK).await {
        Ok(_) => "to another connection it answers",
        Err(again) if again.kind == ErrorKind::GuestUnresponsive => "to another connection it does not answer either",
        Err(again) => match tokio::time::timeout(ENDING, vmm.exited()).await {
            Ok(exit) => return died(&exit),
            Err(_) => {
                return OpError {
                    message: format!("{}; another connection: {}", error.message, again.message),
                    ..error
                };
            }
        },
    };
    OpError { message: format!("{}; {seen}", error.message), ..error }
}

/// How far behind the host's a guest's clock may be set: a clock that was set late is set again so often,
/// until it was not. A host with more to do than it can is asked for less, but for longer.
const CLOCK_TOLERANCES: [(usize, Duration); 2] = [(4, Duration::from_millis(5)), (20, Duration::from_millis(25))];

/// So many complaints of a guest are told, with so many characters each.
const COMPLAINTS: usize = 8;
const COMPLAINT: usize = 400;

/// Who an instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    generation: u64,
    hostname: String,
    instance_id: String,
    env: Vec<String>,
    dns: Vec<String>,
    /// Its guest may believe that it is another's.
    may_be_another: bool,
    /// How long its hooks may take; none run unless it comes back.
    hooks: Option<Duration>,
}

pub(crate) fn identity(record: &InstanceRecord) -> Identity {
    Identity {
        generation: record.generation,
        hostname: record.spec.name.to_string(),
        instance_id: record.id.to_string(),
        env: record.spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect(),
        dns: name_servers(record),
        may_be_another: record.source.is_some() && record.generation == 1,
        hooks: None,
    }
}

impl Identity {
    /// Of a guest whose memory comes back.
    pub(crate) fn coming_back(self, hooks: Duration) -> Self {
        Self { hooks: Some(hooks), ..self }
    }
}

/// A refresh that the guest has acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    refreshed: Refreshed,
    /// How far behind the host's the guest's clock is, at most.
    clock_behind: Duration,
}

impl fmt::Display for Acknowledged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Refreshed { generation, forked, took_us, minor_faults, major_faults, hooks, complaints } = &self.refreshed;
        let ms = |time: Duration| time.as_secs_f64() * 1000.0;
        let (guest, behind) = (ms(Duration::from_micros((*took_us).into())), ms(self.clock_behind));
        write!(f, "generation {generation}, {} page faults, {guest:.1} ms in the guest", minor_faults + major_faults)?;
        write!(f, ", clock within {behind:.1} ms")?;
        if *forked {
            f.write_str(", a fork")?;
        }
        match hooks {
            0 => {}
            1 => f.write_str(", 1 hook")?,
            hooks => write!(f, ", {hooks} hooks")?,
        }
        complaints.iter().try_for_each(|complaint| write!(f, "; {complaint}"))
    }
}

/// Gives a guest its clock, fresh randomness, its names and what else it must not share; resolves
/// when it has acknowledged that.
pub(crate) async fn refresh(agent: &Agent, identity: &Identity, within: Duration) -> Result<Acknowledged, OpError> {
    if identity.may_be_another && !agent.can_fork() {
        let message = "the agent in the snapshot is of an older hearth, and cannot make a fork itself";
        return Err(OpError::new(ErrorKind::Incompatible, message)
            .hinted("stop and start the source, so that it boots with this hearth's agent, and fork that"));
    }
    let refresh = Refresh {
        generation: identity.generation,
        realtime_ns: crate::clock::now_ns(),
        entropy: Entropy::new(random()?),
        hostname: identity.hostname.clone(),
        instance_id: identity.instance_id.clone(),
        env: identity.env.clone(),
        dns: identity.dns.clone(),
        hooks_ms: identity.hooks.map(|hooks| u32::try_from(hooks.as_millis()).unwrap_or(u32::MAX)),
    };
    let sent = Instant::now();
    let mut refreshed = agent.refresh(&refresh, within).await?;
    // The guest's time counts from its clock being set: what passed before and after, it is behind at most.
    let mut clock_behind = sent.elapsed().saturating_sub(Duration::from_micros(refreshed.took_us.into()));
    let tolerances = CLOCK_TOLERANCES.into_iter().flat_map(|(attempts, most)| std::iter::repeat_n(most, attempts));
    for tolerance in tolerances {
        if clock_behind <= tolerance || !agent.can_fork() {
            break;
        }
        let sent = Instant::now();
        agent.set_clock(crate::clock::now_ns(), within).await?;
        clock_behind = sent.elapsed();
    }
    refreshed.complaints.truncate(COMPLAINTS);
    for complaint in &mut refreshed.complaints {
        // The guest's words, whoever it is.
        complaint.retain(|c| !c.is_control());
        *complaint = complaint.chars().take(COMPLAINT).collect();
        tracing::warn!(instance = %identity.hostname, %complaint, "the guest is refreshed but for this");
    }
    Ok(Acknowledged { refreshed, clock_behind })
}

/// Configures a booted guest and waits until its program has started.
pub(crate) async fn start_program(
    vmm: &Arc<Vmm>,
    agent: &Agent,
    events: &mut EventReceiver,
    record: &InstanceRecord,
    within: Duration,
) -> Result<(), OpError> {
    agent.configure(&guest_config(record)).await?;
    let started = async {
        match events.next().await {
            Some(Event::ProgramStarted { .. }) => Ok(()),
            Some(Event::ProgramExited(exit)) => Err(not_started(record, &exit.message)),
            None => Err(OpError::new(ErrorKind::GuestUnresponsive, "the agent's connection ended")),
        }
    };
    tokio::select! {
        biased;
        started = tokio::time::timeout(within, started) => started.unwrap_or_else(|_| {
            Err(OpError::new(ErrorKind::GuestUnresponsive, "the guest did not start its program in time"))
        }),
        exit = vmm.exited() => Err(died(&exit)),
    }
}

/// The image has no such command, or the guest may not run it.
fn not_started(record: &InstanceRecord, why: &str) -> OpError {
    let command = record.spec.program.argv.first().map_or("", String::as_str);
    OpError::new(
        ErrorKind::Invalid,
        format!("the program {command:?} of image {} did not start: {why}", record.spec.image),
    )
    .hinted("give a command that the image has")
}

/// How the program ended, if that is what an event tells.
pub(crate) fn program_exit(event: &Event) -> Option<ProgramExit> {
    match event {
        Event::ProgramExited(exit) => Some(ProgramExit {
            code: exit.code,
            message: exit.message.clone(),
            signal: exit.signal.map(i32::from),
            ..ProgramExit::default()
        }),
        Event::ProgramStarted { .. } => None,
    }
}

fn guest_config(record: &InstanceRecord) -> GuestConfig {
    let program = &record.spec.program;
    GuestConfig {
        hostname: record.spec.name.to_string(),
        instance_id: record.id.to_string(),
        program: Program {
            argv: program.argv.clone(),
            env: program.env.clone(),
            workdir: program.workdir.clone(),
            user: program.user.clone(),
        },
        dns: name_servers(record),
        network: record.spec.network.as_ref().map(|_| NetworkConfig {
            address: inner::ADDRESS,
            prefix: inner::PREFIX,
            gateway: Some(inner::GATEWAY),
            mtu: None,
        }),
    }
}

fn name_servers(record: &InstanceRecord) -> Vec<String> {
    record.spec.network.iter().map(|_| inner::DNS.to_string()).collect()
}
