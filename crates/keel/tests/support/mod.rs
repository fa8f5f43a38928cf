//! Runs the real binary in a directory of its own.

#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod namespace;
pub mod traffic;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

/// How long anything may take before a test gives up.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// A directory with Compose files and a state directory.
pub struct Sandbox {
    directory: tempfile::TempDir,
    program: PathBuf,
}

/// What a command did.
pub struct Done {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Sandbox {
    pub fn new() -> Self {
        let directory = tempfile::Builder::new().prefix("keel-").tempdir().unwrap();
        fs::create_dir(directory.path().join("app")).unwrap();
        Self { directory, program: env!("CARGO_BIN_EXE_keel").into() }
    }

    /// Installs the program anew, as a package manager does: commands run the new file, what runs has the old one.
    pub fn install(&mut self) -> PathBuf {
        let (program, new) =
            (self.directory.path().join("keel"), self.directory.path().join("new"));
        fs::copy(env!("CARGO_BIN_EXE_keel"), &new).unwrap();
        fs::rename(&new, &program).unwrap();
        self.program.clone_from(&program);
        program
    }

    /// Where commands run.
    pub fn app(&self) -> PathBuf {
        self.directory.path().join("app")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    pub fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.app().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    /// The command line, in a known environment.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .current_dir(self.app())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.directory.path())
            .env("KEEL_STATE_DIR", self.state_dir())
            .env("COLUMNS", "100")
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        self.done(self.command(arguments).output().unwrap())
    }

    /// What a finished command did, with the sandbox's own path replaced by `[DIR]`.
    pub fn done(&self, output: Output) -> Done {
        let own = self.directory.path().to_string_lossy().into_owned();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&own, "[DIR]");
        Done {
            code: output.status.code().unwrap_or(-1),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

impl Done {
    /// The exit code and both streams, for snapshots.
    pub fn all(&self) -> String {
        let Self { code, stdout, stderr } = self;
        format!("exit {code}\n--- stdout\n{stdout}--- stderr\n{stderr}")
    }

    /// Standard output of a command that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, 0, "{}", self.all());
        self.stdout
    }
}

/// Waits until `condition` gives something.
#[track_caller]
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a process exists and has not ended.
pub fn is_alive(pid: u32) -> bool {
    fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"))
        .is_ok_and(|stat| !stat.contains(") Z "))
}

/// A sandbox with a server that `up` starts. Everything that it started is ended with it.
pub struct Running {
    pub sandbox: Sandbox,
    network: String,
    /// Where the container engine is.
    engine: Option<String>,
}

impl Running {
    pub fn new(compose: &str) -> Self {
        let sandbox = Sandbox::new();
        sandbox.write("compose.yaml", compose);
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let id = std::process::id();
        // Tests of one process run at the same time; what one calls is not to be answered by the other.
        let part = NEXT.fetch_add(1, Ordering::Relaxed) % 16 * 16;
        let network = format!("127.{}.{}.{part}/28", 64 + id / 256 % 128, id % 256);
        Self { sandbox, network, engine: None }
    }

    /// The same with the container engine at `socket`, and virtual addresses that its containers reach.
    pub fn with_engine(compose: &str, socket: &Path) -> Self {
        let mut keel = Self::new(compose);
        keel.network = keel.network.replacen("127.", "10.", 1);
        keel.engine = Some(format!("unix://{}", socket.display()));
        keel
    }

    /// The engine is there, and virtual addresses stay on loopback.
    pub fn engine_at(&mut self, socket: &Path) {
        self.engine = Some(format!("unix://{}", socket.display()));
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.sandbox.command(arguments);
        command.env("KEEL_VIP_CIDR", &self.network);
        if let Some(engine) = &self.engine {
            command.env("DOCKER_HOST", engine);
        }
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Done {
        self.sandbox.done(self.command(arguments).output().unwrap())
    }

    pub fn json(&self, arguments: &[&str]) -> serde_json::Value {
        let arguments = [arguments, &["--output", "json"]].concat();
        let text = self.run(&arguments).ok();
        serde_json::from_str(&text).unwrap()
    }

    /// The process ids of the instances that run, by name.
    pub fn pids(&self) -> std::collections::BTreeMap<String, u64> {
        let instances = self.json(&["ps"]);
        instances
            .as_array()
            .unwrap()
            .iter()
            .filter(|instance| instance["state"] == "running")
            .map(|i| (i["name"].as_str().unwrap().to_owned(), i["pid"].as_u64().unwrap()))
            .collect()
    }

    pub fn server_pid(&self) -> u32 {
        u32::try_from(self.json(&["server", "status"])["pid"].as_u64().unwrap()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let names = self.run(&["ls", "-aq"]).stdout;
        for name in names.lines() {
            self.run(&["-p", name, "down", "-v", "--wait-timeout", "30"]);
        }
        self.run(&["server", "stop"]);
        if self.engine.is_some() {
            // The route that makes the virtual addresses this machine's own outlives the server, as it should.
            let route = ["route", "del", "local", &self.network, "dev", "lo"];
            let _ = Command::new("ip").args(route).stderr(Stdio::null()).status();
        }
    }
}

/// A program that answers every request with `body`, on the port that it is given.
pub fn responder(body: &str) -> String {
    format!(
        r#"["python3", "-c", "import http.server, os\nclass H(http.server.BaseHTTPRequestHandler):\n  protocol_version='HTTP/1.1'\n  def do_GET(s):\n    b=b'{body}'\n    s.send_response(200); s.send_header('Content-Length', str(len(b))); s.end_headers(); s.wfile.write(b)\n  def log_message(s, *a): pass\nhttp.server.ThreadingHTTPServer(('127.0.0.1', int(os.environ['PORT'])), H).serve_forever()"]"#
    )
}

/// A free port of this machine.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// The body of the answer to `GET /`.
pub fn get(port: u16) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}
