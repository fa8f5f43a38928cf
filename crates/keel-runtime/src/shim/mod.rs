//! The shim: one small process per instance that owns the workload.
//!
//! It makes the surroundings, starts the program, pumps its output into log files and records how it ended; then
//! it ends too. It has one thread and no connection to the server: they speak through the files of [`crate::record`],
//! so that nothing that happens to the server matters. If the shim itself is killed, the workload goes on (it
//! holds both ends of its output pipes itself) and a replacement adopts it.
//!
//! Helpers of the same program: `exec` runs a command inside a running instance, `probe` says what the kernel
//! lets us do.

mod child;
mod mounts;
pub(crate) mod plan;
pub(crate) mod pump;
mod supervise;

pub(crate) use supervise::exit_of;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use plan::{Failure, MAX_PLAN, ProcessPlan};

/// What a shell answers when a program is not found.
pub(crate) const CODE_NOT_FOUND: u8 = 127;
/// What a shell answers when a program can't be executed.
pub(crate) const CODE_NOT_EXECUTABLE: u8 = 126;
/// What container engines answer when the surroundings can't be made.
pub(crate) const CODE_ENVIRONMENT: u8 = 125;

/// The entry of every process that belongs to an instance. Call it first thing in `main` when `argv[1]` is `shim`,
/// with the arguments after that, while the process has one thread.
pub fn shim_main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let mode = args.next().unwrap_or_default();
    match mode.to_str() {
        Some("run") => supervise::run(),
        Some("adopt") => match args.next() {
            Some(dir) => supervise::adopt(PathBuf::from(dir)),
            None => usage(),
        },
        Some("exec") => exec(args.next()),
        Some("probe") => probe(),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    let _ = writeln!(io::stderr(), "keel shim is run by keel itself; see `keel help`");
    ExitCode::from(2)
}

fn read_plan<T: serde::de::DeserializeOwned>(from: impl Read) -> io::Result<T> {
    let mut json = Vec::new();
    from.take(MAX_PLAN).read_to_end(&mut json)?;
    serde_json::from_slice(&json).map_err(io::Error::other)
}

/// Runs one command. The plan is read from standard input, which is then empty; or from an inherited descriptor,
/// and then standard input is the command's.
fn exec(descriptor: Option<OsString>) -> ExitCode {
    let plan: io::Result<ProcessPlan> = match descriptor {
        None => read_plan(io::stdin().lock()).and_then(|plan| {
            rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
            // A group of its own, so that a timeout ends all of it.
            let _ = rustix::process::setsid();
            Ok(plan)
        }),
        Some(fd) => fd
            .to_str()
            .and_then(|fd| fd.parse().ok())
            .ok_or_else(|| io::Error::other("not a descriptor"))
            .and_then(crate::sys::inherited)
            .and_then(|fd| read_plan(File::from(fd))),
    };
    let failure = match plan {
        Ok(plan) => child::become_program(&plan),
        Err(error) => Failure::environment(format!("can't read the plan: {error}")),
    };
    let _ = writeln!(io::stderr(), "{}", failure.message);
    ExitCode::from(match failure.failure {
        keel_model::StartFailure::NotFound => CODE_NOT_FOUND,
        keel_model::StartFailure::NotExecutable => CODE_NOT_EXECUTABLE,
        _ => CODE_ENVIRONMENT,
    })
}

/// Tries what needs trying: a mount in a namespace of our own, with a new user namespace where we are not root.
fn probe() -> ExitCode {
    match mounts::try_namespace() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = write!(io::stderr(), "{error}");
            ExitCode::FAILURE
        }
    }
}
