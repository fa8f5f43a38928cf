//! What the proxy has seen of endpoints, as events for people. Pure.

use std::time::Duration;

use keel_model::{EventKind, ServiceName, StackName};
use keel_route::snapshot::EndpointNotice;

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
}
