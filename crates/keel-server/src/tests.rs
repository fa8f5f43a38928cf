//! The loops together, on a runtime in memory: what a user asks for becomes true, and stays true over restarts.

mod adopt;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use keel_model::{
    Entrypoint, Filters, Generation, Goal, NodeName, Protocol, Route, RouteKind, Rule, Service,
    ServiceName, ServicePort, Stack, StackName, StackRecord, Timestamp, TlsVersion, Transport,
};
use keel_runtime::{FakeRuntime, Runtime, Script};
use keel_store::{RedbStore, Store, Version};
use serde_json::json;
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::agent::{Context, Preparations};
use crate::api::types::{
    ApplyRequest, DownRequest, RollbackRequest, ScaleRequest, ServicesRequest, StackView,
};
use crate::board::Board;
use crate::changes::{Changes, Operation};
use crate::controller::Controller;
use crate::events::EventLog;
use crate::network::Network;
use crate::traffic::ProxyState;
use crate::views::Viewer;
use crate::world::{StackState, Stored, WorldReader};

/// Nothing here takes longer.
const DEADLINE: Duration = Duration::from_secs(20);

struct Server {
    store: Arc<dyn Store>,
    runtime: FakeRuntime,
    changes: Changes,
    viewer: Viewer,
    proxy: watch::Sender<ProxyState>,
    _tasks: JoinSet<()>,
}

impl Server {
    async fn start(store: Arc<dyn Store>, runtime: FakeRuntime) -> Self {
        let (network, _) = Network::open(Some("127.98.0.0/16"), &*store).await.unwrap();
        let network = Arc::new(network);
        let node = NodeName::new("here").unwrap();
        let worlds = Arc::new(WorldReader::new(store.clone()).await.unwrap());
        let board = Arc::new(Board::load(&*store).await.unwrap());
        let events = Arc::new(EventLog::load(&*store).await.unwrap());
        let shared: Arc<dyn Runtime> = Arc::new(runtime.clone());
        let agent = Arc::new(Context {
            node: node.clone(),
            runtime: shared.clone(),
            board: board.clone(),
            events: events.clone(),
            worlds: worlds.clone(),
            store: store.clone(),
            network: network.clone(),
            preparations: Preparations::default(),
        });
        agent.adopt().await.unwrap();
        let (sender, proxy) = watch::channel(ProxyState::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(board.clone().persist(store.clone()));
        tasks.spawn(agent.run());
        tasks.spawn(all_drained(worlds.clone(), board.clone()));
        let controller = Controller {
            node: node.clone(),
            store: store.clone(),
            worlds: worlds.clone(),
            board: board.clone(),
            events: events.clone(),
            runtime: shared,
        };
        tasks.spawn(controller.run());
        let changes = Changes {
            node: node.clone(),
            store: store.clone(),
            worlds: worlds.clone(),
            events,
            network: network.clone(),
            proxy: proxy.clone(),
            images: keel_container::images::Images::new(keel_container::Engine::default()),
            runtime: Arc::new(runtime.clone()),
            turn: Mutex::new(()),
        };
        let viewer = Viewer { node, worlds, board, network, proxy };
        Self { store, runtime, changes, viewer, proxy: sender, _tasks: tasks }
    }

    async fn new() -> Self {
        Self::start(Arc::new(RedbStore::in_memory().unwrap()), FakeRuntime::new()).await
    }

    /// Kills this server and starts another one on the same store and runtime.
    async fn replace(self) -> Self {
        let (store, runtime) = (self.store.clone(), self.runtime.clone());
        drop(self);
        Self::start(store, runtime).await
    }

    async fn apply(&self, stack: Stack) -> u64 {
        let request = ApplyRequest {
            stack,
            services: None,
            remove_orphans: true,
            force_recreate: false,
            change: "up".to_owned(),
        };
        self.changes.apply(request).await.unwrap().generation.0
    }

    async fn until(&self, what: &str, condition: impl Fn(&StackView) -> bool) -> StackView {
        let mut changes = self.viewer.subscribe();
        let wait = async {
            loop {
                if let Ok(view) = self.viewer.stack(&name())
                    && condition(&view)
                {
                    return view;
                }
                changes.changed().await;
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(view) => view,
            Err(_) => panic!("{what} did not happen: {:#?}", self.viewer.stack(&name())),
        }
    }

    async fn settled(&self) -> StackView {
        self.until("settling", |view| view.converged).await
    }
}

/// Stands in for the proxy: whatever drains has nothing in flight.
async fn all_drained(worlds: Arc<WorldReader>, board: Arc<Board>) {
    let mut changes = worlds.subscribe();
    loop {
        let world = changes.borrow_and_update().clone();
        let drained = world
            .stacks
            .values()
            .flat_map(|stack| stack.assignments.values())
            .filter(|stored| stored.value.goal == Goal::Drain)
            .map(|stored| stored.value.id.clone())
            .collect();
        board.set_drained(drained);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn name() -> StackName {
    StackName::new("shop").unwrap()
}

fn service(name: &str) -> ServiceName {
    ServiceName::new(name).unwrap()
}

/// A route of requests that satisfy `rule`.
pub(crate) fn plain_route(name: &str, rule: Rule, entrypoint: &str) -> Route {
    Route {
        name: name.to_owned(),
        entrypoints: vec![entrypoint.to_owned()],
        rule,
        priority: None,
        kind: RouteKind::Http,
        port: None,
        split: Vec::new(),
        tls: None,
        filters: Filters::default(),
        timeout: None,
    }
}

/// An entrypoint at an address.
pub(crate) fn plain_entrypoint(bind: &str, tls: bool) -> Entrypoint {
    Entrypoint {
        bind: bind.parse().unwrap(),
        tls,
        redirect_to: None,
        accept_proxy_from: Vec::new(),
        client_auth: None,
        min_tls: TlsVersion::V1_2,
    }
}

/// The port 80 of a service.
pub(crate) fn port_80(protocol: Protocol) -> ServicePort {
    ServicePort { target: 80, name: None, transport: Transport::Tcp, protocol }
}

/// A stack as it is stored.
pub(crate) fn plain_record(stack: Stack) -> StackRecord {
    StackRecord {
        generation: Generation(1),
        applied: Generation(1),
        stack,
        intents: BTreeMap::new(),
        removing: false,
        remove_volumes: false,
        changed_at: Timestamp(0),
        change: String::new(),
    }
}

/// A stack of services without volumes.
pub(crate) fn plain_stack(
    name: &str,
    services: BTreeMap<ServiceName, Service>,
    entrypoints: BTreeMap<String, Entrypoint>,
) -> Stack {
    let name = StackName::new(name).unwrap();
    let volumes = BTreeMap::new();
    Stack {
        name,
        directory: "/".into(),
        services,
        volumes,
        networks: BTreeMap::new(),
        entrypoints,
        acme: None,
    }
}

/// A stack that is stored and nothing else.
pub(crate) fn stored_stack(record: StackRecord) -> StackState {
    let stored = Stored { version: Version::default(), value: Arc::new(record) };
    StackState { record: Some(stored), ..StackState::default() }
}

/// A service with nothing but a command.
pub(crate) fn blank_service() -> Service {
    let mut stack = stack(&[("a", 1)], "1");
    stack.services.remove("a").unwrap()
}

/// A stack of services with so many instances each and this version in their environment.
pub fn stack(services: &[(&str, u32)], version: &str) -> Stack {
    let services: BTreeMap<&str, serde_json::Value> = services
        .iter()
        .map(|(name, replicas)| {
            let definition = json!({
                "spec": {
                    "runtime": "process", "image": null, "command": ["true"],
                    "environment": {"VERSION": version}, "working_dir": null, "user": null,
                    "mounts": [], "files": [],
                    "limits": {"cpu_milli": null, "cpu_shares": null, "cpuset": null, "memory": null,
                        "memory_swap": null, "pids": null, "oom_score_adj": null},
                    "health": null, "network": "shared", "init": false,
                    "pre_start": [], "post_start": [], "pre_stop": [],
                    "logs": {"keep": true, "max_size": 1000, "max_files": 1}, "ports": []
                },
                "scale": {"replicated": replicas},
                "ports": [], "publish": [], "aliases": [], "depends_on": {},
                "restart": {"condition": "on_failure", "max_attempts": null, "delay": null,
                    "backoff_initial": 50, "backoff_max": 200, "reset_after": 1000},
                "rollout": {"parallelism": 1, "delay": 0, "order": null, "failure_action": "rollback",
                    "monitor": 50, "max_failure_ppm": 0, "min_healthy_time": 50,
                    "progress_deadline": 10000, "drain_timeout": 1000},
                "rollback": null,
                "stop": {"signal": 15, "grace": 500},
                "readiness": {"probe": "none", "port": null, "interval": 1000, "timeout": 1000,
                    "successes": 1, "failures": 1, "startup_timeout": 10000}
            });
            (*name, definition)
        })
        .collect();
    serde_json::from_value(json!({
        "name": "shop", "directory": "/", "services": services, "volumes": {}
    }))
    .unwrap()
}

fn ready(view: &StackView, name: &str) -> u32 {
    view.services.get(name).map_or(0, |service| service.ready)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_applied_runs_and_is_removed_again() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 2), ("web", 1)], "1")).await;
    let view = server.settled().await;
    assert_eq!((ready(&view, "cart"), ready(&view, "web")), (2, 1));
    assert!(!view.failed);

    server.apply(stack(&[("cart", 2)], "1")).await;
    let view = server.settled().await;
    assert!(!view.services.contains_key("web"), "an orphan goes");

    server.changes.down(&name(), &DownRequest::default()).await.unwrap();
    let mut changes = server.viewer.subscribe();
    let gone = async {
        while server.viewer.stack(&name()).is_ok() {
            changes.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, gone).await.expect("the stack goes");
    assert!(server.runtime.list().await.unwrap().is_empty(), "nothing is left running");
    let left = server.store.list(crate::keys::STACKS).await.unwrap().entries;
    assert!(left.is_empty(), "nothing is left stored: {left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_again_changes_nothing() {
    let server = Server::new().await;
    let first = server.apply(stack(&[("cart", 1)], "1")).await;
    server.settled().await;
    assert_eq!(server.apply(stack(&[("cart", 1)], "1")).await, first);
    assert_eq!(server.runtime.starts().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_instance_is_started_again() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 2)], "1")).await;
    let view = server.settled().await;
    let victim = view.services["cart"].instances[0].id.clone();
    assert!(server.runtime.end(&victim, None, Some(9), false));
    server
        .until("a second attempt", |view| {
            view.services["cart"].instances.iter().any(|i| i.attempts == 2 && i.ready)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_server_finds_everything_and_restarts_nothing() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 3)], "1")).await;
    let before = server.settled().await;
    // The statuses are saved behind the scenes; what is not saved yet is found in the runtime.
    let server = server.replace().await;
    let after = server.settled().await;
    let ids = |view: &StackView| {
        view.services["cart"].instances.iter().map(|i| i.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&before), ids(&after));
    assert_eq!(server.runtime.starts().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_ended_unseen_is_started_again() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let view = server.settled().await;
    let id = view.services["cart"].instances[0].id.clone();
    let (store, runtime) = (server.store.clone(), server.runtime.clone());
    drop(server);
    assert!(runtime.end(&id, Some(1), None, false));
    let server = Server::start(store, runtime).await;
    server.until("a second attempt", |v| v.services["cart"].instances[0].attempts == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scale_stop_start_and_restart() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    server.settled().await;
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("cart"), 4)]) };
    server.changes.scale(&name(), &wanted).await.unwrap();
    server.until("four", |view| view.converged && ready(view, "cart") == 4).await;

    let all = ServicesRequest::default();
    server.changes.operate(&name(), Operation::Stop, &all).await.unwrap();
    let view = server.until("a stop", |v| v.converged && v.services["cart"].running == 0).await;
    assert_eq!(view.services["cart"].instances.len(), 4, "stopped instances stay visible");

    server.changes.operate(&name(), Operation::Start, &all).await.unwrap();
    let view = server.until("a start", |v| v.converged && ready(v, "cart") == 4).await;
    let before: Vec<_> = view.services["cart"].instances.iter().map(|i| i.id.clone()).collect();
    let starts = server.runtime.starts().len();

    server.changes.operate(&name(), Operation::Restart, &all).await.unwrap();
    server
        .until("a restart of all", |v| v.converged && server.runtime.starts().len() >= starts + 4)
        .await;
    assert!(!before.is_empty());
}

/// A view that looks at the proxy twice waits for a writer that waits for the view's first look.
#[tokio::test(flavor = "multi_thread")]
async fn a_view_waits_for_nobody_while_the_proxy_has_much_to_say() {
    const VIEWS: usize = 2000;
    let server = Server::new().await;
    server.apply(stack(&[("cart", 2), ("shop", 2)], "1")).await;
    server.settled().await;
    let (proxy, done) = (server.proxy.clone(), Arc::new(std::sync::atomic::AtomicBool::new(false)));
    let is_done = done.clone();
    let talks = std::thread::spawn(move || {
        while !is_done.load(std::sync::atomic::Ordering::SeqCst) {
            proxy.send_modify(|state| state.acknowledged.0 += 1);
        }
    });
    let viewer = server.viewer.clone();
    let views = tokio::task::spawn_blocking(move || {
        (0..VIEWS).for_each(|_| drop(viewer.stack(&name()).unwrap()));
    });
    tokio::time::timeout(Duration::from_secs(60), views).await.expect("views end").unwrap();
    done.store(true, std::sync::atomic::Ordering::SeqCst);
    talks.join().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn two_containers_can_not_have_one_port_of_the_host() {
    let server = Server::new().await;
    let mut stack = stack(&[("cart", 1)], "1");
    let spec = &mut stack.services.get_mut("cart").unwrap().spec;
    spec.runtime = keel_model::RuntimeKind::Container;
    spec.ports = vec![80];
    spec.container = Some(Box::new(keel_model::ContainerSpec {
        image_id: Some("sha256:1".into()),
        network: keel_model::ContainerNetwork::Host,
        ..keel_model::ContainerSpec::default()
    }));
    server.apply(stack).await;
    server.settled().await;
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("cart"), 2)]) };
    let refusal = server.changes.scale(&name(), &wanted).await.unwrap_err();
    assert!(refusal.to_string().contains("each would have port 80 of the host"), "{refusal}");
}

/// The server died after the runtime had started it, and before its status was stored.
#[tokio::test(flavor = "multi_thread")]
async fn one_whose_start_was_not_noted_is_ready_all_the_same() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let view = server.settled().await;
    let id = view.services["cart"].instances[0].id.clone();
    let (store, runtime) = (server.store.clone(), server.runtime.clone());
    drop(server);
    let forget = keel_store::Transaction::new().delete(crate::keys::status(&id));
    assert_ne!(store.commit(forget).await.unwrap(), keel_store::Outcome::Conflict);
    let starts = runtime.starts();
    let server = Server::start(store, runtime).await;
    server.until("one", |view| ready(view, "cart") == 1).await;
    assert_eq!(server.runtime.starts(), starts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revision_that_fails_is_rolled_back() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 2)], "1")).await;
    let good = server.settled().await.services["cart"].revision.clone();
    let script = Script { exit_after: Some((Duration::from_millis(10), 3)), ..Script::default() };
    server.runtime.script(&service("cart"), script);
    server.apply(stack(&[("cart", 2)], "2")).await;
    server.until("a verdict", |view| view.failed).await;
    server.runtime.script(&service("cart"), Script::default());
    let view = server.until("the end", |v| v.converged && ready(v, "cart") == 2).await;
    let revisions: Vec<_> =
        view.services["cart"].instances.iter().filter(|i| i.ready).map(|i| &i.revision).collect();
    assert!(revisions.iter().all(|revision| **revision == good), "{revisions:?}");

    // Scaling is no wish to see it fail again; saying `up` once more is one to try again.
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("cart"), 3)]) };
    server.changes.scale(&name(), &wanted).await.unwrap();
    let view = server.until("three", |v| v.converged && ready(v, "cart") == 3).await;
    assert_eq!(view.services["cart"].state, "rolled back");
    server.apply(stack(&[("cart", 3)], "2")).await;
    let view = server.until("the new one", |v| v.converged && !v.failed).await;
    let wanted = view.services["cart"].instances.iter().filter(|i| i.goal == Goal::Run);
    assert!(wanted.into_iter().all(|i| i.revision != good));
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_returns_to_the_definition_before() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let first = server.settled().await.services["cart"].revision.clone();
    server.apply(stack(&[("cart", 1)], "2")).await;
    let view = server.settled().await;
    assert_ne!(view.services["cart"].revision, first);
    server.changes.rollback(&name(), &RollbackRequest::default()).await.unwrap();
    let view = server.until("the old one", |v| v.converged && ready(v, "cart") == 1).await;
    assert_eq!(view.services["cart"].revision, first);
    let history = server.viewer.history(&name()).unwrap();
    assert_eq!(history.len(), 3);
    assert!(history[0].current && history[0].change.starts_with("rollback to 1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_does_not_return_to_what_failed_before_the_last_release() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let good = server.settled().await.services["cart"].revision.clone();
    let script = Script { exit_after: Some((Duration::from_millis(10), 3)), ..Script::default() };
    server.runtime.script(&service("cart"), script);
    for failing in ["2", "3"] {
        server.apply(stack(&[("cart", 1)], failing)).await;
        server.until("a verdict", |view| view.failed).await;
        server.until("the way back", |v| v.converged && ready(v, "cart") == 1).await;
    }
    server.runtime.script(&service("cart"), Script::default());
    server.apply(stack(&[("cart", 1)], "4")).await;
    server.until("the new one", |v| v.converged && !v.failed).await;
    let marked = || -> Vec<bool> {
        let history = server.viewer.history(&name()).unwrap();
        history.iter().map(|entry| entry.change.contains("(failed: cart)")).collect()
    };
    assert_eq!(marked(), [false, true, true, false]);
    server.changes.rollback(&name(), &RollbackRequest::default()).await.unwrap();
    let view = server.until("the first", |v| v.converged && !v.failed).await;
    assert_eq!(view.services["cart"].revision, good);
    // What failed once and runs now has not failed.
    server.apply(stack(&[("cart", 1)], "2")).await;
    server.until("what failed", |v| v.converged && !v.failed).await;
    assert_eq!(marked(), [false, false, false, true, false, false]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_and_the_steps_before_it_wait_for_an_engine_that_is_away() {
    let server = Server::new().await;
    server.runtime.away(true);
    let mut wanted = stack(&[("db", 1), ("web", 1)], "1");
    let step =
        json!({"command": ["migrate"], "environment": {}, "working_dir": null, "user": null});
    let step: keel_model::Hook = serde_json::from_value(step).unwrap();
    wanted.services.get_mut("web").unwrap().spec.pre_start.push(step);
    server.apply(wanted).await;
    let waits = |view: &StackView, name: &str| {
        let mut all = view.services.get(name).into_iter().flat_map(|it| &it.instances);
        all.any(|it| it.status.as_ref().is_some_and(|status| status.message.contains("away")))
    };
    server.until("both to wait", |view| waits(view, "db") && waits(view, "web")).await;
    server.runtime.away(false);
    let view = server.settled().await;
    assert!(!view.failed);
    assert_eq!(server.runtime.commands().len(), 1);
    let first = server.runtime.starts().into_iter().all(|(_, attempt)| attempt == 1);
    assert!(first, "nobody has failed: {:?}", server.runtime.starts());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_gone_gets_no_requests_before_it_is_known_how_that_came() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    server.settled().await;
    let id = server.runtime.starts()[0].0.clone();
    server.runtime.vanish(&id, true);
    server.until("nobody to be ready", |view| ready(view, "cart") == 0).await;
    // Somebody has started it again, and it is asked anew.
    server.runtime.vanish(&id, false);
    server.until("it to be ready", |view| ready(view, "cart") == 1).await;
    assert_eq!(server.runtime.starts().len(), 1);
    server.runtime.vanish(&id, true);
    server.until("nobody to be ready", |view| ready(view, "cart") == 0).await;
    assert!(server.runtime.end(&id, Some(1), None, false));
    server.until("the next attempt", |view| ready(view, "cart") == 1).await;
    assert_eq!(server.runtime.starts().len(), 2);
}

/// A stack whose service has a volume.
fn with_volume(stack_name: &str, volume: &str) -> Stack {
    let mut wanted = stack(&[("db", 1)], "1");
    wanted.name = StackName::new(stack_name).unwrap();
    let mount = json!({"source": {"volume": {"name": volume, "subpath": null}}, "target": "/data", "read_only": false});
    let mount = serde_json::from_value(mount).unwrap();
    wanted.services.get_mut("db").unwrap().spec.mounts.push(mount);
    let volume = json!({"name": volume, "external": false});
    wanted.volumes.insert("data".into(), serde_json::from_value(volume).unwrap());
    wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_go_when_that_is_asked_for_with_their_stack_or_later() {
    let server = Server::new().await;
    let down = async |volumes| server.changes.down(&name(), &DownRequest { volumes }).await;
    let volumes = async || {
        let all = server.runtime.volumes().await.unwrap();
        all.into_iter().map(|volume| volume.name).collect::<Vec<_>>()
    };
    let gone = async || {
        let mut changes = server.viewer.subscribe();
        while server.viewer.stack(&name()).is_ok() {
            changes.changed().await;
        }
    };
    server.apply(with_volume("shop", "shop_data")).await;
    server.settled().await;
    down(false).await.unwrap();
    gone().await;
    assert_eq!(volumes().await, ["shop_data"]);
    assert_eq!(down(false).await.unwrap_err().code, "no_such_stack");
    // Somebody uses it.
    server.runtime.hold("shop_data", true);
    let refusal = down(true).await.unwrap_err();
    assert_eq!(refusal.code, "volume_in_use");
    assert!(refusal.message.contains("volume shop_data can't be deleted"), "{}", refusal.message);
    server.runtime.hold("shop_data", false);
    // Another stack does.
    server.apply(with_volume("other", "shop_data")).await;
    let refusal = down(true).await.unwrap_err();
    assert!(refusal.message.contains("stack other uses it too"), "{}", refusal.message);
    server.apply(with_volume("other", "other_data")).await;
    down(true).await.unwrap();
    assert!(!volumes().await.contains(&"shop_data".to_owned()));
    assert_eq!(down(true).await.unwrap_err().code, "no_such_stack");
    // With the stack; and what was in use then goes later.
    server.apply(with_volume("shop", "shop_data")).await;
    server.settled().await;
    server.runtime.hold("shop_data", true);
    down(true).await.unwrap();
    gone().await;
    assert!(volumes().await.contains(&"shop_data".to_owned()));
    server.runtime.hold("shop_data", false);
    down(true).await.unwrap();
    assert!(!volumes().await.contains(&"shop_data".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_make_no_sense_change_nothing() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let generation = server.settled().await.generation;
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("crat"), 4)]) };
    let refusal = server.changes.scale(&name(), &wanted).await.unwrap_err();
    assert_eq!(refusal.code, "no_such_service");
    assert_eq!(refusal.hint.as_deref(), Some("did you mean `cart`?"));
    let missing = StackName::new("none").unwrap();
    let refusal = server.changes.scale(&missing, &wanted).await.unwrap_err();
    assert_eq!(refusal.code, "no_such_stack");
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("cart"), 4_000_000)]) };
    assert_eq!(server.changes.scale(&name(), &wanted).await.unwrap_err().code, "invalid");
    assert_eq!(server.viewer.stack(&name()).unwrap().generation, generation);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_port_that_is_taken_is_refused_with_its_holder() {
    let server = Server::new().await;
    let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let mut wanted = stack(&[("web", 1)], "1");
    let definition = wanted.services.get_mut("web").unwrap();
    definition.publish.push(
        serde_json::from_value(json!({
            "ip": null, "published": port, "target": 80, "transport": "tcp", "protocol": "auto"
        }))
        .unwrap(),
    );
    let request = ApplyRequest {
        stack: wanted,
        services: None,
        remove_orphans: true,
        force_recreate: false,
        change: "up".to_owned(),
    };
    let refusal = server.changes.apply(request).await.unwrap_err();
    assert_eq!(refusal.code, "port_in_use");
    assert!(refusal.message.contains(&std::process::id().to_string()), "{}", refusal.message);
    assert!(server.viewer.stack(&name()).is_err(), "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn rollback_does_not_return_to_what_failed() {
    let server = Server::new().await;
    server.apply(stack(&[("cart", 1)], "1")).await;
    let good = server.settled().await.services["cart"].revision.clone();
    let script = Script { exit_after: Some((Duration::from_millis(10), 3)), ..Script::default() };
    server.runtime.script(&service("cart"), script);
    server.apply(stack(&[("cart", 1)], "2")).await;
    server.until("a verdict", |view| view.failed).await;
    server.runtime.script(&service("cart"), Script::default());
    server.until("the end", |v| v.converged && ready(v, "cart") == 1).await;
    let wanted = ScaleRequest { replicas: BTreeMap::from([(service("cart"), 2)]) };
    server.changes.scale(&name(), &wanted).await.unwrap();
    let history = server.viewer.history(&name()).unwrap();
    assert!(history[0].change.contains("(failed: cart)"), "{history:?}");
    server.changes.rollback(&name(), &RollbackRequest::default()).await.unwrap();
    let view = server.until("the good one", |v| v.converged && !v.failed).await;
    assert_eq!(view.services["cart"].revision, good);
}
