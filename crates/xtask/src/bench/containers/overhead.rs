//! What one more container takes beyond what the engine itself needs for it.
//!
//! The service has a port: one that has neither port nor check counts as ready only when it has lived for 300 ms, and
//! that would be measured.

use std::time::{Duration, Instant};

use serde_json::json;

use super::super::Error;
use super::super::figure::{Figure, median};
use super::docker::{Docker, IMAGE};
use super::{PORT, platform, written};

/// Rounds; in each one of both, one after the other.
const ROUNDS: usize = 25;
/// Before each: the kernel takes the network of a container that was removed apart when that is long reported.
const REST: Duration = Duration::from_millis(500);
/// How long the engine may take to remove one.
const PATIENCE: Duration = Duration::from_secs(60);
/// The container that is started without keel.
const BARE: &str = "/containers/overhead-bare";

/// `keel scale` by one, less create and start of the same container by the engine's API.
pub fn figures(docker: &Docker) -> Result<Vec<Figure>, Error> {
    let text = format!(
        "name: overhead\nservices:\n  web:\n    image: {IMAGE}\n    command: [/shop, payments]\n    \
         environment: {{PORT: '{PORT}'}}\n    expose: ['{PORT}']\n"
    );
    let file = written("overhead", &text)?;
    let platform = platform("containers-overhead", &file, docker)?;
    platform.keel(&["up", "-d", "--wait"])?;
    let (mut ours, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        std::thread::sleep(REST);
        let start = Instant::now();
        platform.keel(&["scale", "web=2"])?;
        ours.push(start.elapsed().as_secs_f64() * 1000.0);
        platform.keel(&["scale", "web=1"])?;
        // An engine that still removes a container is slower at the next.
        platform.wait("the removal", PATIENCE, |_| {
            let all = docker.call("GET", "/containers/json?all=1", None)?;
            Ok(all.as_array().is_some_and(|all| all.len() == 1))
        })?;
        std::thread::sleep(REST);
        bare.push(alone(docker)? * 1000.0);
    }
    let overhead = median(&ours) - median(&bare);
    let told = f64::INFINITY;
    Ok(vec![
        Figure::median("one container more: keel scale", &ours, told, "ms"),
        Figure::median("– create and start by the engine's API", &bare, told, "ms"),
        Figure::new("– keel's part, difference of the medians", overhead, 20.0, "ms"),
    ])
}

/// The seconds that the engine needs for the same container on the same network.
fn alone(docker: &Docker) -> Result<f64, Error> {
    let container = json!({
        "Image": IMAGE,
        "Cmd": ["/shop", "payments"],
        "Env": [format!("PORT={PORT}")],
        "HostConfig": {"NetworkMode": "overhead_default"},
    });
    let start = Instant::now();
    docker.call("POST", "/containers/create?name=overhead-bare", Some(&container))?;
    docker.call("POST", &format!("{BARE}/start"), None)?;
    let took = start.elapsed().as_secs_f64();
    docker.call("DELETE", &format!("{BARE}?force=true"), None)?;
    Ok(took)
}
