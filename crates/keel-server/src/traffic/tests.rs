//! From stacks to what the proxy is told.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{
    Assignment, Balance, Generation, Goal, Health, InstanceId, InstanceStatus, NodeName, Phase,
    PortBinding, Protocol, Route, RouteKind, RouteTls, Rule, ServiceName, Split, Stack, StackName,
    Timestamp, ZoneName,
};
use keel_route::snapshot::{Certificate, Challenges, Snapshot};
use keel_store::{RedbStore, Version};

use super::snapshot::{Sources, snapshot};
use super::{Credentials, ProxyState};
use crate::board::BoardView;
use crate::network::Network;
use crate::tests::{
    blank_service, plain_entrypoint, plain_record, plain_route, plain_stack, port_80, stored_stack,
};
use crate::world::{Stored, World};

fn service(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn stored<T>(value: T) -> Stored<T> {
    Stored { version: Version::default(), value: Arc::new(value) }
}

fn route(name: &str, host: &str, entrypoint: &str) -> Route {
    plain_route(name, Rule::Host(host.to_owned()), entrypoint)
}

/// A stack with one service for each of these, on port 80.
fn stack(name: &str, services: &[(&str, Vec<Route>)]) -> Stack {
    let definition = |routes: &Vec<Route>| {
        let mut definition = blank_service();
        definition.ports.push(port_80(Protocol::Http2));
        definition.routes.clone_from(routes);
        definition
    };
    let services = services.iter().map(|(name, routes)| (service(name), definition(routes)));
    let mut web = plain_entrypoint("0.0.0.0:80", false);
    web.redirect_to = Some("websecure".to_owned());
    let secure = plain_entrypoint("0.0.0.0:443", true);
    let entrypoints = [("web".to_owned(), web), ("websecure".to_owned(), secure)];
    plain_stack(name, services.collect(), entrypoints.into())
}

fn add(world: &mut World, stack: Stack) {
    world.stacks.insert(stack.name.clone(), stored_stack(plain_record(stack)));
}

async fn told(world: &World, board: &BoardView, credentials: &Credentials) -> Snapshot {
    let store = RedbStore::in_memory().unwrap();
    let (network, _) = Network::open(Some("127.97.0.0/16"), &store).await.unwrap();
    let node = NodeName::new("here").unwrap();
    let zone = ZoneName::new("east").unwrap();
    let sources = Sources {
        world,
        board,
        node: &node,
        zone: Some(&zone),
        network: &network,
        credentials,
        ipv6: true,
        ways: &crate::detour::Ways::new(),
    };
    snapshot(&sources, Generation(7))
}

#[tokio::test]
async fn stacks_share_the_table_of_an_address() {
    let mut world = World::default();
    let mut secure = route("secure", "b.de", "websecure");
    secure.tls = Some(RouteTls::Any);
    secure.timeout = Some(Duration::from_millis(1500));
    add(&mut world, stack("one", &[("a", vec![route("plain", "a.de", "web")])]));
    let mut second =
        stack("two", &[("a", vec![secure]), ("b", vec![route("other", "c.de", "web")])]);
    second.services.get_mut(&service("a")).unwrap().traffic.balance = Balance::RoundRobin;
    add(&mut world, second);
    let snapshot = told(&world, &BoardView::default(), &Credentials::default()).await;

    let table = &snapshot.tables["0.0.0.0:80"];
    let names: Vec<&str> = table.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["one/plain", "two/other"]);
    assert_eq!(table.redirect_https, Some(443));
    assert_eq!(table.routes[0].clusters, [("one/a:80".to_owned(), 1000)]);
    assert_eq!(table.routes[0].priority, 12, "the length of Host(`a.de`)");
    let secure = &snapshot.tables["0.0.0.0:443"];
    assert_eq!((secure.routes[0].timeout_ms, secure.redirect_https), (Some(1500), None));

    let listeners: Vec<String> = snapshot
        .listeners
        .iter()
        .map(|l| format!("{} {} {}", l.bind, l.table.clone().unwrap_or_default(), l.tls.is_some()))
        .collect();
    assert_eq!(
        listeners,
        [
            "0.0.0.0:80 0.0.0.0:80 false",
            "[::]:80 0.0.0.0:80 false",
            "0.0.0.0:443 0.0.0.0:443 true",
            "[::]:443 0.0.0.0:443 true",
        ]
    );
    assert!(snapshot.listeners.iter().all(|l| l.published && l.cluster.is_empty()));
    assert_eq!(snapshot.clusters["one/a:80"].protocol, Protocol::Http2);
    assert_eq!(snapshot.clusters["one/a:80"].policy, None, "the default goes without saying");
    assert_eq!(snapshot.clusters["two/a:80"].policy.as_ref().unwrap().balance, Balance::RoundRobin);
}

#[tokio::test]
async fn shares_become_weights() {
    let mut split = route("r", "a.de", "web");
    let part = |name: &str, per_mille| Split { service: service(name), port: None, per_mille };
    split.split = vec![part("b", 100), part("c", 25)];
    let mut all = route("all", "b.de", "web");
    all.split = vec![part("b", 1000)];
    let mut world = World::default();
    add(&mut world, stack("s", &[("a", vec![split, all]), ("b", vec![]), ("c", vec![])]));
    let snapshot = told(&world, &BoardView::default(), &Credentials::default()).await;
    let routes = &snapshot.tables["0.0.0.0:80"].routes;
    let cluster = |name: &str, weight| (format!("s/{name}:80"), weight);
    assert_eq!(routes[0].clusters, [cluster("a", 875), cluster("b", 100), cluster("c", 25)]);
    assert_eq!(routes[1].clusters, [cluster("b", 1000)]);
}

#[tokio::test]
async fn connections_that_cannot_be_told_apart_are_opaque_from_the_first_byte() {
    let mut tcp = route("db", "x", "db");
    tcp.kind = RouteKind::Tcp;
    tcp.rule = Rule::Sni("*".to_owned());
    let mut with_db = stack("s", &[("a", vec![tcp, route("r", "a.de", "web")])]);
    with_db.entrypoints.insert("db".to_owned(), plain_entrypoint("127.0.0.1:5432", false));
    let mut world = World::default();
    add(&mut world, with_db);
    let snapshot = told(&world, &BoardView::default(), &Credentials::default()).await;
    let protocol = |bind: &str| {
        snapshot.listeners.iter().find(|l| l.bind.to_string() == bind).map(|l| l.protocol)
    };
    assert_eq!(protocol("127.0.0.1:5432"), Some(Protocol::Tcp));
    assert_eq!(protocol("0.0.0.0:80"), Some(Protocol::Auto));
}

/// A world with one service that has two instances: one with an address of its own, and one without.
fn running() -> (World, BoardView) {
    let mut world = World::default();
    add(&mut world, stack("s", &[("a", vec![])]));
    let state = world.stacks.values_mut().next().unwrap();
    let mut board = BoardView::default();
    for (serial, address) in [(1, Some("10.78.0.2")), (2, None)] {
        let name = StackName::new("s").unwrap();
        let id = InstanceId::numbered(&name, &service("a"), serial);
        let status = InstanceStatus {
            id: id.clone(),
            generation: Generation(1),
            attempt: 1,
            phase: Phase::Running,
            pid: None,
            ports: vec![PortBinding { target: 80, address: "127.0.0.1:20000".parse().unwrap() }],
            address: address.map(|address| address.parse().unwrap()),
            ready: true,
            ready_since: None,
            health: Health::None,
            started_at: None,
            exit: None,
            failure: None,
            message: String::new(),
            not_enforced: Vec::new(),
            shares: Vec::new(),
        };
        board.statuses.insert(id.clone(), Arc::new(status));
        let assignment = Assignment {
            id: id.clone(),
            stack: name,
            service: service("a"),
            revision: blank_service().spec.revision(),
            node: NodeName::new("here").unwrap(),
            generation: Generation(1),
            attempt: 1,
            failures: 0,
            restarts: 0,
            goal: Goal::Run,
            reason: String::new(),
            created_at: Timestamp(0),
            goal_since: Timestamp(0),
            after_drain: Goal::Remove,
            adoption: None,
        };
        state.assignments.insert(id, stored(assignment));
    }
    (world, board)
}

#[tokio::test]
async fn endpoints_of_this_machine_are_in_its_zone() {
    let (mut world, board) = running();
    let (other, elsewhere) = {
        let assignments = &world.stacks.values().next().unwrap().assignments;
        let (id, assignment) = assignments.last_key_value().unwrap();
        let node = NodeName::new("there").unwrap();
        (id.clone(), Assignment { node, ..Assignment::clone(&assignment.value) })
    };
    let state = world.stacks.values_mut().next().unwrap();
    state.assignments.insert(other.clone(), stored(elsewhere));
    let snapshot = told(&world, &board, &Credentials::default()).await;
    assert_eq!(snapshot.zone.as_deref(), Some("east"));
    let cluster = &snapshot.clusters["s/a:80"];
    assert_eq!(cluster.endpoints.len(), 2);
    let zones: Vec<_> = cluster.zones.iter().collect();
    assert!(matches!(zones[..], [(id, zone)] if *id != other && zone == "east"), "{zones:?}");
}

#[tokio::test]
async fn callers_are_known_by_their_own_address() {
    let (world, board) = running();
    let snapshot = told(&world, &board, &Credentials::default()).await;
    let callers: Vec<String> =
        snapshot.callers.iter().map(|(address, name)| format!("{address} {name}")).collect();
    assert_eq!(callers, ["10.78.0.2 s/a"]);
}

#[tokio::test]
async fn a_service_is_served_once_the_proxy_has_its_endpoints() {
    let (world, mut board) = running();
    let (name, service) = (StackName::new("s").unwrap(), service("a"));
    let definition =
        world.stacks[&name].record.as_ref().unwrap().value.stack.services[&service].clone();
    let is_served = |proxy: &ProxyState, board: &BoardView| {
        super::is_served(proxy, &name, &world.stacks[&name], board, &service, &definition)
    };
    let snapshot = told(&world, &board, &Credentials::default()).await;
    let mut proxy = ProxyState::default();
    assert!(is_served(&proxy, &board), "without a proxy nobody waits for one");
    proxy.pid = Some(1);
    assert!(!is_served(&proxy, &board), "it was told nothing");
    proxy.acknowledged = snapshot.generation;
    proxy.snapshot = Some(Arc::new(snapshot));
    assert!(is_served(&proxy, &board));
    proxy.acknowledged = Generation(1);
    assert!(!is_served(&proxy, &board), "it has not acknowledged what it was told");
    proxy.acknowledged = Generation(7);
    board.statuses.pop_last();
    assert!(!is_served(&proxy, &board), "it was not told of the last change");
}

#[tokio::test]
async fn credentials_travel_along() {
    let credentials = Credentials::default();
    let certificate = |name: &str| Certificate {
        names: vec![name.to_owned()],
        chain: String::new(),
        key: String::new(),
    };
    credentials.set_files(vec![certificate("file")]);
    let http = BTreeMap::from([("token".to_owned(), "proof".to_owned())]);
    credentials.set_issued(keel_acme::Published {
        revision: 1,
        certificates: vec![certificate("issued")],
        challenges: Challenges { http, tls_alpn: Vec::new() },
    });
    let snapshot = told(&World::default(), &BoardView::default(), &credentials).await;
    let names: Vec<&str> = snapshot.certificates.iter().map(|c| c.names[0].as_str()).collect();
    assert_eq!(names, ["file", "issued"]);
    assert_eq!(snapshot.challenges.http["token"], "proof");
}
