//! `keel up -d` beside `docker-compose up -d`: until everything is healthy, or where nothing can be asked until it runs.

use std::path::Path;
use std::time::{Duration, Instant};

use super::super::Error;
use super::super::figure::{Figure, median};
use super::super::platform::Platform;
use super::docker::{Docker, IMAGE};
use super::{PORT, platform, written};

/// Rounds; in each one of both, one after the other.
const ROUNDS: usize = 5;
/// Services of a stack.
const SERVICES: usize = 5;
/// Of these, so many have a health check in the stack with health checks.
const CHECKED: usize = 3;
/// Time between two looks at what docker-compose started: what a script that waits for it would hardly go below.
const LOOK: Duration = Duration::from_millis(20);
/// What is not there by then never will be.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the stack takes on each side, with health checks and without, and how long when nothing changed.
pub fn figures(docker: &Docker) -> Result<Vec<Figure>, Error> {
    let mut figures = compared("with 3 health checks", CHECKED, docker)?;
    figures.extend(compared("without health checks", 0, docker)?);
    Ok(figures)
}

fn compared(what: &str, checked: usize, docker: &Docker) -> Result<Vec<Figure>, Error> {
    let name = if checked > 0 { "checked" } else { "plain" };
    let file = written(name, &stack(checked))?;
    // The same file in another directory: a project of its own.
    let other = written(&format!("{name}-compose"), &stack(checked))?;
    let platform = platform(&format!("containers-{name}"), &file, docker)?;
    let (mut ours, mut theirs, mut again, mut again_theirs) = (vec![], vec![], vec![], vec![]);
    let mut waited = vec![];
    for round in 0..ROUNDS {
        // Who comes first changes, so that neither always finds the engine at rest.
        for keel in [round % 2 == 0, round % 2 != 0] {
            if keel {
                ours.push(our_up(&platform, docker, checked)?);
                // Until keel too calls it done.
                up(&platform)?;
                again.push(up(&platform)? * 1000.0);
                platform.keel(&["down"])?;
                if checked == 0 {
                    waited.push(up(&platform)?);
                    platform.keel(&["down"])?;
                }
            } else {
                theirs.push(their_up(docker, &other, checked)?);
                again_theirs.push(their_up(docker, &other, checked)? * 1000.0);
                docker.compose(&other, &["down", "-t", "1"])?;
            }
        }
    }
    let ratio = median(&ours) / median(&theirs);
    let told = f64::INFINITY;
    let until = if checked > 0 { "all are healthy" } else { "all run" };
    let title = format!("up, {SERVICES} services {what}, until {until}: keel");
    let mut figures = vec![
        Figure::median(title, &ours, told, "s"),
        Figure::median("– docker-compose", &theirs, told, "s"),
        Figure::new("– keel / docker-compose", ratio, 0.9, ""),
        Figure::median("– again, nothing changed: keel", &again, 200.0, "ms"),
        Figure::median("– again, nothing changed: docker-compose", &again_theirs, told, "ms"),
    ];
    if !waited.is_empty() {
        let title = "– keel, until all have run for 0.3 s (--wait)";
        figures.push(Figure::median(title, &waited, told, "s"));
    }
    Ok(figures)
}

/// What keel finds healthy it has asked itself; that something runs, the engine says on both sides.
fn our_up(platform: &Platform, docker: &Docker, checked: usize) -> Result<f64, Error> {
    if checked > 0 {
        return up(platform);
    }
    let start = Instant::now();
    platform.keel(&["up", "-d"])?;
    there(docker, 0, start)
}

fn up(platform: &Platform) -> Result<f64, Error> {
    let start = Instant::now();
    platform.keel(&["up", "-d", "--wait"])?;
    Ok(start.elapsed().as_secs_f64())
}

fn their_up(docker: &Docker, file: &Path, checked: usize) -> Result<f64, Error> {
    let start = Instant::now();
    docker.compose(file, &["up", "-d"])?;
    there(docker, checked, start)
}

/// Looks until the engine says that all run, and so many are healthy; the time since `start`.
fn there(docker: &Docker, checked: usize, start: Instant) -> Result<f64, Error> {
    loop {
        let containers = docker.call("GET", "/containers/json", None)?;
        let containers = containers.as_array().cloned().unwrap_or_default();
        let said = |word: &str| {
            let holds =
                |it: &&serde_json::Value| it["Status"].as_str().is_some_and(|s| s.contains(word));
            containers.iter().filter(holds).count()
        };
        if said("Up ") == SERVICES && said("(healthy)") == checked {
            return Ok(start.elapsed().as_secs_f64());
        }
        if start.elapsed() > PATIENCE {
            return Err("what was started is not there".into());
        }
        std::thread::sleep(LOOK);
    }
}

/// The file, without a `name`, which docker-compose 1.29 does not know.
fn stack(checked: usize) -> String {
    let mut text = "services:\n".to_owned();
    for index in 0..SERVICES {
        text.push_str(&format!(
            "  web{index}:\n    image: {IMAGE}\n    command: [/shop, payments]\n    \
             environment: {{PORT: '{PORT}'}}\n"
        ));
        if index < checked {
            text.push_str(&format!(
                "    healthcheck: {{test: [CMD, /shop, check, 'http://127.0.0.1:{PORT}/healthz'], \
                 interval: 1s, timeout: 3s, retries: 5}}\n"
            ));
        }
    }
    text
}
