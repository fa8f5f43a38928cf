//! A keel server of its own for one bench: own state directory, own network, ended by process id.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Error;
use super::cleanup::Cleanup;

/// The loopback network that benches use, apart from a real server's.
const NETWORK: &str = "127.91.0.0/16";

/// The root of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    here.canonicalize().unwrap_or(here)
}

/// A binary that benches run; built by [`build`]. What is measured is built as it is shipped.
pub fn binary(name: &str) -> PathBuf {
    let profile = if name == "keel" { "dist" } else { "release" };
    root().join("target").join(profile).join(name)
}

/// Builds what benches run.
pub fn build() -> Result<(), Error> {
    for arguments in
        [&["--profile", "dist", "-p", "keel"][..], &["--release", "-p", "shop", "-p", "xtask"]]
    {
        let mut cargo = Command::new(env!("CARGO"));
        let status = cargo.arg("build").args(arguments).current_dir(root()).status()?;
        if !status.success() {
            return Err("the build failed".into());
        }
    }
    Ok(())
}

/// A running server. Everything it started is ended when it is dropped, and on Ctrl-C.
pub struct Platform {
    state: PathBuf,
    file: PathBuf,
    /// Shared with what ends the server: it reads the Compose file once more.
    environment: Arc<Mutex<Vec<(String, String)>>>,
    /// `None` in the one that ends it.
    _end: Option<Cleanup>,
}

impl Platform {
    /// Starts a server for the Compose file `file`.
    pub fn start(name: &str, file: &Path) -> Result<Self, Error> {
        Self::start_with(name, file, &[])
    }

    /// The same with variables that the server reads too.
    pub fn start_with(name: &str, file: &Path, set: &[(&str, &str)]) -> Result<Self, Error> {
        build()?;
        let state = root().join("target/bench").join(name);
        let set = set.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let environment = Arc::new(Mutex::new(set.collect()));
        let at = |end| {
            let (state, file) = (state.clone(), file.to_owned());
            Self { state, file, environment: Arc::clone(&environment), _end: end }
        };
        let ending = at(None);
        ending.end();
        let platform = at(Some(Cleanup::new(move || ending.end())));
        match std::fs::remove_dir_all(&platform.state) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        std::fs::create_dir_all(&platform.state)?;
        std::fs::copy(binary("keel"), platform.program())?;
        platform.server()?;
        Ok(platform)
    }

    /// A binary of its own, so that another one can come into its place.
    fn program(&self) -> PathBuf {
        self.state.join("keel")
    }

    /// Puts another build into the place of the binary, as an upgrade does, and starts the server anew.
    pub fn upgrade(&self) -> Result<(), Error> {
        let new = self.state.join("keel.new");
        std::fs::copy(self.program(), &new)?;
        // What follows the program in its file does nothing.
        std::fs::OpenOptions::new().append(true).open(&new)?.write_all(b"x")?;
        std::fs::rename(new, self.program())?;
        self.keel(&["server", "stop"])?;
        self.server()
    }

    /// Starts the server in the background.
    pub fn server(&self) -> Result<(), Error> {
        self.keel(&["server", "--detach"]).map(|_| ())
    }

    /// Sets a variable that the Compose file uses.
    pub fn set(&mut self, key: &str, value: &str) {
        let mut environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        environment.retain(|(known, _)| known != key);
        environment.push((key.to_owned(), value.to_owned()));
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let environment = self.environment.lock().unwrap_or_else(PoisonError::into_inner);
        let mut command = Command::new(self.program());
        command
            .arg("--state-dir")
            .arg(&self.state)
            .arg("-f")
            .arg(&self.file)
            .args(arguments)
            .env("KEEL_VIP_CIDR", NETWORK)
            .env("SHOP_BIN", binary("shop"))
            .envs(environment.iter().map(|(key, value)| (key, value)));
        command
    }

    /// Runs a command of keel; an error when it fails.
    pub fn keel(&self, arguments: &[&str]) -> Result<Output, Error> {
        let output = self.command(arguments).output()?;
        if output.status.success() {
            return Ok(output);
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("keel {} failed: {words}", arguments.join(" ")).into())
    }

    /// Runs a command of keel and reads its JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value, Error> {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        Ok(serde_json::from_slice(&self.keel(&all)?.stdout)?)
    }

    /// Runs a command of keel and reads its lines of JSON.
    pub fn json_lines(&self, arguments: &[&str]) -> Result<Vec<Value>, Error> {
        let mut all = vec!["--output", "json"];
        all.extend(arguments);
        let output = self.keel(&all)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }

    /// Instances of a service whose process runs: identity and process id.
    pub fn running(&self, service: &str) -> Result<Vec<(String, u32)>, Error> {
        let listing = self.json(&["ps", service])?;
        let instances = listing.as_array().cloned().unwrap_or_default();
        Ok(instances
            .iter()
            .filter_map(|instance| {
                let pid = u32::try_from(instance["pid"].as_u64()?).ok()?;
                Some((instance["name"].as_str()?.to_owned(), pid))
            })
            .collect())
    }

    /// The process id of the server.
    pub fn server_pid(&self) -> Result<u32, Error> {
        let info = self.json(&["server", "status"])?;
        let pid = info.get("pid").and_then(Value::as_u64).ok_or("no pid in `server status`")?;
        Ok(u32::try_from(pid)?)
    }

    /// Processes whose command line names this platform's state directory and holds `word`.
    pub fn processes(&self, word: &str) -> Vec<u32> {
        let state = self.state.to_string_lossy().into_owned();
        processes()
            .filter(|(_, line)| line.contains(&state) && line.contains(word))
            .map(|p| p.0)
            .collect()
    }

    /// Waits until `condition` holds.
    pub fn wait(
        &self,
        what: &str,
        timeout: Duration,
        mut condition: impl FnMut(&Self) -> Result<bool, Error>,
    ) -> Result<Duration, Error> {
        let start = Instant::now();
        while start.elapsed() < timeout {
            if condition(self)? {
                return Ok(start.elapsed());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Err(format!("{what} did not happen within {timeout:?}").into())
    }

    fn end(&self) {
        let _ = self.command(&["down"]).output();
        let _ = self.command(&["server", "stop"]).output();
        for pid in self.processes("keel") {
            signal(pid, "-KILL");
        }
    }
}

fn processes() -> impl Iterator<Item = (u32, String)> {
    let own = std::process::id();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(move |pid| *pid != own)
        .filter_map(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            Some((pid, String::from_utf8_lossy(&line).replace('\0', " ")))
        })
}

/// Sends a signal to a process.
pub fn signal(pid: u32, signal: &str) {
    let _ = Command::new("kill").arg(signal).arg(pid.to_string()).output();
}

/// The parent of a process: an instance's shim.
pub fn parent(pid: u32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}

/// Resident memory of a process, in MiB.
pub fn resident_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| {
            line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok()
        })
        .map_or(f64::INFINITY, |kib| kib / 1024.0)
}

/// CPU time of a process so far, in seconds.
pub fn cpu_seconds(pid: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|ticks| ticks.parse::<f64>().ok());
    // Fields 14 and 15 of proc(5), in hundredths of a second on Linux.
    ticks(11).zip(ticks(12)).map_or(f64::INFINITY, |(user, system)| (user + system) / 100.0)
}
