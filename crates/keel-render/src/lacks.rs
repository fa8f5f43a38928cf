//! What of a snapshot may be lacking in an engine, judged by what users asked for. Whether it is, the table says.

use std::collections::BTreeMap;

use keel_model::{Balance, ClientKey, Encoding, Protocol, Retry, RouteKind, TrafficPolicy};
use keel_route::snapshot::{Cluster, ClusterId, Listener, RouteEntry};

use crate::gaps::Lack;

/// Statuses of a moved address.
pub(crate) const REDIRECTS: &[u16] = &[301, 302, 303, 307, 308];
/// Rate limits that HAProxy keeps for one request.
pub(crate) const MAX_LIMITS: usize = 3;

pub(crate) fn of_listener(listener: &Listener) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if listener.table.is_none() && listener.protocol == Protocol::Auto {
        lacks.push(Lack::Detection);
    }
    if !listener.refuses.is_empty() {
        lacks.push(Lack::Networks);
    }
    let all = |net: &ipnet::IpNet| net.prefix_len() == 0;
    if !listener.accept_proxy_from.is_empty() && !listener.accept_proxy_from.iter().any(all) {
        lacks.push(Lack::AcceptProxy);
    }
    lacks
}

/// Whether clients may be expected to speak HTTP/2 on this route even without TLS: it leads to a service that was declared
/// to speak it so, as gRPC servers do. Wherever HTTP/1.1 is served, browsers and tools make do with that.
pub(crate) fn is_for_http2(entry: &RouteEntry, clusters: &BTreeMap<ClusterId, Cluster>) -> bool {
    let declared = |id: &ClusterId| clusters.get(id).is_some_and(|c| c.protocol == Protocol::Http2);
    entry.kind == RouteKind::Http
        && entry.filters.redirect.is_none()
        && entry.clusters.iter().any(|(id, _)| declared(id))
}

pub(crate) fn of_route(entry: &RouteEntry) -> Vec<Lack> {
    let mut lacks = Vec::new();
    let filters = &entry.filters;
    let total: u64 = entry.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
    let coarse = |weight: &u32| total > 0 && !(u64::from(*weight) * 10_000).is_multiple_of(total);
    if entry.clusters.len() > 1 && entry.clusters.iter().any(|(_, weight)| coarse(weight)) {
        lacks.push(Lack::Weights);
    }
    if entry.kind != RouteKind::Http {
        return lacks;
    }
    if entry.timeout_ms.is_some() {
        lacks.push(Lack::RequestTimeout);
    }
    if filters.redirect.as_ref().is_some_and(|r| !REDIRECTS.contains(&r.status)) {
        lacks.push(Lack::RedirectStatus);
    }
    if filters.basic_auth.is_some() && !filters.rate_limits.is_empty() {
        lacks.push(Lack::FilterOrder);
    }
    if filters.rate_limits.len() > MAX_LIMITS {
        lacks.push(Lack::LimitCount);
    }
    let rounded = |limit: &keel_model::RateLimit| {
        let per = u64::try_from(limit.per.as_millis()).unwrap_or(u64::MAX).max(1);
        !(u64::from(limit.requests) * 60_000).is_multiple_of(per)
    };
    if filters.rate_limits.iter().any(rounded) {
        lacks.push(Lack::LimitRounding);
    }
    if filters.max_body.is_some() {
        lacks.push(Lack::BodySize);
    }
    let own = |name: &str| ["server", "date"].contains(&name.to_ascii_lowercase().as_str());
    let edits = &filters.response_headers;
    if edits.set.keys().chain(edits.add.keys()).chain(&edits.remove).any(|name| own(name)) {
        lacks.push(Lack::ServerHeader);
    }
    if let Some(compress) = &filters.compress {
        if compress.encodings.iter().any(|encoding| *encoding != Encoding::Gzip) {
            lacks.push(Lack::Codings);
        }
        if compress.min_size > 0 {
            lacks.push(Lack::CompressMinimum);
        }
        if compress.types.iter().any(|kind| kind.contains('*')) {
            lacks.push(Lack::CompressTypes);
        }
    }
    lacks
}

pub(crate) fn of_cluster(cluster: &Cluster) -> Vec<Lack> {
    let mut lacks = Vec::new();
    if cluster.protocol == Protocol::Http2 {
        lacks.push(Lack::UpstreamHttp2);
    }
    let Some(policy) = cluster.policy.as_deref() else { return lacks };
    let TrafficPolicy {
        balance,
        sticky,
        slow_start,
        prefer_zone,
        outlier,
        check,
        retry,
        timeouts,
        limits,
        adaptive,
        tls: _,
        send_proxy,
    } = policy;
    let plain = Retry::default();
    let opaque = cluster.protocol == Protocol::Tcp;
    let by_request = |balance: &Balance| match balance {
        Balance::RingHash(key) | Balance::Maglev(key) => *key != ClientKey::Source,
        Balance::LeastRequest | Balance::RoundRobin | Balance::Random => false,
    };
    let asked = [
        (opaque && by_request(balance), Lack::HashKey),
        (sticky.is_some(), Lack::Sticky),
        (slow_start.is_some(), Lack::SlowStart),
        (*prefer_zone, Lack::Zones),
        // Where it is switched off nothing is lacking.
        (
            outlier.consecutive_errors > 0 && *outlier != keel_model::Outlier::default(),
            Lack::Outlier,
        ),
        (check.is_some(), Lack::ActiveCheck),
        (check.is_some(), Lack::AllChecksFail),
        (retry.budget_percent != plain.budget_percent, Lack::RetryBudget),
        (retry.per_try_timeout.is_some(), Lack::PerTryTimeout),
        (timeouts.request.is_some(), Lack::RequestTimeout),
        (timeouts.idle.is_some() && !opaque, Lack::IdleTimeout),
        (timeouts.hold.is_some(), Lack::Hold),
        (limits.max_pending.is_some(), Lack::Pending),
        (adaptive.is_some(), Lack::Adaptive),
        (send_proxy.is_some(), Lack::SendProxy),
    ];
    lacks.extend(asked.into_iter().filter(|(asked, _)| *asked).map(|(_, lack)| lack));
    lacks
}
