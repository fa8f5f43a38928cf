//! What Prometheus and its like may know: everything that the proxy counts, and what the processes use.
//!
//! Counters are the proxy's own and begin at zero when it is started anew, which scrapers reckon with. An edge that
//! leads to a cluster that is gone disappears with it.

mod exposition;
mod listen;
mod process;

use keel_route::snapshot::{ClusterStats, EdgeStats};

use crate::traffic::{Figures, ProxyState};
pub use exposition::Format;
use exposition::{Exposition, Kind};
pub use listen::{bind, start};
use process::Usage;
pub use process::started;

/// Upper bounds of the histogram of times, in microseconds. Times are counted exactly to one part in eight
/// ([`keel_route::histogram`]): a bound counts those that are at most the bound for sure, so that up to an eighth
/// below it some are counted with the next bound only.
const BOUNDS_US: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// A page for a scraper with this `Accept`, and its content type.
pub async fn page(figures: &Figures, accept: &str) -> (&'static str, String) {
    let format = Format::accepted(accept);
    let state = figures.now().await;
    let mut processes = Vec::new();
    processes.extend(Usage::of(std::process::id()).map(|usage| ("server", usage)));
    processes.extend(state.pid.and_then(Usage::of).map(|usage| ("proxy", usage)));
    (format.content_type(), write(format, &state, &processes))
}

fn write(format: Format, state: &ProxyState, processes: &[(&str, Usage)]) -> String {
    let mut page = Exposition::new(format);
    builds(&mut page, state);
    link(&mut page, state);
    edges(&mut page, &state.stats.edges);
    clusters(&mut page, state);
    process::write(&mut page, processes);
    page.finish()
}

fn builds(page: &mut Exposition, state: &ProxyState) {
    page.family("keel_build_info", Kind::Gauge, "Always 1; the version of each process.");
    page.sample(&[("process", "server"), ("version", env!("CARGO_PKG_VERSION"))], 1);
    if state.pid.is_some() {
        page.sample(&[("process", "proxy"), ("version", &state.version)], 1);
    }
}

fn link(page: &mut Exposition, state: &ProxyState) {
    page.family("keel_proxy_up", Kind::Gauge, "1 while the server and the proxy are linked.");
    page.sample(&[], u64::from(state.pid.is_some()));
    let help = "Age of the proxy's figures on this page, in seconds.";
    page.family("keel_proxy_stats_age_seconds", Kind::Gauge, help);
    if let Some(asked) = state.asked {
        page.fraction(&[], asked.elapsed().as_secs_f64());
    }
    let help = "Listeners that are wanted but could not be opened.";
    page.family("keel_proxy_listeners_failed", Kind::Gauge, help);
    page.sample(&[], state.failed.len() as u64);
    let proxy = &state.stats.proxy;
    page.family("keel_proxy_connections", Kind::Gauge, "Open connections of clients.");
    page.sample(&[], proxy.connections);
    page.family("keel_proxy_access_log_lines", Kind::Counter, "Lines written to the access log.");
    page.sample(&[], proxy.log_lines);
    let help = "Lines of the access log that were lost: the file could not be written, or not fast enough.";
    page.family("keel_proxy_access_log_dropped_lines", Kind::Counter, help);
    page.sample(&[], proxy.log_dropped);
}

/// The parts of `stack/service:port`; empty where there is none.
fn parts(cluster: &str) -> [(&'static str, &str); 3] {
    let (stack, rest) = cluster.split_once('/').unwrap_or(("", cluster));
    let (service, port) = rest.rsplit_once(':').unwrap_or((rest, ""));
    [("stack", stack), ("service", service), ("port", port)]
}

fn labels(edge: &EdgeStats) -> [(&'static str, &str); 5] {
    let [stack, service, port] = parts(&edge.cluster);
    [stack, service, port, ("route", &edge.route), ("caller", &edge.caller)]
}

fn with<'a>(labels: [(&'a str, &'a str); 5], more: (&'a str, &'a str)) -> [(&'a str, &'a str); 6] {
    let [a, b, c, d, e] = labels;
    [a, b, c, d, e, more]
}

fn edges(page: &mut Exposition, edges: &[EdgeStats]) {
    let help = "Requests by status; code 0: opaque connections, and requests whose caller left before an answer.";
    page.family("keel_proxy_requests", Kind::Counter, help);
    for edge in edges {
        for (code, count) in &edge.statuses {
            page.sample(&with(labels(edge), ("code", &code.to_string())), *count);
        }
    }
    let help = "Calls of gRPC by their own status; they are requests too.";
    page.family("keel_proxy_grpc_calls", Kind::Counter, help);
    for edge in edges {
        for (code, count) in &edge.grpc_statuses {
            page.sample(&with(labels(edge), ("grpc_status", &code.to_string())), *count);
        }
    }
    let help = "Time to the end of the answer, in seconds; of opaque connections, to their end.";
    page.family("keel_proxy_request_duration_seconds", Kind::Histogram, help);
    for edge in edges {
        let bounds = BOUNDS_US.map(|bound| (seconds(bound), edge.latency.below(bound)));
        let (count, sum) = (edge.latency.count(), seconds(edge.latency.sum));
        page.histogram(&labels(edge), &bounds, count, sum);
    }
    let mut counter = |name, help, value: fn(&EdgeStats) -> u64| {
        page.family(name, Kind::Counter, help);
        edges.iter().for_each(|edge| page.sample(&labels(edge), value(edge)));
    };
    let help = "Bytes of bodies (of opaque connections: all bytes) from callers.";
    counter("keel_proxy_received_bytes", help, |edge| edge.bytes_in);
    let help = "Bytes of bodies (of opaque connections: all bytes) to callers.";
    counter("keel_proxy_sent_bytes", help, |edge| edge.bytes_out);
    let help = "Tries of requests beyond the first.";
    counter("keel_proxy_retries", help, |edge| edge.retries);
}

fn clusters(page: &mut Exposition, state: &ProxyState) {
    let clusters = &state.stats.clusters;
    let mut family = |name, kind, help, value: fn(&ClusterStats) -> u64| {
        page.family(name, kind, help);
        clusters.iter().for_each(|(id, stats)| page.sample(&parts(id), value(stats)));
    };
    let help =
        "Requests that the platform failed: answers 502, 503 and 504 of its own, and resets.";
    family("keel_proxy_failed_requests", Kind::Counter, help, |s| s.failed);
    let help = "Requests that waited because no endpoint was ready.";
    family("keel_proxy_held_requests", Kind::Counter, help, |s| s.held);
    let help = "Requests and opaque connections in flight.";
    family("keel_proxy_requests_in_flight", Kind::Gauge, help, |s| s.in_flight);
    let help =
        "Endpoints: ready, ejected (left out for a while) and draining (finishing what they have).";
    page.family("keel_proxy_endpoints", Kind::Gauge, help);
    for (id, stats) in clusters {
        let [stack, service, port] = parts(id);
        let counts = &stats.endpoints;
        for (state, count) in
            [("ready", counts.ready), ("ejected", counts.ejected), ("draining", counts.draining)]
        {
            page.sample(&[stack, service, port, ("state", state)], count);
        }
    }
}

#[allow(clippy::cast_precision_loss, reason = "a sum of microseconds is not exact to one in 2^53")]
fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

#[cfg(test)]
mod tests;
