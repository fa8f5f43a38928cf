//! Which endpoints get how much, and what is counted of it.

use std::time::Duration;

use keel_model::{Balance, Rule, TrafficPolicy};

use super::{BOTH, of, tally, under};
use crate::backend::Backend;
use crate::http2::background::wait;
use crate::http2::either::{Caller, Endpoint, Version};
use crate::proxy::{CART, instance};
use crate::routes::{Site, all, mirror, named, nothing, route, several, with_body};

#[test]
fn an_endpoint_that_is_new_among_old_ones_gets_little() {
    let window = Duration::from_secs(4);
    let policy = TrafficPolicy { slow_start: Some(window), ..TrafficPolicy::default() };
    let policy = TrafficPolicy { balance: Balance::RoundRobin, ..policy };
    let [a, b, c] = ["a", "b", "c"].map(|name| named(Version::One, name));
    let mut site = Site::bare(under(&policy, &[&a, &b]));
    wait(async {
        tokio::time::sleep(window + Duration::from_millis(300)).await;
        site.proxy.server.update(under(&policy, &[&a, &b, &c]));
        let mut caller = Caller::connect(Version::One, site.address).await;
        let counts = tally(&mut caller, "GET", 105).await;
        // At first a tenth of a share: 5 of 105; at most half of one on a machine that takes two seconds for this.
        assert!((1..=25).contains(&of(&counts, 200, "c")), "{counts:?}");
    });
}

/// Most tallies until an endpoint that nothing is against has had a share.
const FAIRNESS_TALLIES: usize = 200;

#[test]
fn endpoints_in_the_own_zone_are_preferred_where_that_is_wanted() {
    let near = named(Version::One, "near");
    let far = named(Version::One, "far");
    let prefer = TrafficPolicy { prefer_zone: true, ..TrafficPolicy::default() };
    for balance in [Balance::RoundRobin, Balance::LeastRequest, Balance::Random] {
        let prefer = TrafficPolicy { balance: balance.clone(), ..prefer.clone() };
        let mut cluster = under(&prefer, &[&near, &far]);
        cluster.zones = [(&near, "z1"), (&far, "z2")]
            .map(|(endpoint, zone)| (instance(endpoint.address()), zone.to_owned()))
            .into();
        let mut site = Site::bare(cluster.clone());
        site.state.zone = Some("z1".into());
        site.apply();
        wait(async {
            let mut caller = Caller::connect(Version::One, site.address).await;
            let counts = tally(&mut caller, "GET", 40).await;
            assert_eq!(of(&counts, 200, "near"), 40, "{balance:?} {counts:?}");
            // Where it is gone, the other serves; and where nothing is preferred, both do.
            let mut gone = under(&prefer, &[&far]);
            gone.zones = cluster.zones.clone();
            site.proxy.server.update(gone);
            assert_eq!(of(&tally(&mut caller, "GET", 5).await, 200, "far"), 5);
            let plain = TrafficPolicy { prefer_zone: false, ..prefer.clone() };
            cluster.policy = Some(Box::new(plain));
            site.proxy.server.update(cluster);
            // One that was slow to begin with is left alone for a while by what prefers the quick.
            let mut far = 0;
            for _ in 0..FAIRNESS_TALLIES {
                far += of(&tally(&mut caller, "GET", 40).await, 200, "far");
                if far >= 5 {
                    break;
                }
            }
            assert!(far >= 5, "{balance:?} {far}");
        });
    }
}

#[test]
fn a_slow_endpoint_gets_less() {
    let slow = Endpoint::One(Backend::new(|mut connection| {
        while connection.request().is_some() {
            std::thread::sleep(Duration::from_millis(30));
            connection.answer("slow");
        }
    }));
    let quick = named(Version::One, "quick");
    wait(async {
        for version in BOTH {
            let site = Site::bare(several(&[&slow, &quick]));
            let mut caller = Caller::connect(version, site.address).await;
            let counts = tally(&mut caller, "GET", 200).await;
            let (slow, quick) = (of(&counts, 200, "slow"), of(&counts, 200, "quick"));
            assert_eq!(slow + quick, 200, "{counts:?}");
            assert!(slow * 4 < quick, "{counts:?}");
        }
    });
}

#[test]
fn what_passes_over_a_route_is_counted() {
    wait(all(async |client, version| {
        let endpoint = mirror(version);
        let routes = vec![route("a", Rule::Host("a.test".into()), CART)];
        let mut site = Site::new(routes, crate::routes::clusters([(CART, &endpoint)]));
        site.state.callers = [("127.0.0.1".parse().unwrap(), "shop/front".to_owned())].into();
        site.apply();
        let mut out = 0;
        for size in [0, 10, 100_000] {
            let sent = with_body(&"x".repeat(size));
            let answer = site.ask(client, "POST", "a.test/", &sent).await;
            assert_eq!(answer.status, 200);
            out += answer.text().len() as u64;
        }
        assert_eq!(site.ask(client, "GET", "b.test/", &nothing()).await.status, 404);
        let edges = crate::proxy::until("all are counted", || {
            let edges = site.edges("shop/a");
            (edges.iter().map(|e| e.latency.count()).sum::<u64>() == 3).then_some(edges)
        });
        let edge = &edges[0];
        assert_eq!((edges.len(), &*edge.caller, &*edge.cluster), (1, "shop/front", CART));
        assert_eq!(edge.statuses, [(200, 3)].into());
        assert_eq!((edge.retries, edge.bytes_in, edge.bytes_out), (0, 100_010, out));
        let nowhere = site.edges("");
        let nowhere: Vec<_> = nowhere.iter().map(|e| (&*e.cluster, &e.statuses)).collect();
        assert_eq!(nowhere, [("", &[(404, 1)].into())]);
    }));
}
