//! The life of a shim: start or adopt, pump, reap, record the end.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use keel_model::{Exit, StartFailure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, WaitOptions, getpid, pidfd_open, set_child_subreaper, setsid, wait, waitpid,
};

use super::child::become_program;
use super::plan::{Failure, ProcessPlan, Report, RunPlan};
use super::pump::{Log, Output};
use super::read_plan;
use crate::record::{self, Ended, Reserved, Running};
use crate::stamp;
use crate::sys::{self, Fork};

/// Rounds of killing what the workload left behind, each of which may uncover new orphans.
const KILL_ROUNDS: usize = 1000;
/// Rounds of the last emptying of the pipes; each takes one chunk of a 64 KiB pipe.
const DRAIN_ROUNDS: usize = 64;
/// What the kernel lets a process be spared to when memory runs out; a shim without its workload's logs and exit is
/// worse than any single workload.
const SHIM_OOM_SCORE: &str = "-900";

/// How long after output the memory that it made us touch is given back, and how often at most: it costs a fraction of
/// a millisecond, and nearly a megabyte is at stake in each of many shims.
const TRIM_AFTER: Duration = Duration::from_secs(1);
const TRIM_EVERY: Duration = Duration::from_secs(10);

/// What is watched once the workload runs.
struct Watched {
    process: OwnedFd,
    children: OwnedFd,
    outputs: [Output; 2],
    log: Log,
    /// The wait status, once reaped as our child.
    status: Option<i32>,
    /// The workload is not our child but that of a shim before us.
    adopted: bool,
    running: Running,
    dir: PathBuf,
    reserved: Reserved,
    /// Held until everything is done but the wait for the disk.
    lock: Option<File>,
}

/// `shim run`: the plan comes from standard input, the report goes to standard output.
pub(super) fn run() -> ExitCode {
    let plan: RunPlan = match read_plan(io::stdin().lock()) {
        Ok(plan) => plan,
        Err(error) => {
            return report(&Report::Failed(Failure::environment(format!(
                "the shim can't read its plan: {error}"
            ))));
        }
    };
    // The server waits for its child, which ends here; the shim proper belongs to nobody and no terminal.
    match sys::fork() {
        Ok(Fork::Parent(_)) => return ExitCode::SUCCESS,
        Ok(Fork::Child) => {}
        Err(error) => {
            return report(&Report::Failed(Failure::environment(format!(
                "instance {}: can't fork: {error}",
                plan.process.instance
            ))));
        }
    }
    match begin(plan) {
        Ok(mut watched) => {
            let (pid, started_at) = (watched.running.pid, watched.running.started_at);
            report(&Report::Started { pid, started_at });
            settle(&watched.running);
            watch(&mut watched);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            report(&Report::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn report(report: &Report) -> ExitCode {
    let json = serde_json::to_vec(report).unwrap_or_default();
    let mut out = io::stdout().lock();
    match out.write_all(&json).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Makes everything and starts the workload.
fn begin(plan: RunPlan) -> Result<Watched, Failure> {
    let instance = plan.process.instance.clone();
    let failed = |what: String| {
        let instance = instance.clone();
        move |error: io::Error| {
            let hint = match error.raw_os_error() {
                Some(libc::ENOSPC | libc::EDQUOT) => "; free some space there",
                _ => "",
            };
            Failure::environment(format!("instance {instance}: can't {what}: {error}{hint}"))
        }
    };
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = set_child_subreaper(Some(getpid()));
    let dir = plan.dir.clone();
    let lock = record::lock(&dir)
        .map_err(failed(format!("lock {}", dir.display())))?
        .ok_or_else(|| Failure::environment(format!("instance {instance} has a shim already")))?;
    let _ = fs::remove_file(dir.join(record::EXIT));
    let _ = fs::remove_file(dir.join(record::RUNNING));
    make_pipes(&dir, &plan.process).map_err(failed(format!("make pipes in {}", dir.display())))?;
    let reserved = Reserved::take(&dir).map_err(failed(format!("write into {}", dir.display())))?;
    let open = |name| {
        Output::open(&dir, name).map_err(failed(format!("open {}", dir.join(name).display())))
    };
    let outputs = [open("stdout")?, open("stderr")?];
    let children = sys::child_signal().map_err(failed("watch for children".into()))?;
    let oom_before = plan.group.oom_kills();
    let started_at = stamp::now();
    let pid = spawn(&plan, &dir)?;
    let process = Pid::from_raw(pid)
        .ok_or_else(|| io::Error::other("no process id"))
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).map_err(Into::into))
        .map_err(failed("watch the workload".into()))?;
    let start_ticks = record::stat(pid).map_or(0, |stat| stat.start_ticks);
    let running = Running {
        attempt: plan.attempt,
        pid,
        start_ticks,
        boot_id: record::boot_id(),
        started_at,
        shim_pid: getpid().as_raw_pid(),
        logs: plan.logs.clone(),
        group: plan.group.clone(),
        oom_before,
        shim_group: plan.shim_group,
    };
    if let Err(error) = record::write(&dir, record::RUNNING, &running) {
        plan.group.kill();
        let _ = sys::kill(pid, libc::SIGKILL);
        return Err(failed(format!("write into {}", dir.display()))(error));
    }
    let log = Log::new(&dir, plan.logs);
    Ok(Watched {
        process,
        children,
        outputs,
        log,
        status: None,
        adopted: false,
        running,
        dir,
        reserved,
        lock: Some(lock),
    })
}

fn make_pipes(dir: &Path, process: &ProcessPlan) -> io::Result<()> {
    for name in ["stdout", "stderr", "stdin"] {
        let path = dir.join(name);
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        let made = rustix::fs::mknodat(
            rustix::fs::CWD,
            &path,
            rustix::fs::FileType::Fifo,
            mode,
            rustix::fs::makedev(0, 0),
        );
        match made {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        if process.user.switch {
            // So that the program can open /dev/stdout once more.
            std::os::unix::fs::chown(&path, Some(process.user.uid), Some(process.user.gid))?;
        }
    }
    Ok(())
}

/// Forks the workload; returns once its program runs, or why it does not.
fn spawn(plan: &RunPlan, dir: &Path) -> Result<i32, Failure> {
    let process = &plan.process;
    let instance = &process.instance;
    let failed = |error: io::Error| {
        Failure::environment(format!("instance {instance}: can't start a process: {error}"))
    };
    let (reader, writer) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(|e| failed(e.into()))?;
    let born = plan.group.unified().and_then(|dir| {
        let dir = File::open(dir).ok()?;
        sys::fork_into(dir.as_fd()).ok()
    });
    let cgroups = match &born {
        Some(_) => plan.group.procs_files_v1(),
        None => plan.group.procs_files(),
    };
    match born.map_or_else(sys::fork, Ok).map_err(failed)? {
        Fork::Child => {
            drop(reader);
            let _ = setsid();
            let failure = match stdio(dir, process.open_stdin) {
                Ok(()) => become_program(&ProcessPlan { cgroups, ..process.clone() }),
                Err(error) => failed(error),
            };
            let json = serde_json::to_vec(&failure).unwrap_or_default();
            let _ = File::from(writer).write_all(&json);
            sys::exit_now(127)
        }
        Fork::Parent(pid) => {
            drop(writer);
            let mut json = Vec::new();
            File::from(reader).read_to_end(&mut json).map_err(failed)?;
            if json.is_empty() {
                return Ok(pid);
            }
            let _ = waitpid(Pid::from_raw(pid), WaitOptions::empty());
            Err(serde_json::from_slice(&json).unwrap_or_else(|_| Failure {
                failure: StartFailure::Environment,
                message: format!("instance {instance}: its process ended before the program began"),
            }))
        }
    }
}

/// The workload holds both ends of its output pipes: a write never meets a broken pipe, even without a shim.
fn stdio(dir: &Path, open_stdin: bool) -> io::Result<()> {
    let both = |name: &str| {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NOCTTY)
            .open(dir.join(name))
    };
    let stdin = if open_stdin { both("stdin")? } else { File::open("/dev/null")? };
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(both("stdout")?)?;
    rustix::stdio::dup2_stderr(both("stderr")?)?;
    Ok(())
}

/// Lets go of everything that was only needed for the start.
fn settle(running: &Running) {
    if let Ok(null) = fs::OpenOptions::new().read(true).write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    for file in running.shim_group.procs_files() {
        let _ = fs::write(file, "0");
    }
    let _ = fs::write("/proc/self/oom_score_adj", SHIM_OOM_SCORE);
    sys::trim();
}

/// Waits for output, children and the end of the workload; then records it.
fn watch(watched: &mut Watched) {
    let mut trimmed_at = Instant::now();
    let mut trim_at: Option<Instant> = None;
    loop {
        let left = trim_at.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            sys::trim();
            (trimmed_at, trim_at) = (Instant::now(), None);
            continue;
        }
        let Ok(ended) = wait_for_news(watched, left) else { return };
        let pumped: usize =
            watched.outputs.iter_mut().map(|output| output.pump(&mut watched.log)).sum();
        if pumped > 0 && trim_at.is_none() {
            trim_at = Some((Instant::now() + TRIM_AFTER).max(trimmed_at + TRIM_EVERY));
        }
        reap(watched);
        if ended {
            break;
        }
    }
    end(watched);
}

/// Waits for anything to happen, for at most `limit`; whether the workload has ended.
fn wait_for_news(watched: &Watched, limit: Option<Duration>) -> io::Result<bool> {
    let [first, second] = &watched.outputs;
    let mut fds = [
        PollFd::new(&watched.process, PollFlags::IN),
        PollFd::new(&watched.children, PollFlags::IN),
        PollFd::new(first.pipe(), PollFlags::IN),
        PollFd::new(second.pipe(), PollFlags::IN),
    ];
    let limit = limit.map(|limit| Timespec::try_from(limit).unwrap_or(Timespec::default()));
    match poll(&mut fds, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(!fds[0].revents().is_empty()),
        Err(error) => Err(error.into()),
    }
}

/// Collects every child that has ended: the workload, and orphans that came to us as their nearest reaper.
fn reap(watched: &mut Watched) {
    let mut buffer = [0u8; 128];
    let _ = rustix::io::read(&watched.children, &mut buffer);
    while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
        if pid.as_raw_pid() == watched.running.pid {
            watched.status = Some(status.as_raw());
        }
    }
}

fn end(watched: &mut Watched) {
    let status = watched.status.or_else(|| watched.running.wait_status(watched.process.as_fd()));
    drain(watched);
    let oom_kills = watched.running.group.oom_kills();
    let exit = exit_of(status, oom_kills > watched.running.oom_before);
    let ended = Ended { attempt: watched.running.attempt, exit };
    // First the news, then the cleaning up, last the wait for the disk.
    let published = watched.reserved.publish(&ended);
    kill_rest(watched);
    drain(watched);
    for output in &mut watched.outputs {
        output.finish(&mut watched.log);
    }
    if published.is_err() {
        let _ = record::write(&watched.dir, record::EXIT, &ended);
    }
    // The next attempt need not wait for the disk too.
    watched.lock = None;
    watched.reserved.sync();
}

fn drain(watched: &mut Watched) {
    for output in &mut watched.outputs {
        for _ in 0..DRAIN_ROUNDS {
            if output.pump(&mut watched.log) == 0 {
                break;
            }
        }
    }
}

/// What a raw wait status means, ended now; `None` when nobody knows it.
pub(crate) fn exit_of(status: Option<i32>, oom_seen: bool) -> Exit {
    let at = stamp::now();
    let Some(status) = status else {
        return Exit { code: None, signal: None, oom: oom_seen, at };
    };
    let signal = status & 0x7f;
    if signal == 0 {
        let code = (status >> 8) & 0xff;
        // A shell whose only child was killed ends with a code of its own.
        Exit { code: Some(code), signal: None, oom: oom_seen && code != 0, at }
    } else {
        let oom = oom_seen && signal == libc::SIGKILL;
        Exit { code: None, signal: Some(signal), oom, at }
    }
}

/// An instance ends with its main process; what it started must not live on with its ports and files.
fn kill_rest(watched: &mut Watched) {
    watched.running.group.kill();
    for _ in 0..KILL_ROUNDS {
        let left = relatives(watched);
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = sys::kill(pid, libc::SIGKILL);
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        let _ = poll(&mut [PollFd::new(&watched.children, PollFlags::IN)], Some(&pause));
        reap(watched);
    }
}

/// Living processes that the workload left behind. Where it was our child they are ours too, one generation after the
/// other, because orphans come to the nearest reaper; otherwise only its session tells.
fn relatives(watched: &Watched) -> Vec<i32> {
    let me = getpid().as_raw_pid();
    let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children"));
    if let (Ok(children), false) = (children, watched.adopted) {
        let pids = children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok());
        return pids.filter(|pid| record::stat(*pid).is_some_and(|stat| !stat.zombie)).collect();
    }
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let belongs = |stat: record::Stat| {
        !stat.zombie && (stat.parent == me || stat.session == watched.running.pid)
    };
    entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != me && record::stat(*pid).is_some_and(belongs))
        .collect()
}

/// `shim adopt DIR`: takes the place of a shim that was killed.
pub(super) fn adopt(dir: PathBuf) -> ExitCode {
    match sys::fork() {
        Ok(Fork::Parent(_)) => return ExitCode::SUCCESS,
        Ok(Fork::Child) => {}
        Err(_) => return ExitCode::FAILURE,
    }
    let _ = setsid();
    let _ = std::env::set_current_dir("/");
    let _ = set_child_subreaper(Some(getpid()));
    match take_over(dir) {
        Ok(Some(mut watched)) => {
            settle(&watched.running);
            watch(&mut watched);
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "keel shim: {error}");
            ExitCode::FAILURE
        }
    }
}

fn take_over(dir: PathBuf) -> io::Result<Option<Watched>> {
    let Some(lock) = record::lock(&dir)? else { return Ok(None) };
    let Some(mut running) = record::read::<Running>(&dir, record::RUNNING) else { return Ok(None) };
    if record::read::<Ended>(&dir, record::EXIT).is_some_and(|e| e.attempt == running.attempt) {
        return Ok(None);
    }
    let reserved = Reserved::take(&dir)?;
    let pid = Pid::from_raw(running.pid).ok_or_else(|| io::Error::other("no process id"))?;
    let process = pidfd_open(pid, PidfdFlags::empty());
    // The descriptor first, the proof after it: otherwise the id could change hands in between.
    let (Ok(process), true) = (process, running.alive()) else {
        let oom = running.group.oom_kills() > running.oom_before;
        running.group.kill();
        let ended = Ended { attempt: running.attempt, exit: exit_of(None, oom) };
        reserved.publish(&ended)?;
        reserved.sync();
        return Ok(None);
    };
    running.shim_pid = getpid().as_raw_pid();
    // On a full disk the old record stays: better a shim that nobody knows than none.
    let _ = record::write(&dir, record::RUNNING, &running);
    let watched = Watched {
        process,
        children: sys::child_signal()?,
        outputs: [Output::open(&dir, "stdout")?, Output::open(&dir, "stderr")?],
        log: Log::new(&dir, running.logs.clone()),
        status: None,
        adopted: true,
        running,
        dir,
        reserved,
        lock: Some(lock),
    };
    Ok(Some(watched))
}
