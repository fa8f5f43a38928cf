//! What every runtime must do, as code. An implementation brings a [`Harness`] and calls [`all`].
//!
//! A case fails by panicking with its name before it. Nothing here knows how a runtime works: workloads are described
//! by [`Workload`] and put into the runtime's own terms by the harness.

#![allow(clippy::unwrap_used, reason = "this is test code")]

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use keel_model::{
    Exit, InstanceId, Limits, LogPolicy, NetworkMode, RuntimeKind, ServiceName, Spec, StackName,
    StartFailure,
};
use tokio::sync::mpsc;

use crate::types::{Error, ExecRequest, Launch, LogLine, LogQuery, Runtime};

/// How long anything may take before a case fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What an instance does.
#[derive(Clone, Debug)]
pub enum Workload {
    /// Runs until it gets a signal.
    Run,
    /// Ends at once with this code.
    Exit(i32),
    /// Ends after this many milliseconds with this code.
    ExitAfter(u64, i32),
    /// Writes these lines to standard output, then runs.
    Say(Vec<String>),
    /// Writes the values of these variables, one on a line, then runs.
    SayEnv(Vec<String>),
    /// Writes `ready` and from then on ignores every signal but SIGKILL.
    Stubborn,
    /// A program that does not exist.
    Missing,
    /// A program that may not be executed.
    Forbidden,
}

/// One runtime under test.
pub trait Harness: Send + Sync {
    /// The runtime as it is now.
    fn runtime(&self) -> Arc<dyn Runtime>;
    /// Throws the runtime away and makes a new one on the same state, as a restart of the server does.
    fn reopen(&self);
    /// The command that does what `workload` says.
    fn command(&self, workload: &Workload) -> Vec<String>;
    /// Puts a launch into the runtime's own terms where it needs more than a command.
    fn adapt(&self, _launch: &mut Launch) {}
    /// Whether a restarted instance answers where it did; an engine may give another address to what it starts again.
    fn keeps_addresses(&self) -> bool {
        true
    }
    /// Whether an instance is told its port and the addresses of others in its environment.
    fn tells_addresses(&self) -> bool {
        true
    }
}

/// A spec that runs `command` and changes nothing else.
#[must_use]
pub fn spec(command: Vec<String>) -> Spec {
    Spec {
        runtime: RuntimeKind::Process,
        image: None,
        container: None,
        command,
        environment: BTreeMap::new(),
        working_dir: None,
        user: None,
        groups: Vec::new(),
        mounts: Vec::new(),
        files: Vec::new(),
        limits: Limits::default(),
        health: None,
        network: NetworkMode::Shared,
        hosts: BTreeMap::new(),
        init: false,
        pre_start: Vec::new(),
        post_start: Vec::new(),
        pre_stop: Vec::new(),
        logs: LogPolicy::default(),
        tty: false,
        stdin_open: false,
        labels: BTreeMap::new(),
        ports: vec![80],
    }
}

/// The first attempt of `t-<service>-1` with `spec`.
#[must_use]
pub fn launch(service: &str, spec: Spec) -> Launch {
    let stack = StackName::new("t").unwrap();
    let service = ServiceName::new(service).unwrap();
    Launch {
        id: InstanceId::numbered(&stack, &service, 1),
        stack,
        service,
        revision: spec.revision(),
        attempt: 1,
        spec,
        environment: BTreeMap::new(),
        hosts: Vec::new(),
        nameserver: None,
        networks: Vec::new(),
        volumes: Vec::new(),
        aliases: Vec::new(),
    }
}

/// Waits until `id` has ended.
pub async fn ended(runtime: &dyn Runtime, id: &InstanceId) -> Exit {
    let mut changed = runtime.changed();
    let wait = async {
        loop {
            if let Some(exit) = runtime.seen(id).and_then(|seen| seen.exit) {
                return exit;
            }
            changed.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{id} does not end"))
}

/// The next `count` texts of a log.
pub async fn texts(lines: &mut mpsc::Receiver<LogLine>, count: usize) -> Vec<String> {
    let mut all = Vec::new();
    while all.len() < count {
        let line = tokio::time::timeout(PATIENCE, lines.recv()).await;
        match line.unwrap_or_else(|_| panic!("only {} came: … {:?}", all.len(), all.last())) {
            Some(line) => all.push(line.text),
            None => break,
        }
    }
    all
}

/// Waits until the log of `id` holds `count` lines, and returns them.
pub async fn logged(runtime: &dyn Runtime, id: &InstanceId, count: usize) -> Vec<String> {
    let query = LogQuery { follow: true, ..LogQuery::default() };
    texts(&mut runtime.logs(id, query).await.unwrap(), count).await
}

/// Runs every case.
pub async fn all(harness: &dyn Harness) {
    case("a start is seen and stopped", starts_and_stops(harness)).await;
    case("exit codes are recorded", exit_codes(harness)).await;
    case("a stubborn workload is killed after its grace", grace(harness)).await;
    case("starting twice is one start", idempotent(harness)).await;
    case("a restart keeps ports and logs", restart(harness)).await;
    case("programs that can't run are told apart", failures(harness)).await;
    case("the environment has its layers", environment(harness)).await;
    case("logs can be cut and followed", logs(harness)).await;
    case("commands run inside", exec(harness)).await;
    case("a new runtime finds everything again", adoption(harness)).await;
    case("an exit that nobody watched is found", unwatched_exit(harness)).await;
    case("removal forgets", removal(harness)).await;
    case("what is unknown is said", unknown(harness)).await;
}

async fn case(name: &str, run: impl Future<Output = ()>) {
    println!("case: {name}");
    run.await;
}

fn with(harness: &dyn Harness, service: &str, workload: &Workload) -> Launch {
    let mut launch = launch(service, spec(harness.command(workload)));
    harness.adapt(&mut launch);
    launch
}

async fn starts_and_stops(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let launch = with(harness, "starts", &Workload::Run);
    let mut changed = runtime.changed();
    let started = runtime.start(launch.clone()).await.unwrap();
    assert!(changed.has_changed().unwrap(), "a start is a change");
    changed.mark_unchanged();
    let seen = runtime.seen(&launch.id).unwrap();
    assert_eq!((seen.attempt, seen.pid, &seen.exit), (1, Some(started.pid), &None));
    assert_eq!((&seen.ports, seen.started_at), (&started.ports, started.started_at));
    assert_eq!(started.ports.len(), 1);
    assert_eq!(started.ports[0].target, 80);
    let exit = runtime.stop(&launch.id, 15, PATIENCE).await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.oom), (None, Some(15), false));
    assert!(changed.has_changed().unwrap(), "an end is a change");
    let seen = runtime.seen(&launch.id).unwrap();
    assert_eq!((seen.pid, seen.exit.as_ref()), (None, Some(&exit)));
    assert_eq!(runtime.stop(&launch.id, 15, PATIENCE).await.unwrap(), exit, "once more");
    runtime.remove(&launch.id).await.unwrap();
}

async fn exit_codes(harness: &dyn Harness) {
    let runtime = harness.runtime();
    for code in [0, 3, 255] {
        let launch = with(harness, "codes", &Workload::Exit(code));
        runtime.start(launch.clone()).await.unwrap();
        let exit = ended(&*runtime, &launch.id).await;
        assert_eq!((exit.code, exit.signal), (Some(code), None));
        assert_eq!(exit.success(), code == 0);
        runtime.remove(&launch.id).await.unwrap();
    }
}

async fn grace(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let launch = with(harness, "stubborn", &Workload::Stubborn);
    runtime.start(launch.clone()).await.unwrap();
    assert_eq!(logged(&*runtime, &launch.id, 1).await, ["ready"]);
    runtime.signal(&launch.id, 15).await.unwrap();
    let begin = Instant::now();
    let exit = runtime.stop(&launch.id, 15, Duration::from_millis(200)).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(200), "the grace was not given");
    assert_eq!(exit.signal, Some(9));
    assert!(matches!(runtime.signal(&launch.id, 15).await, Err(Error::NotRunning(_))));
    runtime.remove(&launch.id).await.unwrap();
}

async fn idempotent(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let mut launch = with(harness, "twice", &Workload::Run);
    let first = runtime.start(launch.clone()).await.unwrap();
    assert_eq!(runtime.start(launch.clone()).await.unwrap(), first);
    launch.attempt = 2;
    let error = runtime.start(launch.clone()).await.unwrap_err();
    assert_eq!(error.failure, StartFailure::Environment);
    assert!(error.message.contains(launch.id.as_str()), "{error}");
    runtime.remove(&launch.id).await.unwrap();
}

async fn restart(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let mut launch = with(harness, "restart", &Workload::Say(vec!["hello".into()]));
    let mut ports = Vec::new();
    let query = LogQuery { follow: true, ..LogQuery::default() };
    let mut follower = None;
    for attempt in 1..=3 {
        launch.attempt = attempt;
        let started = runtime.start(launch.clone()).await.unwrap();
        ports.push(started.ports);
        let lines = match &mut follower {
            Some(lines) => lines,
            none => none.insert(runtime.logs(&launch.id, query).await.unwrap()),
        };
        assert_eq!(texts(lines, 1).await, ["hello"], "attempt {attempt}");
        assert_eq!(runtime.seen(&launch.id).unwrap().attempt, attempt);
        runtime.stop(&launch.id, 9, PATIENCE).await.unwrap();
    }
    if !harness.keeps_addresses() {
        ports.iter_mut().flatten().for_each(|bound| bound.address.set_ip([0; 4].into()));
    }
    assert!(ports.iter().all(|now| *now == ports[0]), "{ports:?}");
    runtime.remove(&launch.id).await.unwrap();
    let end = tokio::time::timeout(PATIENCE, follower.unwrap().recv()).await;
    assert_eq!(end.expect("a follower ends with its instance"), None);
}

async fn failures(harness: &dyn Harness) {
    let runtime = harness.runtime();
    for (workload, failure) in [
        (Workload::Missing, StartFailure::NotFound),
        (Workload::Forbidden, StartFailure::NotExecutable),
    ] {
        let launch = with(harness, "failures", &workload);
        let error = runtime.start(launch.clone()).await.unwrap_err();
        assert_eq!(error.failure, failure, "{error}");
        assert!(error.message.contains(launch.id.as_str()), "{error}");
        assert!(error.message.contains(&launch.spec.command[0]), "{error}");
        assert!(runtime.seen(&launch.id).is_none_or(|seen| seen.pid.is_none()));
        runtime.remove(&launch.id).await.unwrap();
    }
}

async fn environment(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let names = ["KEEL_INSTANCE", "PORT", "A", "B", "C"].map(String::from).to_vec();
    let mut launch = with(harness, "env", &Workload::SayEnv(names));
    launch.environment = BTreeMap::from([("A".into(), "1".into()), ("B".into(), "1".into())]);
    launch.spec.environment = BTreeMap::from([("B".into(), "2".into()), ("C".into(), "3".into())]);
    let started = runtime.start(launch.clone()).await.unwrap();
    let port = started.ports[0].address.port().to_string();
    let told = |value| if harness.tells_addresses() { value } else { "" };
    let lines = logged(&*runtime, &launch.id, 5).await;
    assert_eq!(lines, [launch.id.as_str(), told(&port), told("1"), "2", "3"]);
    runtime.remove(&launch.id).await.unwrap();
}

async fn logs(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let said: Vec<String> = (0..100).map(|n| format!("line {n}")).collect();
    let launch = with(harness, "logs", &Workload::Say(said.clone()));
    runtime.start(launch.clone()).await.unwrap();
    assert_eq!(logged(&*runtime, &launch.id, 100).await, said);
    let get = |query: LogQuery| {
        let (runtime, id) = (runtime.clone(), launch.id.clone());
        async move { texts(&mut runtime.logs(&id, query).await.unwrap(), 1000).await }
    };
    assert_eq!(get(LogQuery::default()).await, said);
    assert_eq!(get(LogQuery { tail: Some(3), ..LogQuery::default() }).await, said[97..]);
    let at = runtime.seen(&launch.id).unwrap().started_at;
    let since = |at| LogQuery { since: Some(at), ..LogQuery::default() };
    let until = |at| LogQuery { until: Some(at), ..LogQuery::default() };
    assert_eq!(get(since(at)).await, said);
    assert_eq!(get(since(at + PATIENCE)).await, Vec::<String>::new());
    assert_eq!(get(until(at + PATIENCE)).await, said);
    assert_eq!(get(until(at - PATIENCE)).await, Vec::<String>::new());
    runtime.remove(&launch.id).await.unwrap();
}

async fn exec(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let launch = with(harness, "exec", &Workload::Run);
    let request = || ExecRequest { command: vec!["/bin/true".into()], ..ExecRequest::default() };
    let error = runtime.exec(&launch.id, request()).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchInstance(_)), "{error}");
    runtime.start(launch.clone()).await.unwrap();
    assert_eq!(runtime.exec(&launch.id, request()).await.unwrap().code, 0);
    assert!(runtime.resources(&launch.id).await.unwrap().pids > 0);
    runtime.stop(&launch.id, 9, PATIENCE).await.unwrap();
    let error = runtime.exec(&launch.id, request()).await.unwrap_err();
    assert!(matches!(error, Error::NotRunning(_)), "{error}");
    runtime.remove(&launch.id).await.unwrap();
}

async fn adoption(harness: &dyn Harness) {
    let launch = with(harness, "adopted", &Workload::Run);
    let before = harness.runtime();
    let started = before.start(launch.clone()).await.unwrap();
    drop(before);
    harness.reopen();
    let runtime = harness.runtime();
    let list = runtime.list().await.unwrap();
    let seen = list.iter().find(|seen| seen.id == launch.id).expect("it is found");
    assert_eq!((seen.pid, seen.attempt), (Some(started.pid), 1));
    assert_eq!((&seen.ports, seen.started_at), (&started.ports, started.started_at));
    assert_eq!(runtime.start(launch.clone()).await.unwrap().pid, started.pid, "still that one");
    let exit = runtime.stop(&launch.id, 15, PATIENCE).await.unwrap();
    assert_eq!(exit.signal, Some(15));
    runtime.remove(&launch.id).await.unwrap();
}

async fn unwatched_exit(harness: &dyn Harness) {
    let launch = with(harness, "unwatched", &Workload::ExitAfter(50, 7));
    let before = harness.runtime();
    before.start(launch.clone()).await.unwrap();
    drop(before);
    harness.reopen();
    let runtime = harness.runtime();
    runtime.list().await.unwrap();
    assert_eq!(ended(&*runtime, &launch.id).await.code, Some(7));
    drop(runtime);
    harness.reopen();
    let runtime = harness.runtime();
    let list = runtime.list().await.unwrap();
    let seen = list.iter().find(|seen| seen.id == launch.id).expect("it is found");
    assert_eq!(seen.exit.as_ref().and_then(|exit| exit.code), Some(7));
    runtime.remove(&launch.id).await.unwrap();
}

async fn removal(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let launch = with(harness, "removed", &Workload::Stubborn);
    runtime.start(launch.clone()).await.unwrap();
    runtime.remove(&launch.id).await.unwrap();
    assert_eq!(runtime.seen(&launch.id), None);
    assert!(runtime.list().await.unwrap().iter().all(|seen| seen.id != launch.id));
    runtime.remove(&launch.id).await.unwrap();
}

async fn unknown(harness: &dyn Harness) {
    let runtime = harness.runtime();
    let id = InstanceId::new("t-nobody-1").unwrap();
    assert_eq!(runtime.seen(&id), None);
    let errors = [
        runtime.stop(&id, 15, PATIENCE).await.err(),
        runtime.signal(&id, 15).await.err(),
        runtime.resources(&id).await.err(),
        runtime.exec_spec(&id).await.err(),
        runtime.logs(&id, LogQuery::default()).await.err(),
    ];
    for error in errors {
        let error = error.expect("there is no such instance");
        assert!(matches!(error, Error::NoSuchInstance(_)), "{error}");
        assert!(error.to_string().contains("t-nobody-1"), "{error}");
    }
}
