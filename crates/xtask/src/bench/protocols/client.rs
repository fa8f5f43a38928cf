//! The clients: one tool for each protocol, paced, and what it counted.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::bench::Error;
use crate::bench::lossless::{Report, wrk};
use crate::bench::process::{ended, output, tool};

/// Requests per second of each protocol; four of them make 2,000.
const RATE: u32 = 500;
/// Connections, streams or channels at a time.
const CLIENTS: u32 = 10;
/// A client that takes so much longer than it was asked to run hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One row of the result.
#[derive(Clone, Copy, Debug)]
pub struct Protocol {
    pub name: &'static str,
    /// The service of the stack that is asked.
    pub service: &'static str,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Http1,
    Http2,
    /// A script with `ask`, and the Debian package that it needs.
    Script(&'static str, &'static str),
}

/// Every protocol.
pub const PROTOCOLS: &[Protocol] = &[
    Protocol { name: "HTTP/1.1", service: "web", kind: Kind::Http1 },
    Protocol { name: "HTTP/2", service: "web", kind: Kind::Http2 },
    Protocol {
        name: "gRPC stream",
        service: "grpc",
        kind: Kind::Script("grpc_echo.py", "python3-grpcio"),
    },
    Protocol {
        name: "WebSocket",
        service: "websocket",
        kind: Kind::Script("websocket_echo.py", "python3-websockets"),
    },
];

/// Where a protocol is asked.
#[derive(Clone, Debug)]
pub struct Target {
    pub host: &'static str,
    pub port: u16,
    /// With TLS, and whom to trust then.
    pub roots: Option<PathBuf>,
}

impl Target {
    fn origin(&self) -> String {
        let scheme = if self.roots.is_some() { "https" } else { "http" };
        format!("{scheme}://{}:{}", self.host, self.port)
    }
}

/// What a client counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Answers {
    pub requests: u64,
    pub failed: u64,
    /// Sessions that broke off.
    #[serde(default)]
    pub cut: u64,
}

impl Answers {
    /// Failed requests, where sessions may break off or not.
    pub fn lost(&self, cuts: bool) -> u64 {
        if cuts { self.failed } else { self.failed + self.cut }
    }
}

/// Writes the scripts of services and clients.
pub fn write_scripts(directory: &Path) -> Result<(), Error> {
    for (name, text) in [
        ("paced.py", include_str!("paced.py")),
        ("grpc_echo.py", include_str!("grpc_echo.py")),
        ("websocket_echo.py", include_str!("websocket_echo.py")),
    ] {
        std::fs::write(directory.join(name), text)?;
    }
    Ok(())
}

impl Protocol {
    /// Asks for whole `seconds` and tells what came of it.
    pub fn ask(&self, directory: &Path, target: &Target, seconds: u64) -> Result<Answers, Error> {
        let patience = Duration::from_secs(seconds) + PATIENCE;
        match self.kind {
            Kind::Http1 => {
                tool("wrk", "wrk")?;
                let script = directory.join("paced.lua");
                let command = wrk(&script, &target.origin(), RATE, seconds, &["/small"])?;
                let Report { requests, failed, .. } =
                    Report::parse(output(command, "wrk", patience)?)?;
                Ok(Answers { requests, failed, cut: 0 })
            }
            Kind::Http2 => std::thread::scope(|scope| {
                let clients: Vec<_> = (0..CLIENTS)
                    .map(|_| scope.spawn(|| curl(target, seconds).map_err(|e| e.to_string())))
                    .collect();
                let mut answers = Answers::default();
                for client in clients {
                    let one = client.join().map_err(|_| "a client's thread failed")??;
                    answers.requests += one.requests;
                    answers.failed += one.failed;
                }
                Ok(answers)
            }),
            Kind::Script(script, package) => {
                // Debian's modules are Debian's Python's, not those of another one in the path.
                let mut command = Command::new("/usr/bin/python3");
                command.arg(directory.join(script)).arg("ask");
                command.arg(format!("{}:{}", target.host, target.port));
                command.args([seconds.to_string(), CLIENTS.to_string(), RATE.to_string()]);
                command.args(&target.roots);
                let text = output(command, script, patience).map_err(|error| {
                    format!("{error}\n(it needs python3: apt-get install {package})")
                })?;
                Ok(serde_json::from_str(&text)?)
            }
        }
    }
}

/// One client of HTTP/2. Not h2load: what it was about to send when the proxy says that the connection ends (GOAWAY) it
/// counts as failed, and makes no new connection. Without TLS curl begins by an upgrade.
fn curl(target: &Target, seconds: u64) -> Result<Answers, Error> {
    let mut command = Command::new(tool("curl", "curl")?);
    if let Some(roots) = &target.roots {
        command.arg("--cacert").arg(roots);
    }
    let rate = u64::from(RATE / CLIENTS);
    command.args(["-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}\n"]);
    command.args(["--max-time", "5", "--rate", &format!("{rate}/s")]);
    command.arg(format!("{}/small?[1-{}]", target.origin(), rate * seconds));
    let output = ended(command, "curl", Duration::from_secs(seconds) + PATIENCE)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let requests = text.lines().filter(|line| *line == "2 200").count() as u64;
    let failed = text.lines().count() as u64 - requests;
    if failed > 0 {
        eprintln!("curl: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(Answers { requests, failed, cut: 0 })
}
