//! Requests that a route refuses: by address, password, rate and size.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::HeaderMap;
use keel_model::{BasicAuth, ClientKey, Filters, RateLimit};

use super::{Site, all, ask, mirror, named, nothing, with_body};
use crate::client::Client;
use crate::http2::background::wait;
use crate::http2::client::{Http2Client, request};
use crate::http2::either::{Caller, Content, Message, Version};

/// `secret`, with bcrypt at its lowest cost and with SHA-1.
const ANN: &str = "ann:$2y$04$YS7Kc2pSuX4cOpoe3qPbYO/VRRAcs76X1mjtpElUAEBB3M0EvAdFe";
const BEN: &str = "ben:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=";

fn basic(credentials: &str) -> Message {
    nothing().with("authorization", &format!("Basic {}", STANDARD.encode(credentials)))
}

#[test]
fn a_name_and_a_password_open_the_route() {
    let auth = BasicAuth {
        realm: "shop".into(),
        users: vec![ANN.into(), BEN.into()],
        user_header: Some("X-User".into()),
        remove_header: true,
    };
    let filters = Filters { basic_auth: Some(auth), ..Filters::default() };
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let site = Site::filtered(&endpoint, filters.clone());
        let mut caller = Caller::connect(client, site.address).await;
        // On one connection, and twice: what was checked is remembered.
        for credentials in ["ann:secret", "ben:secret", "ann:secret"] {
            let sent = basic(credentials).with("x-user", "root");
            let answer = ask(&mut caller, "GET", "a.test/", &sent).await;
            let (text, user) = (answer.text(), &credentials[..3]);
            assert_eq!(answer.status, 200, "{credentials}");
            assert!(text.to_lowercase().contains(&format!("x-user: {user}\n")), "{text}");
            assert!(!text.contains("root") && !text.contains("authorization"), "{text}");
        }
        for sent in [nothing(), basic("ann:wrong"), basic("ben:wrong"), basic("eve:secret")] {
            let answer = ask(&mut caller, "GET", "a.test/", &sent).await;
            let challenge = Some("Basic realm=\"shop\", charset=\"UTF-8\"");
            assert_eq!((answer.status, answer.field("www-authenticate")), (401, challenge));
        }
        // A body behind a refused head is not taken for a request.
        let sent = Message { content: Content::Known("GET /x".into()), ..basic("ann:wrong") };
        assert_eq!(site.ask(client, "POST", "a.test/", &sent).await.status, 401);
        // Nor is one behind a head whose password has to be checked.
        let body = Content::Known("x".repeat(50_000).into());
        let sent = Message { content: body, ..basic("ann:secret") };
        let text = site.ask(client, "POST", "a.test/", &sent).await.text();
        assert_eq!(text.split("\n\n").nth(1).map(str::len), Some(50_000));
    }));
}

#[test]
fn addresses_that_are_not_allowed_are_refused() {
    wait(all(async |client, endpoint| {
        for (net, status) in [("127.0.0.0/8", 200), ("10.0.0.0/8", 403)] {
            let endpoint = named(endpoint, "in");
            let filters = Filters { allow: vec![net.parse().unwrap()], ..Filters::default() };
            let mut site = Site::filtered(&endpoint, filters);
            // What a client says of itself is no address.
            let sent = nothing().with("x-forwarded-for", "10.1.1.1");
            assert_eq!(site.ask(client, "GET", "a.test/", &sent).await.status, status);
            let edges = site.edges("shop/all");
            assert_eq!((edges.len(), edges[0].statuses.get(&status)), (1, Some(&1)));
        }
    }));
}

#[test]
fn too_many_requests_are_told_when_to_come_back() {
    let by = |key| RateLimit { requests: 2, per: Duration::from_secs(3600), burst: 2, key };
    let limits = vec![by(ClientKey::Header("X-Key".into()))];
    let filters = Filters { rate_limits: limits, ..Filters::default() };
    wait(all(async |client, endpoint| {
        let endpoint = named(endpoint, "in");
        let mut site = Site::filtered(&endpoint, filters.clone());
        for key in ["a", "b"] {
            for status in [200, 200, 429] {
                // Each on a connection of its own: all workers share one limit.
                let sent = nothing().with("x-key", key);
                let answer = site.ask(client, "GET", "a.test/", &sent).await;
                assert_eq!(answer.status, status, "{key}");
                let wait = answer.field("retry-after").map(|s| s.parse::<u32>().unwrap());
                assert_eq!(wait.is_some_and(|s| (1..=1800).contains(&s)), status == 429);
            }
        }
        // What was used is not forgotten with other routes.
        let routes = site.state.tables["web"].routes.clone();
        site.route(
            [routes, vec![super::route("more", keel_model::Rule::Host("b".into()), "x")]].concat(),
        );
        let sent = nothing().with("x-key", "a");
        assert_eq!(site.ask(client, "GET", "a.test/", &sent).await.status, 429);
    }));
}

#[test]
fn bodies_that_are_too_large_are_refused_as_soon_as_that_is_known() {
    let filters = Filters { max_body: Some(1000), ..Filters::default() };
    let unknown = |n: usize| Message::new(Content::Unknown("x".repeat(n).into(), HeaderMap::new()));
    wait(all(async |client, endpoint| {
        let version = client;
        let endpoint = mirror(endpoint);
        let site = Site::filtered(&endpoint, filters.clone());
        for size in [0, 1, 1000] {
            for sent in [with_body(&"x".repeat(size)), unknown(size)] {
                // The library would send empty trailers with an empty body, which is fine as well.
                let answer = site.ask(version, "POST", "a.test/", &sent).await;
                let body = answer.text().split_once("\n\n").unwrap().1.len();
                assert_eq!((answer.status, body), (200, size));
            }
        }
        for size in [1001, 30_000] {
            for sent in [with_body(&"x".repeat(size)), unknown(size)] {
                let answer = site.ask(version, "POST", "a.test/", &sent).await;
                assert_eq!(answer.status, 413, "{size}");
            }
        }
        assert_eq!(site.ask(version, "POST", "a.test/", &with_body("x")).await.status, 200);
    }));
}

#[test]
fn a_body_that_grows_too_large_is_cut_off_while_it_comes() {
    let filters = Filters { max_body: Some(1000), ..Filters::default() };
    wait(all(async |client, endpoint| {
        let endpoint = mirror(endpoint);
        let mut site = Site::filtered(&endpoint, filters.clone());
        match client {
            Version::One => {
                let mut client = Client::connect(site.address);
                client.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
                client.send(format!("384\r\n{}\r\n", "x".repeat(900)));
                client.send(format!("c8\r\n{}\r\n", "x".repeat(200)));
                // It is not over, and answered.
                let answer = client.answer();
                assert_eq!(answer.status, 413);
                assert!(answer.head.contains("Connection: close\r\n"), "{}", answer.head);
            }
            Version::Two => {
                let client = Http2Client::connect(site.address).await;
                let mut call = client.begin(request("POST", "/"), false).await;
                call.send("x".repeat(900), false).await.unwrap();
                call.send("x".repeat(200), false).await.unwrap();
                assert_eq!(call.head().await.unwrap().status(), 413);
                // Other requests on the connection are not concerned.
                assert_eq!(client.post("/", "x").await.status, 200);
            }
        }
        let statuses = |site: &mut Site| {
            let edges = site.edges("shop/all");
            edges.iter().filter_map(|edge| edge.statuses.get(&413)).sum::<u64>()
        };
        crate::proxy::until("it is counted", || (statuses(&mut site) == 1).then_some(()));
    }));
}

#[test]
fn refusals_are_told_to_grpc_in_its_own_way() {
    let deny = Filters { allow: vec!["10.0.0.0/8".parse().unwrap()], ..Filters::default() };
    let endpoint = named(Version::Two, "in");
    let mut site = Site::filtered(&endpoint, deny);
    let call = || request("POST", "/pkg.Service/Method").header("content-type", "application/grpc");
    let ask = async |address| {
        let client = Http2Client::connect(address).await;
        client.begin(call(), true).await.answer().await.unwrap()
    };
    wait(async {
        let answer = ask(site.address).await;
        let code = |name: &str| answer.headers[name].to_str().unwrap().to_owned();
        assert_eq!((answer.status.as_u16(), &*code("grpc-status")), (200, "7"));
        assert_eq!(code("content-type"), "application/grpc");
    });
    site.route(Vec::new());
    wait(async {
        let answer = ask(site.address).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.headers["grpc-status"]),
            (200, &"12".parse().unwrap())
        );
    });
}
