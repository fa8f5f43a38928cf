//! The endpoints of a cluster as both engines list them, and its policy.

use std::borrow::Cow;

use keel_model::{Endpoint, EndpointState, StickyCookie, TrafficPolicy};
use keel_route::snapshot::Cluster;

/// One endpoint with what the zone makes of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placed<'a> {
    pub endpoint: &'a Endpoint,
    /// Takes new requests.
    pub ready: bool,
    /// Only if no other is left.
    pub reserve: bool,
}

/// The endpoints in order. Those outside of `zone` are a reserve if the policy prefers the zone and one of it is ready.
pub(crate) fn placed<'a>(cluster: &'a Cluster, zone: Option<&str>) -> Vec<Placed<'a>> {
    let prefers = cluster.policy.as_ref().is_some_and(|policy| policy.prefer_zone);
    let zone = zone.filter(|_| prefers);
    let local = |endpoint: &Endpoint| {
        zone.is_some_and(|zone| cluster.zones.get(&endpoint.instance).is_some_and(|z| z == zone))
    };
    let ready = |endpoint: &Endpoint| endpoint.state == EndpointState::Ready;
    let any_local = cluster.endpoints.iter().any(|e| ready(e) && local(e));
    let place = |endpoint| Placed {
        endpoint,
        ready: ready(endpoint),
        reserve: any_local && !local(endpoint),
    };
    cluster.endpoints.iter().map(place).collect()
}

/// The policy, or the default one.
pub(crate) fn policy(cluster: &Cluster) -> Cow<'_, TrafficPolicy> {
    match &cluster.policy {
        Some(policy) => Cow::Borrowed(policy),
        None => Cow::Owned(TrafficPolicy::default()),
    }
}

/// `SameSite` of a cookie, as browsers spell it.
pub(crate) fn same_site(cookie: &StickyCookie) -> Option<&'static str> {
    let text = cookie.same_site.as_deref()?;
    ["Strict", "Lax", "None"].into_iter().find(|known| known.eq_ignore_ascii_case(text))
}

/// Milliseconds, at least one.
pub(crate) fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1)
}

/// Longest time that both engines take, in milliseconds (24 days).
pub(crate) const FOREVER: u64 = 24 * 86_400_000;
