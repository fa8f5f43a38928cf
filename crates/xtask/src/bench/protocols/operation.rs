//! What must not cost a request, done as somebody who runs the platform does it.

use std::time::Duration;

use super::stack::{SERVICES, Stack, Way};
use crate::bench::Error;
use crate::bench::lossless::settled;
use crate::bench::platform::signal;

/// Between two things that are done.
const PAUSE: Duration = Duration::from_secs(1);
/// What has not come about by then never will.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often the proxy is replaced.
const UPGRADES: usize = 3;
/// What the rate limit of the routes becomes, one after the other; all are far above what is asked for.
const LIMITS: [&str; 6] = ["50001", "50002", "50003", "50004", "50005", "50006"];

/// Something that must not cost a request.
pub struct Operation {
    pub name: &'static str,
    /// The clients ask for so long, which is longer than it takes.
    pub seconds: u64,
    /// Sessions may break off.
    pub cuts: bool,
    /// How the clients ask.
    pub way: Way,
    pub act: fn(&mut Stack) -> Result<(), Error>,
}

impl Operation {
    const fn new(
        name: &'static str,
        seconds: u64,
        way: Way,
        act: fn(&mut Stack) -> Result<(), Error>,
    ) -> Self {
        Self { name, seconds, cuts: false, way, act }
    }
}

/// Every operation.
pub const OPERATIONS: &[Operation] = &[
    Operation { cuts: true, ..Operation::new("endpoint killed", 12, Way::Published, kill) },
    Operation::new("scaled up and down", 25, Way::Published, scale),
    Operation::new("rolling update", 75, Way::Published, update),
    Operation::new("server killed", 12, Way::Published, kill_server),
    Operation::new("proxy replaced", 30, Way::Published, replace_proxy),
    Operation::new("route changed", 20, Way::Routed, change_routes),
    Operation::new("certificate changed", 20, Way::Secure, change_certificates),
];

fn kill(stack: &mut Stack) -> Result<(), Error> {
    for service in SERVICES {
        let (_, pid) = stack.platform.running(service)?.first().cloned().ok_or("nothing runs")?;
        signal(pid, "-KILL");
    }
    settled(&stack.platform)
}

fn scale(stack: &mut Stack) -> Result<(), Error> {
    for number in [4, 2] {
        let wanted = SERVICES.map(|service| format!("{service}={number}"));
        let mut words = vec!["scale"];
        words.extend(wanted.iter().map(String::as_str));
        stack.platform.keel(&words)?;
        settled(&stack.platform)?;
    }
    Ok(())
}

fn update(stack: &mut Stack) -> Result<(), Error> {
    stack.platform.set("REVISION", "two");
    stack.platform.keel(&["up", "-d", "--wait"])?;
    settled(&stack.platform)
}

fn kill_server(stack: &mut Stack) -> Result<(), Error> {
    signal(stack.platform.server_pid()?, "-KILL");
    std::thread::sleep(PAUSE);
    stack.platform.server()?;
    settled(&stack.platform)
}

/// An upgrade of the binary: the new server finds a proxy of another build and starts a successor.
fn replace_proxy(stack: &mut Stack) -> Result<(), Error> {
    for _ in 0..UPGRADES {
        let old = stack.platform.processes(" proxy ");
        stack.platform.upgrade()?;
        // Clients that keep their connections leave the old one only when it ends them.
        stack.platform.wait("the end of the old proxy", PATIENCE, |platform| {
            let now = platform.processes(" proxy ");
            Ok(!now.is_empty() && now.iter().all(|pid| !old.contains(pid)))
        })?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Rules and filters of the routes that are asked, time and again.
fn change_routes(stack: &mut Stack) -> Result<(), Error> {
    for limit in LIMITS {
        stack.platform.set("LIMIT", limit);
        stack.platform.keel(&["up", "-d", "--wait"])?;
        stack.platform.wait("the new routes", PATIENCE, |platform| {
            let routes = platform.json(&["routes"])?.to_string();
            Ok(routes.contains(&format!("/other-{limit}")))
        })?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Renewed files, one after the other as certbot writes them.
fn change_certificates(stack: &mut Stack) -> Result<(), Error> {
    while let Some(next) = stack.certificates.renew()? {
        let port = stack.port(Way::Secure, "");
        stack.platform.wait("the new certificate", PATIENCE, |_| next.is_shown(port))?;
        std::thread::sleep(PAUSE);
    }
    Ok(())
}
