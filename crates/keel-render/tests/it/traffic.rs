//! What tests of traffic share.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::thread;

use keel_model::Protocol;
use keel_route::snapshot::{Cluster, Listener, ListenerTls, Snapshot};

use crate::echo::{Answer, ask};
use crate::make::id;

pub const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

/// One listener that leads to a cluster of HTTP endpoints.
pub fn direct(bind: SocketAddr, protocol: Protocol, cluster: Cluster) -> Snapshot {
    let listener = Listener { bind, protocol, cluster: id("one"), ..Listener::default() };
    Snapshot {
        listeners: vec![listener],
        clusters: BTreeMap::from([(id("one"), cluster)]),
        ..Snapshot::default()
    }
}

pub fn get(to: SocketAddr, fields: &str) -> Answer {
    let request = format!("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{fields}\r\n");
    ask(to, HERE, request.as_bytes())
}

/// The names of the endpoints that answer so many requests, with how many each one did.
pub fn names(to: SocketAddr, fields: &str, requests: usize) -> BTreeMap<String, usize> {
    let mut names = BTreeMap::new();
    for _ in 0..requests {
        *names.entry(get(to, fields).name().to_owned()).or_default() += 1;
    }
    names
}

/// curl's output, with the status in front.
pub fn curl(arguments: &[&str]) -> String {
    let output = Command::new("curl")
        .args(["-s", "-k", "-m", "10", "-w", "%{http_version} %{http_code}\n%{header_json}"])
        .args(arguments)
        .output()
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

pub fn read_until(stream: &mut TcpStream, wanted: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(wanted) {
        let read = stream.read(&mut buffer).unwrap();
        assert!(read > 0, "the connection ended after {text:?}");
        text.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    text
}

/// Greets everybody by this name, then repeats what it is told.
pub fn greeter(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let _ = stream.write_all(format!("I am {name}\n").as_bytes());
                let _ = std::io::copy(&mut stream.try_clone().unwrap(), &mut stream);
            });
        }
    });
    address
}

/// A listener with TLS for a table.
pub fn secure(mut snapshot: Snapshot, tls: ListenerTls) -> Snapshot {
    snapshot.listeners[0].tls = Some(tls);
    snapshot
}
