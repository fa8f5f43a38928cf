//! An engine with a data directory and a socket of its own; Docker also with a bridge of its own, and no rules of the
//! firewall.

use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use keel_container::testing::{Bridge, Which};
use keel_container::{Engine, Place};
use tempfile::TempDir;

use super::{Program, installed};

/// A running engine.
pub struct Dockerd {
    // In the order in which they have to go.
    program: Option<Program>,
    bridge: Option<Bridge>,
    mounted: Option<PathBuf>,
    dir: TempDir,
}

impl Dockerd {
    /// Starts one.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start() -> Result<Self, String> {
        Self::start_with(Which::Docker, &[], None)
    }

    /// Starts one of these, which trusts the registries at these ports of this machine.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start_one(which: Which, registries: &[u16]) -> Result<Self, String> {
        Self::start_with(which, registries, None)
    }

    /// Starts one whose data has this many MiB of room.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start_small(megabytes: u32) -> Result<Self, String> {
        Self::start_with(Which::Docker, &[], Some(megabytes))
    }

    /// Both of it.
    ///
    /// # Errors
    /// Why it can't be.
    pub fn start_with(
        which: Which,
        registries: &[u16],
        megabytes: Option<u32>,
    ) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("starting an engine needs root".to_owned());
        }
        let engine = if which == Which::Docker { "dockerd" } else { "podman" };
        [engine, "docker", "setpriv"].into_iter().try_for_each(installed)?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let bridge = (which == Which::Docker).then(Bridge::make).transpose()?;
        let mut it = Self { program: None, bridge, mounted: None, dir };
        let data = it.path("data");
        std::fs::create_dir(&data).map_err(|error| error.to_string())?;
        if let Some(megabytes) = megabytes {
            let options = format!("size={megabytes}m");
            let mount = Command::new("mount")
                .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
                .arg(&data)
                .status();
            if !mount.is_ok_and(|status| status.success()) {
                return Err("a tmpfs can't be mounted".to_owned());
            }
            it.mounted = Some(data);
        }
        match which {
            Which::Docker => it.run()?,
            Which::Podman => it.run_podman(registries)?,
        }
        Ok(it)
    }

    fn run(&mut self) -> Result<(), String> {
        let [data, exec, pid, socket] = ["data", "exec", "pid", "docker.sock"]
            .map(|name| self.path(name).display().to_string());
        let host = format!("unix://{socket}");
        let bridge = self.bridge.as_ref().map_or("none", Bridge::name);
        let bridge = format!("--bridge={bridge}");
        let command = [
            "dockerd",
            "--host",
            &host,
            "--data-root",
            &data,
            "--exec-root",
            &exec,
            "--pidfile",
            &pid,
            &bridge,
            "--iptables=false",
            // So that a registry which is gone is noticed at once: ours are the tries that are tested.
            "--max-download-attempts=1",
        ];
        let ready = || UnixStream::connect(&socket).is_ok();
        self.program = Some(Program::start(&command, &self.path("dockerd.log"), ready)?);
        Ok(())
    }

    fn run_podman(&mut self, registries: &[u16]) -> Result<(), String> {
        let [data, state, socket, known, nets] =
            ["data", "exec", "docker.sock", "registries.conf", "networks"]
                .map(|name| self.path(name).display().to_string());
        // Podman trusts nobody without TLS that it was not told of.
        let trusted = |port: &u16| {
            format!("[[registry]]\nlocation = \"localhost:{port}\"\ninsecure = true\n")
        };
        let trusted: String = registries.iter().map(trusted).collect();
        std::fs::write(&known, trusted).map_err(|error| error.to_string())?;
        let known = format!("CONTAINERS_REGISTRIES_CONF={known}");
        let url = format!("unix://{socket}");
        let command = [
            "env",
            &known,
            "podman",
            "--root",
            &data,
            "--runroot",
            &state,
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
        ];
        let ready = || UnixStream::connect(&socket).is_ok();
        self.program = Some(Program::start(&command, &self.path("podman.log"), ready)?);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("unix://{}", self.path("docker.sock").display())
    }

    /// As the crate sees it.
    pub fn engine(&self) -> Engine {
        Engine::at(Place::at(&self.url(), "the test"))
    }

    /// Runs the engine's own command line; what it prints.
    pub fn docker(&self, arguments: &[&str]) -> String {
        self.docker_fed(arguments, b"")
    }

    /// Whether Docker keeps images with containerd, where an image is known by its manifest or the index of it.
    pub fn has_image_store(&self) -> bool {
        let status = self.docker(&["info", "--format", "{{.DriverStatus}}"]);
        status.contains("io.containerd.snapshotter")
    }

    /// The same with something to read.
    pub fn docker_fed(&self, arguments: &[&str], input: &[u8]) -> String {
        let mut child = Command::new("docker")
            .args(["--host", &self.url(), "--config"])
            .arg(self.path("config"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A command that refuses at once reads nothing: its own words come below.
        let _ = child.stdin.take().unwrap().write_all(input);
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "docker {arguments:?}: {stderr}");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Makes an image of one layer with this many bytes that can't be compressed, and of these changes (`CMD ["/x"]`).
    pub fn make_image(&self, name: &str, bytes: usize, changes: &[&str]) -> String {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), noise(name, bytes)).unwrap();
        let tar = Command::new("tar").arg("-C").arg(dir.path()).args(["-cf", "-", "file"]).output();
        let mut arguments = vec!["import"];
        arguments.extend(changes.iter().flat_map(|change| ["--change", change]));
        arguments.extend(["-", name]);
        self.docker_fed(&arguments, &tar.unwrap().stdout)
    }
}

/// Writes a program that needs nothing else: it prints `words`, and ends with `code`.
pub fn write_program(path: &Path, words: &str, code: u8) {
    let source =
        format!("int puts(const char *); int main(void) {{ puts(\"{words}\"); return {code}; }}");
    compile(path, &source);
}

/// Makes a program that needs nothing else.
pub fn compile(path: &Path, source: &str) {
    let mut child = Command::new("cc")
        .args(["-static", "-x", "c", "-", "-o"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(source.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.program = None;
        if let Some(path) = &self.mounted {
            let _ = Command::new("umount").arg("--lazy").arg(path).status();
        }
    }
}

/// Bytes that look random, and are the same for the same name (xorshift).
fn noise(name: &str, bytes: usize) -> Vec<u8> {
    let seed = name.bytes().fold(0x9e37_79b9_7f4a_7c15_u64, |seed, byte| {
        (seed ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..bytes.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(bytes).collect()
}
