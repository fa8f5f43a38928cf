//! Header fields on their way between versions: what is passed on, what is changed, what is refused.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use keel_model::Protocol;

use super::background::wait;
use super::client::{Http2Client, request};
use super::either::{ALL, Answer, Caller, Content, Endpoint, Message, Version, fields_of, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::Backend;
use crate::client::Client;
use crate::frames::{
    COMPRESSION_ERROR, END_HEADERS, END_STREAM, Frame, Frames, GOAWAY, HEADERS, PROTOCOL_ERROR,
    RST_STREAM, block, fields,
};
use crate::proxy::Proxy;

/// Answers with the fields that it got, its target and its host as a body.
pub fn mirror(version: Version) -> Endpoint {
    Endpoint::new(version, |got| {
        let mut lines = format!("target: {}\nhost: {}\n", got.target, got.host).into_bytes();
        for (name, value) in &got.message.fields {
            lines.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\n"].concat());
        }
        Answer { status: 200, message: Message::new(Content::Known(lines.into())) }
    })
}

/// The fields that a [`mirror`] got.
pub fn mirrored(body: &Bytes) -> HeaderMap {
    fields_of(String::from_utf8_lossy(body).lines())
}

#[test]
fn every_request_says_where_it_came_from() {
    for (client, endpoint) in ALL {
        let endpoint = mirror(endpoint);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let mut caller = Caller::connect(client, address).await;
            let asking = Message::default()
                .with("x-forwarded-for", "1.1.1.1")
                .with("x-forwarded-for", "2.2.2.2")
                .with("x-forwarded-client-cert", "forged")
                .with("x-twice", "a")
                .with("x-twice", "b");
            let answer = caller.ask("GET", "/a/b?c=d%20e&f", &asking).await;
            let got = mirrored(&answer.message.content.bytes());
            assert_eq!(got["target"], "/a/b?c=d%20e&f");
            for (name, value) in [
                ("host", "cart"),
                ("x-forwarded-host", "cart"),
                ("x-forwarded-proto", "http"),
                ("x-forwarded-for", "1.1.1.1, 2.2.2.2, 127.0.0.1"),
            ] {
                let all: Vec<_> = got.get_all(name).iter().collect();
                assert_eq!(all, [value], "{name} from {client:?}");
            }
            assert!(!got.contains_key("x-forwarded-client-cert"));
            assert!(got.contains_key("x-request-id") && got.contains_key("traceparent"));
            let twice: Vec<_> = got.get_all("x-twice").iter().collect();
            assert_eq!(twice, ["a", "b"]);
        });
    }
}

#[test]
fn cookies_that_were_cut_up_are_joined() {
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            // More crumbs than a head may have fields: they are one field.
            let mut asking = request("GET", "/");
            for n in 0..150 {
                asking = asking.header("cookie", format!("c{n}={n}"));
            }
            let answer = client.begin(asking, true).await.answer().await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            let got = mirrored(&answer.body);
            let cookies: Vec<_> = got.get_all("cookie").iter().collect();
            let joined: Vec<_> = (0..150).map(|n| format!("c{n}={n}")).collect();
            assert_eq!(cookies, [&joined.join("; ")]);
        });
    }
    // The other way each stays a field of its own.
    let endpoint = Endpoint::new(Version::Two, |_| {
        let message = Message::default().with("set-cookie", "a=1").with("set-cookie", "b=2");
        Answer { status: 200, message }
    });
    let (_proxy, address) = endpoint.behind();
    let answer = Client::connect(address).get("/");
    assert_eq!(answer.head.matches("set-cookie: ").count(), 2, "{}", answer.head);
}

#[test]
fn values_of_any_allowed_bytes_pass_unchanged() {
    for (client, endpoint) in ALL {
        let endpoint = mirror(endpoint);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let mut asking = Message::default();
            let odd: String = ('!'..='~').chain("äßÿ€\u{80}\u{10ffff}".chars()).collect();
            asking.fields.insert("x-odd", HeaderValue::from_bytes(odd.as_bytes()).unwrap());
            asking.fields.insert("x-empty", HeaderValue::from_static(""));
            asking.fields.insert("!#$%&'*+-.^_`|~09az", HeaderValue::from_static("name"));
            let mut caller = Caller::connect(client, address).await;
            let answer = caller.ask("GET", "/", &asking).await.message.content.bytes();
            let has = |line: &[u8]| answer.split(|b| *b == b'\n').any(|l| l == line);
            assert!(has(format!("x-odd: {odd}").as_bytes()), "{client:?}");
            assert!(has(b"x-empty: ") && has(b"!#$%&'*+-.^_`|~09az: name"), "{client:?}");
        });
    }
}

#[test]
fn heads_up_to_the_limits_pass_and_longer_ones_are_refused() {
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (mut proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            let long = "v".repeat(60_000);
            let asking = request("GET", "/").header("x-long", &long);
            let answer = client.begin(asking, true).await.answer().await.unwrap();
            assert_eq!(mirrored(&answer.body)["x-long"], long);
            let many =
                |n: usize| (0..n).fold(request("GET", "/"), |r, i| r.header(format!("x-{i}"), "v"));
            let answer = client.begin(many(100), true).await.answer().await.unwrap();
            assert_eq!(mirrored(&answer.body)["x-99"], "v");
            let answer = client.begin(many(129), true).await.answer().await.unwrap();
            assert_eq!(answer.status, 431, "{}", answer.text());
            let asking = request("GET", "/").header("x-long", "v".repeat(66_000));
            let answer = client.begin(asking, true).await.answer().await.unwrap();
            assert_eq!(answer.status, 431, "{}", answer.text());
            // The connection goes on.
            assert_eq!(client.get("/").await.status, 200);
        });
        assert_eq!(proxy.stats().failed, 0);
    }
}

#[test]
fn answers_with_too_long_a_head_are_the_endpoints_fault() {
    let two = Http2Endpoint::new(|mut exchange| async move {
        let long = match exchange.path() {
            "/long" => "v".repeat(70_000),
            _ => "v".repeat(60_000),
        };
        let response = http::Response::builder().header("x-long", long);
        // The library refuses it on the other side.
        let _ = exchange.respond.send_response(response.body(()).unwrap(), true);
    });
    let one = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            let n = if request.head.starts_with("GET /long ") { 70_000 } else { 60_000 };
            connection.send(&format!("HTTP/1.1 200 OK\r\nX-Long: {}\r\n", "v".repeat(n)));
            connection.send("Content-Length: 0\r\n\r\n");
        }
    });
    for endpoint in [Endpoint::One(one), Endpoint::Two(two)] {
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::with(
                address,
                h2::client::Builder::new().max_header_list_size(1 << 20),
            )
            .await;
            let answer = client.get("/").await;
            assert_eq!(answer.headers["x-long"].len(), 60_000);
            assert_eq!(client.get("/long").await.status, 502);
            assert_eq!(client.get("/").await.status, 200);
        });
        assert_eq!(Client::connect(address).get("/long").status, 502);
    }
}

#[test]
fn the_authority_counts_and_a_host_beside_it_does_not() {
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            let asking = request("GET", "/").header("host", "other");
            let answer = client.begin(asking, true).await.answer().await.unwrap();
            let got = mirrored(&answer.body);
            let hosts: Vec<_> = got.get_all("host").iter().collect();
            assert_eq!(hosts, ["cart"], "the endpoint must not find another one");
            assert_eq!(got["x-forwarded-host"], "cart");
        });
    }
}

/// What becomes of a request with these fields: the first frame of its stream.
fn fate(client: &mut Frames, stream: u32, fields: &[(&str, &str)]) -> Frame {
    client.send(HEADERS, END_HEADERS | END_STREAM, stream, &block(fields));
    client.until("an answer", |frame| frame.stream == stream)
}

#[test]
fn a_host_will_do_where_there_is_no_authority() {
    let endpoint = mirror(Version::One);
    let (_proxy, address) = endpoint.behind();
    let mut client = Frames::connect(address, &[]);
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/")];
    let with_host: Vec<_> = get.iter().copied().chain([("host", "cart")]).collect();
    assert!(fate(&mut client, 1, &with_host).is_ok());
    let refused = fate(&mut client, 3, &get);
    // 400 is in the table as 12.
    assert_eq!((refused.kind, refused.payload[0]), (HEADERS, 0x8c), "{refused:?}");
}

#[test]
fn what_is_no_request_of_http2_gets_nowhere_and_harms_no_other() {
    let endpoint = mirror(Version::One);
    let (mut proxy, address) = endpoint.behind();
    let get = [(":method", "GET"), (":scheme", "http"), (":authority", "cart"), (":path", "/")];
    let with = |more: &[(&'static str, &'static str)]| -> Vec<_> {
        get.iter().chain(more).copied().collect()
    };
    let cases = [
        with(&[("connection", "close")]),
        with(&[("transfer-encoding", "chunked")]),
        with(&[("upgrade", "h2c")]),
        with(&[("keep-alive", "1")]),
        with(&[("proxy-connection", "x")]),
        with(&[("te", "gzip")]),
        with(&[("X-Upper", "case")]),
        with(&[("x y", "space")]),
        with(&[("x", "line\r\nfeed: y")]),
        with(&[("x", "nul\0")]),
        with(&[(":path", "/twice")]),
        with(&[("x", "y"), (":late", "z")]),
        with(&[(":status", "200")]),
        get[1..].to_vec(),
        get[..3].to_vec(),
        vec![get[0], get[1], get[2], (":path", "")],
    ];
    let mut beside = 0;
    for case in cases {
        let mut client = Frames::connect(address, &[]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &block(&case));
        let fate = client.until("a verdict", |frame| frame.stream == 1 || frame.kind == GOAWAY);
        // Where the library takes the stream for broken the connection goes on; else that ends.
        assert!(
            [Some(PROTOCOL_ERROR), Some(COMPRESSION_ERROR)].contains(&fate.error()),
            "{case:?}"
        );
        if fate.kind == RST_STREAM {
            client.get(3);
            assert!(client.until("an answer", |frame| frame.stream == 3).is_ok(), "{case:?}");
            beside += 1;
        } else {
            assert_eq!(client.end(), None, "{case:?}");
        }
    }
    let mut client = Frames::connect(address, &[]);
    client.get(1);
    assert!(client.until("an answer", |frame| frame.stream == 1).is_ok());
    assert_eq!(proxy.stats().requests, beside + 1, "none of them got through");
}

#[test]
fn requests_that_cannot_be_passed_on_are_refused() {
    let endpoint = mirror(Version::One);
    let (mut proxy, address) = endpoint.behind();
    wait(async {
        let client = Http2Client::connect(address).await;
        let connect = Request::builder().method(Method::CONNECT).uri("cart:80");
        let answer = client.begin(connect, true).await.answer().await.unwrap();
        assert_eq!(answer.status, 405);
        let wonders = request("POST", "/").header("expect", "wonders");
        let answer = client.begin(wonders, true).await.answer().await.unwrap();
        assert_eq!(answer.status, 417);
        let lengths =
            request("POST", "/").header("content-length", "1").header("content-length", "2");
        let refused = client.begin(lengths, true).await.answer().await;
        assert!(refused.map_or(true, |answer| answer.status == 400));
    });
    // Characters that end a host for one program and not for another.
    let mut client = Frames::connect(address, &[]);
    for (n, authority) in ["a@b", "a/b", "a b", "a,b", "a\\b"].iter().enumerate() {
        let mut asking = fields("GET", &[]);
        asking[2].1 = authority;
        let fate = fate(&mut client, 1 + 2 * n as u32, &asking);
        let refused = fate.kind == HEADERS && fate.payload[0] == 0x8c;
        assert!(refused || fate.error() == Some(PROTOCOL_ERROR), "{authority}: {fate:?}");
    }
    assert_eq!(proxy.stats().requests, 0);
}

#[test]
fn a_host_that_is_no_authority_is_the_clients_fault() {
    // HTTP/1 lets pass what HTTP/2 has no form for; that says nothing about the endpoint.
    let endpoint = Http2Endpoint::named("two");
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http2, &[endpoint.address]);
    for host in ["", "a[b", "a{b}", "a:b:c"] {
        let mut client = Client::connect(address);
        client.send(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n"));
        assert_eq!(client.answer().status, 400, "{host:?}");
    }
    let mut client = Client::connect(address);
    for target in ["/{a|b}^[c]?`d\\", "//x", "/a?b?c", "http://cart/x", "/%00%zz"] {
        client.send(format!("GET {target} HTTP/1.1\r\nHost: cart\r\n\r\n"));
        assert_eq!(client.answer().body, "two:0", "{target}");
    }
    let stats = proxy.stats();
    assert_eq!((stats.failed, stats.retries), (0, 0), "{stats:?}");
}

#[test]
fn trailers_say_nothing_that_is_to_be_known_before() {
    let odd: HeaderMap = [("content-length", "9"), ("host", "b"), ("x-sum", "7")]
        .into_iter()
        .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
        .collect();
    for version in [Version::One, Version::Two] {
        let endpoint = Endpoint::new(version, |got| Answer {
            status: 200,
            message: Message::new(got.message.content),
        });
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            let mut call = client.begin(request("POST", "/"), false).await;
            call.send("body", false).await.unwrap();
            call.body.send_trailers(odd.clone()).unwrap();
            // The endpoint answers with the trailers that it got.
            let answer = call.answer().await.unwrap();
            assert_eq!(answer.text(), "body");
            assert_eq!((answer.trailers.len(), &answer.trailers["x-sum"]), (1, &odd["x-sum"]));
        });
    }
    // From HTTP/1 they are an attack, not a slip: its programs believe them.
    let endpoint = Endpoint::new(Version::One, move |_| Answer {
        status: 200,
        message: Message::new(Content::Unknown("ok".into(), odd.clone())),
    });
    let (_proxy, address) = endpoint.behind();
    wait(async {
        let client = Http2Client::connect(address).await;
        let call = client.begin(request("GET", "/"), true).await;
        assert!(call.answer().await.is_err());
    });
}
