//! `keel proxy`: the data plane. The server starts it.

use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use keel_render::Engine;

use crate::access_log::AccessLogArgs;
use crate::commands::render::EngineName;
use crate::commands::version::VERSION;
use crate::failure::{Failure, split_hint};
use crate::log;
use crate::ui::time;

/// Options of `keel proxy`.
#[derive(clap::Args, Clone, Debug)]
pub struct ProxyArgs {
    /// Unix socket on which the server hands over what it knows
    #[arg(long, value_name = "PATH")]
    pub control_socket: PathBuf,
    /// Where the last state is kept
    #[arg(long, value_name = "PATH")]
    pub snapshot_file: PathBuf,
    /// Data-plane threads (default: one per core)
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Take the place of the proxy that serves the control socket, without losing a connection
    #[arg(long)]
    pub take_over: bool,
    /// The sockets of a proxy that died come through the standard input
    #[arg(long, hide = true, conflicts_with_all = ["take_over", "engine"])]
    pub sockets_from_stdin: bool,
    /// Drive this load balancer instead of handling traffic itself
    #[arg(long, value_name = "ENGINE")]
    pub engine: Option<EngineName>,
    /// Directory of its configuration (default: `engine/ENGINE` beside the snapshot file)
    #[arg(long, value_name = "DIR")]
    pub engine_dir: Option<PathBuf>,
    /// How long a request waits for a service that has no ready endpoint but is expected to
    #[arg(long, value_name = "TIME", value_parser = time::parse_seconds)]
    pub hold_timeout: Option<Duration>,
    /// How requests are logged where the server does not say
    #[command(flatten)]
    pub access_log: AccessLogArgs,
}

/// Runs the data plane until it is told to end.
///
/// # Errors
/// When it can't start or has to give up.
pub fn run(args: ProxyArgs) -> Result<(), Failure> {
    // The terminal's Ctrl-C is for the server in the foreground; the data plane outlives it. It fails only for the
    // leader of a process group, which is on its own already.
    let _ = rustix::process::setsid();
    log::start();
    if let Some(engine) = args.engine {
        return drive(engine, args);
    }
    let options = keel_proxy::ProxyOptions {
        control_socket: args.control_socket,
        snapshot_file: args.snapshot_file,
        workers: args.workers.unwrap_or_else(|| available_parallelism().map_or(1, usize::from)),
        hold_timeout: args.hold_timeout.unwrap_or(keel_proxy::HOLD_TIMEOUT),
        version: VERSION.to_owned(),
        access_log: args.access_log.settle()?,
        take_over: args.take_over,
        sockets_from_stdin: args.sockets_from_stdin,
    };
    keel_proxy::run(options).map_err(|error| Failure::unreachable(error.to_string()))
}

fn drive(engine: EngineName, args: ProxyArgs) -> Result<(), Failure> {
    // One for each, as one may take the place of another while that one still ends what it has.
    let beside = args.snapshot_file.with_file_name("engine").join(Engine::from(engine).command());
    let options = keel_engine::DriverOptions {
        engine: engine.into(),
        directory: args.engine_dir.unwrap_or(beside),
        control_socket: args.control_socket,
        snapshot_file: args.snapshot_file,
        workers: args.workers,
        version: VERSION.to_owned(),
        take_over: args.take_over,
    };
    keel_engine::run(&options).map_err(|error| {
        let text = error.to_string();
        let (message, hint) = split_hint(&text);
        let failure = Failure::unreachable(message);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })
}
