//! What every proxy under test is given alike: cores, backends, a certificate, ports.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::bench::Error;
use crate::bench::kit;
use crate::bench::platform::{binary, build};
use crate::bench::process::{
    Scratch, Started, busy_percent, free_port, output, pinned, raise_descriptor_limit, tool,
};

/// HTTP backends. More than one, so that balancing is part of what is measured.
pub const BACKENDS: usize = 4;

/// A machine that is busier than this before anything has started, in percent of one core, spoils the figures.
const BUSY: f64 = 10.0;

/// Where the backends listen.
#[derive(Clone, Debug)]
pub struct Backends {
    /// HTTP/1.1.
    pub http: Vec<u16>,
    /// An echo.
    pub echo: u16,
    /// 1 MiB for each 64 bytes.
    pub bulk: u16,
}

/// The surroundings of a proxy. Everything in it ends when it is dropped.
#[derive(Debug)]
pub struct Rig {
    /// The core of the proxy under test, alone (as of `taskset -c`).
    pub proxy_cores: String,
    /// The cores of clients and backends.
    pub other_cores: String,
    pub backends: Backends,
    /// PEM: a self-signed certificate for `localhost`, with an ECDSA key on P-256.
    pub certificate: PathBuf,
    /// PEM: its key.
    pub key: PathBuf,
    _servers: Started,
    scratch: Scratch,
}

impl Rig {
    /// Builds what runs, and starts the backends.
    pub fn start(name: &str) -> Result<Self, Error> {
        build()?;
        tool("taskset", "util-linux")?;
        let busy = busy_percent();
        if busy > BUSY {
            eprintln!(
                "warning: something else keeps {busy:.0} % of a core busy: what follows is noise"
            );
        }
        raise_descriptor_limit();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        if cores < 2 {
            return Err("this bench wants two cores: one for the proxy, one for the rest".into());
        }
        let other_cores = format!("1-{}", cores - 1);
        let scratch = Scratch::new(name)?;
        let backends = Backends {
            http: (0..BACKENDS).map(|_| free_port()).collect::<Result<_, _>>()?,
            echo: free_port()?,
            bulk: free_port()?,
        };
        let (certificate, key) = certificate(scratch.path())?;
        let servers = serve(&other_cores, &backends, scratch.path())?;
        let proxy_cores = "0".to_owned();
        Ok(Self {
            proxy_cores,
            other_cores,
            backends,
            certificate,
            key,
            _servers: servers,
            scratch,
        })
    }

    /// A directory for files of this run.
    pub fn directory(&self) -> &Path {
        self.scratch.path()
    }

    /// Runs a client to its end; what it printed.
    pub fn client(&self, command: Client, patience: Duration) -> Result<String, Error> {
        let Client { program, package, arguments } = command;
        let mut command = pinned(&self.other_cores, tool(program, package)?);
        command.args(arguments);
        output(command, program, patience)
    }

    /// What is agreed upon in a TLS handshake with `port`: version and cipher suite, key exchange.
    pub fn negotiated(&self, port: u16) -> Result<String, Error> {
        let words = format!("s_client -connect 127.0.0.1:{port} -servername localhost");
        let mut command = Command::new(tool("openssl", "openssl")?);
        command.args(words.split(' '));
        let said = output(command, "openssl", Duration::from_secs(5))?;
        let field = |name: &str| said.lines().find_map(|line| line.trim().strip_prefix(name));
        let version = field("New, ").filter(|words| words.starts_with("TLS"));
        let version = version.ok_or("no TLS is spoken there")?;
        Ok(format!("{version}, {}", field("Server Temp Key: ").unwrap_or("no key exchange")))
    }

    /// Runs a task of the kit to its end; what it printed.
    pub fn kit(&self, arguments: &[String], patience: Duration) -> Result<String, Error> {
        let mut command = pinned(&self.other_cores, binary("xtask"));
        command.arg(kit::COMMAND).args(arguments);
        output(command, kit::COMMAND, patience)
    }
}

/// A tool that makes requests.
#[derive(Debug)]
pub struct Client {
    pub program: &'static str,
    /// The Debian package that brings it.
    pub package: &'static str,
    pub arguments: Vec<String>,
}

fn serve(cores: &str, backends: &Backends, directory: &Path) -> Result<Started, Error> {
    let http: Vec<_> = backends.http.iter().map(u16::to_string).collect();
    let mut command = pinned(cores, binary("xtask"));
    command.args([kit::COMMAND, "serve"]);
    command.arg(format!("http={}", http.join(",")));
    command.args([format!("echo={}", backends.echo), format!("bulk={}", backends.bulk)]);
    let mut servers = Started::new(command, "backends", directory)?;
    servers.listens(backends.bulk)?;
    Ok(servers)
}

/// P-256, since that is what certificate authorities hand out by default today.
fn certificate(directory: &Path) -> Result<(PathBuf, PathBuf), Error> {
    let (certificate, key) = (directory.join("certificate.pem"), directory.join("key.pem"));
    let mut command = Command::new(tool("openssl", "openssl")?);
    command
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate);
    output(command, "openssl", Duration::from_secs(20))?;
    Ok((certificate, key))
}
