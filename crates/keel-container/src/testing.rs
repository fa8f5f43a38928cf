//! Engines that a test starts for itself: with their own socket and data, and ended by process id.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "this is test code")]

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::{Engine, Place};
use bollard::query_parameters::{
    ImportImageOptions, ListContainersOptionsBuilder, ListNetworksOptions,
    RemoveContainerOptionsBuilder,
};
use futures_util::StreamExt as _;

/// How long an engine may take to answer.
const START: Duration = Duration::from_secs(60);
/// The image that workloads run in.
pub const IMAGE: &str = "keel-test/busybox:1";
/// A shell and its tools in one static program (Debian's busybox-static).
const BUSYBOX: &str = "/bin/busybox";

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// Debian's docker.io.
    Docker,
    /// Debian's podman.
    Podman,
}

/// Where its networks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Networks {
    /// In a namespace of their own, which goes with the engine: nobody reaches its containers.
    Apart,
    /// In that of the test, on a bridge of their own.
    Here,
    /// The same, and the engine publishes ports and filters packets, as it usually does. For a test that runs in a namespace
    /// of its own, as that is then the engine's to rule.
    Ruled,
}

/// A running engine.
#[derive(Debug)]
pub struct Running {
    process: Child,
    dir: tempfile::TempDir,
    /// Where it answers.
    pub socket: PathBuf,
    /// Which one it is.
    pub which: Which,
    bridge: Option<Bridge>,
    networks: Networks,
}

/// An engine, or nothing and a word about why.
pub async fn start(which: Which, networks: Networks) -> Option<Running> {
    match try_start(which, networks).await {
        Ok(running) => Some(running),
        Err(why) => {
            println!("skipped: no engine ({which:?}): {why}");
            assert!(std::env::var_os("KEEL_TESTS_NEED_ENGINES").is_none(), "{which:?}: {why}");
            None
        }
    }
}

async fn try_start(which: Which, networks: Networks) -> Result<Running, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("only root can start one".into());
    }
    if !Path::new(BUSYBOX).exists() {
        return Err("busybox-static is not installed".into());
    }
    // Not in memory: layers of file systems need one that they can lie on.
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let dir = tempfile::tempdir_in(beside).map_err(|error| error.to_string())?;
    // Paths of sockets are short.
    let name = dir.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    let name = name.trim_start_matches('.').to_owned();
    let runs = PathBuf::from(format!("/run/keel-test-{name}"));
    fs::create_dir_all(&runs).map_err(|error| format!("{}: {error}", runs.display()))?;
    let socket = runs.join("engine.sock");
    let bridge = match networks {
        Networks::Apart => None,
        Networks::Here | Networks::Ruled => Some(Bridge::make()?),
    };
    let process = spawn(which, bridge.as_ref(), networks, dir.path(), &runs)?;
    let mut running = Running { process, dir, socket, which, bridge, networks };
    running.wait().await?;
    running.load().await?;
    Ok(running)
}

fn spawn(
    which: Which,
    bridge: Option<&Bridge>,
    networks: Networks,
    dir: &Path,
    runs: &Path,
) -> Result<Child, String> {
    let log = File::create(dir.join("log")).map_err(|error| error.to_string())?;
    let path = |path: PathBuf| path.display().to_string();
    let (data, state) = (path(dir.join("data")), path(runs.join("state")));
    let url = format!("unix://{}", path(runs.join("engine.sock")));
    let nets = path(dir.join("networks"));
    let (bridge, pid) = (bridge.map_or("none", Bridge::name), path(runs.join("pid")));
    let mut words: Vec<&str> = match bridge {
        "none" => vec!["unshare", "--net"],
        _ => Vec::new(),
    };
    let bridge = format!("--bridge={bridge}");
    let rules = if networks == Networks::Ruled { "--iptables=true" } else { "--iptables=false" };
    words.extend(match which {
        Which::Docker => vec![
            "dockerd",
            "--host",
            &url,
            &bridge,
            rules,
            "--data-root",
            &data,
            "--exec-root",
            &state,
            "--pidfile",
            &pid,
        ],
        Which::Podman => vec![
            "podman",
            "--root",
            &data,
            "--runroot",
            &state,
            // The usual one is that of all engines here: one would take away what another has made.
            "--network-config-dir",
            &nets,
            "--runtime",
            "runc",
            "--cgroup-manager",
            "cgroupfs",
            "system",
            "service",
            "--time=0",
            &url,
        ],
    });
    let second = log.try_clone().map_err(|error| error.to_string())?;
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(second).stderr(log);
    command.spawn().map_err(|error| format!("{} can't be run: {error}", words[0]))
}

/// A bridge for an engine, in the place of its usual one: that may be another engine's, which would lose it.
#[derive(Debug)]
pub struct Bridge(String);

impl Bridge {
    /// One for this process's engine.
    ///
    /// # Errors
    /// Why it can't be made.
    pub fn make() -> Result<Self, String> {
        static MADE: AtomicU32 = AtomicU32::new(0);
        // A process may have two at a time.
        let number = MADE.fetch_add(1, Ordering::Relaxed) % 2;
        let id = std::process::id();
        let name = format!("keelt{id:08x}{number}");
        let address = format!("10.{}.{}.1/24", 128 + 64 * number + id / 256 % 64, id % 256);
        let made = Self(name.clone());
        for words in [
            vec!["link", "add", &name, "type", "bridge"],
            vec!["addr", "add", &address, "dev", &name],
            vec!["link", "set", &name, "up"],
        ] {
            let done = Command::new("ip").args(&words).status();
            if !done.is_ok_and(|status| status.success()) {
                return Err(format!("`ip {}` failed", words.join(" ")));
            }
        }
        Ok(made)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "del", &self.0]).stderr(Stdio::null()).status();
    }
}

impl Running {
    /// How a runtime finds it.
    pub fn engine(&self) -> Engine {
        let url = format!("unix://{}", self.socket.display());
        Engine::at(Place::at(&url, "the test"))
    }

    /// Ends the engine and starts it again on the same data.
    pub async fn restart(&mut self) {
        self.end();
        let runs = self.socket.parent().unwrap().to_owned();
        let (bridge, networks) = (self.bridge.as_ref(), self.networks);
        self.process = spawn(self.which, bridge, networks, self.dir.path(), &runs).unwrap();
        self.wait().await.unwrap();
    }

    /// The engine's own process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    async fn wait(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + START;
        let log = |dir: &Path| fs::read_to_string(dir.join("log")).unwrap_or_default();
        loop {
            let why = match self.engine().info().await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if let Ok(Some(status)) = self.process.try_wait() {
                return Err(format!("it ended with {status}: {}", log(self.dir.path())));
            }
            if Instant::now() > deadline {
                return Err(format!("{why}: {}", log(self.dir.path())));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Makes the image.
    async fn load(&self) -> Result<(), String> {
        let tar = image().map_err(|error| format!("the image can't be made: {error}"))?;
        let client = self.engine().client().await.map_err(|error| error.to_string())?;
        let body = bollard::body_full(tar.into());
        let mut done = client.import_image(ImportImageOptions::default(), body, None);
        while let Some(step) = done.next().await {
            step.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn end(&mut self) {
        // It is ours and not waited for, so that its number means it.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let deadline = Instant::now() + Duration::from_secs(20);
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.process.kill();
                let _ = self.process.wait();
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Takes away what a test that failed left: its containers, and their networks with their bridges.
async fn clear(engine: Engine) -> Result<(), Box<dyn std::error::Error>> {
    let client = engine.client().await?;
    let all = ListContainersOptionsBuilder::default().all(true).build();
    for container in client.list_containers(Some(all)).await? {
        let force = RemoveContainerOptionsBuilder::default().force(true).build();
        client.remove_container(&container.id.unwrap_or_default(), Some(force)).await?;
    }
    for network in client.list_networks(None::<ListNetworksOptions>).await? {
        let name = network.name.unwrap_or_default();
        if !["bridge", "host", "none", "podman"].contains(&name.as_str()) {
            client.remove_network(&name).await?;
        }
    }
    Ok(())
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.bridge.is_some() {
            let engine = self.engine();
            // A runtime can't be waited for within another.
            let cleared = std::thread::spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.map(|runtime| runtime.block_on(clear(engine)).map_err(|e| e.to_string()))
            });
            println!("the engine is cleared: {:?}", cleared.join());
        }
        self.end();
        end_monitors(self.dir.path());
        let runs = self.socket.parent().unwrap();
        for dir in [self.dir.path(), runs] {
            unmount(dir);
        }
        let _ = fs::remove_dir_all(runs);
    }
}

/// Podman's monitors of commands outlive it by minutes, and then make its directories anew.
fn end_monitors(of: &Path) {
    let of = of.as_os_str().as_encoded_bytes();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let words = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let program = words.split(|byte| *byte == 0).next().unwrap_or_default();
        if program.ends_with(b"/conmon")
            && words.windows(of.len()).any(|part| part == of)
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// Engines leave mounts when they end before their containers.
fn unmount(below: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    targets.retain(|target| Path::new(target).starts_with(below));
    for target in targets.into_iter().rev() {
        let _ = rustix::mount::unmount(target, rustix::mount::UnmountFlags::DETACH);
    }
}

/// A `docker save` archive with one layer: busybox and a file that can't be executed.
fn image() -> std::io::Result<Vec<u8>> {
    let dir = tempfile::tempdir()?;
    let root = dir.path().join("root");
    let bin = root.join("bin");
    for name in ["bin", "tmp", "etc", "proc", "sys", "dev"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(BUSYBOX, bin.join("busybox"))?;
    for name in
        ["sh", "true", "sleep", "cat", "echo", "kill", "httpd", "rm", "id", "hostname", "ls", "env"]
    {
        std::os::unix::fs::symlink("busybox", bin.join(name))?;
    }
    fs::write(root.join("forbidden"), "not a program\n")?;
    fs::set_permissions(root.join("forbidden"), fs::Permissions::from_mode(0o644))?;
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\nuser:x:1000:\n")?;
    let layer = dir.path().join("layer.tar");
    tar(&root, &["."], &layer)?;
    let digest = sha256(&fs::read(&layer)?);
    let config = serde_json::json!({
        "architecture": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin", "FROM_IMAGE=yes"]},
        // Podman builds on nothing that has more layers than history.
        "history": [{"created_by": "busybox-static"}],
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let config = serde_json::to_vec(&config)?;
    let config_name = format!("{}.json", sha256(&config));
    fs::write(dir.path().join(&config_name), config)?;
    let manifest = serde_json::json!([
        {"Config": config_name, "RepoTags": [IMAGE], "Layers": ["layer.tar"]}
    ]);
    fs::write(dir.path().join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let archive = dir.path().join("image.tar");
    tar(dir.path(), &[&config_name, "layer.tar", "manifest.json"], &archive)?;
    fs::read(archive)
}

fn tar(dir: &Path, names: &[&str], to: &Path) -> std::io::Result<()> {
    let owner = ["--owner=0", "--group=0", "--numeric-owner"];
    let status = Command::new("tar")
        .arg("-C")
        .arg(dir)
        .args(owner)
        .arg("-cf")
        .arg(to)
        .args(names)
        .status()?;
    if status.success() { Ok(()) } else { Err(std::io::Error::other("tar failed")) }
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
