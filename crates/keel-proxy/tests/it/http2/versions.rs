//! HTTP/1 and HTTP/2 on either side of the proxy: what is sent arrives.

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, Response};
use keel_model::Protocol;

use super::background::wait;
use super::client::{Http2Client, part, read, request};
use super::either::{ALL, Answer, Caller, Content, Endpoint, Message, Version, serve};
use super::endpoint::Http2Endpoint;
use crate::backend::Backend;
use crate::client::Client;
use crate::proxy::Proxy;

/// Answers with what it got.
fn mirror(version: Version) -> Endpoint {
    Endpoint::new(version, |got| {
        let message = Message::new(got.message.content).with("x-method", &got.method);
        Answer { status: 200, message }
    })
}

/// Not the same anywhere, so that nothing can be swapped unseen.
fn bytes(n: u32) -> Bytes {
    (0..n).map(|i| (i % 251) as u8).collect()
}

fn trailers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields.iter().map(|(n, v)| (n.parse().unwrap(), v.parse().unwrap())).collect()
}

#[test]
fn bodies_of_any_kind_and_length_pass_both_ways() {
    let ends = trailers(&[("x-sum", "42"), ("x-more", "a"), ("x-more", "b")]);
    for (client, endpoint) in ALL {
        let endpoint_there = mirror(endpoint);
        let (_proxy, address) = endpoint_there.behind();
        wait(async {
            let mut caller = Caller::connect(client, address).await;
            for size in [0, 1, 16_383, 65_536, 700_000] {
                for content in [
                    Content::Known(bytes(size)),
                    Content::Unknown(bytes(size), HeaderMap::new()),
                    Content::Unknown(bytes(size), ends.clone()),
                ] {
                    let sent = Message::new(content.clone());
                    let answer = caller.ask("POST", "/", &sent).await;
                    assert_eq!(answer.status, 200);
                    let got = answer.message.content;
                    let case = format!("{size} bytes from {client:?} to {endpoint:?}");
                    assert_eq!(got.bytes(), content.bytes(), "{case}");
                    if let Content::Unknown(_, sent) = &content
                        && let Content::Unknown(_, got) = &got
                    {
                        assert_eq!(got, sent, "{case}");
                    }
                    let same = std::mem::discriminant(&got) == std::mem::discriminant(&content);
                    assert!(same || size == 0, "{case}: {got:?}");
                }
            }
        });
    }
}

#[test]
fn answers_without_a_body_say_so_in_every_version() {
    for (client, endpoint) in ALL {
        let endpoint = Endpoint::new(endpoint, |got| {
            let status = got.target[1..].parse().unwrap();
            let message = match status {
                200 => Message::new(Content::Known(bytes(9))),
                // The length of what a GET would have got (RFC 9110, 8.6).
                304 => Message::default().with("content-length", "9"),
                _ => Message::default(),
            };
            Answer { status, message }
        });
        let (_proxy, address) = endpoint.behind();
        wait(async {
            let mut caller = Caller::connect(client, address).await;
            // Twice: neither may block or shift what comes next on the same connection.
            for _ in 0..2 {
                for (method, status, length) in [
                    ("HEAD", 200, Some("9")),
                    ("GET", 204, None),
                    ("GET", 304, Some("9")),
                    ("GET", 200, Some("9")),
                ] {
                    let path = format!("/{status}");
                    let answer = caller.ask(method, &path, &Message::default()).await;
                    assert_eq!(answer.status, status);
                    assert_eq!(answer.message.field("content-length"), length, "{method} {status}");
                    let size = if (method, status) == ("GET", 200) { 9 } else { 0 };
                    assert_eq!(answer.message.content.bytes().len(), size);
                }
            }
        });
    }
}

#[test]
fn a_length_of_nothing_is_not_passed_on() {
    // What some servers say although it can't be (RFC 9110, 8.6): a client of HTTP/2 would break the stream off.
    let backend = Backend::new(|mut connection| {
        while connection.request().is_some() {
            connection.send("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n");
        }
    });
    let (_proxy, address) = Endpoint::One(backend).behind();
    wait(async {
        let client = Http2Client::connect(address).await;
        for _ in 0..2 {
            let answer = client.get("/").await;
            assert_eq!(answer.status, 204);
            assert!(!answer.headers.contains_key("content-length"));
        }
    });
}

/// Announces twice before it answers.
fn announcing(version: Version) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(|mut connection| {
            while connection.request().is_some() {
                connection.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n");
                connection.send("HTTP/1.1 103 Early Hints\r\nLink: </b.css>\r\n\r\n");
                connection.answer("done");
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(|mut exchange| async move {
            for link in ["</a.css>", "</b.css>"] {
                let hint = Response::builder().status(103).header("link", link);
                exchange.respond.send_informational(hint.body(()).unwrap()).unwrap();
            }
            exchange.answer("done");
        })),
    }
}

#[test]
fn announcements_come_before_the_answer() {
    for (client, endpoint) in ALL {
        let endpoint = announcing(endpoint);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            if client == Version::One {
                let mut client = Client::connect(address);
                client.send("GET / HTTP/1.1\r\nHost: cart\r\n\r\n");
                for link in ["</a.css>", "</b.css>"] {
                    let head = client.head();
                    assert!(head.starts_with("HTTP/1.1 103 Early Hints\r\n"), "{head}");
                    assert!(head.to_lowercase().contains(&format!("link: {link}\r\n")), "{head}");
                }
                assert_eq!(client.answer().body, "done");
                // A client of HTTP/1.0 would take an announcement for the answer.
                let mut client = Client::connect(address);
                client.send("GET / HTTP/1.0\r\n\r\n");
                let head = client.head();
                assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
            } else {
                let client = Http2Client::connect(address).await;
                let mut call = client.begin(request("GET", "/"), true).await;
                for link in ["</a.css>", "</b.css>"] {
                    let hint = call.announcement().await.unwrap();
                    assert_eq!(
                        (hint.status().as_u16(), &hint.headers()["link"]),
                        (103, &link.parse().unwrap())
                    );
                }
                assert_eq!(call.answer().await.unwrap().text(), "done");
            }
        });
    }
}

#[test]
fn a_client_that_waits_for_permission_gets_it() {
    for (client, endpoint) in ALL {
        // One of HTTP/1 gives it when it is asked, as RFC 9110 (10.1.1) wants it; one of HTTP/2 never is.
        let endpoint = Endpoint::new(endpoint, |got| {
            let length = got.message.content.bytes().len().to_string();
            Answer { status: 200, message: Message::new(Content::Known(length.into())) }
        });
        let (_proxy, address) = endpoint.behind();
        wait(async {
            if client == Version::One {
                let mut client = Client::connect(address);
                client.send("PUT / HTTP/1.1\r\nHost: cart\r\nContent-Length: 5\r\n");
                client.send("Expect: 100-continue\r\n\r\n");
                assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
                client.send("hello");
                assert_eq!(client.answer().body, "5");
            } else {
                let client = Http2Client::connect(address).await;
                let asking = request("PUT", "/").header("expect", "100-continue");
                let mut call = client.begin(asking.header("content-length", 5), false).await;
                assert_eq!(call.announcement().await.unwrap().status(), 100);
                call.send("hello", true).await.unwrap();
                assert_eq!(call.answer().await.unwrap().text(), "5");
                // Nobody asks for leave to send nothing.
                let asking = request("GET", "/").header("expect", "100-continue");
                let mut call = client.begin(asking, true).await;
                assert!(call.announcement().await.is_none());
                assert_eq!(call.answer().await.unwrap().text(), "0");
            }
        });
    }
}

/// Larger than what a client of HTTP/2 takes before it has read some.
const EARLY: usize = 200_000;

/// Says no at the head of a request and then reads on, as servers do so that the client can hear it.
fn refusing(version: Version) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(|mut connection| {
            connection.head();
            let head = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: ";
            connection.send(&format!("{head}{EARLY}\r\n\r\n{}", "n".repeat(EARLY)));
            let _ = std::io::copy(&mut connection.reader, &mut std::io::sink());
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(|mut exchange| async move {
            let response = Response::builder().status(413);
            let mut body = exchange.begin(response);
            super::client::send(&mut body, vec![b'n'; EARLY].into(), true).await.unwrap();
        })),
    }
}

#[test]
fn an_answer_may_come_before_the_end_of_its_request() {
    for (client, endpoint) in ALL {
        let endpoint = refusing(endpoint);
        let (mut proxy, address) = endpoint.behind();
        wait(async {
            if client == Version::One {
                let mut client = Client::connect(address);
                client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
                client.send([b'x'; 10_000]);
                let answer = client.answer();
                assert_eq!(answer.status, 413);
                assert_eq!(answer.body.matches('n').count(), EARLY);
            } else {
                let client = Http2Client::connect(address).await;
                let mut call = client.begin(request("POST", "/"), false).await;
                call.send(vec![b'x'; 10_000], false).await.unwrap();
                let (head, mut body) = call.head().await.unwrap().into_parts();
                assert_eq!(head.status, 413);
                assert_eq!(read(&mut body).await.unwrap().0.len(), EARLY);
                // The rest is not wanted, and that is no error (RFC 9113, 8.1).
                let reset = std::future::poll_fn(|cx| call.body.poll_reset(cx)).await;
                assert_eq!(reset.unwrap(), Reason::NO_ERROR);
                // Others on the connection are served as before.
                let mut other = client.begin(request("POST", "/"), false).await;
                assert_eq!(other.head().await.unwrap().status(), 413);
            }
        });
        let stats = proxy.stats();
        assert_eq!((stats.failed, stats.retries), (0, 0), "{client:?} {stats:?}");
    }
}

#[test]
fn an_answer_of_the_proxy_itself_reaches_a_client_that_is_still_sending() {
    let mut proxy = Proxy::start_holding(std::time::Duration::ZERO);
    let address = serve(&mut proxy, Protocol::Http2, &[]);
    wait(async {
        let client = Http2Client::connect(address).await;
        let mut call = client.begin(request("POST", "/"), false).await;
        // The answer may be faster.
        let _ = call.send("the beginning", false).await;
        let (head, mut body) = call.head().await.unwrap().into_parts();
        assert_eq!(head.status, 503);
        let (text, _) = read(&mut body).await.unwrap();
        assert!(text.starts_with(b"shop/cart:80 had no ready instance"), "{text:?}");
        let reset = std::future::poll_fn(|cx| call.body.poll_reset(cx)).await;
        assert_eq!(reset.unwrap(), Reason::NO_ERROR);
    });
}

#[test]
fn a_body_of_another_length_than_announced_is_an_error() {
    for version in [Version::One, Version::Two] {
        let endpoint = mirror(version);
        let (mut proxy, address) = endpoint.behind();
        wait(async {
            let client = Http2Client::connect(address).await;
            for sent in ["shor", "longer"] {
                let announced = request("POST", "/").header("content-length", 5);
                let mut call = client.begin(announced, false).await;
                // A longer one may already be refused while it is sent.
                let _ = call.send(sent, true).await;
                let error = call.answer().await.unwrap_err();
                assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{sent}");
            }
            assert_eq!(client.post("/", "right").await.text(), "right");
        });
        assert_eq!(proxy.stats().server_errors, 0);
    }
}

#[test]
fn an_answer_that_breaks_off_is_never_taken_for_a_whole_one() {
    // By the number of bytes that come after an announcement of ten.
    let endpoint = |version| match version {
        Version::One => Endpoint::One(Backend::new(|mut connection| {
            let request = connection.request().unwrap();
            let head = "HTTP/1.1 200 OK\r\n";
            match request.head.split(' ').nth(1).unwrap() {
                "/known" => connection.send(&format!("{head}Content-Length: 10\r\n\r\nhalf")),
                _ => connection
                    .send(&format!("{head}Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n")),
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(|mut exchange| async move {
            let known = exchange.path() == "/known";
            let response = Response::builder();
            let response = if known { response.header("content-length", 10) } else { response };
            let mut body = exchange.begin(response);
            // One is short, the other is reset.
            body.send_data("half".into(), known).unwrap();
            if !known {
                tokio::task::yield_now().await;
                body.send_reset(Reason::INTERNAL_ERROR);
            }
        })),
    };
    for (client, version) in ALL {
        let endpoint = endpoint(version);
        let (mut proxy, address) = endpoint.behind();
        for path in ["/known", "/unknown"] {
            wait(async {
                if client == Version::One {
                    let mut client = Client::connect(address);
                    client.send(format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
                    let mut all = Vec::new();
                    let read = std::io::Read::read_to_end(&mut client.reader, &mut all);
                    assert!(!all.ends_with(b"0\r\n\r\n"), "{}", String::from_utf8_lossy(&all));
                    // Without a reset, what is missing must show in the message.
                    assert!(read.is_err() || all.starts_with(b"HTTP/1.1 502 "), "{all:?}");
                } else {
                    let client = Http2Client::connect(address).await;
                    let mut call = client.begin(request("GET", path), true).await;
                    let answer = call.head().await.unwrap();
                    if answer.status() == 200 {
                        assert!(read(&mut answer.into_body()).await.is_err(), "{version:?} {path}");
                    } else {
                        assert_eq!(answer.status(), 502);
                    }
                }
            });
        }
        assert_eq!(proxy.stats().failed, 2, "{client:?} {version:?}");
    }
}

#[test]
fn events_are_not_kept_back() {
    // Each event is sent only when the client has told of the one before, on another way.
    for (client, version) in ALL {
        let (heard, hears) = tokio::sync::mpsc::channel::<usize>(1);
        let hears = std::sync::Arc::new(tokio::sync::Mutex::new(hears));
        let endpoint = streaming(version, hears);
        let (_proxy, address) = endpoint.behind();
        wait(async {
            if client == Version::One {
                let mut client = Client::connect(address);
                client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
                client.head();
                for n in 0..20 {
                    let event = std::iter::from_fn(|| Some(client.line()));
                    assert!(event.take(9).any(|line| line == format!("data: {n}\n")));
                    heard.send(n).await.unwrap();
                }
            } else {
                let client = Http2Client::connect(address).await;
                let mut call = client.begin(request("GET", "/"), true).await;
                let mut body = call.head().await.unwrap().into_body();
                for n in 0..20 {
                    let event = part(&mut body).await.unwrap().unwrap();
                    assert_eq!(event, format!("data: {n}\n\n"));
                    heard.send(n).await.unwrap();
                }
            }
        });
    }
}

type Heard = std::sync::Arc<tokio::sync::Mutex<tokio::sync::mpsc::Receiver<usize>>>;

/// Sends the next event when the last one was heard.
fn streaming(version: Version, heard: Heard) -> Endpoint {
    match version {
        Version::One => Endpoint::One(Backend::new(move |mut connection| {
            if connection.request().is_none() {
                return;
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n");
            connection.send("Transfer-Encoding: chunked\r\n\r\n");
            let mut heard = heard.blocking_lock();
            for n in 0.. {
                let event = format!("data: {n}\n\n");
                connection.send(&format!("{:x}\r\n{event}\r\n", event.len()));
                if heard.blocking_recv() != Some(n) {
                    return;
                }
            }
        })),
        Version::Two => Endpoint::Two(Http2Endpoint::new(move |mut exchange| {
            let heard = std::sync::Arc::clone(&heard);
            async move {
                let events = Response::builder().header("content-type", "text/event-stream");
                let mut body = exchange.begin(events);
                let mut heard = heard.lock().await;
                for n in 0.. {
                    let sent = body.send_data(format!("data: {n}\n\n").into(), false);
                    if sent.is_err() || heard.recv().await != Some(n) {
                        return;
                    }
                }
            }
        })),
    }
}
