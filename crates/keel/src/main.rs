//! The `keel` binary: command line, configuration and wiring.
//!
//! `keel shim` is one small process per instance, so it is told apart before anything else is set up.

mod access_log;
mod attach;
mod change;
mod cli;
mod commands;
mod context;
mod copy;
mod evidence;
mod failure;
mod follow;
mod host;
mod images;
mod instances;
mod interrupt;
mod lacks;
mod log;
mod names;
mod once;
mod project;
mod spawn;
mod ui;
mod usage;
mod wait;
mod watch;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command, OutputForm};
use crate::context::Context;
use crate::failure::Failure;
use crate::ui::paint::{ColorChoice, Paint};

/// The proxy allocates for each request what it does not recycle; the system's allocator takes longer for that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "shim") {
        return keel_runtime::shim_main(arguments);
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let talk = Paint::new(ColorChoice::Auto, &std::io::stderr());
            return usage::explain(&error).report(talk, false);
        }
    };
    let json = cli.global.output == OutputForm::Json;
    let talk = Paint::new(cli.global.color, &std::io::stderr());
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(talk, json),
    }
}

fn run(cli: Cli) -> Result<(), Failure> {
    let ctx = Context::new(&cli)?;
    match cli.command {
        // These two set up their own threads.
        Command::Proxy(args) => commands::proxy::run(args),
        Command::Server(args) if args.is_run() => commands::server::serve(&ctx, &args),
        command => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| Failure::failed("internal", format!("cannot start: {error}")))?
            .block_on(commands::run(&ctx, command)),
    }
}

/// Writes to standard error. That nobody listens there is no reason to fail.
fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
