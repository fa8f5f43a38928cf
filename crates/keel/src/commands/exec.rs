//! `keel exec`: runs a command inside an instance, with the caller's own terminal.
//!
//! The server only tells how to enter the instance. For a process, this one then becomes the command; for a container it
//! has the engine run it, with a pseudo-terminal if there is a terminal here. Its exit code is the command's.
//! It stays in the caller's session and process group, so that job control, Ctrl-C and the size of the window are the
//! command's own without a pseudo-terminal in between.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use keel_container::terminal::Command;
use keel_runtime::{ContainerExec, ExecSpec};

use crate::cli::FileArgs;
use crate::context::Context;
use crate::failure::Failure;
use crate::{instances, project};

/// Options of `keel exec`.
#[derive(clap::Args, Clone, Debug)]
pub struct ExecArgs {
    /// The service, or one of its instances
    pub service: String,
    /// The command and its arguments
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub command: Vec<String>,
    /// Number of the instance within its service, from 1, in the order of `keel ps`
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub index: usize,
    /// Environment variable; without a value it is taken from the caller. May be given several times
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Where to run (default: the instance's directory)
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<PathBuf>,
    /// As whom to run (default: the instance's user), by name or number; needs root for any other user
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Keep standard input open; it always is, so that scripts written for docker compose run unchanged
    #[arg(short, long)]
    pub interactive: bool,
    /// Insist on a terminal; the command gets the caller's own streams, whatever they are
    #[arg(short, long)]
    pub tty: bool,
    /// Allocate no pseudo-terminal; none ever is, the command gets the caller's own streams
    #[arg(short = 'T', long, conflicts_with = "tty")]
    pub no_tty: bool,
    /// Compose files
    #[command(flatten)]
    pub files: FileArgs,
}

/// Runs the command.
///
/// # Errors
/// When no instance runs, or it can't be entered. On success this process has become the command.
pub async fn run(ctx: &Context, args: ExecArgs) -> Result<(), Failure> {
    use std::io::IsTerminal as _;
    let terminal = std::io::stdin().is_terminal();
    if args.tty && !terminal {
        return Err(Failure::usage("standard input is not a terminal").hint("leave out -t"));
    }
    let stack = project::stack_name(ctx)?;
    let client = ctx.client();
    let view = client.stack(stack.as_str()).await?;
    let instance = instances::choose(&view, &args.service, args.index)?;
    let environment = environment(&args.env, |name| std::env::var_os(name))?;
    let own_term = std::env::var("TERM").unwrap_or_default();
    let spec: ExecSpec = client.exec_spec(instance.id.as_str()).await?;
    let mut spec = match spec {
        ExecSpec::Process(spec) => spec,
        ExecSpec::Container(into) => {
            let with_terminal = terminal && !args.no_tty;
            return inside(&into, args, environment, with_terminal.then_some(own_term)).await;
        }
    };
    if terminal && !args.no_tty {
        describe_terminal(&mut spec.environment, own_term);
    }
    if let Some(user) = args.user.as_deref().filter(|user| !user.is_empty()) {
        spec.become_user(user).map_err(|error| Failure::failed("exec", error.to_string()))?;
    }
    let error = keel_runtime::exec_into(&spec, args.command, &environment, args.workdir);
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let failure =
        Failure::failed("exec", format!("cannot enter instance {}: {error}", instance.id));
    Err(if denied { failure.hint("run keel as the user that the server runs as") } else { failure })
}

/// Runs the command inside a container; with a terminal of this kind, if any. Ends this process with its exit code.
async fn inside(
    into: &ContainerExec,
    args: ExecArgs,
    mut environment: BTreeMap<String, String>,
    term: Option<String>,
) -> Result<(), Failure> {
    let terminal = term.is_some();
    if let Some(term) = term {
        describe_terminal(&mut environment, term);
    }
    let command = Command {
        command: args.command,
        environment,
        working_dir: args.workdir,
        user: args.user.filter(|user| !user.is_empty()),
        privileged: false,
        terminal,
    };
    let code = keel_container::terminal::exec(into, command).await;
    let code = code.map_err(|error| {
        let message = format!("cannot enter instance {}: {error}", into.instance);
        Failure::failed("exec", message)
    })?;
    std::process::exit(code)
}

/// Tells the command what kind of terminal it has: `vi` and `less` need to know, and an instance, which has none, has no
/// such variable. One that the service sets itself stays. What is said when the caller does not know either is what
/// container engines say.
fn describe_terminal(environment: &mut BTreeMap<String, String>, own: String) {
    const UNKNOWN: &str = "xterm";
    let term = if own.is_empty() { UNKNOWN.to_owned() } else { own };
    environment.entry("TERM".to_owned()).or_insert(term);
}

/// `NAME=VALUE` pairs as variables; one without a value has the caller's.
///
/// # Errors
/// When one has no name.
pub fn environment(
    pairs: &[String],
    own: impl Fn(&str) -> Option<OsString>,
) -> Result<BTreeMap<String, String>, Failure> {
    let mut environment = BTreeMap::new();
    for pair in pairs {
        let (name, value) = match pair.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (pair.as_str(), own(pair).and_then(|value| value.into_string().ok())),
        };
        if name.is_empty() {
            return Err(Failure::usage(format!("--env {pair:?} has no name")));
        }
        if let Some(value) = value {
            environment.insert(name.to_owned(), value);
        }
    }
    Ok(environment)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_come_from_the_option_or_from_the_caller() {
        let own = |name: &str| (name == "HOME").then(|| OsString::from("/root"));
        let pairs = ["A=1".to_owned(), "B=x=y".to_owned(), "HOME".to_owned(), "NONE".to_owned()];
        let environment = environment(&pairs, own).unwrap();
        let expected = [("A", "1"), ("B", "x=y"), ("HOME", "/root")];
        assert!(environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).eq(expected));
        assert!(super::environment(&["=1".to_owned()], own).is_err());
    }

    #[test]
    fn the_kind_of_terminal_is_the_callers_unless_the_service_says() {
        let told = |set: &[(&str, &str)], own: &str| {
            let pairs = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            let mut environment = pairs.collect();
            describe_terminal(&mut environment, own.to_owned());
            environment["TERM"].clone()
        };
        assert_eq!(told(&[], "tmux-256color"), "tmux-256color");
        assert_eq!(told(&[], ""), "xterm");
        assert_eq!(told(&[("TERM", "dumb")], "tmux-256color"), "dumb");
    }
}
