//! Endpoints that hang, break off, answer too early, send rubbish, or a byte at a time.

use std::io::Read;

use keel_model::Protocol;
use proptest::prelude::*;

use super::{before, rest, serves};
use crate::backend::{Backend, Connection};
use crate::client::Client;
use crate::proxy::{Proxy, until};

/// `true` if the request was a decent one, which it then answered.
fn was_decent(connection: &mut Connection, head: &str) -> bool {
    let decent = head.starts_with("GET /decent ");
    if decent {
        connection.answer("ok");
    }
    decent
}

/// An endpoint that treats every request but decent ones as it is told.
fn otherwise(script: impl Fn(Connection) + Send + Sync + 'static) -> Backend {
    Backend::new(move |mut connection| {
        while let Some(head) = connection.head() {
            if !was_decent(&mut connection, &head) {
                return script(connection);
            }
        }
    })
}

#[test]
fn one_that_hangs_holds_up_nobody_else() {
    let backend = otherwise(|mut connection| {
        // Until it is killed.
        let _ = connection.reader.read(&mut [0]);
    });
    let (mut proxy, address) = before(&backend);
    let mut waiting: Vec<_> = (0..40).map(|_| Client::connect(address)).collect();
    for client in &mut waiting {
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    }
    until("all of them hang", || (proxy.stats().in_flight == 40).then_some(()));
    serves(address);
    backend.kill();
    for client in &mut waiting {
        assert_eq!(client.answer().status, 502);
    }
    proxy.all_ended();
}

#[test]
fn an_answer_that_breaks_off_is_seen_to_break_off_however_its_end_is_told() {
    for head in ["Content-Length: 100", "Transfer-Encoding: chunked", "Connection: close"] {
        let backend = otherwise(move |mut connection| {
            connection.send(&format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n5\r\nhello\r\n"));
            connection.reset();
        });
        let (mut proxy, address) = before(&backend);
        for _ in 0..5 {
            let mut client = Client::connect(address);
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
            let (bytes, ended) = rest(&mut client);
            // Either the answer was cut off before anything of it was passed on, or the client notices.
            let refused = bytes.starts_with(b"HTTP/1.1 502 ");
            assert!(refused || !ended, "{head}: {}", bytes.escape_ascii());
        }
        serves(address);
        assert_eq!(proxy.stats().failed, 5, "{head}");
    }
}

#[test]
fn an_early_answer_arrives_although_the_endpoint_breaks_off_at_once() {
    let backend = otherwise(|mut connection| {
        connection.send("HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nno\n");
        // What was not read makes this a reset.
    });
    let (mut proxy, address) = before(&backend);
    for round in 0..20 {
        let mut client = Client::connect(address);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        let mut writer = client.reader.get_ref().try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            let piece = vec![b'x'; 100_000];
            (0..1_000)
                .take_while(|_| std::io::Write::write_all(&mut writer, &piece).is_ok())
                .count()
        });
        let answer = client.answer();
        assert_eq!((answer.status, answer.body.as_str()), (413, "no\n"), "round {round}");
        assert!(answer.head.contains("Connection: close\r\n"), "{}", answer.head);
        drop(client);
        assert!(sending.join().unwrap() < 1_000, "nobody reads all that");
    }
    serves(address);
    proxy.all_ended();
}

#[test]
fn one_that_only_ever_announces_is_answered_for() {
    const HINT: &str = "HTTP/1.1 103 Early Hints\r\n\r\n";
    let backend = otherwise(|mut connection| {
        connection.send(&HINT.repeat(1_000));
        // Until it is given up.
        let _ = connection.reader.read(&mut [0]);
    });
    let (mut proxy, address) = before(&backend);
    let mut client = Client::connect(address);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let heads: Vec<_> = (0..33).map(|_| client.head()).collect();
    let (last, hints) = heads.split_last().unwrap();
    assert!(
        hints.iter().all(|head| head == HINT) && last.starts_with("HTTP/1.1 502 "),
        "{heads:?}"
    );
    serves(address);
    assert_eq!(proxy.stats().failed, 1);
}

#[test]
fn a_request_is_sent_whole_although_its_answer_has_come() {
    let backend = otherwise(|mut connection| {
        connection.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n");
        let mut body = vec![0; 1_000_000];
        connection.reader.read_exact(&mut body).unwrap();
        connection.send(if body.iter().all(|b| *b == b'x') { "ok" } else { "??" });
    });
    let (mut proxy, address) = before(&backend);
    let mut client = Client::connect(address);
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n");
    assert!(client.head().starts_with("HTTP/1.1 200 "));
    client.send(vec![b'x'; 1_000_000]);
    let mut body = [0; 2];
    client.reader.read_exact(&mut body).unwrap();
    assert_eq!(&body, b"ok");
    proxy.all_ended();
}

#[test]
fn rubbish_is_answered_for_and_harms_no_other_request() {
    let (sender, receiver) = std::sync::mpsc::channel::<Vec<u8>>();
    let receiver = std::sync::Mutex::new(receiver);
    let backend = otherwise(move |connection| {
        let rubbish = receiver.lock().unwrap().recv().unwrap();
        let mut stream = connection.reader.into_inner();
        let _ = std::io::Write::write_all(&mut stream, &rubbish);
    });
    let (mut proxy, address) = before(&backend);
    let rubbish = prop_oneof![
        prop::collection::vec(any::<u8>(), 0..200),
        "HTTP/1.[01] [0-9]{1,4}( [ -~]{0,9})?\r?\n([A-Za-z-]{1,17}: ?[ -~]{0,9}\r?\n){0,5}\r\n[ -~\r\n]{0,50}"
            .prop_map(String::into_bytes),
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n[0-9a-f]{1,2}\r\n[ -~\r\n]{0,50}"
            .prop_map(String::into_bytes),
    ];
    proptest!(ProptestConfig::with_cases(150), |(rubbish in rubbish)| {
        sender.send(rubbish).unwrap();
        let mut client = Client::connect(address);
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        let (answer, ended) = rest(&mut client);
        prop_assert!(answer.starts_with(b"HTTP/1.1 ") || (answer.is_empty() && !ended));
    });
    serves(address);
    proxy.all_ended();
}

#[test]
fn an_answer_that_trickles_arrives_as_it_is() {
    const CHUNKS: &str = "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n";
    let backend = Backend::new(|mut connection| {
        while connection.request().is_some() {
            let answer = format!(
                "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                 HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKS}"
            );
            for at in 0..answer.len() {
                connection.send(&answer[at..=at]);
            }
        }
    });
    let mut proxy = Proxy::start();
    let address = proxy.serve(Protocol::Http, &[backend.address]);
    let mut client = Client::connect(address);
    for _ in 0..3 {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!(client.head(), "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n");
        let answer = client.answer();
        assert_eq!(answer.head, "HTTP/1.1 200 OK\r\nA: b\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(answer.body, CHUNKS);
    }
    // One that knows neither chunks nor announcements.
    client.send("GET / HTTP/1.0\r\n\r\n");
    assert_eq!(client.head(), "HTTP/1.1 200 OK\r\nA: b\r\nConnection: close\r\n\r\n");
    assert_eq!(client.rest(), b"abc0123456789");
}
