//! `hearth completion`: a shell's completion script, to stdout. Needs no daemon.

use clap::{CommandFactory, ValueEnum};
use clap_complete::Shell;

use crate::arguments::Cli;
use crate::context::Context;
use crate::error::CliError;

/// ```text
/// hearth completion bash > /etc/bash_completion.d/hearth
/// ```
#[derive(Debug, clap::Args)]
#[command(after_help = "bash:  hearth completion bash > /etc/bash_completion.d/hearth
zsh:   hearth completion zsh > \"${fpath[1]}/_hearth\"
fish:  hearth completion fish > ~/.config/fish/completions/hearth.fish")]
pub(crate) struct Arguments {
    /// Which shell's
    shell: Supported,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Supported {
    Bash,
    Zsh,
    Fish,
}

pub(crate) fn completion(context: &Context, arguments: &Arguments) -> Result<(), CliError> {
    let shell = match arguments.shell {
        Supported::Bash => Shell::Bash,
        Supported::Zsh => Shell::Zsh,
        Supported::Fish => Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "hearth", &mut script);
    context.output.text(&String::from_utf8_lossy(&script))
}
