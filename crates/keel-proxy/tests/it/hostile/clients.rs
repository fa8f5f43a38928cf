//! Clients that send slowly, break off, or never read what they asked for.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rustix::net::sockopt;

use super::{before, serves};
use crate::backend::Backend;
use crate::client::Client;
use crate::proxy::until;

/// Breaks the connection.
fn reset(client: &Client) {
    let stream = client.reader.get_ref();
    sockopt::set_socket_linger(stream, Some(std::time::Duration::ZERO)).unwrap();
}

#[test]
fn many_that_never_end_their_heads_hold_up_nobody_else() {
    let backend = Backend::named("a");
    let (mut proxy, address) = before(&backend);
    let mut slow: Vec<_> = (0..300).map(|_| Client::connect(address)).collect();
    for client in &mut slow {
        client.send("GET / HTTP/1.1\r\nHost: a\r\nX: ");
    }
    serves(address);
    for client in &mut slow {
        client.send("y");
    }
    serves(address);
    // Those that have not been cut off yet are as good as any.
    let last = slow.last_mut().unwrap();
    last.send("\r\n\r\n");
    assert_eq!(last.answer().status, 200);
    assert_eq!(proxy.stats().requests, 9);
}

#[test]
fn a_body_that_trickles_arrives_as_it_is() {
    const CHUNKS: &str = "3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n";
    let backend = Backend::new(|mut connection| {
        while let Some(request) = connection.request() {
            connection.answer(&String::from_utf8(request.body).unwrap());
        }
    });
    let (_proxy, address) = before(&backend);
    let mut client = Client::connect(address);
    for (head, body) in [("Content-Length: 5", "hello"), ("Transfer-Encoding: chunked", CHUNKS)] {
        let request = format!("POST / HTTP/1.1\r\nHost: a\r\n{head}\r\n\r\n{body}");
        for at in 0..request.len() {
            client.send(&request[at..=at]);
        }
        assert_eq!(client.answer().body, body);
    }
}

#[test]
fn one_that_breaks_off_its_request_leaves_nothing_behind() {
    let whole = Arc::new(AtomicUsize::new(0));
    let ended = Arc::new(AtomicUsize::new(0));
    let counts = (Arc::clone(&whole), Arc::clone(&ended));
    let backend = Backend::new(move |mut connection| {
        while let Some(head) = connection.head() {
            if head.starts_with("GET /decent ") {
                connection.answer("ok");
            } else if crate::backend::read_body(&mut connection.reader, &head).is_some() {
                counts.0.fetch_add(1, Ordering::SeqCst);
            } else {
                counts.1.fetch_add(1, Ordering::SeqCst);
                return;
            }
        }
    });
    let (mut proxy, address) = before(&backend);
    for round in 0..20 {
        let mut client = Client::connect(address);
        let body =
            if round % 2 == 0 { "Content-Length: 100000" } else { "Transfer-Encoding: chunked" };
        client.send(format!("POST / HTTP/1.1\r\nHost: a\r\n{body}\r\n\r\nffff\r\nhalf"));
        until("the request is on its way", || (proxy.stats().in_flight == 1).then_some(()));
        if round % 4 < 2 {
            reset(&client);
        }
        drop(client);
        proxy.all_ended();
    }
    until("the endpoint notices", || (ended.load(Ordering::SeqCst) == 20).then_some(()));
    assert_eq!(whole.load(Ordering::SeqCst), 0, "a part is not taken for a whole");
    serves(address);
}

/// An endpoint that answers with very much, and counts the bytes that it got rid of.
fn verbose(sent: &Arc<AtomicU64>) -> Backend {
    let sent = Arc::clone(sent);
    Backend::new(move |mut connection| {
        while let Some(head) = connection.head() {
            if head.starts_with("GET /decent ") {
                connection.answer("ok");
                continue;
            }
            connection.send("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n");
            let piece = vec![b'x'; 100_000];
            while connection.reader.get_mut().write_all(&piece).is_ok() {
                sent.fetch_add(100_000, Ordering::SeqCst);
            }
            return;
        }
    })
}

/// Memory of a process that is its own, in KiB.
fn resident_kib(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn those_that_never_read_cost_little_memory_and_hold_up_nobody_else() {
    let sent = Arc::default();
    let backend = verbose(&sent);
    let (mut proxy, address) = before(&backend);
    serves(address);
    let pid = proxy.process.child.id();
    let before = resident_kib(pid);
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        client.reader.read_exact(&mut [0; 1000]).unwrap();
    }
    let mut last = 0;
    until("all buffers are full", || {
        std::thread::sleep(std::time::Duration::from_millis(100));
        let now = sent.load(Ordering::SeqCst);
        (std::mem::replace(&mut last, now) == now).then_some(())
    });
    let grown = resident_kib(pid).saturating_sub(before);
    assert!(grown < 50 * 200, "{grown} KiB for 50 clients");
    serves(address);
    // One of them reads after all: nothing was lost, nothing doubled.
    let mut piece = vec![0; 10_000_000];
    clients[0].reader.read_exact(&mut piece).unwrap();
    assert!(piece.iter().all(|b| *b == b'x'));
    clients.iter().step_by(2).for_each(reset);
    drop(clients);
    proxy.all_ended();
    serves(address);
}
