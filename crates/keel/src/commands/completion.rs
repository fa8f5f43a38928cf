//! `keel completion`: a completion script for a shell.

use clap::{CommandFactory as _, ValueEnum};

use crate::cli::Cli;
use crate::context::print;
use crate::failure::Failure;

/// Options of `keel completion`.
#[derive(clap::Args, Clone, Debug)]
pub struct CompletionArgs {
    /// For which shell
    pub shell: Shell,
}

/// Shells with a completion script.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shell {
    /// `source <(keel completion bash)`
    Bash,
    /// `source <(keel completion zsh)`
    Zsh,
    /// `keel completion fish | source`
    Fish,
}

/// Runs the command.
///
/// # Errors
/// When standard output can't be written.
pub fn run(args: &CompletionArgs) -> Result<(), Failure> {
    let shell = match args.shell {
        Shell::Bash => clap_complete::Shell::Bash,
        Shell::Zsh => clap_complete::Shell::Zsh,
        Shell::Fish => clap_complete::Shell::Fish,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "keel", &mut script);
    print(&String::from_utf8_lossy(&script))
}
