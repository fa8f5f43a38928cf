//! The DNS server over real sockets, asked by `dig` and by hand-made clients.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use keel_discovery::{DnsServer, InstanceAddress, ServiceNames, Table};
use keel_model::{
    Generation, InstanceId, Protocol, ServiceName, ServicePort, StackName, Transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{oneshot, watch};

const DEADLINE: Duration = Duration::from_secs(10);

fn table(instances: u16) -> Arc<Table> {
    let (stack, cart) = (StackName::new("shop").unwrap(), ServiceName::new("cart").unwrap());
    let port = |target, name: Option<&str>| ServicePort {
        target,
        name: name.map(str::to_owned),
        transport: Transport::Tcp,
        protocol: Protocol::Auto,
    };
    let names = ServiceNames {
        vip: [10, 77, 0, 2].into(),
        ports: vec![port(8080, Some("http")), port(9000, None)],
        aliases: ["basket".to_owned()].into(),
        instances: (0..instances)
            .map(|n| InstanceAddress {
                id: InstanceId::numbered(&stack, &cart, u64::from(n)),
                address: ([10, 78, n.to_be_bytes()[0], n.to_be_bytes()[1]], 8080).into(),
                ready: true,
            })
            .collect(),
    };
    let services = BTreeMap::from([(cart, names)]);
    Arc::new(Table { generation: Generation(3), stacks: [(stack, services)].into() })
}

/// A running server; stopped when dropped.
struct Running {
    address: SocketAddr,
    table: watch::Sender<Arc<Table>>,
    _stop: oneshot::Sender<()>,
}

async fn start(instances: u16, upstream: Vec<SocketAddr>) -> Running {
    let server = DnsServer::bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = server.address();
    let (table, receiver) = watch::channel(table(instances));
    let (stop, stopped) = oneshot::channel::<()>();
    tokio::spawn(server.serve(receiver, upstream, async move {
        let _ = stopped.await;
    }));
    Running { address, table, _stop: stop }
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::query();
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

async fn ask(server: SocketAddr, bytes: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(bytes, server).await.unwrap();
    let mut buffer = vec![0; 65_535];
    let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..received.expect("an answer").unwrap()]).unwrap()
}

async fn ask_by_stream(server: SocketAddr, query: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let bytes = query.to_vec().unwrap();
    stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
    stream.write_all(&bytes).await.unwrap();
    let length = stream.read_u16().await.unwrap();
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

/// A port that is free for both; one that is free for UDP may be somebody's for TCP.
async fn same_port() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for UDP and TCP");
}

/// An upstream resolver that knows one answer for everything, in the way `spoil` leaves it.
async fn upstream(spoil: impl Fn(&mut Message) + Send + 'static) -> (SocketAddr, Arc<AtomicUsize>) {
    let (udp, tcp) = same_port().await;
    let address = udp.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let answer = |bytes: &[u8], last: u8| {
        let mut message = Message::from_vec(bytes).unwrap().into_response();
        let name = message.queries[0].name.clone();
        let data = RData::A(A::new(192, 0, 2, last));
        message.add_answer(Record::from_rdata(name, 60, data));
        message
    };
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, client)) = udp.recv_from(&mut buffer).await {
            count.fetch_add(1, Ordering::Relaxed);
            let mut message = answer(&buffer[..length], 1);
            spoil(&mut message);
            udp.send_to(&message.to_vec().unwrap(), client).await.unwrap();
            udp.send_to(&answer(&buffer[..length], 2).to_vec().unwrap(), client).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
            stream.read_exact(&mut bytes).await.unwrap();
            let bytes = answer(&bytes, 3).to_vec().unwrap();
            stream.write_u16(u16::try_from(bytes.len()).unwrap()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    (address, asked)
}

fn first(message: &Message) -> String {
    message.answers.first().expect("an answer").data.to_string()
}

#[tokio::test]
async fn answers_over_both_carriers_and_follows_the_table() {
    let server = start(300, Vec::new()).await;
    let name = "tasks.cart.shop.keel.internal.";
    let short = ask(server.address, &query(name, RecordType::A).to_vec().unwrap()).await;
    assert!(short.metadata.truncation);
    let full = ask_by_stream(server.address, &query(name, RecordType::A)).await;
    assert_eq!(full.answers.len(), 300);

    server.table.send_replace(table(2));
    let started = Instant::now();
    while ask_by_stream(server.address, &query(name, RecordType::A)).await.answers.len() != 2 {
        assert!(started.elapsed() < DEADLINE, "the new table was not taken up");
    }
    let Running { address, table, _stop } = server;
    drop(table);
    let answer = ask(address, &query(name, RecordType::A).to_vec().unwrap()).await;
    assert_eq!(answer.answers.len(), 2, "the last table stays in force");
}

#[tokio::test]
async fn garbage_does_not_stop_it() {
    let server = start(1, Vec::new()).await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for length in [0, 1, 11, 12, 40, 512, 5000] {
        socket.send_to(&vec![0x0c; length], server.address).await.unwrap();
    }
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[0xff; 64]).await.unwrap();
    // Closed at once, orderly or with a reset because of what was left unread.
    assert!(stream.read(&mut [0; 16]).await.map_or(true, |length| length == 0));
    let question = query("cart.shop.keel.internal.", RecordType::A).to_vec().unwrap();
    assert_eq!(first(&ask(server.address, &question).await), "10.77.0.2");
}

#[tokio::test]
async fn foreign_names_go_upstream() {
    let (resolver, _) = upstream(|_| {}).await;
    let server = start(1, vec![resolver]).await;
    let question = query("Example.org.", RecordType::A);
    let answer = ask(server.address, &question.to_vec().unwrap()).await;
    assert_eq!(first(&answer), "192.0.2.1");
    assert_eq!(answer.metadata.id, question.metadata.id);
    assert!(answer.queries[0].name.eq_case(&question.queries[0].name));
    assert_eq!(first(&ask_by_stream(server.address, &question).await), "192.0.2.3");
}

#[tokio::test]
async fn a_forged_answer_is_not_passed_on() {
    for spoil in [
        (|m| m.metadata.id = m.metadata.id.wrapping_add(1)) as fn(&mut Message),
        |m| m.queries[0].name = Name::from_ascii("other.example.").unwrap(),
        |m| m.metadata.message_type = MessageType::Query,
    ] {
        let (resolver, _) = upstream(spoil).await;
        let server = start(1, vec![resolver]).await;
        let question = query("example.org.", RecordType::A).to_vec().unwrap();
        // The second answer, the right one, gets through.
        assert_eq!(first(&ask(server.address, &question).await), "192.0.2.2");
    }
}

#[tokio::test]
async fn a_dead_resolver_is_passed_over_and_then_left_alone() {
    // Bound but never answering.
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (resolver, asked) = upstream(|_| {}).await;
    let server = start(1, vec![silent.local_addr().unwrap(), resolver]).await;
    let question = query("example.org.", RecordType::A).to_vec().unwrap();
    for _ in 0..5 {
        assert_eq!(first(&ask(server.address, &question).await), "192.0.2.1");
    }
    assert_eq!(asked.load(Ordering::Relaxed), 5);
    let mut buffer = [0; 512];
    assert!(silent.try_recv(&mut buffer).is_ok());
    assert!(silent.try_recv(&mut buffer).is_err(), "the dead one was asked again");
}

#[tokio::test]
async fn without_resolvers_foreign_names_are_refused_and_dead_ones_fail() {
    let server = start(1, Vec::new()).await;
    let question = query("example.org.", RecordType::A);
    let answer = ask(server.address, &question.to_vec().unwrap()).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
    let closed = {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let server = start(1, vec![closed]).await;
    let answer = ask(server.address, &question.to_vec().unwrap()).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let server = start(1, Vec::new()).await;
    let error = DnsServer::bind(server.address).await.unwrap_err().to_string();
    assert!(error.contains(&server.address.to_string()) && error.contains("hint:"), "{error}");
}

/// Runs dig; none (and a word why) where it is not installed.
async fn dig(server: SocketAddr, arguments: &[&str]) -> Option<String> {
    let port = server.port().to_string();
    let mut command = Command::new("dig");
    command.args(["@127.0.0.1", "-p", &port, "+tries=1", "+time=5"]).args(arguments);
    match tokio::task::spawn_blocking(move || command.output()).await.unwrap() {
        Ok(output) => Some(String::from_utf8(output.stdout).unwrap()),
        Err(_) => {
            eprintln!("skipped: dig is not installed (package bind9-dnsutils)");
            None
        }
    }
}

#[tokio::test]
async fn dig_understands_the_answers() {
    let server = start(300, Vec::new()).await;
    let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
    let Some(text) = dig(server.address, &["+short", "cart.shop.keel.internal"]).await else {
        return;
    };
    assert_eq!(lines(text), ["10.77.0.2"]);
    let short = async |arguments: &[&str]| {
        let all = [&["+short"], arguments].concat();
        lines(dig(server.address, &all).await.unwrap())
    };
    assert_eq!(short(&["basket.shop.keel.internal"]).await, ["10.77.0.2"]);
    let http = short(&["_http._tcp.cart.shop.keel.internal", "SRV"]).await;
    assert_eq!(http, ["0 0 8080 cart.shop.keel.internal."]);
    assert_eq!(short(&["cart.shop.keel.internal", "SRV"]).await.len(), 2);
    assert_eq!(short(&["-x", "10.77.0.2"]).await, ["cart.shop.keel.internal."]);
    assert_eq!(short(&["shop-cart-7.cart.shop.keel.internal"]).await, ["10.78.0.7"]);
    // dig falls back to TCP by itself when the answer is cut.
    assert_eq!(short(&["tasks.cart.shop.keel.internal"]).await.len(), 300);
    let whole = async |arguments: &[&str]| dig(server.address, arguments).await.unwrap();
    let absent = whole(&["nothing.shop.keel.internal"]).await;
    assert!(absent.contains("status: NXDOMAIN") && absent.contains("SOA"), "{absent}");
    let empty = whole(&["cart.shop.keel.internal", "AAAA"]).await;
    assert!(empty.contains("status: NOERROR") && empty.contains("ANSWER: 0"), "{empty}");
    assert!(empty.contains("AUTHORITY: 1") && !empty.contains("WARNING"), "{empty}");
    let refused = whole(&["example.org"]).await;
    assert!(refused.contains("status: REFUSED"), "{refused}");
    let small = whole(&["+noedns", "+ignore", "tasks.cart.shop.keel.internal"]).await;
    assert!(small.contains("flags: qr aa tc rd ra"), "{small}");
}
