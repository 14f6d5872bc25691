//! What can be typed: the commands, and the options that all of them take.
//!
//! Each command's own arguments are with the command.

use clap::{Args, Parser, Subcommand};
use hearth_api::restart::{RestartMode, RestartPolicy};

use crate::commands::{
    completion, cp, doctor, exec, fork, image, inspect, logs, ps, restore, rm, run, serve, snapshot, standby, start,
    stop, timeline, token, wait,
};

/// Runs OCI images as microVMs, and restores and forks them from memory snapshots.
#[derive(Debug, Parser)]
#[command(name = "hearth", version, propagate_version = true, max_term_width = 100, after_help = AFTER)]
pub(crate) struct Cli {
    /// Where the daemon listens [env: HEARTH_URL or HYPEMAN_BASE_URL] [default: http://127.0.0.1:4973]
    #[arg(long, global = true, value_name = "URL", help_heading = "Options of all commands")]
    pub(crate) url: Option<String>,

    /// Print results (and errors, on stderr) as JSON
    #[arg(long, global = true, help_heading = "Options of all commands")]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER: &str = "\
The daemon's token, if it wants one, is taken from HEARTH_TOKEN or HYPEMAN_API_KEY.
Instances are named by name, id, or the beginning of an id that no other has.

  hearth doctor --fix                          see what is missing here, and install it
  hearth serve &                               start the daemon
  hearth image import web.tar --name web       import an image
  hearth run --name web web                    boot an instance of it
  hearth standby web && hearth restore web     save its memory, and go on where it was
  hearth fork web copy --count 10              ten more that go on from the same moment";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start the daemon
    Serve(serve::Arguments),
    /// Check what Hearth needs of this host, and what to do about it
    Doctor(doctor::Arguments),

    /// Import, list, show and remove images
    #[command(subcommand, visible_alias = "images")]
    Image(image::Command),

    /// Boot a new instance of an image
    Run(Box<run::Arguments>),
    /// List instances
    #[command(visible_alias = "ls")]
    Ps(ps::Arguments),
    /// Show all about an instance
    Inspect(inspect::Arguments),
    /// Run a command in an instance
    Exec(exec::Arguments),
    /// Copy files and directories into an instance or out of it
    Cp(cp::Arguments),
    /// Show an instance's log
    Logs(logs::Arguments),
    /// Boot a stopped instance
    Start(start::Arguments),
    /// Shut an instance down; its memory is lost, its disk stays
    Stop(stop::Arguments),
    /// Save an instance's memory and end its VMM
    Standby(standby::Arguments),
    /// Bring an instance back from standby: it goes on where it was
    Restore(restore::Arguments),
    /// Make new instances that go on from where another one is
    Fork(fork::Arguments),
    /// Remove instances
    Rm(rm::Arguments),
    /// Wait until an instance is in some state
    Wait(wait::Arguments),
    /// Show what an instance's operations did, and how long each step took
    Timeline(timeline::Arguments),

    /// Save instances, and make others of what was saved
    #[command(subcommand, visible_alias = "snapshots")]
    Snapshot(snapshot::Command),

    /// Make tokens for a daemon that wants them
    #[command(subcommand)]
    Token(token::Command),
    /// Print a shell's completion script
    Completion(completion::Arguments),
}

/// One or several instances.
#[derive(Debug, Args)]
pub(crate) struct Instances {
    /// Names or ids of instances
    #[arg(value_name = "NAME", required = true)]
    pub(crate) names: Vec<String>,
}

/// `KEY=VALUE`.
pub(crate) fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("must be KEY=VALUE".into()),
    }
}

/// `KEY=VALUE`, or `KEY` for the value that it has here.
pub(crate) fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("must be KEY=VALUE or KEY".into()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("{text} is not set here: give it a value with {text}=…")),
        },
    }
}

/// When to boot it again, as Docker's users type it: `never`, `always`, `on-failure`, and with the
/// most attempts in a row `on-failure:3`.
pub(crate) fn restart_policy(text: &str) -> Result<RestartPolicy, String> {
    let (when, most) = match text.split_once(':') {
        Some((when, most)) => (when, Some(most)),
        None => (text, None),
    };
    let policy = match when {
        "never" | "no" => RestartMode::Never,
        "always" => RestartMode::Always,
        "on-failure" | "on_failure" => RestartMode::OnFailure,
        _ => return Err("must be never, always, on-failure, or on-failure:ATTEMPTS".into()),
    };
    let max_attempts = match (most, policy) {
        (None, _) => None,
        (Some(_), RestartMode::Never) => return Err("never has no number of attempts".into()),
        (Some(most), RestartMode::Always | RestartMode::OnFailure) => {
            Some(most.parse().map_err(|_| format!("{most:?} is not a number of attempts"))?)
        }
    };
    Ok(RestartPolicy { policy: Some(policy), max_attempts, ..RestartPolicy::default() })
}

/// A state by its name, in any case.
pub(crate) fn state(text: &str) -> Result<hearth_api::instances::InstanceState, String> {
    let known = hearth_api::instances::InstanceState::ALL;
    known
        .into_iter()
        .find(|state| state.as_str().eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("must be one of {}", known.map(|state| state.as_str().to_lowercase()).join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn no_two_commands_want_the_same_option() {
        Cli::command().debug_assert();
    }

    /// Each command that does something, by its words.
    fn leaves(command: &clap::Command, words: &str, found: &mut Vec<(String, Vec<String>)>) {
        let mut groups = command.get_subcommands().filter(|sub| sub.get_name() != "help").peekable();
        if groups.peek().is_none() {
            let flags = command.get_arguments().filter(|argument| !argument.is_global_set());
            found.push((words.to_owned(), flags.filter_map(|flag| flag.get_long().map(str::to_owned)).collect()));
        }
        for sub in groups {
            leaves(sub, &format!("{words} {}", sub.get_name()), found);
        }
    }

    /// A section each, with every option in it, none that is not there, and an example.
    #[test]
    fn the_documentation_has_every_command_and_option() {
        let text = include_str!("../../../docs/cli.md");
        let sections: std::collections::BTreeMap<&str, &str> =
            text.split("\n### `").skip(1).filter_map(|section| section.split_once("`\n")).collect();
        let mut commands = Vec::new();
        leaves(&Cli::command(), "hearth", &mut commands);
        assert!(commands.len() > 20, "{commands:?}");
        for (words, flags) in &commands {
            let section = sections.get(words.as_str()).unwrap_or_else(|| panic!("docs/cli.md: no section `{words}`"));
            // Another part of the document may follow.
            let section = section.split("\n## ").next().unwrap_or_default();
            let (told, examples) = section.split_once("```console").unwrap_or_else(|| panic!("{words}: no example"));
            assert!(examples.contains(words.as_str()), "{words}: its example is of something else");
            for flag in flags {
                assert!(told.contains(&format!("--{flag}")), "docs/cli.md: `{words}` without --{flag}");
            }
            for word in told.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')) {
                let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else { continue };
                let known = flags.iter().any(|known| known == flag) || flag == "json";
                assert!(known, "docs/cli.md: `{words}` has no --{flag}");
            }
        }
        for heading in sections.keys() {
            assert!(commands.iter().any(|(words, _)| words == heading), "docs/cli.md: there is no `{heading}`");
        }
    }

    #[test]
    fn restarting_is_asked_for_as_dockers_users_do() {
        let of = |text: &str| restart_policy(text).map(|policy| (policy.policy.expect("one"), policy.max_attempts));
        assert_eq!(of("never"), Ok((RestartMode::Never, None)));
        assert_eq!(of("always"), Ok((RestartMode::Always, None)));
        assert_eq!(of("always:2"), Ok((RestartMode::Always, Some(2))));
        assert_eq!(of("on-failure"), Ok((RestartMode::OnFailure, None)));
        assert_eq!(of("on_failure:5"), Ok((RestartMode::OnFailure, Some(5))));
        for wrong in ["", "sometimes", "on-failure:", "on-failure:many", "on-failure:-1", "never:3"] {
            assert!(restart_policy(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn variables_are_given_or_taken_from_here() {
        assert_eq!(variable("A=1=2"), Ok(("A".into(), "1=2".into())));
        assert_eq!(variable("A="), Ok(("A".into(), String::new())));
        let path = std::env::var("PATH").expect("every shell has one");
        assert_eq!(variable("PATH"), Ok(("PATH".into(), path)));
        assert!(variable("NO_SUCH_VARIABLE_HERE").is_err_and(|why| why.contains("not set here")));
        assert!(variable("=1").is_err());
    }
}
