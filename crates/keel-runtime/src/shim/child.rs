//! From a freshly forked process to the user's program: session, cgroup, limits, namespaces, user, exec.
//!
//! [`become_program`] returns only a reason why it failed. It runs single-threaded.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use keel_model::StartFailure;
use rustix::process::{Gid, Pid, PidfdFlags, Uid, pidfd_open};
use rustix::thread::{
    ThreadNameSpaceType, move_into_thread_name_spaces, set_thread_gid, set_thread_groups,
    set_thread_uid,
};

use super::mounts::surround;
use super::plan::{Failure, ProcessPlan};
use crate::record;
use crate::types::Namespaces;

/// Searched when the environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Does all that `plan` says and then becomes its program.
pub(crate) fn become_program(plan: &ProcessPlan) -> Failure {
    match prepare(plan).and_then(|()| find(plan)) {
        Ok(program) => {
            crate::sys::reset_signals();
            let error = crate::sys::execve(&program, &plan.argv, &plan.environment);
            exec_failed(plan, &program, &error)
        }
        Err(failure) => failure,
    }
}

fn prepare(plan: &ProcessPlan) -> Result<(), Failure> {
    let instance = &plan.instance;
    let failed = |what: String| {
        move |error: io::Error| {
            Failure::environment(format!("instance {instance}: can't {what}: {error}"))
        }
    };
    for file in &plan.cgroups {
        fs::write(file, "0").map_err(failed(format!("join {}", file.display())))?;
    }
    if let Some(score) = plan.oom_score_adj {
        fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(failed(format!("set oom_score_adj to {score}")))?;
    }
    for (resource, soft, hard) in &plan.limits {
        crate::sys::set_limit(*resource, *soft, *hard)
            .map_err(failed(format!("set ulimit number {resource} to {soft}:{hard}")))?;
    }
    surround(plan)?;
    change_user(plan).map_err(failed(format!("become user {}", plan.user.name)))?;
    let dir = plan.working_dir.as_deref().unwrap_or(Path::new("/"));
    std::env::set_current_dir(dir).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::NotFound {
            "; create it or correct working_dir"
        } else {
            ""
        };
        Failure::environment(format!(
            "instance {instance}: working directory {}: {error}{hint}",
            dir.display()
        ))
    })?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    Ok(())
}

fn change_user(plan: &ProcessPlan) -> io::Result<()> {
    let user = &plan.user;
    if !user.switch {
        return Ok(());
    }
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    set_thread_groups(&groups)?;
    set_thread_gid(Gid::from_raw(user.gid))?;
    set_thread_uid(Uid::from_raw(user.uid))?;
    Ok(())
}

/// Enters the namespaces of a running process.
pub(crate) fn join(
    instance: &str,
    namespaces: Namespaces,
    pid: i32,
    start_ticks: u64,
) -> Result<(), Failure> {
    let gone = || Failure::environment(format!("instance {instance} is not running any more"));
    let pid = Pid::from_raw(pid).ok_or_else(gone)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).map_err(|_| gone())?;
    // Only now, with the process pinned, does its start time prove who it is.
    let same = record::stat(pid.as_raw_pid()).is_some_and(|s| s.start_ticks == start_ticks);
    if !same {
        return Err(gone());
    }
    let mut kinds = ThreadNameSpaceType::empty();
    for (wanted, kind) in [
        (namespaces.user, ThreadNameSpaceType::USER),
        (namespaces.mount, ThreadNameSpaceType::MOUNT),
        (namespaces.network, ThreadNameSpaceType::NETWORK),
    ] {
        if wanted {
            kinds |= kind;
        }
    }
    if kinds.is_empty() {
        return Ok(());
    }
    move_into_thread_name_spaces(process.as_fd(), kinds).map_err(|error| {
        Failure::environment(format!("instance {instance}: can't enter its namespaces: {error}"))
    })
}

/// The file to execute, found as a shell would find it.
fn find(plan: &ProcessPlan) -> Result<PathBuf, Failure> {
    let Some(name) = plan.argv.first().filter(|name| !name.is_empty()) else {
        return Err(Failure::environment(format!("instance {} has no command", plan.instance)));
    };
    if name.contains('/') {
        return Ok(PathBuf::from(name));
    }
    let path =
        plan.environment.iter().find(|(key, _)| key == "PATH").map(|(_, path)| path.as_str());
    let path = path.unwrap_or(DEFAULT_PATH);
    let mut forbidden = None;
    for dir in path.split(':') {
        let candidate = Path::new(if dir.is_empty() { "." } else { dir }).join(name);
        match fs::metadata(&candidate) {
            Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {
                return Ok(candidate);
            }
            Ok(found) if found.is_file() => forbidden = forbidden.or(Some(candidate)),
            _ => {}
        }
    }
    Err(match forbidden {
        Some(file) => not_executable(plan, &file, "it lacks the execute permission"),
        None => Failure {
            failure: StartFailure::NotFound,
            message: format!(
                "instance {}: program {name:?} was not found; searched PATH {path}",
                plan.instance
            ),
        },
    })
}

fn not_executable(plan: &ProcessPlan, file: &Path, why: &str) -> Failure {
    Failure {
        failure: StartFailure::NotExecutable,
        message: format!(
            "instance {}: {} can't be executed: {why}; try `chmod +x` or name another program",
            plan.instance,
            file.display()
        ),
    }
}

fn exec_failed(plan: &ProcessPlan, program: &Path, error: &io::Error) -> Failure {
    let instance = &plan.instance;
    match error.raw_os_error() {
        Some(libc::ENOENT) if program.exists() => Failure {
            failure: StartFailure::NotFound,
            message: format!(
                "instance {instance}: the interpreter of {} was not found{}",
                program.display(),
                interpreter(program).map(|i| format!(" ({i})")).unwrap_or_default()
            ),
        },
        Some(libc::ENOENT | libc::ENOTDIR) => Failure {
            failure: StartFailure::NotFound,
            message: format!(
                "instance {instance}: program {} was not found (working directory {})",
                program.display(),
                plan.working_dir.as_deref().unwrap_or(Path::new("/")).display()
            ),
        },
        Some(libc::EACCES) if program.is_dir() => {
            not_executable(plan, program, "it is a directory")
        }
        Some(libc::EACCES | libc::EPERM) => {
            let why = format!("permission denied for user {}", plan.user.name);
            not_executable(plan, program, &why)
        }
        Some(libc::ENOEXEC) => {
            let why =
                "the system does not know its format (a script needs a first line like #!/bin/sh)";
            not_executable(plan, program, why)
        }
        _ => Failure::environment(format!(
            "instance {instance}: can't execute {}: {error}",
            program.display()
        )),
    }
}

/// The interpreter that a script names.
fn interpreter(program: &Path) -> Option<String> {
    use std::io::Read as _;
    let mut start = [0u8; 128];
    let read = File::open(program).ok()?.read(&mut start).ok()?;
    let line = start[..read].strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    Some(String::from_utf8_lossy(line).trim().to_owned())
}
