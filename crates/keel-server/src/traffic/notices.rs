//! What the proxy has seen of endpoints, as events for people. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use keel_model::{EndpointState, EventKind, InstanceId, ServiceName, StackName};
use keel_route::snapshot::{ClusterId, EndpointNotice, Refused, Snapshot};

/// Something that happened longer ago than this is said to be past, in milliseconds.
const PAST_MS: u64 = 10_000;

/// The kind of event, whose it is, and its message.
pub fn event(
    notice: &EndpointNotice,
) -> (EventKind, Option<StackName>, Option<ServiceName>, String) {
    let (stack, rest) = notice.cluster.split_once('/').unwrap_or_default();
    let (service, port) = rest.split_once(':').unwrap_or((rest, ""));
    let reason = &notice.reason;
    let (kind, what) = match (notice.is_out, notice.for_ms) {
        _ if notice.no_tls => {
            (EventKind::EndpointFailed, format!("gets no requests at port {port}"))
        }
        (true, Some(for_ms)) => {
            let time = Duration::from_millis(for_ms);
            (EventKind::EndpointEjected, format!("gets no requests at port {port} for {time:?}"))
        }
        (true, None) => {
            let until = format!("gets no requests at port {port} until checks succeed");
            (EventKind::EndpointEjected, until)
        }
        (false, _) => {
            (EventKind::EndpointReadmitted, format!("gets requests at port {port} again"))
        }
    };
    let past = match notice.ago_ms {
        ago_ms @ PAST_MS.. => format!(", {} s ago", ago_ms / 1_000),
        _ => String::new(),
    };
    let message = format!("{what}{past}: {reason}");
    (kind, StackName::new(stack).ok(), ServiceName::new(service).ok(), message)
}

/// Whose calls are refused, and what is said of it.
pub fn refused(refused: &Refused) -> (Option<StackName>, Option<ServiceName>, String) {
    let (stack, caller) = refused.caller.split_once('/').unwrap_or_default();
    let (_, called) = refused.cluster.split_once('/').unwrap_or_default();
    let (service, port) = called.split_once(':').unwrap_or((called, ""));
    let message = format!(
        "its calls to {service} at port {port} are refused: the file gives the two no network in common"
    );
    (StackName::new(stack).ok(), ServiceName::new(caller).ok(), message)
}

/// Endpoints that the proxy leaves out, as far as this server was told.
pub type LeftOut = BTreeSet<(ClusterId, InstanceId)>;

/// Notes what is told of an endpoint; whether it was the last one of its cluster that was not left out. Then they all get
/// requests: better one that may fail than none.
pub fn note(left_out: &mut LeftOut, notice: &EndpointNotice, snapshot: &Snapshot) -> bool {
    if notice.no_tls {
        return false;
    }
    let takes = |id: &ClusterId, instance: &InstanceId| {
        let endpoints = snapshot.clusters.get(id).map(|cluster| &cluster.endpoints);
        let mut endpoints = endpoints.into_iter().flatten();
        endpoints.any(|endpoint| {
            endpoint.instance == *instance && endpoint.state == EndpointState::Ready
        })
    };
    left_out.retain(|(id, instance)| takes(id, instance));
    let key = (notice.cluster.clone(), notice.instance.clone());
    if !notice.is_out {
        left_out.remove(&key);
        return false;
    }
    if !takes(&notice.cluster, &notice.instance) {
        return false;
    }
    left_out.insert(key);
    let endpoints = &snapshot.clusters[&notice.cluster].endpoints;
    let ready = endpoints.iter().filter(|endpoint| endpoint.state == EndpointState::Ready).count();
    left_out.iter().filter(|(id, _)| *id == notice.cluster).count() >= ready
}

/// What is said of the last one.
pub const ALL_LEFT_OUT: &str = "; the others are left out too, so all get requests all the same";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_words() {
        let notice = |is_out, for_ms, ago_ms| EndpointNotice {
            cluster: "shop/cart:80".to_owned(),
            instance: keel_model::InstanceId::new("shop-cart-1").unwrap(),
            is_out,
            reason: "so it is".to_owned(),
            for_ms,
            ago_ms,
            no_tls: false,
        };
        let no_tls = EndpointNotice { no_tls: true, ..notice(false, None, 0) };
        assert_eq!(event(&no_tls).0, EventKind::EndpointFailed);
        assert_eq!(event(&no_tls).3, "gets no requests at port 80: so it is");
        for (notice, kind, message) in [
            (
                notice(true, Some(10_000), 9_999),
                EventKind::EndpointEjected,
                "gets no requests at port 80 for 10s: so it is",
            ),
            (
                notice(true, None, 61_000),
                EventKind::EndpointEjected,
                "gets no requests at port 80 until checks succeed, 61 s ago: so it is",
            ),
            (
                notice(false, None, 0),
                EventKind::EndpointReadmitted,
                "gets requests at port 80 again: so it is",
            ),
        ] {
            let event = event(&notice);
            assert_eq!((event.0, event.3.as_str()), (kind, message));
            assert_eq!(event.1.unwrap().as_str(), "shop");
            assert_eq!(event.2.unwrap().as_str(), "cart");
        }
        // Whatever a proxy says.
        let odd = EndpointNotice { cluster: "?".to_owned(), ..notice(false, None, 0) };
        assert_eq!((event(&odd).1, event(&odd).2), (None, None));
    }

    #[test]
    fn who_is_refused_is_told_what_to_look_at() {
        let told =
            refused(&Refused { caller: "shop/web".to_owned(), cluster: "shop/db:5432".to_owned() });
        assert_eq!((told.0.unwrap().as_str(), told.1.unwrap().as_str()), ("shop", "web"));
        assert_eq!(
            told.2,
            "its calls to db at port 5432 are refused: the file gives the two no network in common"
        );
    }

    #[test]
    fn the_last_one_that_is_left_out_is_known() {
        let id = |name: &str| InstanceId::new(name).unwrap();
        let endpoint = |name: &str, state| keel_model::Endpoint {
            instance: id(name),
            address: "127.0.0.1:1".parse().unwrap(),
            state,
        };
        let mut snapshot = Snapshot::default();
        let cluster = keel_route::snapshot::Cluster {
            endpoints: vec![
                endpoint("a", EndpointState::Ready),
                endpoint("b", EndpointState::Ready),
                endpoint("c", EndpointState::Draining),
            ],
            ..Default::default()
        };
        snapshot.clusters.insert("shop/cart:80".to_owned(), cluster);
        let notice = |name: &str, is_out| EndpointNotice {
            cluster: "shop/cart:80".to_owned(),
            instance: id(name),
            is_out,
            reason: String::new(),
            for_ms: None,
            ago_ms: 0,
            no_tls: false,
        };
        let mut left_out = LeftOut::new();
        for (name, is_out, is_last) in [
            ("a", true, false),
            ("c", true, false),
            ("b", true, true),
            ("a", false, false),
            ("a", true, true),
        ] {
            let last = note(&mut left_out, &notice(name, is_out), &snapshot);
            assert_eq!(last, is_last, "{name} {is_out}");
        }
        assert_eq!(left_out.len(), 2);
        snapshot.clusters.clear();
        assert!(!note(&mut left_out, &notice("a", true), &snapshot));
        assert!(left_out.is_empty(), "it is gone");
    }
}
