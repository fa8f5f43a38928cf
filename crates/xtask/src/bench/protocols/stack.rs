//! What is asked: three services of two instances each, at published ports and by routes, with TLS and without.

use std::path::{Path, PathBuf};

use super::certificate::Certificates;
use super::client::{self, Answers, Protocol, Target};
use crate::bench::Error;
use crate::bench::platform::{Platform, binary, root};
use crate::bench::process::free_port;

/// The services.
pub const SERVICES: [&str; 3] = ["web", "grpc", "websocket"];
/// The host of the routes.
pub const HOST: &str = "localhost";

/// How a service is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// At the port that it publishes.
    Published,
    /// By a route.
    Routed,
    /// By a route, with TLS.
    Secure,
}

/// The stack on a platform of its own.
pub struct Stack {
    pub platform: Platform,
    pub certificates: Certificates,
    directory: PathBuf,
    /// In the order of [`SERVICES`], then the entrypoints without and with TLS.
    ports: [u16; 5],
}

impl Stack {
    /// Starts it with processes, and waits until it is ready.
    pub fn start() -> Result<Self, Error> {
        Self::start_with("protocols", PROCESSES, Platform::start)
    }

    /// Starts it with containers of `image`, into which the programs of this machine are mounted.
    pub fn start_in(
        image: &str,
        platform: impl FnOnce(&str, &Path) -> Result<Platform, Error>,
    ) -> Result<Self, Error> {
        let containers = CONTAINERS.replace("IMAGE", image);
        Self::start_with("protocols-containers", &containers, platform)
    }

    fn start_with(
        name: &str,
        each: &str,
        platform: impl FnOnce(&str, &Path) -> Result<Platform, Error>,
    ) -> Result<Self, Error> {
        let directory = root().join("target/bench").join(name);
        std::fs::create_dir_all(&directory)?;
        client::write_scripts(&directory)?;
        let certificates = Certificates::new(&directory)?;
        let file = directory.join("compose.yaml");
        std::fs::write(&file, STACK.replace("  EACH\n", each))?;
        let mut platform = platform(&format!("{name}-state"), &file)?;
        platform.set("XTASK", &binary("xtask").to_string_lossy());
        platform.set("SCRIPTS", &directory.to_string_lossy());
        let mut ports = [0; 5];
        let names = ["WEB_PORT", "GRPC_PORT", "WEBSOCKET_PORT", "ROUTES_PORT", "SECURE_PORT"];
        for (port, name) in ports.iter_mut().zip(names) {
            *port = free_port()?;
            platform.set(name, &port.to_string());
        }
        platform.keel(&["up", "-d", "--wait"])?;
        Ok(Self { platform, certificates, directory, ports })
    }

    /// The port at which `service` is asked.
    pub fn port(&self, way: Way, service: &str) -> u16 {
        match way {
            Way::Published => {
                let at = SERVICES.iter().position(|known| *known == service);
                at.map_or(0, |at| self.ports[at])
            }
            Way::Routed => self.ports[3],
            Way::Secure => self.ports[4],
        }
    }

    /// Asks for so many seconds.
    pub fn ask(&self, protocol: &Protocol, way: Way, seconds: u64) -> Result<Answers, Error> {
        self.asks(protocol, way)(seconds)
    }

    /// What asks for so many seconds, whatever becomes of the platform meanwhile.
    pub fn asks(
        &self,
        protocol: &Protocol,
        way: Way,
    ) -> impl FnOnce(u64) -> Result<Answers, Error> + Send + use<> {
        let (protocol, directory) = (*protocol, self.directory.clone());
        let target = Target {
            host: if way == Way::Published { "127.0.0.1" } else { HOST },
            port: self.port(way, protocol.service),
            roots: (way == Way::Secure).then(|| self.certificates.roots()),
        };
        move |seconds| protocol.ask(&directory, &target, seconds)
    }
}

/// What each service has as processes.
const PROCESSES: &str = r#"  environment: { REVISION: "${REVISION:-one}" }
"#;
/// And as containers: a file system with nothing of its own, and a fixed port.
const CONTAINERS: &str = r#"  image: IMAGE
  environment: { REVISION: "${REVISION:-one}", PORT: "80", LISTEN: "0.0.0.0" }
  volumes: ["/usr:/usr:ro", "/lib:/lib:ro", "/lib64:/lib64:ro", "${SCRIPTS}:${SCRIPTS}:ro", "${XTASK}:${XTASK}:ro"]
"#;

const STACK: &str = r#"name: protocols
x-keel:
  entrypoints: { web: "127.0.0.1:${ROUTES_PORT}", websecure: "127.0.0.1:${SECURE_PORT}" }
x-tls: &tls { cert: "${SCRIPTS}/certificate.pem", key: "${SCRIPTS}/key.pem" }
x-service: &service
  restart: always
  EACH
  deploy: { replicas: 2, update_config: { order: start-first, parallelism: 1, monitor: 2s } }
services:
  web:
    <<: *service
    command: ["/bin/sh", "-c", "exec ${XTASK} bench-kit serve http=$$PORT"]
    ports: ["127.0.0.1:${WEB_PORT}:80"]
    x-keel:
      routes:
        - &web { host: localhost, path: [/small, "/other-${LIMIT:-50000}"], rate_limit: "${LIMIT:-50000}/s" }
        - { <<: *web, tls: *tls }
  grpc:
    <<: *service
    command: ["/usr/bin/python3", "${SCRIPTS}/grpc_echo.py", "serve"]
    ports: ["127.0.0.1:${GRPC_PORT}:80"]
    x-keel:
      routes:
        - &grpc { host: localhost, path: [/bench.Echo, "/grpc-${LIMIT:-50000}"], rate_limit: "${LIMIT:-50000}/s" }
        - { <<: *grpc, tls: *tls }
  websocket:
    <<: *service
    command: ["/usr/bin/python3", "${SCRIPTS}/websocket_echo.py", "serve"]
    ports: ["127.0.0.1:${WEBSOCKET_PORT}:80"]
    x-keel:
      routes:
        - &websocket { host: [localhost, "h${LIMIT:-50000}.test"], rate_limit: "${LIMIT:-50000}/s" }
        - { <<: *websocket, tls: *tls }
"#;
