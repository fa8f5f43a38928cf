//! The proxies that are compared: started alike, on the same core, with one worker each.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::configuration::{self, Variant};
use super::rig::Rig;
use crate::bench::Error;
use crate::bench::platform::binary;
use crate::bench::process::{Started, free_port, pinned_alone, tool};

/// The control socket of ours in the directory of a run.
const SOCKET: &str = "keel.sock";

/// A load balancer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Engine {
    /// Ours.
    Keel,
    /// The one that the bars are about.
    Haproxy,
    /// For information.
    Nginx,
    /// The second one with `option splice-response`, which it does not use unless told: for information, where much
    /// is moved.
    HaproxySplice,
}

impl Engine {
    /// Each of them.
    pub const ALL: [Self; 4] = [Self::Keel, Self::Haproxy, Self::Nginx, Self::HaproxySplice];
    /// Those that are asked everything.
    pub const SHOWN: [Self; 3] = [Self::Keel, Self::Haproxy, Self::Nginx];

    pub fn name(self) -> &'static str {
        match self {
            Self::Keel => "keel",
            Self::Haproxy => "HAProxy",
            Self::Nginx => "nginx",
            Self::HaproxySplice => "HAProxy-splice",
        }
    }
}

/// The version that an engine says it has.
pub fn version(engine: Engine) -> Result<String, Error> {
    let (program, flag) = match engine {
        Engine::Keel => (binary("keel"), "--version"),
        Engine::Haproxy | Engine::HaproxySplice => (tool("haproxy", "haproxy")?, "-v"),
        Engine::Nginx => (tool("nginx", "nginx-light")?, "-v"),
    };
    let output = Command::new(program).arg(flag).output()?;
    // nginx answers on standard error.
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    let mut words = said.split([' ', '/', '\n']);
    let number = words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(number.unwrap_or("of unknown version").to_owned())
}

/// Where a proxy listens.
#[derive(Clone, Copy, Debug, Default)]
pub struct Doors {
    /// HTTP/1.1.
    pub http: u16,
    /// TLS, with HTTP/1.1 and HTTP/2 by ALPN.
    pub https: u16,
    /// HTTP/2 without TLS, with prior knowledge.
    pub h2c: u16,
    /// Opaque TCP to the echo.
    pub echo: u16,
    /// Opaque TCP to the bulk server.
    pub bulk: u16,
}

impl Doors {
    fn new() -> Result<Self, Error> {
        Ok(Self {
            http: free_port()?,
            https: free_port()?,
            h2c: free_port()?,
            echo: free_port()?,
            bulk: free_port()?,
        })
    }
}

/// A proxy that runs.
#[derive(Debug)]
pub struct Proxy {
    pub engine: Engine,
    pub doors: Doors,
    pub process: Started,
}

impl Proxy {
    /// Starts `engine` before the backends of `rig`.
    pub fn start(engine: Engine, rig: &Rig) -> Result<Self, Error> {
        let doors = Doors::new()?;
        let command = match engine {
            Engine::Keel => {
                let snapshot = configuration::keel(rig, doors)?;
                keel(rig, &snapshot, Some(&rig.proxy_cores), 1)?
            }
            Engine::Haproxy => haproxy(rig, doors, Variant::DEFAULT)?,
            Engine::HaproxySplice => haproxy(rig, doors, Variant::SPLICE)?,
            Engine::Nginx => nginx(rig, doors)?,
        };
        let mut process = Started::new(command, engine.name(), rig.directory())?;
        for port in [doors.http, doors.bulk] {
            process.listens(port)?;
        }
        Ok(Self { engine, doors, process })
    }
}

/// Our proxy with a snapshot of its own.
#[derive(Debug)]
pub struct Running {
    pub process: Started,
    /// Where it takes changes.
    pub socket: PathBuf,
}

impl Running {
    /// Starts it with `workers` on `cores`, or wherever the system likes.
    pub fn keel(
        rig: &Rig,
        snapshot: &serde_json::Value,
        cores: Option<&str>,
        workers: usize,
    ) -> Result<Self, Error> {
        let command = keel(rig, snapshot, cores, workers)?;
        let process = Started::new(command, Engine::Keel.name(), rig.directory())?;
        Ok(Self { process, socket: rig.directory().join(SOCKET) })
    }
}

/// Our proxy needs nothing of a server: it serves the snapshot file at once.
fn keel(
    rig: &Rig,
    snapshot: &serde_json::Value,
    cores: Option<&str>,
    workers: usize,
) -> Result<Command, Error> {
    let file = rig.directory().join("snapshot.json");
    fs::write(&file, snapshot.to_string())?;
    let program = binary("keel");
    let mut command = match cores {
        Some(cores) => pinned_alone(cores, program),
        None => Command::new(program),
    };
    command.arg("proxy").arg("--control-socket").arg(rig.directory().join(SOCKET));
    command.arg("--snapshot-file").arg(file).args(["--workers", &workers.to_string()]);
    Ok(command)
}

fn haproxy(rig: &Rig, doors: Doors, variant: Variant) -> Result<Command, Error> {
    let file = rig.directory().join(format!("haproxy-{}.cfg", doors.http));
    let both = rig.directory().join("haproxy.pem");
    fs::write(&both, fs::read_to_string(&rig.certificate)? + &fs::read_to_string(&rig.key)?)?;
    fs::write(&file, configuration::haproxy(rig, doors, &both, variant))?;
    let mut command = pinned_alone(&rig.proxy_cores, tool("haproxy", "haproxy")?);
    // In the foreground and as one process.
    command.args(["-db", "-f"]).arg(file);
    Ok(command)
}

fn nginx(rig: &Rig, doors: Doors) -> Result<Command, Error> {
    let modules =
        ["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"];
    let stream = modules
        .iter()
        .map(|directory| Path::new(directory).join("ngx_stream_module.so"))
        .find(|file| file.is_file())
        .ok_or("nginx lacks its stream module: apt-get install libnginx-mod-stream")?;
    let file = rig.directory().join("nginx.conf");
    fs::write(&file, configuration::nginx(rig, doors, &stream))?;
    let mut command = pinned_alone(&rig.proxy_cores, tool("nginx", "nginx-light")?);
    command.arg("-p").arg(rig.directory()).arg("-c").arg(file);
    Ok(command)
}
