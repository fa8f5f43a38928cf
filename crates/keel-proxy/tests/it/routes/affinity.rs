//! Clients that come back to the same endpoint.

use std::collections::BTreeSet;

use keel_model::{Balance, ClientKey, EndpointState, Protocol, StickyCookie, TrafficPolicy};
use keel_route::snapshot::{Cluster, Snapshot};

use super::{Site, named, nothing};
use crate::http2::background::wait;
use crate::http2::either::{Answer, Caller, Endpoint, Message, Version};
use crate::proxy::{CART, Proxy, cluster, listener};

const BOTH: [Version; 2] = [Version::One, Version::Two];
const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// Without a route: policies belong to clusters.
fn bare(endpoints: &[&Endpoint], policy: TrafficPolicy) -> Site {
    let mut proxy = Proxy::start();
    let address = proxy.address();
    let cluster = with_policy(super::several(endpoints), policy);
    let listeners = vec![listener(address, Protocol::Auto)];
    let clusters = [(CART.to_owned(), cluster)].into();
    let state = Snapshot { listeners, clusters, ..Snapshot::default() };
    assert_eq!(proxy.server.apply(state.clone()), []);
    Site { proxy, address, state }
}

fn with_policy(cluster: Cluster, policy: TrafficPolicy) -> Cluster {
    Cluster { policy: Some(Box::new(policy)), ..cluster }
}

/// The cookie that an answer sets.
fn cookie(answer: &Answer) -> Option<String> {
    let set = answer.field("set-cookie")?;
    assert!(set.ends_with("; Path=/; HttpOnly; SameSite=Lax"), "{set}");
    Some(set.split(';').next().unwrap().to_owned())
}

async fn ask(site: &Site, version: Version, cookie: Option<&str>) -> Answer {
    let sent = match cookie {
        Some(cookie) => nothing().with("cookie", &format!("x=1; {cookie}; y=2")),
        None => nothing(),
    };
    site.ask(version, "GET", "a.test/", &sent).await
}

#[test]
fn a_cookie_brings_a_client_back_while_its_endpoint_is_there() {
    for version in BOTH {
        let endpoints = NAMES.map(|name| named(Version::One, name));
        let all: Vec<_> = endpoints.iter().collect();
        let sticky = StickyCookie {
            name: "keel".into(),
            ttl: None,
            secure: false,
            same_site: Some("lax".into()),
        };
        let policy = TrafficPolicy { sticky: Some(sticky), ..TrafficPolicy::default() };
        let mut site = bare(&all, policy.clone());
        wait(async {
            let first = ask(&site, version, None).await;
            let (home, bound) = (first.text(), cookie(&first).unwrap());
            let stays = async |site: &Site| {
                for _ in 0..8 {
                    let again = ask(site, version, Some(&bound)).await;
                    // It has the cookie already.
                    assert_eq!((again.text(), again.field("set-cookie")), (home.clone(), None));
                }
            };
            stays(&site).await;
            // The others go one after the other, and the first one drains.
            let index = NAMES.iter().position(|name| *name == home).unwrap();
            let (mine, others) =
                (all[index], (0..4).filter(|i| *i != index).map(|i| all[i]).collect::<Vec<_>>());
            for n in [2, 1] {
                let left = [&others[..n], &[mine]].concat();
                site.proxy.server.update(with_policy(super::several(&left), policy.clone()));
                stays(&site).await;
            }
            let states = [
                (mine.address(), EndpointState::Draining),
                (others[0].address(), EndpointState::Ready),
                (others[1].address(), EndpointState::Ready),
            ];
            let next = Cluster { protocol: Protocol::Http, ..cluster(&states, true) };
            site.proxy.server.update(with_policy(next, policy.clone()));
            let moved = ask(&site, version, Some(&bound)).await;
            assert_ne!(moved.text(), home);
            let bound = cookie(&moved).expect("a new cookie");
            for _ in 0..8 {
                let again = ask(&site, version, Some(&bound)).await;
                assert_eq!((again.text(), again.field("set-cookie")), (moved.text(), None));
            }
            // Nonsense binds to nothing and is replaced.
            let lost = ask(&site, version, Some("keel=zzz")).await;
            assert!(lost.status == 200 && cookie(&lost).is_some());
        });
    }
}

#[test]
fn the_same_key_leads_to_the_same_endpoint() {
    let header = |name: &str| ClientKey::Header(name.into());
    for (n, key) in [header("X-User"), ClientKey::Cookie("user".into()), ClientKey::Path]
        .into_iter()
        .enumerate()
    {
        let balance =
            if n == 1 { Balance::Maglev(key.clone()) } else { Balance::RingHash(key.clone()) };
        let endpoints = NAMES.map(|name| named(Version::One, name));
        let all: Vec<_> = endpoints.iter().collect();
        let mut site =
            bare(&all, TrafficPolicy { balance: balance.clone(), ..TrafficPolicy::default() });
        let ask = async |caller: &mut Caller, user: usize| {
            let (path, sent) = match key {
                ClientKey::Cookie(_) => {
                    ("/".into(), nothing().with("cookie", &format!("user={user}")))
                }
                ClientKey::Path => (format!("/{user}"), nothing()),
                _ => ("/".into(), nothing().with("x-user", &user.to_string())),
            };
            let answer = caller.ask("GET", &path, &sent).await;
            assert_eq!(answer.status, 200);
            answer.text()
        };
        wait(async {
            let mut one = Caller::connect(Version::One, site.address).await;
            let mut homes = Vec::new();
            for user in 0..40 {
                homes.push(ask(&mut one, user).await);
            }
            assert_eq!(BTreeSet::from_iter(&homes).len(), 4, "{homes:?}");
            let mut two = Caller::connect(Version::Two, site.address).await;
            for user in 0..40 {
                assert_eq!(ask(&mut two, user).await, homes[user]);
            }
            // One endpoint goes: its clients move, the others mostly stay.
            let policy = TrafficPolicy { balance: balance.clone(), ..TrafficPolicy::default() };
            site.proxy.server.update(with_policy(super::several(&all[..3]), policy));
            let (mut stayed, mut were) = (0, 0);
            for user in 0..40 {
                let now = ask(&mut one, user).await;
                assert_ne!(now, "d");
                were += usize::from(homes[user] != "d");
                stayed += usize::from(now == homes[user]);
            }
            assert!(stayed * 10 >= were * 7, "{stayed} of {were}");
        });
    }
}

#[test]
fn one_address_leads_to_one_endpoint() {
    let endpoints = NAMES.map(|name| named(Version::One, name));
    let all: Vec<_> = endpoints.iter().collect();
    let balance = Balance::RingHash(ClientKey::Source);
    let site = bare(&all, TrafficPolicy { balance, ..TrafficPolicy::default() });
    wait(async {
        let mut homes = BTreeSet::new();
        for version in [BOTH, BOTH, BOTH, BOTH].concat() {
            homes.insert(site.ask(version, "GET", "a.test/", &Message::default()).await.text());
        }
        assert_eq!(homes.len(), 1);
    });
}
