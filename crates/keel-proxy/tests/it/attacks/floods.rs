//! Much of what is allowed once.

use std::time::{Duration, Instant};

use keel_model::{EndpointState, Protocol, TrafficPolicy};
use rustix::net::sockopt;

use super::{MIB, Target, head, reset};
use crate::client::get;
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, ENHANCE_YOUR_CALM, Frame, Frames, HEADERS,
    PING, PRIORITY, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, fields, frame, setting,
};
use crate::http2::background::wait;
use crate::http2::client::Http2Client;
use crate::proxy::{PATIENCE, cluster, until};

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
