//! System calls per request, proxy by proxy: where CPU time goes before any line of ours is looked at.
//!
//! Counted by `perf stat` at the kernel's tracepoints, which disturbs far less than strace does: a proxy that is
//! slowed down finds more to do per wake-up, and its numbers would flatter it.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use super::case::{CASES, Measure};
use super::engine::{Engine, Proxy};
use super::rig::Rig;
use crate::bench::Error;
use crate::bench::figure::{Figure, Outcome};
use crate::bench::options::Options;
use crate::bench::process::{Started, tool};

/// How long each proxy is asked in each case.
const SECONDS: u32 = 2;
/// Calls rarer than this per request are left out of the list.
const RARE: f64 = 0.01;
/// What counts every call.
const ALL: &str = "raw_syscalls:sys_enter";
/// What proxies are known to call.
const CALLS: &[&str] = &[
    "read",
    "write",
    "readv",
    "writev",
    "recvfrom",
    "sendto",
    "recvmsg",
    "sendmsg",
    "splice",
    "sendfile64",
    "pipe2",
    "fcntl",
    "ioctl",
    "epoll_wait",
    "epoll_pwait",
    "epoll_pwait2",
    "epoll_ctl",
    "accept4",
    "socket",
    "bind",
    "connect",
    "close",
    "shutdown",
    "setsockopt",
    "getsockopt",
    "getsockname",
    "getpeername",
    "futex",
    "madvise",
    "mmap",
    "munmap",
    "brk",
    "clock_gettime",
    "getrandom",
    "sched_yield",
];

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    tool("perf", "linux-perf")?;
    let rig = Rig::start("proxy-syscalls")?;
    let mut figures = Vec::new();
    let mut appendix =
        "| case | proxy | per request | the calls |\n|---|---|---:|---|\n".to_owned();
    let mut proxies = Engine::SHOWN
        .iter()
        .map(|engine| Proxy::start(*engine, &rig))
        .collect::<Result<Vec<_>, _>>()?;
    let cases = CASES.iter().filter(|case| case.measure == Measure::Cpu);
    for case in cases.filter(|case| options.wants(case.name)) {
        for proxy in &mut proxies {
            let name = proxy.engine.name();
            if let Err(why) = super::tried(case.load, &rig, proxy) {
                eprintln!(
                    "{} {name}: not served ({})",
                    case.name,
                    why.lines().next().unwrap_or("")
                );
                continue;
            }
            let counting = Counting::start(proxy.process.pid(), rig.directory())?;
            let count = case.load.run(&rig, proxy.doors, SECONDS);
            let calls = counting.end()?;
            #[allow(clippy::cast_precision_loss)]
            let requests = count?.requests as f64;
            let total =
                calls.iter().find(|(call, _)| call == ALL).map_or(0.0, |(_, n)| n / requests);
            let listed = listed(&calls, requests);
            let line = format!("| {} | {name} | {total:.2} | {listed} |\n", case.title);
            eprint!("{line}");
            appendix += &line;
            if proxy.engine == Engine::Keel {
                let name = format!("{}: system calls per request", case.title);
                figures.push(Figure::told(name, total, ""));
            }
        }
    }
    Ok(Outcome { figures, appendix })
}

fn listed(calls: &[(String, f64)], requests: f64) -> String {
    let mut calls: Vec<_> = calls
        .iter()
        .filter(|(call, n)| call != ALL && n / requests >= RARE)
        .map(|(call, n)| (call.trim_start_matches("syscalls:sys_enter_"), n / requests))
        .collect();
    calls.sort_by(|one, other| other.1.total_cmp(&one.1));
    calls.iter().map(|(call, n)| format!("{call} {n:.2}")).collect::<Vec<_>>().join(", ")
}

/// A running count of one process' calls.
struct Counting {
    perf: Started,
    control: File,
    acknowledged: File,
    result: PathBuf,
}

impl Counting {
    fn start(pid: u32, directory: &Path) -> Result<Self, Error> {
        let mut events: Vec<String> =
            CALLS.iter().map(|call| format!("syscalls:sys_enter_{call}")).collect();
        events.push(ALL.to_owned());
        // Calls that this kernel lacks.
        events.retain(|event| known(event));
        let result = directory.join("perf.csv");
        // It takes half a second until it counts, and says so through pipes only.
        let (control, acknowledged) = (directory.join("perf.control"), directory.join("perf.ack"));
        for pipe in [&control, &acknowledged] {
            if !pipe.exists() {
                mknodat(CWD, pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            }
        }
        let mut perf = Command::new(tool("perf", "linux-perf")?);
        perf.args(["stat", "-x", ",", "-D", "-1", "-e", &events.join(","), "-p", &pid.to_string()]);
        perf.arg(format!("--control=fifo:{},{}", control.display(), acknowledged.display()));
        perf.arg("-o").arg(&result);
        let perf = Started::new(perf, "perf", directory)?;
        // Opened for both, so that neither end waits for the other.
        let open = |path: &Path| File::options().read(true).write(true).open(path);
        let (control, acknowledged) = (open(&control)?, open(&acknowledged)?);
        let mut counting = Self { perf, control, acknowledged, result };
        counting.tell("enable\n")?;
        Ok(counting)
    }

    fn tell(&mut self, word: &str) -> Result<(), Error> {
        self.control.write_all(word.as_bytes())?;
        let mut answer = [0; 5];
        self.acknowledged.read_exact(&mut answer)?;
        Ok(())
    }

    /// Calls and how often each was made.
    fn end(mut self) -> Result<Vec<(String, f64)>, Error> {
        self.tell("disable\n")?;
        self.perf.interrupt();
        let text = std::fs::read_to_string(&self.result)?;
        let calls: Vec<_> = text
            .lines()
            .filter_map(|line| {
                // value,unit,event,…
                let mut fields = line.split(',');
                let value = fields.next()?.parse().ok()?;
                Some((fields.nth(1)?.to_owned(), value))
            })
            .collect();
        if calls.is_empty() {
            return Err(format!("perf counted nothing (it wants to be root): {text}").into());
        }
        Ok(calls)
    }
}

fn known(event: &str) -> bool {
    let path = event.replace(':', "/");
    Path::new("/sys/kernel/tracing/events").join(path).is_dir()
}
