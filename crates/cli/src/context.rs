//! What every command is handed: where the daemon is, and how to print.

use hearth_api::client::Client;

use crate::error::CliError;
use crate::output::Output;

#[derive(Debug)]
pub(crate) struct Context {
    url: Option<String>,
    pub(crate) output: Output,
}

impl Context {
    pub(crate) fn new(url: Option<String>, json: bool) -> Self {
        Self { url, output: Output { json } }
    }

    /// A client of the daemon; nothing is sent yet.
    pub(crate) fn client(&self) -> Result<Client, CliError> {
        let url = self
            .url
            .clone()
            .or_else(|| variable(["HEARTH_URL", "HYPEMAN_BASE_URL"]))
            .unwrap_or_else(|| format!("http://127.0.0.1:{}", hearth_api::DEFAULT_PORT));
        // Not an option: the arguments of a process are everybody's to read.
        let token = variable(["HEARTH_TOKEN", "HYPEMAN_API_KEY"]);
        Ok(Client::new(&url, token.as_deref())?)
    }
}

/// The first of these that says anything.
fn variable(names: [&str; 2]) -> Option<String> {
    names.into_iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
}
