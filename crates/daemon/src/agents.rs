//! Meeting the agent in a guest, and telling it who it is.

use std::sync::Arc;
use std::time::Duration;

use hearth_agent_client::{Agent, Entropy, Event, EventReceiver, GuestConfig, NetworkConfig, Program, Refresh};
use hearth_model::ErrorKind;
use hearth_model::network::inner;
use hearth_store::InstanceRecord;
use hearth_vmm::Vmm;

use crate::error::OpError;
use crate::registry::random;

/// Dials the guest and waits for its agent's word. A VMM that ends meanwhile is the answer, at
/// once.
pub(crate) async fn meet(vmm: &Arc<Vmm>, within: Duration) -> Result<(Agent, EventReceiver), OpError> {
    let greet = async {
        let stream = vmm.dial_guest().await?;
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

fn died(exit: &hearth_vmm::Exit) -> OpError {
    OpError::new(ErrorKind::VmmFailed, format!("the VMM ended: {}", exit_text(exit)))
        .hinted("the instance's VMM and console logs say why; is the kernel one that boots here? see `hearth doctor`")
}

/// How a VMM ended, and its last words.
pub(crate) fn exit_text(exit: &hearth_vmm::Exit) -> String {
    match exit.log_tail.trim() {
        "" => exit.ended.to_string(),
        log => format!("{}; its log: {log}", exit.ended),
    }
}

/// Who an instance is.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    generation: u64,
    hostname: String,
    instance_id: String,
}

pub(crate) fn identity(record: &InstanceRecord) -> Identity {
    Identity {
        generation: record.generation,
        hostname: record.spec.name.to_string(),
        instance_id: record.id.to_string(),
    }
}

/// Gives a guest its clock, fresh randomness and its name; resolves when it has acknowledged.
pub(crate) async fn refresh(agent: &Agent, identity: &Identity, within: Duration) -> Result<(), OpError> {
    let refresh = Refresh {
        generation: identity.generation,
        realtime_ns: crate::clock::now_ns(),
        entropy: Entropy::new(random()?),
        hostname: identity.hostname.clone(),
        instance_id: identity.instance_id.clone(),
    };
    Ok(agent.refresh(&refresh, within).await?)
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
pub(crate) fn program_exit(event: &Event) -> Option<(i32, String)> {
    match event {
        Event::ProgramExited(exit) => Some((exit.code, exit.message.clone())),
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
        dns: record.spec.network.iter().map(|_| inner::DNS.to_string()).collect(),
        network: record.spec.network.as_ref().map(|_| NetworkConfig {
            address: inner::ADDRESS,
            prefix: inner::PREFIX,
            gateway: Some(inner::GATEWAY),
            mtu: None,
        }),
    }
}
