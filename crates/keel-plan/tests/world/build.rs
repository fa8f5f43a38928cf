//! Short ways to write records and services.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use keel_model::{
    Condition, Dependency, Generation, LogPolicy, NetworkMode, NodeName, Readiness, RestartPolicy,
    RolloutPolicy, RuntimeKind, Scale, Service, ServiceName, Spec, Stack, StackName, StackRecord,
    StopPolicy, Timestamp,
};

pub fn name(text: &str) -> ServiceName {
    ServiceName::new(text).expect("a valid name")
}

pub fn node(text: &str) -> NodeName {
    NodeName::new(text).expect("a valid name")
}

/// A service with a port, whose program behaves as `mode` says; see [`super::node`].
pub fn service(replicas: u32, mode: &str) -> Service {
    Service {
        spec: spec(mode),
        scale: Scale::Replicated(replicas),
        ports: Vec::new(),
        publish: Vec::new(),
        aliases: BTreeSet::new(),
        depends_on: BTreeMap::new(),
        restart: RestartPolicy::default(),
        rollout: RolloutPolicy {
            min_healthy_time: Duration::from_secs(2),
            monitor: Duration::from_secs(1),
            progress_deadline: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(5),
            ..RolloutPolicy::default()
        },
        rollback: None,
        stop: StopPolicy::default(),
        readiness: Readiness { startup_timeout: Duration::from_secs(20), ..Readiness::default() },
        labels: BTreeMap::new(),
        routes: Vec::new(),
        traffic: keel_model::TrafficPolicy::default(),
        image_command: None,
    }
}

fn spec(mode: &str) -> Spec {
    Spec {
        runtime: RuntimeKind::Process,
        image: None,
        container: None,
        command: vec!["program".to_owned()],
        environment: BTreeMap::from([("MODE".to_owned(), mode.to_owned())]),
        working_dir: None,
        user: None,
        groups: Vec::new(),
        mounts: Vec::new(),
        files: Vec::new(),
        limits: keel_model::Limits::default(),
        health: None,
        network: NetworkMode::default(),
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

/// Makes `service` depend on `on`.
pub fn after(mut service: Service, on: &str, condition: Condition) -> Service {
    let dependency = Dependency { condition, restart: false, required: true };
    service.depends_on.insert(name(on), dependency);
    service
}

/// A record of the given services.
pub fn record<const N: usize>(services: [(&str, Service); N]) -> StackRecord {
    StackRecord {
        generation: Generation(1),
        applied: Generation(1),
        stack: Stack {
            name: StackName::new("shop").expect("a valid name"),
            directory: PathBuf::from("/"),
            services: services.into_iter().map(|(n, service)| (name(n), service)).collect(),
            networks: BTreeMap::new(),
            volumes: BTreeMap::new(),
            entrypoints: BTreeMap::new(),
            acme: None,
        },
        intents: BTreeMap::new(),
        removing: false,
        remove_volumes: false,
        changed_at: Timestamp(0),
        change: "up".to_owned(),
    }
}
