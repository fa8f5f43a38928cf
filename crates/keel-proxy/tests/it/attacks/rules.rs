//! What is against the rules, once.

use std::io::Write;
use std::thread;

use keel_model::{EndpointState, Protocol};
use proptest::prelude::*;

use super::{Target, head, reset};
use crate::backend::Backend;
use crate::client::{Client, get};
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, Frame, Frames, GOAWAY,
    HEADERS, PADDED, PING, PROTOCOL_ERROR, RST_STREAM, SETTINGS, WINDOW_UPDATE, block, fields,
    frame, setting,
};
use crate::http2::either::serve;
use crate::http2::endpoint::Http2Endpoint;
use crate::proxy::{PATIENCE, Proxy, cluster};

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

#[test]
fn what_comes_late_for_a_stream_is_no_offence() {
    // A client that is answered before it has sent all goes on for as long as the answer travels.
    let backend = Backend::new(|mut connection| {
        while connection.head().is_some() {
            connection
                .send("HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            let _ = std::io::copy(&mut connection.reader, &mut std::io::sink());
        }
    });
    let mut proxy = Proxy::start();
    let address = serve(&mut proxy, Protocol::Http, &[backend.address]);
    let mut client = Frames::connect(address, &[]);
    for n in 0..400 {
        let stream = 2 * n + 1;
        client.write(&head(stream, 0)).unwrap();
        client.until("an answer", |frame| frame.kind == HEADERS && frame.stream == stream);
        client.until("the reset", |frame| frame.kind == RST_STREAM && frame.stream == stream);
        // Of this stream, and of one that was answered long ago.
        client.send(DATA, 0, stream, b"late");
        client.send(DATA, 0, if n < 200 { stream } else { stream - 400 }, b"later");
    }
}
