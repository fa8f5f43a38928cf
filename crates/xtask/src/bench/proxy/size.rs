//! How much memory idle connections take.

use std::process::Command;
use std::time::{Duration, Instant};

use super::engine::{Engine, Proxy};
use super::rig::Rig;
use crate::bench::Error;
use crate::bench::figure::{Figure, Outcome};
use crate::bench::options::Options;
use crate::bench::platform::resident_mib;
use crate::bench::process::{Started, open_files, tool};

/// Connections that are kept.
const CONNECTIONS: usize = 10_000;
/// Opening them takes no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most that ours may take.
const BAR_MIB: f64 = 150.0;

/// Opens connections one by one, makes a request on each, and keeps them all. Python, because it brings TLS.
const HOLDER: &str = r#"
import socket, ssl, sys, time
port, wanted, tls = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "tls"
context = ssl.create_default_context()
context.check_hostname = False
context.verify_mode = ssl.CERT_NONE
held = []
why = ""
try:
    while len(held) < wanted:
        connection = socket.create_connection(("127.0.0.1", port), timeout=3)
        if tls:
            connection = context.wrap_socket(connection, server_hostname="localhost")
        connection.sendall(b"GET /small HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while not answer.endswith(b"x" * 128):
            piece = connection.recv(65536)
            if not piece:
                raise OSError("closed")
            answer += piece
        held.append(connection)
except OSError as error:
    why = repr(error)
print("HELD", len(held), why, flush=True)
time.sleep(600)
"#;

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    let rig = Rig::start("proxy-size")?;
    let script = rig.directory().join("hold.py");
    std::fs::write(&script, HOLDER)?;
    let mut figures = Vec::new();
    for (kind, name) in [("plain", "keep-alive"), ("tls", "TLS keep-alive")] {
        for engine in Engine::SHOWN {
            if !options.wants(kind) {
                continue;
            }
            let proxy = Proxy::start(engine, &rig)?;
            let what = format!("{CONNECTIONS} idle {name} connections, {}", engine.name());
            let (held, resident, why) = hold(&rig, &script, &proxy, kind)?;
            eprintln!("{what}: {held} held {why} {resident:.1} MiB");
            if engine != Engine::Keel {
                let what = format!("{held} idle {name} connections, {}", engine.name());
                figures.push(Figure::told(format!("{what}: resident"), resident, "MiB"));
            } else if held == 0 {
                figures.push(Figure::missing(what, BAR_MIB, "MiB", "not served yet"));
            } else {
                figures.push(Figure::new(format!("{what}: resident"), resident, BAR_MIB, "MiB"));
                #[allow(clippy::cast_precision_loss)]
                let not_held = CONNECTIONS.saturating_sub(held) as f64;
                figures.push(Figure::new(format!("{what}: not accepted"), not_held, 0.0, ""));
            }
        }
    }
    Ok(figures.into())
}

/// Connections held, the proxy's memory then in MiB, and why there are not more.
fn hold(
    rig: &Rig,
    script: &std::path::Path,
    proxy: &Proxy,
    kind: &str,
) -> Result<(usize, f64, String), Error> {
    let pid = proxy.process.pid();
    let before = open_files(pid);
    let port = if kind == "tls" { proxy.doors.https } else { proxy.doors.http };
    let mut command = Command::new(tool("python3", "python3")?);
    command.arg(script).args([port.to_string(), CONNECTIONS.to_string(), kind.to_owned()]);
    let holder = Started::new(command, "hold", rig.directory())?;
    let start = Instant::now();
    let said = loop {
        let said = holder.said();
        if let Some(line) = said.lines().find_map(|line| line.strip_prefix("HELD ")) {
            break line.to_owned();
        }
        if start.elapsed() > PATIENCE {
            return Err(format!("the connections were not opened in {PATIENCE:?}: {said}").into());
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let (number, why) = said.split_once(' ').unwrap_or((&said, ""));
    // Each is a descriptor of the proxy; some more lead to backends.
    let held = number.parse::<usize>()?.min(open_files(pid).saturating_sub(before));
    Ok((held, resident_mib(pid), why.trim().to_owned()))
}
