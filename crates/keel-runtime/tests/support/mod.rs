//! The process runtime in a directory of its own, and questions about processes.

#![allow(clippy::unwrap_used, dead_code, reason = "test code, of which each file uses a part")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use keel_runtime::conformance::{self, Harness, Workload};
use keel_runtime::{ExecOutput, ExecRequest, Launch, ProcessOptions, ProcessRuntime, Runtime};

/// The program that holds the shim; `KEEL_TEST_SHIM` puts another one in its place.
pub fn shim() -> String {
    let own = env!("CARGO_BIN_EXE_keel-shim-test");
    std::env::var("KEEL_TEST_SHIM").unwrap_or_else(|_| own.to_owned())
}

/// A runtime that can be thrown away and made anew.
pub struct Process {
    pub dir: PathBuf,
    runtime: Mutex<Option<Arc<ProcessRuntime>>>,
    _temporary: Option<tempfile::TempDir>,
}

impl Process {
    pub fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let mut this = Self::at(temporary.path());
        this._temporary = Some(temporary);
        this
    }

    pub fn at(dir: &Path) -> Self {
        let dir = dir.join("state");
        Self { runtime: Mutex::new(Some(open(&dir))), dir, _temporary: None }
    }

    pub fn get(&self) -> Arc<ProcessRuntime> {
        self.runtime.lock().unwrap().clone().unwrap()
    }

    /// Throws the runtime away without making a new one, once nobody else holds it.
    pub fn close(&self) {
        *self.runtime.lock().unwrap() = None;
    }

    pub fn instance_dir(&self, launch: &Launch) -> PathBuf {
        self.dir.join("instances").join(launch.id.as_str())
    }

    /// The running record.
    pub fn record(&self, launch: &Launch) -> serde_json::Value {
        let text = fs::read(self.instance_dir(launch).join("running.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    pub fn shim_pid(&self, launch: &Launch) -> i32 {
        i32::try_from(self.record(launch)["shim_pid"].as_i64().unwrap()).unwrap()
    }
}

impl Drop for Process {
    /// Leaves nothing running, also when the test failed.
    fn drop(&mut self) {
        let mut groups = std::collections::BTreeSet::new();
        for entry in fs::read_dir(self.dir.join("instances")).into_iter().flatten().flatten() {
            let dir = entry.path();
            let record = |name: &str| {
                let text = fs::read(dir.join(name)).ok()?;
                serde_json::from_slice::<serde_json::Value>(&text).ok()
            };
            let ended = record("exit.json").is_some();
            if let Some(running) = record("running.json") {
                groups.extend(
                    running["shim_group"]["dirs"]
                        .as_object()
                        .into_iter()
                        .flat_map(|dirs| dirs.values())
                        .filter_map(|dir| Some(Path::new(dir.as_str()?).parent()?.to_owned())),
                );
            }
            let pid = record("running.json").and_then(|record| record["pid"].as_i64());
            if let Some(pid) = pid.filter(|pid| !ended && alive(*pid)) {
                kill(i32::try_from(pid).unwrap());
            }
        }
        // Best effort: a shim may still be at its last work.
        for group in groups {
            for entry in fs::read_dir(&group).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(entry.path());
            }
            let _ = fs::remove_dir(group);
        }
    }
}

fn open(dir: &Path) -> Arc<ProcessRuntime> {
    let mut options = ProcessOptions::new(dir, shim());
    options.port_range = 30_000..=32_000;
    Arc::new(ProcessRuntime::new(options).unwrap())
}

impl Harness for Process {
    fn runtime(&self) -> Arc<dyn Runtime> {
        self.get()
    }

    fn reopen(&self) {
        let mut runtime = self.runtime.lock().unwrap();
        *runtime = None;
        *runtime = Some(open(&self.dir));
    }

    fn command(&self, workload: &Workload) -> Vec<String> {
        let sh = |script: &str, args: &[String]| {
            [&["/bin/sh", "-c", script, "sh"].map(String::from)[..], args].concat()
        };
        match workload {
            Workload::Run => sh("exec sleep 1000", &[]),
            Workload::Exit(code) => sh(&format!("exit {code}"), &[]),
            Workload::ExitAfter(after, code) => {
                let seconds = Duration::from_millis(*after).as_secs_f64();
                sh(&format!("sleep {seconds}; exit {code}"), &[])
            }
            Workload::Say(lines) => sh(r#"printf '%s\n' "$@"; exec sleep 1000"#, lines),
            Workload::SayEnv(names) => {
                let values = names.iter().map(|name| format!("${{{name}}}"));
                let script = values.map(|value| format!("echo \"{value}\";")).collect::<String>();
                sh(&format!("{script} exec sleep 1000"), &[])
            }
            Workload::Stubborn => {
                let script = "trap '' TERM HUP INT; echo ready; while :; do sleep 0.05; done";
                sh(script, &[])
            }
            Workload::Missing => vec!["keel-no-such-program".into()],
            Workload::Forbidden => vec!["/etc/passwd".into()],
        }
    }
}

/// `sh -c script` as the first attempt of `t-<service>-1`.
pub fn shell(service: &str, script: &str) -> Launch {
    let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    conformance::launch(service, conformance::spec(command))
}

/// Waits until `what` holds.
pub async fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + conformance::PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {:?}", conformance::PATIENCE);
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether a process lives (a zombie does not).
pub fn alive(pid: i64) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat[stat.rfind(')').unwrap()..].starts_with(") Z"))
}

/// SIGKILL to one process.
pub fn kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

/// Whether we are root; says what is skipped otherwise.
pub fn root(what: &str) -> bool {
    let root = rustix::process::getuid().is_root();
    if !root {
        println!("skipped: {what} needs root");
    }
    root
}

/// Runs a shell command inside an instance.
pub async fn inside(runtime: &ProcessRuntime, launch: &Launch, script: &str) -> ExecOutput {
    let command = ["/bin/sh", "-c", script].map(String::from).to_vec();
    let request = ExecRequest { command, ..ExecRequest::default() };
    runtime.exec(&launch.id, request).await.unwrap()
}
