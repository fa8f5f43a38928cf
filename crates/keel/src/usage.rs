//! What is said about a command line that can't be parsed.
//!
//! Commands and options of `docker compose` that are not here get an answer of their own; everything else gets that of the
//! parser, whose guess at a similar name would mislead.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory as _, Error};

use crate::cli::Cli;
use crate::failure::{Failure, USAGE};

const CONTAINERS: &str = "not in this version; it concerns containers and images";

/// Commands of `docker compose` that are not here, and what to do instead.
const COMMANDS: &[(&str, &str)] = &[
    ("commit", CONTAINERS),
    ("create", "not in this version; use `keel diff` to see what `keel up` would do"),
    ("export", CONTAINERS),
    (
        "kill",
        "not in this version; use `keel stop`, or `kill` with a pid from `keel ps --output json`",
    ),
    ("pause", "not in this version; use `keel stop`"),
    ("publish", CONTAINERS),
    (
        "top",
        "not in this version; use `keel stats`, or `top` with the pids from `keel ps --output json`",
    ),
    ("unpause", "not in this version; use `keel start`"),
    ("wait", "not in this version; use `keel up --wait`, or `keel events -f`"),
    ("watch", "not in this version; run `keel up` again after a change"),
];

/// Options of `docker compose` that are not here.
const OPTIONS: &[(&str, &str)] = &[
    ("--abort-on-container-exit", "not in this version; a job's end is shown by `keel ps -a`"),
    ("--abort-on-container-failure", "not in this version; use `keel up --wait`"),
    ("--dry-run", "not in this version; use `keel diff`"),
    ("--exit-code-from", "not in this version; exit codes are shown by `keel ps -a`"),
    ("--no-recreate", "not in this version; `keel diff` shows what would be replaced"),
    ("--no-start", "not in this version; use `keel diff` to see what `keel up` would do"),
    ("--renew-anon-volumes", CONTAINERS),
    ("--rmi", CONTAINERS),
];

/// What is said about a command line that can't be parsed, or help that was asked for; it ends the process.
pub fn explain(error: &Error) -> Failure {
    if let Some(failure) = known(error) {
        return failure;
    }
    if error.kind() == ErrorKind::MissingSubcommand && is_top_level(error) {
        crate::say(&Cli::command().render_help().to_string());
        return Failure::Quiet(USAGE);
    }
    error.exit()
}

/// An option from the environment keeps the parser from showing the help by itself.
fn is_top_level(error: &Error) -> bool {
    matches!(
        error.get(ContextKind::InvalidSubcommand),
        Some(ContextValue::String(name)) if name == "keel"
    )
}

fn known(error: &Error) -> Option<Failure> {
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let ContextValue::String(name) = error.get(ContextKind::InvalidSubcommand)? else {
                return None;
            };
            let failure = Failure::usage(format!("there is no command `keel {name}`"));
            if name == "compose" {
                return Some(failure.hint(format!("leave out `compose`: keel{}", after_compose())));
            }
            let (_, hint) = COMMANDS.iter().find(|(known, _)| known == name)?;
            Some(failure.hint(*hint))
        }
        ErrorKind::UnknownArgument => {
            let ContextValue::String(name) = error.get(ContextKind::InvalidArg)? else {
                return None;
            };
            let (_, hint) = OPTIONS.iter().find(|(known, _)| known == name)?;
            Some(Failure::usage(format!("there is no option {name}")).hint(*hint))
        }
        _ => None,
    }
}

/// The words of the command line but for the first `compose`.
fn after_compose() -> String {
    let mut words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    if let Some(at) = words.iter().position(|word| word == "compose") {
        words.remove(at);
    }
    words.iter().map(|word| format!(" {word}")).collect()
}
