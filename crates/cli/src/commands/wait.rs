//! `hearth wait`: until an instance is in some state.

use std::time::{Duration, Instant};

use hearth_api::client::Client;
use hearth_api::instances::{InstanceState, WaitQuery, Waited};
use hearth_model::ErrorKind;

use crate::arguments::state;
use crate::context::Context;
use crate::error::CliError;

/// The most that the server waits for one request.
const AT_ONCE: Duration = Duration::from_secs(300);

#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Name or id of the instance
    name: String,
    /// What to wait for: running, standby, stopped
    #[arg(long, default_value = "running", value_parser = state)]
    state: InstanceState,
    /// How long at most, as in 90s or 5m
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::duration::parse)]
    timeout: Duration,
}

pub(crate) async fn wait(context: &Context, arguments: Arguments) -> Result<(), CliError> {
    let Arguments { name, state, timeout } = arguments;
    let client = context.client()?;
    let doing = format!("waiting until {name} is {}", state.as_str().to_lowercase());
    let waited = context.output.while_waiting(&doing, until(&client, &name, state, Some(timeout))).await?;
    if waited.state != state {
        return Err(not_reached(&name, state, &waited, timeout));
    }
    context.output.result(&waited, |waited| format!("{}\n", waited.state))
}

/// Waits until it is in that state, or in one that does not lead there, or time is up.
pub(crate) async fn until(
    client: &Client,
    name: &str,
    state: InstanceState,
    timeout: Option<Duration>,
) -> Result<Waited, CliError> {
    let began = Instant::now();
    loop {
        let left = timeout.map_or(AT_ONCE, |timeout| timeout.saturating_sub(began.elapsed()));
        let at_once = left.min(AT_ONCE);
        let query = WaitQuery { state, timeout: Some(format!("{}s", at_once.as_secs_f64().ceil().max(1.0))) };
        let waited = client.wait(name, &query).await?;
        if !waited.timed_out || (timeout.is_some() && left <= AT_ONCE) {
            return Ok(waited);
        }
    }
}

fn not_reached(name: &str, state: InstanceState, waited: &Waited, timeout: Duration) -> CliError {
    let (wanted, is) = (state.as_str().to_lowercase(), waited.state.as_str().to_lowercase());
    let error = if waited.timed_out {
        let message = format!("instance {name} is still {is} after {} s, not {wanted}", timeout.as_secs());
        CliError::new(ErrorKind::GuestUnresponsive, message)
    } else {
        CliError::new(ErrorKind::WrongState, format!("instance {name} is {is}, and will not be {wanted} by itself"))
    };
    match &waited.state_error {
        Some(why) => error.hint(why.clone()),
        None => error.hint(format!("see `hearth logs {name}` and `hearth timeline {name}`")),
    }
}
