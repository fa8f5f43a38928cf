//! The command line: what can be said. What it means is in [`crate::commands`].

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::failure::EXIT_CODES;
use crate::ui::paint::ColorChoice;

const PROJECT: &str = "Project options";
const GENERAL: &str = "General options";

/// Runs the stack that your Compose files describe, highly available, without losing a request.
#[derive(Debug, Parser)]
#[command(name = "keel", version, subcommand_required = true, arg_required_else_help = true)]
#[command(after_help = EXIT_CODES, max_term_width = 100, propagate_version = false)]
pub struct Cli {
    /// Which Compose files.
    #[command(flatten)]
    pub files: FileArgs,
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The Compose files.
#[derive(Args, Clone, Debug, Default)]
pub struct FileArgs {
    /// Compose file; may be given several times, later files override earlier ones; `-` reads standard input
    #[arg(short, long, value_name = "FILE", help_heading = PROJECT)]
    pub file: Vec<PathBuf>,
}

/// The Compose files, for commands where `-f` means something else.
#[derive(Args, Clone, Debug, Default)]
pub struct LongFileArgs {
    /// Compose file; may be given several times, later files override earlier ones; `-` reads standard input
    #[arg(long, value_name = "FILE", help_heading = PROJECT)]
    pub file: Vec<PathBuf>,
}

/// What every command takes, before or after its name.
#[derive(Args, Clone, Debug)]
pub struct GlobalArgs {
    /// Name of the stack
    #[arg(short, long, global = true, value_name = "NAME", help_heading = PROJECT)]
    pub project_name: Option<String>,
    /// Profile to enable; may be given several times
    #[arg(long, global = true, value_name = "NAME", help_heading = PROJECT)]
    pub profile: Vec<String>,
    /// File with variables for interpolation; may be given several times
    #[arg(long, global = true, value_name = "FILE", help_heading = PROJECT)]
    pub env_file: Vec<PathBuf>,
    /// Where relative paths begin (default: the directory of the first Compose file)
    #[arg(long, global = true, value_name = "DIR", help_heading = PROJECT)]
    pub project_directory: Option<PathBuf>,
    /// Where the server keeps its state (default: /var/lib/keel for root, else ~/.local/state/keel)
    #[arg(long, global = true, env = "KEEL_STATE_DIR", hide_env_values = true)]
    #[arg(value_name = "DIR", help_heading = GENERAL)]
    pub state_dir: Option<PathBuf>,
    /// Form of the output; `json` is stable
    #[arg(long, global = true, default_value = "table", value_name = "FORM")]
    #[arg(help_heading = GENERAL)]
    pub output: OutputForm,
    /// When to use colour; NO_COLOR is respected
    #[arg(long, global = true, default_value = "auto", value_name = "WHEN")]
    #[arg(help_heading = GENERAL)]
    pub color: ColorChoice,
    /// How progress is shown
    #[arg(long, global = true, default_value = "auto", value_name = "HOW")]
    #[arg(help_heading = GENERAL)]
    pub progress: ProgressForm,
}

// The variants below have no doc comments: they would make every help page three times as long.

/// Form of the output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum OutputForm {
    #[default]
    Table,
    Json,
}

/// How progress is shown: `auto` is `tty` (lines that are rewritten) on a terminal, and `plain` (a line per change)
/// otherwise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
#[allow(missing_docs)]
pub enum ProgressForm {
    #[default]
    Auto,
    Tty,
    Plain,
    Quiet,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and start services, replace what changed, and follow their logs
    Up(commands::up::UpArgs),
    /// Take over what `docker compose` has started, as it runs
    Adopt(commands::adopt::AdoptArgs),
    /// Stop and remove a stack
    Down(commands::down::DownArgs),
    /// List instances
    Ps(commands::ps::PsArgs),
    /// List stacks
    Ls(commands::ls::LsArgs),
    /// Show the output of instances
    Logs(commands::logs::LogsArgs),
    /// Change how many instances services have
    Scale(commands::scale::ScaleArgs),
    /// Replace the instances of services one at a time
    Restart(commands::operate::RestartArgs),
    /// Stop services; their instances stay visible
    Stop(commands::operate::StopArgs),
    /// Start stopped services
    Start(commands::operate::StartArgs),
    /// Remove stopped instances
    Rm(commands::rm::RmArgs),
    /// Run a command in a running instance
    Exec(commands::exec::ExecArgs),
    /// Run a command in a container of its own, beside the instances of a service
    Run(commands::run::RunArgs),
    /// Take the input and output of an instance's main process
    Attach(commands::attach::AttachArgs),
    /// Copy files between an instance and here
    Cp(commands::cp::CpArgs),
    /// Show what instances use
    Stats(commands::stats::StatsArgs),
    /// List the named volumes of a stack
    Volumes(commands::volumes::VolumesArgs),
    /// Copy, restart or rebuild when files change, as `develop.watch` says
    Watch(commands::watch::WatchArgs),
    /// Bring the images of services onto the server's machine
    Pull(commands::pull::PullArgs),
    /// Build the images of services
    Build(commands::build::BuildArgs),
    /// Push the images of services to their registries
    Push(commands::push::PushArgs),
    /// List the images of services
    Images(commands::images::ImagesArgs),
    /// Show what `up` would change
    Diff(commands::diff::DiffArgs),
    /// Check the Compose files and print them in canonical form
    Config(commands::config::ConfigArgs),
    /// Show who calls whom, how often, how fast and with what success
    Edges(commands::edges::EdgesArgs),
    /// Show what happened
    Events(commands::events::EventsArgs),
    /// List past changes of a stack
    History(commands::history::HistoryArgs),
    /// Return to an earlier definition
    Rollback(commands::rollback::RollbackArgs),
    /// Print where a port of a service is published
    Port(commands::port::PortArgs),
    /// List routes: which requests lead to which service
    Routes(commands::routes::RoutesArgs),
    /// Write the configuration of another load balancer for the same traffic
    Render(commands::render::RenderArgs),
    /// Run, stop or describe the server
    Server(commands::server::ServerArgs),
    /// Run the data plane (started by the server)
    #[command(hide = true)]
    Proxy(commands::proxy::ProxyArgs),
    /// Print the version
    Version(commands::version::VersionArgs),
    /// Print a completion script for a shell
    Completion(commands::completion::CompletionArgs),
    /// Print the command line reference as Markdown
    #[command(hide = true)]
    HelpMarkdown,
    /// Print which Compose keys are supported, as Markdown
    #[command(hide = true)]
    HelpComposeSupport,
    /// Print which labels of Traefik are supported, as Markdown
    #[command(hide = true)]
    HelpLabels,
}

impl Command {
    /// The Compose files named after the command.
    pub fn files(&self) -> &[PathBuf] {
        match self {
            Self::Up(args) => &args.files.file,
            Self::Adopt(args) => &args.files.file,
            Self::Pull(args) => &args.files.file,
            Self::Build(args) => &args.files.file,
            Self::Push(args) => &args.files.file,
            Self::Images(args) => &args.files.file,
            Self::Down(args) => &args.files.file,
            Self::Ps(args) => &args.files.file,
            Self::Scale(args) => &args.files.file,
            Self::Restart(args) => &args.files.file,
            Self::Stop(args) => &args.files.file,
            Self::Start(args) => &args.files.file,
            Self::Diff(args) => &args.files.file,
            Self::Config(args) => &args.files.file,
            Self::History(args) => &args.files.file,
            Self::Rollback(args) => &args.files.file,
            Self::Port(args) => &args.files.file,
            Self::Routes(args) => &args.files.file,
            Self::Exec(args) => &args.files.file,
            Self::Run(args) => &args.files.file,
            Self::Attach(args) => &args.files.file,
            Self::Cp(args) => &args.files.file,
            Self::Stats(args) => &args.files.file,
            Self::Volumes(args) => &args.files.file,
            Self::Watch(args) => &args.files.file,
            Self::Logs(args) => &args.files.file,
            Self::Rm(args) => &args.files.file,
            Self::Events(args) => &args.files.file,
            Self::Ls(_)
            | Self::Edges(_)
            | Self::Server(_)
            | Self::Proxy(_)
            | Self::Render(_)
            | Self::Version(_)
            | Self::Completion(_)
            | Self::HelpMarkdown
            | Self::HelpComposeSupport
            | Self::HelpLabels => &[],
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }
}
