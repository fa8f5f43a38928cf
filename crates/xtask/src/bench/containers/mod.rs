//! Containers: against docker-compose with the same engine, images and file, and whether requests are lost.

mod docker;
mod lossless;
mod overhead;
mod swarm;
mod up;

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;
use super::cleanup::Cleanup;
use super::figure::{Figure, Outcome};
use super::options::Options;
use super::platform::{Platform, build, root};
use super::protocols;
use docker::Docker;

/// Virtual addresses that containers reach, apart from a real server's.
const NETWORK: &str = "10.92.0.0/16";
/// Where services of the stacks listen.
const PORT: u16 = 8000;

/// A part of the bench.
type Case = fn(&Docker) -> Result<Vec<Figure>, Error>;

/// Runs the bench.
pub fn run(options: &Options) -> Result<Outcome, Error> {
    build()?;
    // The route to the virtual addresses outlives the server, as it should.
    let _route = Cleanup::new(|| {
        let _ = Command::new("ip").args(["route", "del", "local", NETWORK, "dev", "lo"]).output();
    });
    let docker = Docker::start()?;
    let mut outcome = Outcome::default();
    let cases: [(&str, Case); 4] = [
        ("up", up::figures),
        ("overhead", overhead::figures),
        ("lossless", lossless::figures),
        ("swarm", swarm::figures),
    ];
    for (name, figures) in cases {
        if options.wants(name) {
            outcome.figures.extend(figures(&docker)?);
        }
    }
    if options.wants("protocols") {
        let start = |name: &str, file: &Path| platform(name, file, &docker);
        let table = protocols::with_containers(docker::IMAGE, start)?;
        outcome.figures.extend(table.figures);
        outcome.appendix.push_str(&table.appendix);
    }
    Ok(outcome)
}

/// A Compose file in a directory of its own, as docker-compose takes the project's name and its paths from there.
fn written(name: &str, text: &str) -> Result<PathBuf, Error> {
    let directory = root().join("target/bench").join(format!("compose-{name}"));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("compose.yaml");
    std::fs::write(&file, text)?;
    Ok(file)
}

/// A server that uses this engine.
fn platform(name: &str, file: &Path, docker: &Docker) -> Result<Platform, Error> {
    let host = docker.host();
    Platform::start_with(name, file, &[("DOCKER_HOST", &host), ("KEEL_VIP_CIDR", NETWORK)])
}
