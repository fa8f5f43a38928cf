//! How a policy treats the traffic of a service.

mod bounds;
mod health;
mod spread;
mod times;
mod tries;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use keel_model::{Outlier, TrafficPolicy};
use keel_route::snapshot::Cluster;

use crate::backend::Backend;
use crate::http2::either::{Answer, Caller, Endpoint, Message, Version};
use crate::http2::endpoint::Http2Endpoint;
use crate::routes::{answer, nothing, several, with_policy};

const BOTH: [Version; 2] = [Version::One, Version::Two];
/// Longer than a test waits for anything.
const NEVER: Duration = Duration::from_secs(300);

/// Endpoints under a policy.
pub fn under(policy: &TrafficPolicy, endpoints: &[&Endpoint]) -> Cluster {
    with_policy(several(endpoints), policy.clone())
}

/// No endpoint is left out for what it does.
pub fn patient() -> Outlier {
    Outlier { consecutive_errors: 0, ..Outlier::default() }
}

/// Takes requests and says nothing.
fn silent(version: Version) -> Endpoint {
    match version {
        Version::One => {
            Endpoint::One(Backend::new(|mut connection| while connection.request().is_some() {}))
        }
        Version::Two => Endpoint::Two(Http2Endpoint::new(|exchange| async move {
            tokio::time::sleep(NEVER).await;
            drop(exchange);
        })),
    }
}

/// Answers with its name, and the status that is set.
pub fn moody(version: Version, name: &'static str, status: &Arc<AtomicU16>) -> Endpoint {
    let status = Arc::clone(status);
    Endpoint::new(version, move |_| answer(status.load(Ordering::SeqCst), name))
}

pub fn mood(status: u16) -> Arc<AtomicU16> {
    Arc::new(AtomicU16::new(status))
}

async fn get(caller: &mut Caller) -> Answer {
    caller.ask("GET", "/", &nothing()).await
}

/// Status and body of so many answers, counted.
async fn tally(caller: &mut Caller, method: &str, times: usize) -> BTreeMap<(u16, String), usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..times {
        let answer = caller.ask(method, "/", &Message::default()).await;
        *counts.entry((answer.status, answer.text())).or_default() += 1;
    }
    counts
}

fn of(counts: &BTreeMap<(u16, String), usize>, status: u16, name: &str) -> usize {
    counts.get(&(status, name.to_owned())).copied().unwrap_or_default()
}
