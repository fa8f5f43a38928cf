//! One module per command: its options, and what it does with them.

pub mod adopt;
pub mod attach;
pub mod build;
pub mod completion;
pub mod config;
pub mod cp;
pub mod diff;
pub mod down;
pub mod edges;
pub mod events;
pub mod exec;
pub mod history;
pub mod images;
pub mod logs;
pub mod ls;
pub mod markdown;
pub mod operate;
pub mod port;
pub mod proxy;
pub mod ps;
pub mod pull;
pub mod push;
pub mod render;
pub mod rm;
pub mod rollback;
pub mod routes;
pub mod run;
pub mod scale;
pub mod server;
pub mod stats;
pub mod up;
pub mod version;
pub mod volumes;
pub mod watch;

use crate::cli::Command;
use crate::context::{Context, print};
use crate::failure::Failure;

/// Runs a command that talks to the server or only computes.
///
/// # Errors
/// Whatever kept the command from its end.
pub async fn run(ctx: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Up(args) => up::run(ctx, args).await,
        Command::Pull(args) => pull::run(ctx, args).await,
        Command::Build(args) => build::run(ctx, args).await,
        Command::Push(args) => push::run(ctx, args).await,
        Command::Images(args) => images::run(ctx, args).await,
        Command::Adopt(args) => adopt::run(ctx, args).await,
        Command::Down(args) => down::run(ctx, args).await,
        Command::Ps(args) => ps::run(ctx, args).await,
        Command::Ls(args) => ls::run(ctx, args).await,
        Command::Logs(args) => logs::run(ctx, args).await,
        Command::Scale(args) => scale::run(ctx, args).await,
        Command::Restart(args) => operate::restart(ctx, args).await,
        Command::Stop(args) => operate::stop(ctx, args).await,
        Command::Start(args) => operate::start(ctx, args).await,
        Command::Rm(args) => rm::run(ctx, args).await,
        Command::Exec(args) => exec::run(ctx, args).await,
        Command::Run(args) => run::run(ctx, args).await,
        Command::Attach(args) => attach::run(ctx, args).await,
        Command::Cp(args) => cp::run(ctx, args).await,
        Command::Stats(args) => stats::run(ctx, args).await,
        Command::Volumes(args) => volumes::run(ctx, args).await,
        Command::Watch(args) => watch::run(ctx, args).await,
        Command::Diff(args) => diff::run(ctx, args).await,
        Command::Config(args) => config::run(ctx, &args),
        Command::Edges(args) => edges::run(ctx, args).await,
        Command::Events(args) => events::run(ctx, args).await,
        Command::History(args) => history::run(ctx, args).await,
        Command::Rollback(args) => rollback::run(ctx, args).await,
        Command::Port(args) => port::run(ctx, args).await,
        Command::Routes(args) => routes::run(ctx, args).await,
        Command::Render(args) => render::run(ctx, args).await,
        Command::Server(args) => server::run(ctx, args).await,
        Command::Version(args) => version::run(ctx, args).await,
        Command::Completion(args) => completion::run(&args),
        Command::HelpMarkdown => print(&markdown::reference()),
        Command::HelpComposeSupport => print(&keel_compose::support_table_markdown()),
        Command::HelpLabels => print(&keel_compose::label_table_markdown()),
        Command::Proxy(args) => proxy::run(args),
    }
}
