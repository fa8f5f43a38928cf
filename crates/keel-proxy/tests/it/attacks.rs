//! Clients and endpoints of HTTP/2 that mean harm: each is cut off or held in bounds, and nobody else notices.

use std::io::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol, TrafficPolicy};
use proptest::prelude::*;
use rustix::net::sockopt;

use crate::backend::Backend;
use crate::client::{Client, get};
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, FLOW_CONTROL_ERROR, Frame,
    Frames, GOAWAY, HEADERS, OK, PADDED, PING, PRIORITY, PROTOCOL_ERROR, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, block, fields, frame, setting,
};
use crate::http2::background::wait;
use crate::http2::client::Http2Client;
use crate::http2::either::serve;
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::{PATIENCE, Proxy, cluster, until};

const MIB: usize = 1 << 20;

/// A proxy before an endpoint that is told how many requests reach it.
struct Target {
    proxy: Proxy,
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
    _backend: Backend,
}

impl Target {
    fn new() -> Self {
        Self::answering(100)
    }

    /// The endpoint answers with so many bytes.
    fn answering(bytes: usize) -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reached);
        let body = "a".repeat(bytes);
        let backend = Backend::new(move |mut connection| {
            while connection.request().is_some() {
                count.fetch_add(1, Ordering::SeqCst);
                connection.send(&format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n"));
                connection.send(&body);
            }
        });
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http, &[backend.address]);
        Self { proxy, address, reached, _backend: backend }
    }

    fn connect(&self) -> Frames {
        Frames::connect(self.address, &[])
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// Runs `attack` again and again while others are served, in either version and by either worker; then returns
    /// how much memory the proxy has gained.
    fn under(&self, attack: impl Fn(SocketAddr) + Send + Sync + 'static) -> usize {
        let before = self.proxy.process.memory();
        let (stop, begun) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let attacker = {
            let (address, stop, begun) = (self.address, Arc::clone(&stop), Arc::clone(&begun));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    begun.fetch_add(1, Ordering::SeqCst);
                    attack(address);
                }
            })
        };
        until("the attack has begun", || (begun.load(Ordering::SeqCst) > 0).then_some(()));
        wait(async {
            for _ in 0..4 {
                let client = Http2Client::connect(self.address).await;
                let mut old = Client::connect(self.address);
                for _ in 0..10 {
                    assert_eq!(client.get("/").await.status, 200);
                    assert_eq!(old.get("/").status, 200);
                }
            }
        });
        stop.store(true, Ordering::SeqCst);
        attacker.join().unwrap();
        let gained = self.proxy.process.memory().saturating_sub(before);
        eprintln!("{} attacks, {} KiB gained", begun.load(Ordering::SeqCst), gained >> 10);
        gained
    }
}

/// The head of a request as a frame.
fn head(stream: u32, flags: u8) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | flags, stream, &block(&fields("GET", &[])))
}

fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

#[test]
fn a_burst_of_requests_that_are_reset_ends_the_connection() {
    // CVE-2023-44487, as fast as it goes.
    let target = Target::new();
    let gained = target.under(|address| {
        let mut client = Frames::connect(address, &[]);
        let flood: Vec<u8> = (0..10_000)
            .flat_map(|n| [head(2 * n + 1, END_STREAM), reset(2 * n + 1)].concat())
            .collect();
        // It may be cut off before all of it is written.
        let _ = client.write(&flood);
        assert!([None, Some(ENHANCE_YOUR_CALM)].contains(&client.end()));
    });
    assert!(gained < 8 * MIB, "{gained} bytes");
}

#[test]
fn requests_that_are_reset_one_by_one_end_the_connection_too() {
    // Each was accepted before it is reset, so that the limit on those that wait does not see it.
    let target = Target::new();
    target.under(|address| {
        let mut client = Frames::connect(address, &[]);
        for n in 0..20_000u32 {
            let stream = 2 * n + 1;
            let mut bytes = head(stream, 0);
            bytes.extend(frame(PING, 0, 0, &[1; 8]));
            if client.write(&bytes).is_err() {
                return;
            }
            loop {
                match client.next() {
                    Some(frame) if frame.kind == PING => break,
                    Some(_) => {}
                    None => return,
                }
            }
            if client.write(&reset(stream)).is_err() {
                return;
            }
        }
        panic!("20,000 requests were begun and reset");
    });
    assert!(target.reached() < 5000, "{} requests reached the endpoint", target.reached());
}

#[test]
fn a_client_that_gives_up_now_and_then_is_no_attacker() {
    let target = Target::new();
    let mut client = target.connect();
    client.send(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes());
    for n in 0..600u32 {
        let stream = 2 * n + 1;
        client.write(&head(stream, END_STREAM)).unwrap();
        if n % 2 == 0 {
            client.write(&reset(stream)).unwrap();
        } else {
            client.until("an answer", |frame| frame.stream == stream && frame.is_ok());
        }
    }
}

#[test]
fn a_head_that_never_ends_ends_the_connection() {
    let target = Target::new();
    for piece in [vec![], block(&[("x", "y")]), block(&[("x", &"y".repeat(16_000))])] {
        let gained = target.under(move |address| {
            let mut client = Frames::connect(address, &[]);
            let begin = block(&fields("GET", &[]));
            client.send(HEADERS, END_STREAM, 1, &begin);
            let flood: Vec<u8> = (0..100).flat_map(|_| frame(CONTINUATION, 0, 1, &piece)).collect();
            let mut written = 0;
            while client.write(&flood).is_ok() {
                written += flood.len();
                assert!(written < 64 * MIB, "it is read without end");
            }
            client.end();
        });
        assert!(gained < 8 * MIB, "{gained} bytes");
    }
    assert!(target.reached() <= 3 * 80, "no such head got through: {}", target.reached());
}

#[test]
fn heads_that_grow_when_they_are_unpacked_are_refused() {
    // One long field is put into the table; then heads of a few kilobytes name it thousands of times.
    let target = Target::new();
    let gained = target.under(|address| {
        let mut client = Frames::connect(address, &[]);
        let mut seed = block(&fields("GET", &[]));
        // A literal with incremental indexing (RFC 7541, 6.2.1).
        let long = block(&[("x", &"y".repeat(3900))]);
        seed.push(0x40);
        seed.extend(&long[1..]);
        client.send(HEADERS, END_HEADERS | END_STREAM, 1, &seed);
        client.until("an answer", |frame| frame.stream == 1);
        // The first entry after those of the static table.
        let mut bomb = block(&fields("GET", &[]));
        bomb.extend([0x80 | 62; 4000]);
        for n in 1..50 {
            let stream = 2 * n + 1;
            if client.write(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &bomb)).is_err() {
                break;
            }
            match client.next() {
                Some(frame) => assert!(!frame.is_ok(), "{} bytes were unpacked", 4000 * 3900),
                None => break,
            }
        }
    });
    assert!(gained < 8 * MIB, "{gained} bytes");
}

#[test]
fn floods_of_what_costs_an_answer_are_not_answered_without_end() {
    // The client never reads: what the proxy has to say to it may not pile up.
    let target = Target::new();
    for (kind, payload) in [(PING, vec![7; 8]), (SETTINGS, setting(4, 70_000)), (SETTINGS, vec![])]
    {
        let gained = target.under(move |address| {
            let mut client = Frames::connect(address, &[]);
            let stream = client.stream();
            stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
            // So that the system itself does not hold millions of answers.
            sockopt::set_socket_recv_buffer_size(&stream, 64 * 1024).unwrap();
            let flood = frame(kind, 0, 0, &payload).repeat(4000);
            let mut written = 0;
            // Until nothing more is taken, or the connection ends.
            while client.write(&flood).is_ok() {
                written += flood.len();
                assert!(written < 64 * MIB, "it is read without end");
            }
        });
        assert!(gained < 8 * MIB, "{gained} bytes of {kind}");
    }
}

#[test]
fn frames_that_say_nothing_end_the_connection() {
    let target = Target::new();
    let empty_data = |client: &mut Frames| {
        client.write(&head(1, 0)).unwrap();
        frame(DATA, 0, 1, &[]).repeat(1000)
    };
    let gained = target.under(move |address| {
        let mut client = Frames::connect(address, &[]);
        let flood = empty_data(&mut client);
        let _ = client.write(&flood);
        assert!([None, Some(ENHANCE_YOUR_CALM)].contains(&client.end()));
    });
    assert!(gained < 8 * MIB, "{gained} bytes");
    // Priorities are not kept at all, so they cost only their reading.
    let gained = target.under(|address| {
        let mut client = Frames::connect(address, &[]);
        for round in 0..20u32 {
            let flood: Vec<u8> = (0..2000u32)
                .flat_map(|n| frame(PRIORITY, 0, 2 * (round * 2000 + n) + 1001, &[0, 0, 0, 0, 1]))
                .collect();
            client.write(&flood).unwrap();
        }
        client.get(1);
        client.until("an answer", Frame::is_ok);
    });
    assert!(gained < 8 * MIB, "{gained} bytes");
}

#[test]
fn windows_that_are_misused_end_the_stream_or_the_connection() {
    let target = Target::answering(100_000);
    let most = 0x7fff_ffffu32.to_be_bytes();
    // More than there can be, on the connection and on a stream; nothing at all.
    let mut client = target.connect();
    client.send(WINDOW_UPDATE, 0, 0, &most);
    assert_eq!(client.end(), Some(FLOW_CONTROL_ERROR));
    let mut client = target.connect();
    client.send(WINDOW_UPDATE, 0, 0, &[0; 4]);
    assert_eq!(client.end(), Some(PROTOCOL_ERROR));
    let mut client = target.connect();
    client.get(1);
    client.send(WINDOW_UPDATE, 0, 1, &most);
    let ended = client.until("the end of the stream", |frame| frame.kind == RST_STREAM);
    assert_eq!(ended.error(), Some(FLOW_CONTROL_ERROR));
    let mut client = target.connect();
    client.send(SETTINGS, 0, 0, &setting(4, 0x8000_0000));
    assert!([Some(FLOW_CONTROL_ERROR), Some(PROTOCOL_ERROR)].contains(&client.end()));
    // A window that settings take back while it is used (RFC 9113, 6.9.2), and give again.
    let mut client = target.connect();
    client.get(1);
    client.until("an answer", Frame::is_ok);
    client.send(SETTINGS, 0, 0, &setting(4, 0));
    client.send(SETTINGS, 0, 0, &setting(4, 1_000_000));
    client.send(WINDOW_UPDATE, 0, 0, &1_000_000u32.to_be_bytes());
    client
        .until("the end of the answer", |frame| frame.flags & END_STREAM != 0 && frame.stream == 1);
}

#[test]
fn more_than_the_window_allows_is_not_taken() {
    // The endpoint takes nothing, so that the window stays as it is.
    let backend = Backend::new(|mut connection| {
        connection.head();
        thread::sleep(PATIENCE);
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http, &[backend.address]);
    let mut client = Frames::connect(address, &[]);
    client.write(&head(1, 0)).unwrap();
    let piece = frame(DATA, 0, 1, &[b'x'; 16_384]);
    let mut hand = client.stream();
    let writing = thread::spawn(move || {
        // Far beyond what sockets and windows hold together.
        for _ in 0..2000 {
            if hand.write_all(&piece).is_err() {
                return;
            }
        }
    });
    let ended = client.until("the end", |frame| [RST_STREAM, GOAWAY].contains(&frame.kind));
    assert_eq!(ended.error(), Some(FLOW_CONTROL_ERROR));
    drop(client);
    let _ = writing.join();
}

#[test]
fn answers_that_nobody_reads_are_not_piled_up() {
    // Windows of nothing, on as many streams as there may be.
    let target = Target::answering(MIB);
    let before = target.proxy.process.memory();
    let mut silent: Vec<_> =
        (0..2).map(|_| Frames::connect(target.address, &setting(4, 0))).collect();
    for client in &mut silent {
        for n in 0..256 {
            client.get(2 * n + 1);
        }
        for _ in 0..256 {
            client.until("an answer", Frame::is_ok);
        }
    }
    let each = target.proxy.process.memory().saturating_sub(before) / (2 * 256);
    eprintln!("{each} bytes for each stream");
    assert!(each < 160 * 1024, "{each} bytes for each stream");
    wait(async {
        let client = Http2Client::connect(target.address).await;
        assert_eq!(client.get("/").await.body.len(), MIB);
    });
    // They are all still there, and go when they are given up.
    let mut proxy = target.proxy;
    assert!(proxy.stats().in_flight == 512);
    drop(silent);
    until("they are gone", || (proxy.stats().in_flight == 0).then_some(()));
}

#[test]
fn requests_that_never_end_hold_only_their_own_connection_and_not_for_ever() {
    let target = Target::new();
    let mut proxy = target.proxy;
    let mut policy = TrafficPolicy::default();
    policy.timeouts.request = Some(Duration::from_secs(2));
    let mut state = cluster(&[(target._backend.address, EndpointState::Ready)], true);
    (state.protocol, state.policy) = (Protocol::Http, Some(Box::new(policy)));
    proxy.server.update(state);
    let mut slow = Frames::connect(target.address, &[]);
    for n in 0..256 {
        slow.write(&head(2 * n + 1, 0)).unwrap();
    }
    until("they are at the endpoint", || (proxy.stats().in_flight == 256).then_some(()));
    // One more than there may be.
    slow.get(513);
    let refused = slow.until("a refusal", |frame| frame.stream == 513);
    assert_eq!(refused.kind, RST_STREAM);
    assert_eq!(get(target.address, "/").status, 200);
    let begun = Instant::now();
    for _ in 0..256 {
        slow.until("an answer in the end", |frame| frame.kind == HEADERS);
    }
    assert!(begun.elapsed() < PATIENCE);
    until("they are gone", || (proxy.stats().in_flight == 0).then_some(()));
}

#[test]
fn half_a_head_does_not_keep_a_proxy_that_ends() {
    let target = Target::new();
    let mut client = target.connect();
    client.send(HEADERS, END_STREAM, 1, &block(&fields("GET", &[])));
    client.until("the settings", |frame| frame.kind == SETTINGS && frame.flags == ACK);
    let mut proxy = target.proxy;
    proxy.process.signal("-TERM");
    assert!(proxy.process.wait().success());
}

#[test]
fn what_is_against_the_rules_ends_the_connection() {
    let target = Target::new();
    let long = [&[0xff, 0xff, 0xff, DATA, 0][..], &[0, 0, 0, 1]].concat();
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("data of no stream", frame(DATA, 0, 0, b"x")),
        ("data of a stream that is not there", frame(DATA, 0, 1, b"x")),
        ("a head of no stream", frame(HEADERS, END_HEADERS, 0, &block(&fields("GET", &[])))),
        ("a stream of the other side", head(2, END_STREAM)),
        ("streams in the wrong order", [head(5, END_STREAM), head(3, END_STREAM)].concat()),
        ("a frame that is too long", long),
        ("a promise", frame(5, END_HEADERS, 1, &[0, 0, 0, 2])),
        ("a reset of a stream that is not there", reset(1)),
        ("a reset without a reason", [head(1, 0), frame(RST_STREAM, 0, 1, &[0; 3])].concat()),
        ("settings of no length", frame(SETTINGS, 0, 0, &[0; 5])),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[])),
        ("an acknowledgement with settings", frame(SETTINGS, ACK, 0, &setting(1, 1))),
        ("a setting of no value", frame(SETTINGS, 0, 0, &setting(2, 7))),
        ("frames of no size", frame(SETTINGS, 0, 0, &setting(5, 100))),
        ("a ping of the wrong length", frame(PING, 0, 0, &[0; 7])),
        ("a ping of a stream", frame(PING, 0, 1, &[0; 8])),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[])),
        ("something amid a head", [frame(HEADERS, 0, 1, &[]), frame(PING, 0, 0, &[0; 8])].concat()),
        ("padding longer than its frame", [head(1, 0), frame(DATA, PADDED, 1, &[9, 0])].concat()),
        ("a farewell of a stream", frame(GOAWAY, 0, 1, &[0; 8])),
        ("fields that are none", frame(HEADERS, END_HEADERS, 1, &[0x80 | 127, 0xff, 0xff, 0xff])),
        ("a table that is too large", frame(HEADERS, END_HEADERS, 1, &[0x3f, 0xff, 0xff, 0x7f])),
    ];
    for (what, bytes) in &cases {
        let mut client = target.connect();
        client.write(bytes).unwrap();
        let why = client.end();
        assert!(why.is_some_and(|error| error != 0), "{what}: {why:?}");
    }
    assert_eq!(get(target.address, "/").status, 200);
}

#[test]
fn random_bytes_after_the_preface_do_no_harm() {
    let target = Target::new();
    let frames = prop::collection::vec(
        (0u8..11, any::<u8>(), 0u32..6, prop::collection::vec(any::<u8>(), 0..40)),
        0..12,
    );
    let bytes = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..300),
        frames.prop_map(|frames| {
            frames
                .iter()
                .flat_map(|(kind, flags, stream, p)| frame(*kind, *flags, *stream, p))
                .collect()
        }),
    ];
    let address = target.address;
    proptest!(ProptestConfig::with_cases(100), |(bytes in bytes)| {
        let mut client = Frames::connect(address, &[]);
        // A farewell or a reset is an answer too.
        let _ = client.write(&bytes);
        client.end_sending();
        client.end();
    });
    // What is neither version of HTTP is not passed on, where HTTP/2 is declared.
    let endpoint = Http2Endpoint::named("two");
    let mut proxy = Proxy::start();
    let bind = proxy.address();
    let state = cluster(&[(endpoint.address, EndpointState::Ready)], true);
    let clusters = [(crate::proxy::CART.to_owned(), state)].into();
    let listeners = vec![crate::proxy::listener(bind, Protocol::Http2)];
    assert_eq!(proxy.server.replace(listeners, clusters), []);
    for garbage in [&[0; 40][..], b"SSH-2.0-x\r\n\r\n"] {
        let mut client = Client::connect(bind);
        client.send(garbage);
        client.rest();
    }
    assert_eq!(endpoint.connections(), 0);
    assert_eq!(get(address, "/").status, 200);
}

/// What an endpoint does to the proxy when it has a request on this stream.
type Harm = fn(&mut Frames, u32) -> std::io::Result<()>;

#[test]
fn endpoints_that_mean_harm_harm_only_their_own_requests() {
    let harms: [(&str, Harm); 6] = [
        ("a head that never ends", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, 0, stream, OK))?;
            for _ in 0..100_000 {
                endpoint.write(&frame(CONTINUATION, 0, stream, &[]))?;
            }
            Ok(())
        }),
        ("announcements without end", |endpoint, stream| {
            let early = block(&[(":status", "103"), ("link", "</a>")]);
            for _ in 0..100_000 {
                endpoint.write(&frame(HEADERS, END_HEADERS, stream, &early))?;
            }
            Ok(())
        }),
        ("pushes", |endpoint, stream| {
            let promise = [&[0, 0, 0, 2][..], &block(&fields("GET", &[]))].concat();
            endpoint.write(&frame(5, END_HEADERS, stream, &promise))
        }),
        ("more than the window", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, END_HEADERS, stream, OK))?;
            for _ in 0..10_000 {
                endpoint.write(&frame(DATA, 0, stream, &[b'x'; 16_384]))?;
            }
            Ok(())
        }),
        ("data before the head", |endpoint, stream| endpoint.write(&frame(DATA, 0, stream, b"x"))),
        ("nothing but empty data", |endpoint, stream| {
            endpoint.write(&frame(HEADERS, END_HEADERS, stream, OK))?;
            for _ in 0..100_000 {
                endpoint.write(&frame(DATA, 0, stream, &[]))?;
            }
            Ok(())
        }),
    ];
    for (what, harm) in harms {
        let bad = Backend::new(move |connection| {
            let mut endpoint = Frames::serve(connection, &[]);
            while let Some(frame) = endpoint.next() {
                if frame.kind == HEADERS && harm(&mut endpoint, frame.stream).is_err() {
                    return;
                }
            }
        });
        let mut proxy = Proxy::start();
        let address = serve(&mut proxy, Protocol::Http2, &[bad.address]);
        let before = proxy.process.memory();
        let (told, tells) = mpsc::channel();
        let asking = thread::spawn(move || {
            wait(async {
                let client = Http2Client::connect(address).await;
                let call = client.begin(crate::http2::client::request("POST", "/"), true).await;
                let answer = call.answer().await;
                assert!(answer.as_ref().map_or(true, |a| a.status == 502), "{what}: {answer:?}");
            });
            told.send(()).unwrap();
        });
        tells.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what} is borne without end"));
        asking.join().unwrap();
        let gained = proxy.process.memory().saturating_sub(before);
        assert!(gained < 8 * MIB, "{what}: {gained} bytes");
        // The next request gets an answer too: from another endpoint.
        let good = Http2Endpoint::named("good");
        let mut state = cluster(&[(good.address, EndpointState::Ready)], true);
        state.protocol = Protocol::Http2;
        proxy.server.update(state);
        assert_eq!(Client::connect(address).get("/").body, "good:0", "{what}");
    }
}
