//! The clients: one tool for each protocol, paced, and what it counted.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde::Deserialize;

use crate::bench::Error;
use crate::bench::lossless::{Report, wrk};
use crate::bench::process::{output, tool};
use crate::bench::proxy::read_h2load;

/// Requests per second of each protocol; four of them make 2,000.
const RATE: u32 = 500;
/// Connections, streams or channels at a time.
const CLIENTS: u32 = 10;
/// A client that takes so much longer than it was asked to run hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// One row of the result.
#[derive(Debug)]
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
    pub fn ask(&self, directory: &Path, port: u16, seconds: u64) -> Result<Answers, Error> {
        let patience = Duration::from_secs(seconds) + PATIENCE;
        match self.kind {
            Kind::Http1 => {
                tool("wrk", "wrk")?;
                let command = wrk(&directory.join("paced.lua"), port, RATE, seconds, &["/small"])?;
                let Report { requests, failed, .. } =
                    Report::parse(output(command, "wrk", patience)?)?;
                Ok(Answers { requests, failed, cut: 0 })
            }
            Kind::Http2 => {
                let mut command = Command::new(tool("h2load", "nghttp2-client")?);
                command.args(["-t1", "-m1"]);
                command.args([format!("-c{CLIENTS}"), format!("--rps={}", RATE / CLIENTS)]);
                command.arg(format!("--duration={seconds}"));
                command.arg(format!("http://127.0.0.1:{port}/small"));
                let text = output(command, "h2load", patience)?;
                let count = read_h2load(&text, u32::try_from(seconds)?)?;
                Ok(Answers { requests: count.requests, failed: count.errors, cut: 0 })
            }
            Kind::Script(script, package) => {
                // Debian's modules are Debian's Python's, not those of another one in the path.
                let mut command = Command::new("/usr/bin/python3");
                command.arg(directory.join(script)).args(["ask", &format!("127.0.0.1:{port}")]);
                command.args([seconds.to_string(), CLIENTS.to_string(), RATE.to_string()]);
                let text = output(command, script, patience).map_err(|error| {
                    format!("{error}\n(it needs python3: apt-get install {package})")
                })?;
                Ok(serde_json::from_str(&text)?)
            }
        }
    }
}
