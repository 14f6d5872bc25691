//! `hearth run`: boots a new instance of an image.
//!
//! Without `--rm` it ends when the instance runs, and the instance goes on. With `--rm` it shows the
//! program's output until the program ends, removes the instance, and exits as the program did.

use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use hearth_api::client::{Client, LogStream};
use hearth_api::instances::{CreateInstance, DeleteInstance, Instance, InstanceState, NetworkRequest, Outbound};
use hearth_api::logs::LogsQuery;
use hearth_api::restart::RestartPolicy;
use hearth_model::ErrorKind;
use hearth_model::network::{Bandwidth, Destination, PortMapping};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::exec::exit_code;
use super::wait::until;
use crate::arguments::{key_value, restart_policy, variable};
use crate::context::Context;
use crate::error::CliError;

/// How long a guest may take to boot, if the server answers before it has.
const BOOT: Duration = Duration::from_secs(300);
/// More lines than any guest has written by the time that we look.
const ALL_LINES: u64 = 100_000;
/// How long the last lines of a log may take to come after the guest has ended.
const LAST_LINES: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "\
  hearth run --name web --size 512MB -e PORT=80 web:1     boots it; it goes on when this ends
  hearth run -p 8080:80 --allow '*.example.com' web:1     a port of the host leads to it
  hearth run --restart on-failure:5 web:1                 boots it again when it has failed
  hearth run --rm bb -- /bin/sh -c 'echo hello'           shows what it prints, and removes it")]
pub(crate) struct Arguments {
    /// Its name, and its hostname [default: made of the image's name]
    #[arg(long)]
    name: Option<String>,
    /// What runs it: firecracker, qemu-microvm, qemu [default: the daemon's]
    #[arg(long)]
    hypervisor: Option<String>,
    /// Its memory, as in 512MB or 2GB [default: the daemon's]
    #[arg(long)]
    size: Option<String>,
    /// Its virtual CPUs [default: the daemon's]
    #[arg(long, value_name = "N")]
    vcpus: Option<u32>,
    /// Size of its writable layer, as in 10GB [default: the daemon's]
    #[arg(long, value_name = "SIZE")]
    overlay_size: Option<String>,
    /// Variable on top of the image's; KEY alone takes its value from here
    #[arg(short, long = "env", value_name = "KEY[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Tag to give it
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = key_value)]
    tags: Vec<(String, String)>,
    /// Program to run instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    entrypoint: Option<String>,
    /// Port of the host that leads to one of its own; PORT alone is the same on both sides
    #[arg(short = 'p', long = "publish", value_name = "HOST:GUEST[/udp]", conflicts_with = "no_network")]
    ports: Vec<PortMapping>,
    /// What it may reach, and nothing else: a network, an address, a name, or *. and a name
    #[arg(long, value_name = "DESTINATION", conflicts_with = "no_network")]
    allow: Vec<Destination>,
    /// Let it reach nothing; who reaches it is answered
    #[arg(long, conflicts_with_all = ["allow", "no_network"])]
    no_outbound: bool,
    /// Speed to it at most, as in 100Mbps or 1MB/s
    #[arg(long, value_name = "SPEED", conflicts_with = "no_network")]
    download: Option<Bandwidth>,
    /// Speed from it at most
    #[arg(long, value_name = "SPEED", conflicts_with = "no_network")]
    upload: Option<Bandwidth>,
    /// Give it no network device
    #[arg(long)]
    no_network: bool,
    /// Its image is a guest that does not run the agent: no exec, no cp, and it runs when its vCPUs do
    #[arg(long)]
    no_agent: bool,
    /// Boot it again when it has ended by itself: never, always, on-failure, on-failure:ATTEMPTS
    #[arg(long, value_name = "WHEN", value_parser = restart_policy, conflicts_with = "rm")]
    restart: Option<RestartPolicy>,
    /// Show its output until its program ends, remove it, and exit as the program did
    #[arg(long)]
    rm: bool,
    /// The image
    image: String,
    /// Command and arguments instead of the image's
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<u8, CliError> {
    let rm = arguments.rm;
    let client = context.client()?;
    let request = request(arguments);
    let doing = format!("booting {}", request.name);
    if rm {
        // From here on an interruption must not leave behind what `--rm` is to remove.
        let mut stop = Stop::catch()?;
        let created = tokio::select! {
            created = context.output.while_waiting(&doing, client.create_attached_instance(&request)) => created?,
            // The server removes it when we hang up.
            code = stop.wanted() => return Ok(code),
        };
        return run_to_the_end(context, &client, &created, stop).await;
    }
    let created = context.output.while_waiting(&doing, client.create_instance(&request)).await?;
    let instance = match created.state {
        // Of a server that answers before the guest is up.
        InstanceState::Initializing => {
            let booted = until(&client, &created.id, InstanceState::Running, Some(BOOT));
            let waited = context.output.while_waiting(&doing, booted).await?;
            let instance = client.instance(&created.id).await?;
            if waited.timed_out {
                return Err(not_running(&instance));
            }
            instance
        }
        _ => created,
    };
    // A program that has ended has run, too.
    let ran = instance.state == InstanceState::Stopped && instance.exit_code.is_some();
    if instance.state != InstanceState::Running && !ran {
        return Err(not_running(&instance));
    }
    context.output.result(&instance, |instance| format!("{}\n", instance.name))?;
    Ok(0)
}

fn request(arguments: Arguments) -> CreateInstance {
    let network = network(&arguments);
    CreateInstance {
        name: arguments.name.unwrap_or_else(|| name_like(&arguments.image)),
        image: arguments.image,
        cmd: (!arguments.command.is_empty()).then_some(arguments.command),
        entrypoint: arguments.entrypoint.map(|program| vec![program]),
        env: (!arguments.env.is_empty()).then(|| arguments.env.into_iter().collect()),
        hypervisor: arguments.hypervisor,
        network,
        overlay_size: arguments.overlay_size,
        restart_policy: arguments.restart,
        skip_guest_agent: arguments.no_agent.then_some(true),
        size: arguments.size,
        tags: (!arguments.tags.is_empty()).then(|| arguments.tags.into_iter().collect()),
        vcpus: arguments.vcpus,
    }
}

/// The network that is asked for; nothing is said of it where nothing was.
fn network(arguments: &Arguments) -> Option<NetworkRequest> {
    let Arguments { ports, allow, no_outbound, download, upload, no_network, .. } = arguments;
    let texts = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let request = NetworkRequest {
        enabled: no_network.then_some(false),
        bandwidth_download: download.map(|speed| speed.to_string()),
        bandwidth_upload: upload.map(|speed| speed.to_string()),
        outbound: no_outbound.then_some(Outbound::None),
        allow: texts(allow.iter().map(ToString::to_string).collect()),
        ports: texts(ports.iter().map(ToString::to_string).collect()),
    };
    (request != NetworkRequest::default()).then_some(request)
}

fn not_running(instance: &Instance) -> CliError {
    let (name, state) = (&instance.name, instance.state.as_str().to_lowercase());
    let (kind, message) = match (&instance.state_error, instance.state) {
        (Some(why), _) => (ErrorKind::VmmFailed, format!("instance {name} did not boot: {why}")),
        (None, InstanceState::Initializing) => {
            (ErrorKind::GuestUnresponsive, format!("instance {name} is still {state} after {} s", BOOT.as_secs()))
        }
        (None, _) => (ErrorKind::VmmFailed, format!("instance {name} did not boot: it is {state}")),
    };
    CliError::new(kind, message)
        .hint(format!("see `hearth timeline {name}` and `hearth logs {name}`; `hearth rm -f {name}` removes it"))
}

/// Somebody wants us to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn catch() -> Result<Self, CliError> {
        let caught = |error| CliError::host("catch signals", &error);
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(caught)?,
            terminate: signal(SignalKind::terminate()).map_err(caught)?,
        })
    }

    /// What to exit with.
    async fn wanted(&mut self) -> u8 {
        tokio::select! {
            _ = self.interrupt.recv() => 128 + 2,
            _ = self.terminate.recv() => 128 + 15,
        }
    }
}

/// Shows the log until the instance has stopped, or somebody interrupts us; removes it either way.
async fn run_to_the_end(
    context: &Context,
    client: &Client,
    created: &Instance,
    mut stop: Stop,
) -> Result<u8, CliError> {
    let mut lines = None;
    let ended = tokio::select! {
        ended = watch(context, client, created, &mut lines) => ended,
        code = stop.wanted() => Ok(code),
    };
    client.delete_instance(&created.id, &DeleteInstance::default()).await?;
    let code = ended?;
    // A log goes on until its instance is gone: now it ends, after what was written last.
    let rest = async {
        while let Some(line) = next_line_or_end(&mut lines).await? {
            super::logs::print(context, &line)?;
        }
        Ok::<_, CliError>(())
    };
    if let Ok(shown) = tokio::time::timeout(LAST_LINES, rest).await {
        shown?;
    }
    Ok(code)
}

async fn watch(
    context: &Context,
    client: &Client,
    created: &Instance,
    lines: &mut Option<LogStream>,
) -> Result<u8, CliError> {
    let query = LogsQuery { tail: Some(ALL_LINES), follow: Some(true), source: None };
    *lines = Some(client.logs(&created.id, &query).await?);
    let mut stopped = std::pin::pin!(until(client, &created.id, InstanceState::Stopped, None));
    let waited = loop {
        tokio::select! {
            line = next_line(lines) => match line? {
                Some(line) => super::logs::print(context, &line)?,
                None => *lines = None,
            },
            waited = &mut stopped => break waited?,
        }
    };
    let instance = client.instance(&created.id).await?;
    match (waited.state, instance.exit_code) {
        (InstanceState::Stopped, Some(code)) => {
            if let Some(message) = instance.exit_message.filter(|_| code != 0) {
                context.output.note(&message);
            }
            Ok(exit_code(code))
        }
        (InstanceState::Stopped, None) => Err(CliError::new(
            ErrorKind::VmmFailed,
            format!("instance {} stopped before its program's end was told", instance.name),
        )),
        _ => Err(not_running(&instance)),
    }
}

/// The next line; waits for ever once the log has ended.
async fn next_line(lines: &mut Option<LogStream>) -> Result<Option<String>, CliError> {
    match lines {
        Some(lines) => Ok(lines.next_line().await?),
        None => std::future::pending().await,
    }
}

async fn next_line_or_end(lines: &mut Option<LogStream>) -> Result<Option<String>, CliError> {
    match lines {
        Some(_) => next_line(lines).await,
        None => Ok(None),
    }
}

/// `web-x7k2q` of `registry.example/team/web:1`.
fn name_like(image: &str) -> String {
    let last = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let base: String = last
        .split(':')
        .next()
        .unwrap_or_default()
        .to_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let base = match base.trim_matches('-') {
        "" => "instance",
        base => base,
    };
    // Random keys are what the hasher is seeded with.
    let mut number = std::hash::RandomState::new().build_hasher().finish();
    let tail: String = (0..5)
        .map(|_| {
            let digit = u32::try_from(number % 36).expect("below 36");
            number /= 36;
            char::from_digit(digit, 36).expect("below 36")
        })
        .collect();
    format!("{base}-{tail}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_made_of_the_images() {
        for (image, begins) in [
            ("web", "web-"),
            ("registry.example:5000/team/Web_App:1.2", "web-app-"),
            ("a/b@sha256:00", "b-"),
            ("", "instance-"),
        ] {
            let name = name_like(image);
            assert!(name.starts_with(begins), "{name}");
            assert!(name.parse::<hearth_model::InstanceName>().is_ok(), "{name}");
        }
        assert_ne!(name_like("web"), name_like("web"));
    }
}
