//! Processes of a bench: found, pinned to cores, started, watched, and ended by process id.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};

use super::Error;
use super::cleanup::Cleanup;

/// A process that was asked to end is killed after this.
const GRACE: Duration = Duration::from_secs(1);
/// Something that does not listen or end by then never will.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ports are looked for from here on, below those that the system gives to clients.
const FIRST_PORT: u16 = 20_000;
/// And up to here.
const LAST_PORT: u16 = 32_000;

/// The program `name`, also where only root's path leads.
pub fn tool(name: &str, package: &str) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{name} is missing: apt-get install {package}").into())
}

/// A command that runs on `cores` (a list as of `taskset -c`).
pub fn pinned(cores: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", cores]).arg(program.as_ref());
    command
}

/// The same in a session of its own. Linux shares a core between sessions before it shares it between processes
/// (`sched_autogroup`), and ours makes itself one: without this, the others would get less of a core that is wanted
/// by more than one.
pub fn pinned_alone(cores: &str, program: impl AsRef<Path>) -> Command {
    let mut command = Command::new("setsid");
    command.args(["taskset", "-c", cores]).arg(program.as_ref());
    command
}

/// A process in the background, ended when dropped.
#[derive(Debug)]
pub struct Started {
    child: Child,
    what: String,
    log: PathBuf,
    at_interrupt: Option<Cleanup>,
}

impl Started {
    /// Starts `command`; what it says goes to `<name>.log` in `directory`.
    pub fn new(mut command: Command, name: &str, directory: &Path) -> Result<Self, Error> {
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().map_err(|e| format!("{name} can't be started: {e}"))?;
        let pid = child.id();
        let at_interrupt = Cleanup::new(move || send(pid, Signal::KILL));
        Ok(Self { child, what: name.to_owned(), log, at_interrupt: Some(at_interrupt) })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Waits until something listens at `port` of the loopback address.
    pub fn listens(&mut self, port: u16) -> Result<(), Error> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            self.alive()?;
            std::thread::sleep(Duration::from_millis(10));
        }
        Err(format!("{} does not listen at {address}: {}", self.what, self.words()).into())
    }

    /// Ends it as Ctrl-C would and waits for it, so that it finishes what it does.
    pub fn interrupt(mut self) {
        send(self.pid(), Signal::INT);
        let start = Instant::now();
        while start.elapsed() < PATIENCE && self.alive().is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// An error if the process has ended.
    pub fn alive(&mut self) -> Result<(), Error> {
        match self.child.try_wait()? {
            Some(status) => Err(format!("{} ended ({status}): {}", self.what, self.words()).into()),
            None => Ok(()),
        }
    }

    /// What it wrote so far.
    pub fn said(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of that.
    fn words(&self) -> String {
        let text = self.said();
        let lines: Vec<&str> = text.lines().rev().take(5).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        send(self.pid(), Signal::TERM);
        // Once the process is gone, its number may be another's.
        if let Some(cleanup) = self.at_interrupt.take() {
            cleanup.cancel();
        }
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

/// Runs a tool to its end and gives what it printed; an error with its words when it fails or takes longer than
/// `patience`.
pub fn output(command: Command, name: &str, patience: Duration) -> Result<String, Error> {
    let output = ended(command, name, patience)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{name} failed ({}): {text}{words}", output.status).into())
}

/// Runs a tool to its end, whether it succeeds or not; an error when it takes longer than `patience`.
pub fn ended(mut command: Command, name: &str, patience: Duration) -> Result<Output, Error> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|e| format!("{name} can't be started: {e}"))?;
    let pid = child.id();
    let at_interrupt = Cleanup::new(move || send(pid, Signal::KILL));
    let (ended, has_ended) = std::sync::mpsc::sync_channel::<()>(0);
    let watch = std::thread::spawn(move || {
        let is_over = has_ended.recv_timeout(patience);
        let hangs = is_over == Err(std::sync::mpsc::RecvTimeoutError::Timeout);
        if hangs {
            send(pid, Signal::KILL);
        }
        hangs
    });
    let output = child.wait_with_output();
    drop(ended);
    let hung = watch.join().unwrap_or(false);
    at_interrupt.cancel();
    let output = output?;
    if hung {
        return Err(format!("{name} did not end within {patience:?}").into());
    }
    Ok(output)
}

/// A port at which nobody listens. Each is given out once.
pub fn free_port() -> Result<u16, Error> {
    static NEXT: AtomicU16 = AtomicU16::new(FIRST_PORT);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if port > LAST_PORT {
            return Err(format!("no free port from {FIRST_PORT} to {LAST_PORT}").into());
        }
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
}

/// A directory of one run, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    path: PathBuf,
    _remove: Cleanup,
}

impl Scratch {
    pub fn new(name: &str) -> Result<Self, Error> {
        let path = std::env::temp_dir().join(format!("keel-bench-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        let gone = path.clone();
        let remove = Cleanup::new(move || drop(std::fs::remove_dir_all(gone)));
        Ok(Self { path, _remove: remove })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Allows this process and those it starts as many file descriptors as the system lets us; the number.
pub fn raise_descriptor_limit() -> u64 {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How busy all cores were during the next second, in percent of one core.
#[allow(clippy::cast_precision_loss)]
pub fn busy_percent() -> f64 {
    // The first line of /proc/stat: user, nice, system, idle, iowait, … in hundredths of a second; idle and iowait
    // are what is not busy.
    let idle = || {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let line = stat.lines().next().unwrap_or_default();
        let ticks = line.split_whitespace().skip(4).take(2);
        ticks.filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (before, start) = (idle(), Instant::now());
    std::thread::sleep(Duration::from_secs(1));
    let share = (idle() - before) / start.elapsed().as_secs_f64();
    (cores as f64 * 100.0 - share).max(0.0)
}

/// File descriptors that a process has open.
pub fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}
