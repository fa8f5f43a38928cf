//! A Docker engine of the bench's own: its data and its bridge go with it.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::super::Error;
use super::super::cleanup::Cleanup;
use super::super::platform::{binary, root, signal};
use super::super::process::tool;

/// The image of every container here: the shop and what it links to.
pub const IMAGE: &str = "keel-bench/shop:1";
/// Its bridge.
const BRIDGE: &str = "keelbench";
/// The address of that bridge; the networks of stacks lie beside it.
const ADDRESS: &str = "10.190.0.1/24";
const POOL: &str = "base=10.191.0.0/16,size=24";
/// Where its socket and its state are: paths of sockets are short.
const RUNS: &str = "/run/keel-bench";
/// How long it may take to start or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running engine. It is ended when it is dropped, and on Ctrl-C.
pub struct Docker {
    _end: Cleanup,
}

impl Docker {
    /// Starts it, and gives it the image.
    pub fn start() -> Result<Self, Error> {
        let program = tool("dockerd", "docker.io")?;
        let data = root().join("target/bench/docker");
        for directory in [data.as_path(), Path::new(RUNS)] {
            fs::create_dir_all(directory)?;
        }
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        let bridge = Cleanup::new(|| drop(ip(&["link", "del", BRIDGE])));
        ip(&["addr", "add", ADDRESS, "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        let log = File::create(root().join("target/bench/dockerd.log"))?;
        let child = Command::new(program)
            .arg(format!("--host={}", host()))
            .arg(format!("--data-root={}", data.display()))
            .arg(format!("--exec-root={RUNS}/state"))
            .arg(format!("--pidfile={RUNS}/pid"))
            .arg(format!("--bridge={BRIDGE}"))
            .arg(format!("--default-address-pool={POOL}"))
            .arg("--iptables=false")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let docker = Self { _end: Cleanup::new(move || end(child, &data, bridge)) };
        let begun = Instant::now();
        while docker.call("GET", "/version", None).is_err() {
            if begun.elapsed() > PATIENCE {
                return Err("dockerd does not answer; see target/bench/dockerd.log".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        docker.load()?;
        Ok(docker)
    }

    /// What `DOCKER_HOST` is.
    pub fn host(&self) -> String {
        host()
    }

    /// One call of its API on a connection of its own; what it answers.
    pub fn call(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value, Error> {
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut stream = UnixStream::connect(format!("{RUNS}/docker.sock"))?;
        // Of HTTP/1.0, so that the body of the answer ends where the connection does.
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: docker\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or("a cut answer of dockerd")?;
        if !head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')) {
            return Err(format!("{method} {path}: {head} {body}").into());
        }
        Ok(if body.trim().is_empty() { Value::Null } else { serde_json::from_str(body)? })
    }

    /// Runs docker-compose on `file`.
    pub fn compose(&self, file: &Path, arguments: &[&str]) -> Result<Output, Error> {
        let mut command = Command::new(tool("docker-compose", "docker-compose")?);
        command.arg("-f").arg(file).args(arguments).env("DOCKER_HOST", host());
        let output = command.stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(output);
        }
        let words = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(format!("docker-compose {} failed: {words}", arguments.join(" ")).into())
    }

    /// Makes the image from the program and its libraries.
    fn load(&self) -> Result<(), Error> {
        let tree = root().join("target/bench/image");
        let shop = binary("shop");
        let linked = Command::new("ldd").arg(&shop).output()?;
        let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
        for file in libraries.map(PathBuf::from) {
            let to = tree.join(file.strip_prefix("/")?);
            fs::create_dir_all(to.parent().unwrap_or(&tree))?;
            fs::copy(file, to)?;
        }
        fs::create_dir_all(tree.join("bin"))?;
        fs::copy(shop, tree.join("shop"))?;
        // Swarm runs health checks by a shell.
        fs::copy("/bin/busybox", tree.join("bin/sh"))
            .map_err(|error| format!("/bin/busybox (apt-get install busybox-static): {error}"))?;
        let script = "tar -C \"$0\" --owner=0 --group=0 -c . | docker import - \"$1\"";
        let command = ["-c", script, &tree.to_string_lossy(), IMAGE];
        let done = Command::new("sh").args(command).env("DOCKER_HOST", host()).output()?;
        if done.status.success() {
            return Ok(());
        }
        Err(format!("the image: {}", String::from_utf8_lossy(&done.stderr)).into())
    }
}

fn host() -> String {
    format!("unix://{RUNS}/docker.sock")
}

fn ip(words: &[&str]) -> Result<(), Error> {
    let output = Command::new("ip").args(words).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("ip {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr)).into())
}

fn end(mut child: Child, data: &Path, bridge: Cleanup) {
    // It is ours and not waited for, so that its number means it.
    signal(child.id(), "-TERM");
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) && begun.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
    }
    let _ = child.kill();
    let _ = child.wait();
    for directory in [data, Path::new(RUNS)] {
        // Engines leave mounts when they end before their containers.
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        for target in targets.filter(|target| Path::new(target).starts_with(directory)) {
            let _ = Command::new("umount").args(["--lazy", target]).output();
        }
        let _ = fs::remove_dir_all(directory);
    }
    drop(bridge);
}
