//! From files to the stack that the platform runs.

#![allow(clippy::unwrap_used)] // A failed expectation ends a test.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use keel_compose::{Code, LoadOptions, Lowered, MemorySource, Severity, load};
use keel_model::{
    Condition, FailureAction, MountSource, NetworkMode, Order, Probe, Protocol, RestartCondition,
    RuntimeKind, Scale, Service, Test, Transport,
};

fn source(compose: &str) -> MemorySource {
    MemorySource::new().with("/app/compose.yaml", compose)
}

fn lower_from(source: &MemorySource) -> Result<Lowered, Vec<keel_compose::Diagnostic>> {
    let environment = BTreeMap::from([
        ("PORT".to_owned(), "1".to_owned()),
        ("TOKEN".to_owned(), "hush".to_owned()),
    ]);
    load(&LoadOptions::new("/app", environment), source)?.to_stack(source)
}

fn lower(compose: &str) -> Lowered {
    lower_from(&source(compose)).unwrap_or_else(|errors| panic!("{errors:#?}"))
}

fn service(compose: &str) -> Service {
    lower(compose).stack.services["a"].clone()
}

fn errors(compose: &str) -> Vec<String> {
    lower_from(&source(compose)).unwrap_err().iter().map(ToString::to_string).collect()
}

fn warnings(compose: &str) -> Vec<String> {
    lower(compose).notes.iter().map(ToString::to_string).collect()
}

#[test]
fn a_process_with_everything_common() {
    let a = service(
        "services:
  a:
    entrypoint: ./serve
    command: --port $PORT 'two words'
    environment: {URL: 'http://x:${PORT}', EMPTY: , LEVEL: info}
    working_dir: sub
    user: www-data
    group_add: [adm]
    init: true
    tty: true
    expose: [8080]
    ports: ['80:8080', '127.0.0.1:5353:53/udp', '9000']
    labels: {x: 1}
    container_name: web
    networks: {default: {aliases: [alpha]}}
    stop_signal: SIGINT
    stop_grace_period: 3s
    extra_hosts: [h=1.2.3.4]
    logging: {options: {max-size: 1m, max-file: '2'}}
    deploy: {labels: {team: x}}
",
    );
    let spec = &a.spec;
    assert_eq!(spec.command, ["./serve", "--port", "${PORT}", "two words"]);
    let environment: Vec<_> =
        spec.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(environment, [("LEVEL", "info"), ("URL", "http://x:${PORT}")]);
    assert_eq!(spec.working_dir, Some(PathBuf::from("/app/sub")));
    assert_eq!((spec.user.as_deref(), spec.init, spec.tty), (Some("www-data"), true, true));
    assert_eq!(spec.groups, ["adm"]);
    assert_eq!(spec.ports, [8080, 53, 9000]);
    assert_eq!(spec.hosts["h"], ["1.2.3.4"]);
    assert_eq!((spec.logs.max_size, spec.logs.max_files), (1 << 20, 2));
    assert_eq!(a.ports.len(), 3);
    assert_eq!(a.publish[0].published, Some(80));
    assert_eq!(a.publish[1].transport, Transport::Udp);
    assert_eq!(a.publish[2].published, None);
    assert_eq!(a.aliases.iter().map(String::as_str).collect::<Vec<_>>(), ["alpha", "web"]);
    assert_eq!((a.stop.signal, a.stop.grace), (2, Duration::from_secs(3)));
    assert_eq!(a.labels["team"], "x");
    assert_eq!(a.scale, Scale::Replicated(1));
    assert_eq!(a.restart.condition, RestartCondition::OnFailure);
}

/// The caller has PORT set to 1; an instance has a port of its own.
#[test]
fn a_named_port_variable_is_the_instances_own() {
    for environment in ["[PORT, PORT_80, TOKEN]", "{PORT: , PORT_80: , TOKEN: }"] {
        let a = service(&format!("services: {{a: {{command: ./a, environment: {environment}}}}}"));
        let seen: Vec<_> =
            a.spec.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(seen, [("PORT", "${PORT}"), ("PORT_80", "${PORT_80}"), ("TOKEN", "hush")]);
    }
}

#[test]
fn the_working_directory_is_that_of_the_file() {
    assert_eq!(
        service("services: {a: {command: ./a}}").spec.working_dir,
        Some(PathBuf::from("/app"))
    );
}

#[test]
fn deploy_and_x_keel_become_policies() {
    let a = service(
        "services:
  a:
    command: ./a
    deploy:
      replicas: 3
      update_config: {parallelism: 2, delay: 1s, order: stop-first, failure_action: pause, monitor: 2s, max_failure_ratio: 0.25}
      rollback_config: {parallelism: 0}
      restart_policy: {condition: on-failure, delay: 4s, max_attempts: 5, window: 9s}
    x-keel:
      network: isolated
      readiness: {http: /ready, port: 8080, interval: 500ms, timeout: 250ms, successes: 4, failures: 5, startup_timeout: 7s}
      protocol: {'8080': http}
      rollout: {min_healthy_time: 1s, progress_deadline: 2m, drain_timeout: 3s}
      restart_backoff: {initial: 100ms, max: 2s, reset_after: 1m}
    expose: ['8080', '5432']
",
    );
    assert_eq!(a.scale, Scale::Replicated(3));
    assert_eq!((a.rollout.parallelism, a.rollout.delay), (2, Duration::from_secs(1)));
    assert_eq!(
        (a.rollout.order, a.rollout.failure_action),
        (Some(Order::StopFirst), FailureAction::Pause)
    );
    assert_eq!((a.rollout.monitor, a.rollout.max_failure_ppm), (Duration::from_secs(2), 250_000));
    assert_eq!(a.rollout.min_healthy_time, Duration::from_secs(1));
    assert_eq!(a.rollout.progress_deadline, Duration::from_secs(120));
    assert_eq!(a.rollout.drain_timeout, Duration::from_secs(3));
    assert_eq!(a.rollback.unwrap().parallelism, 0);
    assert_eq!(a.restart.condition, RestartCondition::OnFailure);
    assert_eq!((a.restart.delay, a.restart.max_attempts), (Some(Duration::from_secs(4)), Some(5)));
    assert_eq!(a.restart.backoff_initial, Duration::from_millis(100));
    assert_eq!(
        (a.restart.backoff_max, a.restart.reset_after),
        (Duration::from_secs(2), Duration::from_secs(60))
    );
    assert_eq!(a.spec.network, NetworkMode::Isolated);
    assert_eq!(a.readiness.probe, Some(Probe::Http { path: "/ready".to_owned() }));
    assert_eq!((a.readiness.port, a.readiness.successes, a.readiness.failures), (Some(8080), 4, 5));
    let protocols: Vec<Protocol> = a.ports.iter().map(|port| port.protocol).collect();
    assert_eq!(protocols, [Protocol::Http, Protocol::Auto]);
}

#[test]
fn restart_words() {
    let restart = |word: &str| {
        service(&format!("services: {{a: {{command: ./a, restart: {word}}}}}")).restart
    };
    assert_eq!(restart("'no'").condition, RestartCondition::Never);
    assert_eq!(restart("unless-stopped").condition, RestartCondition::Always);
    assert_eq!(restart("on-failure:3").max_attempts, Some(3));
    assert!(
        errors("services: {a: {command: ./a, restart: alway}}")[0]
            .contains("did you mean `always`")
    );
}

#[test]
fn modes_of_scale() {
    let scale = |deploy: &str| {
        service(&format!("services: {{a: {{command: ./a, deploy: {deploy}}}}}")).scale
    };
    assert_eq!(scale("{mode: global}"), Scale::Global);
    assert_eq!(scale("{mode: replicated-job, replicas: 4}"), Scale::Job(4));
    assert_eq!(service("services: {a: {command: ./a, scale: 0}}").scale, Scale::Replicated(0));
    assert!(
        errors("services: {a: {command: ./a, deploy: {mode: globl}}}")[0]
            .contains("did you mean `global`")
    );
}

#[test]
fn health_checks() {
    let health = |check: &str| {
        service(&format!("services: {{a: {{command: ./a, healthcheck: {check}}}}}")).spec.health
    };
    let check = health("{test: 'curl localhost:${PORT}', interval: 5s, retries: 2}").unwrap();
    assert_eq!(check.test, Test::Shell("curl localhost:${PORT}".to_owned()));
    assert_eq!((check.interval, check.retries), (Duration::from_secs(5), 2));
    assert_eq!(
        (check.timeout, check.start_interval),
        (Duration::from_secs(30), Duration::from_secs(1))
    );
    assert_eq!(
        health("{test: [CMD, a, b]}").unwrap().test,
        Test::Exec(vec!["a".into(), "b".into()])
    );
    assert_eq!(health("{test: [NONE]}"), None);
    assert_eq!(health("{disable: true}"), None);
    assert!(
        warnings("services: {a: {command: ./a, healthcheck: {interval: 1s}}}")[0]
            .contains("without a `test`")
    );
}

#[test]
fn limits_from_both_spellings() {
    let old = service(
        "services: {a: {command: ./a, cpus: 0.5, mem_limit: 64m, memswap_limit: -1, pids_limit: 9, oom_score_adj: 100,
          cpu_shares: 512, cpuset: '0', ulimits: {nofile: 10, core: {soft: 0, hard: -1}}}}",
    )
    .spec
    .limits;
    assert_eq!(
        (old.cpu_milli, old.memory, old.memory_swap, old.pids),
        (Some(500), Some(64 << 20), None, Some(9))
    );
    assert_eq!(
        (old.cpu_shares, old.cpuset.as_deref(), old.oom_score_adj),
        (Some(512), Some("0"), Some(100))
    );
    assert_eq!(old.ulimits["nofile"], (10, 10));
    assert_eq!(old.ulimits["core"], (0, u64::MAX));
    let new = service(
        "services: {a: {command: ./a, deploy: {resources: {limits: {cpus: '1.5', memory: 1g, pids: 7}}}}}",
    )
    .spec
    .limits;
    assert_eq!((new.cpu_milli, new.memory, new.pids), (Some(1500), Some(1 << 30), Some(7)));
    let quota = service("services: {a: {command: ./a, cpu_quota: 25000}}").spec.limits;
    assert_eq!(quota.cpu_milli, Some(250));
}

#[test]
fn mounts() {
    let lowered = lower(
        "services:
  a:
    command: ./a
    volumes:
      - data:/data
      - ./conf:/conf:ro
      - /anonymous
      - {type: tmpfs, target: /t, tmpfs: {size: 1m, mode: 0700}}
    tmpfs: ['/run:size=2m,mode=1777']
    volumes_from: ['b:ro']
  b: {command: ./b, volumes: ['data:/other']}
volumes:
  data: {labels: {k: v}}
",
    );
    let mounts = &lowered.stack.services["a"].spec.mounts;
    let volume = |subpath| MountSource::Volume { name: "app_data".to_owned(), subpath };
    assert_eq!(mounts[0].source, volume(None));
    assert_eq!(mounts[1].source, MountSource::Bind { path: "/app/conf".into(), create: true });
    assert!(mounts[1].read_only);
    assert_eq!(mounts[2].source, MountSource::Anonymous);
    assert_eq!(mounts[3].source, MountSource::Tmpfs { size: Some(1 << 20), mode: Some(0o700) });
    assert_eq!(mounts[4].source, MountSource::Tmpfs { size: Some(2 << 20), mode: Some(0o1777) });
    assert_eq!((&mounts[5].source, mounts[5].read_only), (&volume(None), true));
    assert_eq!(lowered.stack.volumes["data"].name, "app_data");
    assert_eq!(lowered.stack.volumes["data"].labels["k"], "v");
}

#[test]
fn secrets_and_configs_carry_their_content() {
    let source = source(
        "services:
  a:
    command: ./a
    secrets: [token, {source: key, target: k.pem, mode: 0440, uid: '7'}]
    configs: [{source: conf, target: /etc/a.conf}, inline]
secrets: {token: {environment: TOKEN}, key: {file: key.pem}}
configs: {conf: {file: ./a.conf}, inline: {content: text}}
",
    )
    .with("/app/key.pem", "pem")
    .with("/app/a.conf", "conf");
    let lowered = lower_from(&source).unwrap();
    let files = &lowered.stack.services["a"].spec.files;
    let seen: Vec<(&str, &[u8], u32, bool)> = files
        .iter()
        .map(|file| (file.target.to_str().unwrap(), file.content.expose(), file.mode, file.secret))
        .collect();
    assert_eq!(
        seen,
        [
            ("/run/secrets/token", &b"hush"[..], 0o400, true),
            ("/run/secrets/k.pem", b"pem", 0o440, true),
            ("/etc/a.conf", b"conf", 0o444, false),
            ("/inline", b"text", 0o444, false),
        ]
    );
    assert_eq!(files[1].uid, Some(7));
}

#[test]
fn absent_secrets_and_large_ones_are_refused() {
    let absent =
        errors("services: {a: {command: ./a, secrets: [s]}}\nsecrets: {s: {file: ./nothing}}");
    assert!(absent[0].contains("/app/compose.yaml:2:"), "{absent:?}");
    let unset =
        errors("services: {a: {command: ./a, secrets: [s]}}\nsecrets: {s: {environment: ABSENT}}");
    assert!(unset[0].contains("ABSENT"));
    let source = source("services: {a: {command: ./a, secrets: [s]}}\nsecrets: {s: {file: ./big}}")
        .with("/app/big", vec![0; (1 << 20) + 1]);
    assert_eq!(lower_from(&source).unwrap_err()[0].code, Code::Budget);
}

#[test]
fn hooks_and_dependencies() {
    let a = service(
        "services:
  a:
    command: ./a
    depends_on: {b: {condition: service_healthy, restart: true}, c: {condition: service_completed_successfully}}
    pre_start: [{command: ./migrate now, per_replica: true}]
    post_start: [{command: [./warm], user: u, environment: {X: '${PORT}'}, working_dir: w}]
    pre_stop: [{command: ./bye}]
  b: {command: ./b}
  c: {command: ./c}
",
    );
    assert_eq!(a.depends_on["b"].condition, Condition::Healthy);
    assert!(a.depends_on["b"].restart && a.depends_on["b"].required);
    assert_eq!(a.depends_on["c"].condition, Condition::CompletedSuccessfully);
    assert_eq!(a.spec.pre_start[0].command, ["./migrate", "now"]);
    assert!(a.spec.pre_start[0].per_replica);
    assert_eq!(a.spec.post_start[0].environment["X"], "${PORT}");
    assert_eq!(a.spec.post_start[0].working_dir, Some(PathBuf::from("/app/w")));
    assert_eq!(a.spec.pre_stop[0].command, ["./bye"]);
}

#[test]
fn links_give_names() {
    let lowered = lower("services: {a: {command: ./a}, b: {command: ./b, links: ['a:first']}}");
    assert!(lowered.stack.services["a"].aliases.contains("first"));
    assert!(lowered.stack.services["b"].depends_on.contains_key("a"));
}

#[test]
fn a_container_name_with_replicas_becomes_an_alias_with_a_note() {
    let lowered = lower("services: {a: {command: ./a, container_name: one, scale: 3}}");
    assert!(lowered.stack.services["a"].aliases.contains("one"));
    assert_eq!(lowered.notes[0].severity, Severity::Note);
}

#[test]
fn an_image_may_be_left_aside() {
    let lowered = lower("services: {a: {image: x, command: ./a, x-keel: {runtime: process}}}");
    assert_eq!(lowered.stack.services["a"].spec.runtime, RuntimeKind::Process);
    assert_eq!(lowered.stack.services["a"].spec.image, None);
    assert!(lowered.images.is_empty() && lowered.stack.networks.is_empty());
}

#[test]
fn keys_without_effect_warn_and_contradictions_are_refused() {
    let warned = warnings(
        "services:
  a:
    command: ./a
    privileged: true
    cap_add: [SYS_ADMIN]
    read_only: false
    volumes: [{type: bind, source: ., target: /x, bind: {selinux: z}}]
    deploy: {placement: {constraints: [node.role==manager]}}
    network_mode: bridge
",
    );
    for key in ["privileged", "cap_add", "bind.selinux", "deploy.placement", "network_mode"] {
        assert!(warned.iter().any(|warning| warning.contains(key)), "{key}: {warned:#?}");
    }
    assert!(!warned.iter().any(|warning| warning.contains("read_only")));
    let refused = errors("services: {a: {command: ./a, models: [m]}}\nmodels: {m: {model: x}}");
    assert!(refused.iter().any(|error| error.contains("`models`")));
    let refused = errors("services: {a: {command: ./a, ports: [80/sctp]}}");
    assert!(refused[0].contains("sctp"));
}

#[test]
fn a_command_that_wants_a_shell_warns() {
    assert!(warnings("services: {a: {command: './a && ./b'}}")[0].contains("&& ./b"));
}

#[test]
fn a_service_that_listens_on_its_port_and_names_none_is_reached_at_80() {
    assert_eq!(service("services: {a: {command: './a $PORT'}}").spec.ports, [80]);
    assert_eq!(
        service("services: {a: {command: ./a, environment: [P=$PORT]}}").ports[0].target,
        80
    );
    assert_eq!(service("services: {a: {command: './a $PORT', expose: [81]}}").spec.ports, [81]);
    assert!(service("services: {a: {command: ./a}}").ports.is_empty());
}

#[test]
fn the_same_file_gives_the_same_revision() {
    let text = "services: {a: {command: ./a, environment: {B: b, A: a}}}";
    let other = "services: {a: {environment: {A: a, B: b}, command: [./a]}}";
    assert_eq!(service(text).spec.revision(), service(other).spec.revision());
}

fn load_warnings(source: &MemorySource, interpolate: bool) -> Vec<String> {
    let mut options = LoadOptions::new("/app", BTreeMap::new());
    options.interpolate = interpolate;
    let project = load(&options, source).unwrap_or_else(|errors| panic!("{errors:#?}"));
    project.warnings().iter().map(ToString::to_string).collect()
}

#[test]
fn variables_without_a_value_are_warned_about_once() {
    let files = source(
        "services:
  a:
    command: ./a $MISSING ${MISSING} ${DEFAULT:-x} ${EMPTY-} ${OPTION:+y} $$LITERAL $PORT ${KEEL_ADDRESS}
    environment: {A: '${MISSING}', B: '${KEEL_SECRETS_DIR}/key'}
    working_dir: /${OTHER}
    env_file: a.env
",
    )
    .with("/app/a.env", "C=${MISSING}${THIRD}\n");
    let warning = |place: &str, name: &str| {
        format!(
            "{place}: warning: the variable `{name}` is not set; it is replaced by an empty string\n  \
             help: set it, or write `${{{name}:-default}}`"
        )
    };
    assert_eq!(
        load_warnings(&files, true),
        [
            warning("/app/compose.yaml:3:14", "MISSING"),
            warning("/app/compose.yaml:5:18", "OTHER"),
            warning("/app/a.env:1:1", "THIRD"),
        ]
    );
    assert_eq!(load_warnings(&files, false), Vec::<String>::new());
}

#[test]
fn udp_is_not_silently_ignored() {
    let told = warnings("services: {a: {command: ./a, ports: ['53:53/udp']}}");
    assert!(told.iter().any(|text| text.contains("UDP has no effect")), "{told:?}");
}

#[test]
fn warnings_of_loading_reach_the_project() {
    let files = source("version: '3'\nservices: {a: {command: ./a, init: 'yes'}}");
    let warnings = load_warnings(&files, true);
    assert!(warnings.iter().any(|text| text.contains("`version` is obsolete")), "{warnings:?}");
    assert!(warnings.iter().any(|text| text.contains("`yes` is not a boolean")), "{warnings:?}");
}

#[test]
fn variables_of_the_instance_survive() {
    let a = service(
        "services: {a: {command: './a $KEEL_ADDRESS:${PORT}', environment: {S: '${KEEL_SERVICE}', KEEL_STACK: }}}",
    );
    assert_eq!(a.spec.command, ["./a", "${KEEL_ADDRESS}:${PORT}"]);
    assert_eq!(a.spec.environment["S"], "${KEEL_SERVICE}");
    assert_eq!(a.spec.environment["KEEL_STACK"], "${KEEL_STACK}");
}

#[test]
fn a_port_in_a_shared_section_is_not_called_unset() {
    let files = source(
        "x-check: &check {test: 'probe $PORT'}\nservices: {a: {command: './a $GONE', healthcheck: *check}}",
    );
    let warnings = load_warnings(&files, true);
    assert!(warnings.iter().any(|text| text.contains("`GONE` is not set")), "{warnings:?}");
    assert!(!warnings.iter().any(|text| text.contains("PORT")), "{warnings:?}");
}

/// What a process is started with has not changed, so no upgrade of the platform replaces it.
#[test]
fn revisions_of_processes_are_the_same_in_every_version() {
    let files = source(
        "services:
  plain: {command: ./a}
  rich:
    command: [./serve, --port, $PORT]
    entrypoint: [nice]
    environment: {A: a}
    working_dir: sub
    user: nobody
    group_add: [adm]
    init: true
    volumes: [data:/data, {type: tmpfs, target: /t, tmpfs: {size: 1m}}, .:/src:ro]
    tmpfs: /run:size=2m
    secrets: [token]
    configs: [conf]
    mem_limit: 64m
    memswap_limit: -1
    ulimits: {nofile: 10}
    healthcheck: {test: 'true', interval: 5s}
    extra_hosts: [h=1.2.3.4]
    ports: ['80:8080', '53:53/udp']
    labels: {x: 1}
    logging: {driver: json-file, options: {max-size: 1m}}
    pre_start: [{command: ./migrate, working_dir: w}]
    post_start: [{command: ./warm, privileged: true}]
    stop_signal: SIGINT
volumes: {data: {driver: local}}
secrets: {token: {environment: TOKEN}}
configs: {conf: {content: text}}
",
    );
    let stack = lower_from(&files).unwrap().stack;
    let revision = |name: &str| stack.services[name].spec.revision().to_string();
    assert_eq!(
        (revision("plain").as_str(), revision("rich").as_str()),
        ("96ac6ff8f3f9", "b1bc69855e73")
    );
}
