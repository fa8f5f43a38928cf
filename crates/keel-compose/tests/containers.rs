//! Services that run as containers: what each key becomes, and what is refused.

#![allow(clippy::unwrap_used)] // A failed expectation ends a test.

use std::collections::BTreeMap;

use keel_compose::{
    Diagnostic, LoadOptions, Lowered, MemorySource, SERVICE_KEYS, Support, WatchAction, load,
};
use keel_model::{PullPolicy, RuntimeKind};
use serde_json::{Value as Json, json};

fn lower_from(compose: &str) -> Result<Lowered, Vec<Diagnostic>> {
    let source = MemorySource::new()
        .with("/app/compose.yaml", compose)
        .with("/app/profile.json", "{ \"defaultAction\": \"SCMP_ACT_ERRNO\" }")
        .with("/app/broken.json", "{")
        .with("/app/key.pem", "pem");
    let environment = BTreeMap::from([
        ("PORT".to_owned(), "1".to_owned()),
        ("TOKEN".to_owned(), "hush".to_owned()),
    ]);
    load(&LoadOptions::new("/app", environment), &source)?.to_stack(&source)
}

fn lower(compose: &str) -> Lowered {
    lower_from(compose).unwrap_or_else(|errors| panic!("{compose}\n{errors:#?}"))
}

fn errors(compose: &str) -> Vec<String> {
    lower_from(compose).unwrap_err().iter().map(ToString::to_string).collect()
}

fn notes(compose: &str) -> Vec<String> {
    lower(compose).notes.iter().map(ToString::to_string).collect()
}

/// A file with one container that has these keys.
fn with(keys: &str) -> String {
    format!("services: {{a: {{image: x, {keys}}}, b: {{image: y}}}}\n{TOP}")
}

const TOP: &str = "volumes: {data: }
networks: {front: {name: edge, external: true}, back: , host: {name: host, external: true}}
secrets: {token: {environment: TOKEN}}
configs: {conf: {content: text}}
";

/// Every row: keys of a service, a place in the service as it is lowered, what is there.
fn check(rows: &[(&str, &str, Json)]) {
    for (keys, place, expected) in rows {
        let lowered = lower(&with(keys));
        let service = serde_json::to_value(&lowered.stack.services["a"]).unwrap();
        let found = service.pointer(place).unwrap_or(&Json::Null);
        assert_eq!(found, expected, "{keys} at {place}");
    }
}

#[test]
fn what_is_run() {
    check(&[
        ("", "/spec/runtime", json!("container")),
        ("", "/spec/image", json!("x")),
        ("", "/spec/command", json!([])),
        ("", "/spec/working_dir", Json::Null),
        ("", "/spec/container/entrypoint", Json::Null),
        ("command: serve 'two words'", "/spec/command", json!(["serve", "two words"])),
        // In a container the caller's variables are meant, as with Docker Compose.
        ("command: [serve, $PORT]", "/spec/command", json!(["serve", "1"])),
        ("command: [serve, $$PORT]", "/spec/command", json!(["serve", "$PORT"])),
        ("entrypoint: [sh, -c]", "/spec/container/entrypoint", json!(["sh", "-c"])),
        ("entrypoint: ''", "/spec/container/entrypoint", json!([])),
        ("entrypoint: []", "/spec/container/entrypoint", json!([])),
        ("working_dir: app", "/spec/working_dir", json!("app")),
        ("working_dir: /srv", "/spec/working_dir", json!("/srv")),
        (
            "environment: {A: a, TOKEN: , GONE: }",
            "/spec/environment",
            json!({"A": "a", "TOKEN": "hush"}),
        ),
        ("environment: {A: a, TOKEN: , GONE: }", "/spec/container/unset", json!(["GONE"])),
        ("user: '1:2'", "/spec/user", json!("1:2")),
        ("group_add: [adm, 7]", "/spec/groups", json!(["adm", "7"])),
        ("init: true", "/spec/init", json!(true)),
        ("tty: true, stdin_open: true", "/spec/stdin_open", json!(true)),
        ("labels: {x: y, traefik.enable: 'false'}", "/spec/labels", json!({"x": "y"})),
        ("stop_signal: SIGQUIT", "/stop/signal", json!(3)),
        ("stop_signal: SIGQUIT", "/spec/container/from_image/stop_signal", Json::Null),
        ("", "/spec/container/from_image/stop_signal", json!(true)),
        ("extra_hosts: ['h=host-gateway']", "/spec/hosts", json!({"h": ["host-gateway"]})),
        (
            "container_name: db-1, networks: {back: {aliases: [db]}}",
            "/aliases",
            json!(["db", "db-1"]),
        ),
        ("platform: linux/arm64/v8", "/spec/container/platform", json!("linux/arm64/v8")),
        ("x-keel: {runtime: container}", "/spec/runtime", json!("container")),
    ]);
}

#[test]
fn rights_and_namespaces() {
    check(&[
        ("privileged: true", "/spec/container/privileged", json!(true)),
        ("read_only: true", "/spec/container/read_only", json!(true)),
        ("cap_add: [SYS_ADMIN]", "/spec/container/cap_add", json!(["SYS_ADMIN"])),
        ("cap_drop: [ALL]", "/spec/container/cap_drop", json!(["ALL"])),
        (
            "security_opt: [no-new-privileges, 'label:disable', apparmor=p, seccomp:unconfined, systempaths=unconfined]",
            "/spec/container/security_opt",
            json!([
                "no-new-privileges",
                "label=disable",
                "apparmor=p",
                "seccomp=unconfined",
                "systempaths=unconfined"
            ]),
        ),
        (
            "security_opt: ['seccomp:profile.json']",
            "/spec/container/security_opt",
            json!(["seccomp={\"defaultAction\":\"SCMP_ACT_ERRNO\"}"]),
        ),
        (
            "sysctls: {net.core.somaxconn: 9}",
            "/spec/container/sysctls",
            json!({"net.core.somaxconn": "9"}),
        ),
        (
            "sysctls: [net.core.somaxconn=9]",
            "/spec/container/sysctls",
            json!({"net.core.somaxconn": "9"}),
        ),
        ("annotations: [a=b]", "/spec/container/annotations", json!({"a": "b"})),
        ("ipc: shareable", "/spec/container/ipc", json!("shareable")),
        ("ipc: 'service:b'", "/spec/container/ipc", json!("service:b")),
        ("pid: host", "/spec/container/pid", json!("host")),
        ("pid: 'container:other'", "/spec/container/pid", json!("container:other")),
        ("uts: host", "/spec/container/uts", json!("host")),
        ("userns_mode: host", "/spec/container/userns", json!("host")),
        ("cgroup: private", "/spec/container/cgroup", json!("private")),
        ("cgroup_parent: p", "/spec/container/cgroup_parent", json!("p")),
        ("runtime: runsc", "/spec/container/oci_runtime", json!("runsc")),
        ("storage_opt: {size: 1G}", "/spec/container/storage_opt", json!({"size": "1G"})),
        ("hostname: h", "/spec/container/hostname", json!("h")),
        ("domainname: d.example", "/spec/container/domainname", json!("d.example")),
    ]);
}

#[test]
fn resources_and_devices() {
    let resources = "/spec/container/resources";
    check(&[
        ("shm_size: 64m", "/spec/container/shm_size", json!(64 << 20)),
        ("ulimits: {nofile: {soft: 1, hard: 2}}", "/spec/limits/ulimits", json!({"nofile": [1, 2]})),
        ("mem_limit: 1g, memswap_limit: -1", "/spec/limits/memory_swap", json!(u64::MAX)),
        ("mem_limit: 1g, memswap_limit: 2g", "/spec/limits/memory_swap", json!(2_u64 << 30)),
        ("mem_limit: 1g", "/spec/limits/memory_swap", Json::Null),
        ("pids_limit: -1", "/spec/limits/pids", json!(u64::MAX)),
        ("cpus: 0.5", "/spec/limits/cpu_milli", json!(500)),
        ("cpu_shares: 73, cpuset: 0-1, pids_limit: 9", "/spec/limits/pids", json!(9)),
        ("mem_reservation: 64m", resources, json!({"memory_reservation": 64 << 20})),
        (
            "deploy: {resources: {reservations: {memory: 32m}}}",
            resources,
            json!({"memory_reservation": 32 << 20}),
        ),
        ("mem_swappiness: 10", resources, json!({"swappiness": 10})),
        ("oom_kill_disable: true", resources, json!({"oom_kill_disable": true})),
        (
            "cpu_rt_period: 1000, cpu_rt_runtime: 950",
            resources,
            json!({"realtime_period": 1000, "realtime_runtime": 950}),
        ),
        (
            "blkio_config: {weight: 300, weight_device: [{path: /dev/sda, weight: 400}],
              device_read_bps: [{path: /dev/sda, rate: 12mb}], device_write_bps: [{path: /dev/sda, rate: 1024}],
              device_read_iops: [{path: /dev/sda, rate: 120}], device_write_iops: [{path: /dev/sda, rate: 30}]}",
            resources,
            json!({
                "io_weight": 300,
                "io_weight_device": {"/dev/sda": 400},
                "read_bytes": {"/dev/sda": 12 << 20},
                "write_bytes": {"/dev/sda": 1024},
                "read_operations": {"/dev/sda": 120},
                "write_operations": {"/dev/sda": 30},
            }),
        ),
        (
            "devices: ['/dev/a:/dev/b:r', /dev/c, {source: /dev/d, target: /dev/e}, vendor.com/class=one]",
            "/spec/container/devices",
            json!([
                {"source": "/dev/a", "target": "/dev/b", "permissions": "r"},
                {"source": "/dev/c", "target": "/dev/c", "permissions": "rwm"},
                {"source": "/dev/d", "target": "/dev/e", "permissions": "rwm"},
                {"source": "vendor.com/class=one", "target": "vendor.com/class=one", "permissions": "rwm"},
            ]),
        ),
        (
            "device_cgroup_rules: ['c 1:3 mr']",
            "/spec/container/device_cgroup_rules",
            json!(["c 1:3 mr"]),
        ),
        ("gpus: all", "/spec/container/device_requests", json!([request("", Some(-1), &[], &["gpu"])])),
        (
            "gpus: [{driver: nvidia, device_ids: ['0'], capabilities: [compute]}]",
            "/spec/container/device_requests",
            json!([request("nvidia", None, &["0"], &["compute", "gpu"])]),
        ),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [tpu], count: 2}]}}}",
            "/spec/container/device_requests",
            json!([request("", Some(2), &[], &["tpu"])]),
        ),
    ]);
}

fn request(driver: &str, count: Option<i64>, ids: &[&str], capabilities: &[&str]) -> Json {
    json!({"driver": driver, "count": count, "ids": ids, "capabilities": capabilities, "options": {}})
}

#[test]
fn networks_of_a_container() {
    let network = "/spec/container/network";
    check(&[
        ("", network, json!({"attached": [{"network": "app_default"}]})),
        ("networks: [back]", network, json!({"attached": [{"network": "app_back"}]})),
        // Names inside the stack are the load balancer's; outside of it they are the container's.
        (
            "networks: {back: {aliases: [db]}, front: {aliases: [db, b], priority: 5}}",
            network,
            json!({"attached": [{"network": "edge", "aliases": ["db"]}, {"network": "app_back"}]}),
        ),
        (
            "networks: {back: {ipv4_address: 10.0.0.7, ipv6_address: 'fd00::7', link_local_ips: [169.254.8.8],
              mac_address: '02:42:ac:11:00:03', interface_name: eth7, gw_priority: 3, driver_opts: {k: 1}}}",
            network,
            json!({"attached": [{
                "network": "app_back", "ipv4": "10.0.0.7", "ipv6": "fd00::7", "link_local": ["169.254.8.8"],
                "mac_address": "02:42:ac:11:00:03", "interface": "eth7", "gateway_priority": 3,
                "driver_opts": {"k": "1"},
            }]}),
        ),
        ("network_mode: host", network, json!("host")),
        ("networks: [host]", network, json!("host")),
        ("networks: [host], ports: ['80:80']", "/publish", json!([])),
        ("network_mode: none", network, json!("none")),
        ("network_mode: bridge", network, json!({"attached": [{"network": "bridge"}]})),
        ("network_mode: default", network, json!({"attached": [{"network": "bridge"}]})),
        ("network_mode: theirs", network, json!({"attached": [{"network": "theirs"}]})),
        ("network_mode: 'service:b'", network, json!({"service": "b"})),
        ("network_mode: 'service:b'", "/depends_on/b/condition", json!("started")),
        ("network_mode: 'container:other'", network, json!({"container": "other"})),
        ("network_mode: 'container:other'", "/spec/container/from_image/ports", Json::Null),
        ("", "/spec/container/from_image/ports", json!(true)),
        ("dns: 192.0.2.1", "/spec/container/dns", json!(["192.0.2.1"])),
        ("dns: [192.0.2.1, '2001:db8::1']", "/spec/container/dns", json!(["192.0.2.1", "2001:db8::1"])),
        ("dns_opt: ['ndots:1']", "/spec/container/dns_opt", json!(["ndots:1"])),
        ("dns_search: example.com", "/spec/container/dns_search", json!(["example.com"])),
        ("mac_address: '02:42:ac:11:00:03'", "/spec/container/mac_address", json!("02:42:ac:11:00:03")),
        ("external_links: ['other:o']", "/spec/container/links", json!(["other:o"])),
    ]);
    assert!(lower(&with("links: ['b:other']")).stack.services["b"].aliases.contains("other"));
}

#[test]
fn networks_of_the_stack() {
    let lowered = lower(
        "services:
  a: {image: x, networks: [back, edge]}
  p: {command: ./p, networks: [apart]}
networks:
  back:
    driver: bridge
    driver_opts: {com.docker.network.bridge.name: br7}
    internal: true
    attachable: true
    enable_ipv6: true
    labels: [l=1]
    ipam: {driver: default, options: {o: p}, config: [{subnet: 172.28.0.0/16, ip_range: 172.28.5.0/24,
      gateway: 172.28.5.254, aux_addresses: {h: 172.28.1.5}}]}
  edge: {external: true}
  apart: {}
",
    );
    assert_eq!(
        serde_json::to_value(&lowered.stack.networks).unwrap(),
        json!({
            "back": {
                "name": "app_back", "internal": true, "attachable": true, "driver": "bridge",
                "driver_opts": {"com.docker.network.bridge.name": "br7"}, "ipv6": true, "labels": {"l": "1"},
                "ipam_driver": "default", "ipam_options": {"o": "p"},
                "subnets": [{"subnet": "172.28.0.0/16", "ip_range": "172.28.5.0/24", "gateway": "172.28.5.254",
                             "aux_addresses": {"h": "172.28.1.5"}}],
            },
            "edge": {"name": "edge", "external": true},
        })
    );
}

#[test]
fn ports_of_a_container() {
    check(&[
        ("ports: ['8080:80', '53:53/udp']", "/spec/ports", json!([80, 53])),
        (
            "ports: ['8080:80', '127.0.0.1:53:54/udp', '55/udp']",
            "/spec/container/publish_udp",
            json!([
                {"ip": "127.0.0.1", "published": 53, "target": 54},
                {"ip": null, "published": null, "target": 55},
            ]),
        ),
        ("ports: ['8080:80', '53:53/udp']", "/publish/0/published", json!(8080)),
        ("ports: ['8080:80', '53:53/udp']", "/publish/1", Json::Null),
        ("ports: ['53:53/udp']", "/rollout/order", json!("stop_first")),
        ("ports: ['80:80']", "/rollout/order", Json::Null),
        ("expose: [81]", "/ports/0/target", json!(81)),
        // A shell in the container fills it in; it is no port of the platform's.
        ("command: [sh, -c, 'serve $${PORT}']", "/ports", json!([])),
        // A container has every port, so that a route may name one that the file does not.
        (
            "expose: [81], x-keel: {routes: {host: a.example, port: 82}}",
            "/spec/ports",
            json!([81, 82]),
        ),
        ("x-keel: {routes: {host: a.example}}", "/routes/0/port", Json::Null),
        ("network_mode: host", "/rollout/order", json!("stop_first")),
        ("network_mode: 'service:b'", "/rollout/order", json!("stop_first")),
        ("networks: {back: {ipv4_address: 10.0.0.7}}", "/rollout/order", json!("stop_first")),
    ]);
}

#[test]
fn mounts_of_a_container() {
    let mounts = "/spec/mounts";
    check(&[
        (
            "volumes: [{type: volume, source: data, target: /d, volume: {nocopy: true, subpath: s, labels: {l: 1}}}]",
            mounts,
            json!([{
                "source": {"volume": {"name": "app_data", "subpath": "s"}}, "target": "/d", "read_only": false,
                "options": {"no_copy": true, "propagation": null, "selinux": null, "recursive": null,
                            "labels": {"l": "1"}},
            }]),
        ),
        ("volumes: ['data:/d:ro']", "/spec/mounts/0/read_only", json!(true)),
        ("volumes: ['data:/d:ro']", "/spec/mounts/0/options", Json::Null),
        ("volumes: [/d]", "/spec/mounts/0/source", json!("anonymous")),
        ("volumes: ['./s:/d:z']", "/spec/mounts/0/options/selinux", json!("z")),
        (
            "volumes: ['./s:/d']",
            "/spec/mounts/0/source",
            json!({"bind": {"path": "/app/s", "create": true}}),
        ),
        (
            "volumes: [{type: bind, source: s, target: /d, bind: {propagation: rslave, recursive: readonly, create_host_path: false}}]",
            "/spec/mounts/0",
            json!({
                "source": {"bind": {"path": "/app/s", "create": false}}, "target": "/d", "read_only": false,
                "options": {"no_copy": false, "propagation": "rslave", "selinux": null, "recursive": "readonly"},
            }),
        ),
        (
            "volumes: [{type: bind, source: s, target: /d}]",
            "/spec/mounts/0/source/bind/create",
            json!(true),
        ),
        (
            "volumes: [{type: image, source: tools, target: /t, image: {subpath: bin}}]",
            "/spec/mounts/0/source",
            json!({"image": {"name": "tools", "subpath": "bin"}}),
        ),
        (
            "volumes: [{type: tmpfs, target: /t, tmpfs: {size: 1024, mode: 0700}}]",
            "/spec/mounts/0/source",
            json!({"tmpfs": {"size": 1024, "mode": 0o700}}),
        ),
        (
            "tmpfs: ['/run:size=2m,mode=1777,noexec,uid=7,ro']",
            "/spec/mounts/0",
            json!({
                "source": {"tmpfs": {"size": 2 << 20, "mode": 0o1777}}, "target": "/run", "read_only": true,
                "options": {"no_copy": false, "propagation": null, "selinux": null, "recursive": null,
                            "tmpfs": ["noexec", "uid=7"]},
            }),
        ),
        (
            "volumes_from: ['container:other:ro']",
            "/spec/container/volumes_from",
            json!(["other:ro"]),
        ),
        (
            "use_api_socket: true",
            "/spec/mounts/0/source",
            json!({"bind": {"path": "/var/run/docker.sock", "create": false}}),
        ),
    ]);
    let images = lower(&with("volumes: [{type: image, source: tools, target: /t}]")).further_images;
    assert_eq!(images.keys().collect::<Vec<_>>(), ["tools"]);
}

#[test]
fn files_of_a_container() {
    check(&[
        // As Docker Compose has it: who reads a secret is often not who the container began as.
        ("secrets: [token]", "/spec/files/0/mode", json!(0o444)),
        (
            "secrets: [{source: token, target: t, uid: '7', mode: 0400}]",
            "/spec/files/0/mode",
            json!(0o400),
        ),
        ("secrets: [{source: token, target: t}]", "/spec/files/0/target", json!("/run/secrets/t")),
        ("configs: [conf]", "/spec/files/0/target", json!("/conf")),
    ]);
}

#[test]
fn volumes_of_the_stack() {
    let lowered = lower(
        "services:
  a: {image: x, volumes: ['nfs:/n', 'both:/b']}
  b: {image: x, volumes: [/anonymous], volumes_from: ['a:ro', c]}
  c: {image: x, volumes: [/anonymous, './s:/s']}
  p: {command: ./p, volumes: ['both:/b', 'own:/o']}
volumes:
  nfs: {driver: nfs, driver_opts: {o: addr=10.0.0.1, n: 3}}
  both: {driver: local}
  own: {driver: nfs}
",
    );
    let volumes = serde_json::to_value(&lowered.stack.volumes).unwrap();
    assert_eq!(
        volumes["nfs"],
        json!({"name": "app_nfs", "external": false, "labels": {}, "driver": "nfs",
               "driver_opts": {"o": "addr=10.0.0.1", "n": "3"}})
    );
    assert_eq!(volumes["both"], json!({"name": "app_both", "external": false, "labels": {}}));
    let targets: Vec<(&str, bool)> = lowered.stack.services["b"]
        .spec
        .mounts
        .iter()
        .map(|mount| (mount.target.to_str().unwrap(), mount.read_only))
        .collect();
    assert_eq!(targets, [("/anonymous", false), ("/n", true), ("/b", true), ("/s", false)]);
    let notes: Vec<String> = lowered.notes.iter().map(ToString::to_string).collect();
    let told = |text: &str| notes.iter().any(|note| note.contains(text));
    assert!(
        told("yaml:8:3: warning: containers and host processes do not share the volume `both`"),
        "{notes:#?}"
    );
    assert!(told("yaml:9:17: warning: the volume driver `nfs` has no effect"), "{notes:#?}");
    assert!(told("the volume /anonymous of `c` has no name and is not shared"), "{notes:#?}");
}

#[test]
fn health_and_logs() {
    let of_image = "/spec/container/from_image/health";
    check(&[
        ("", of_image, json!({})),
        ("", "/spec/health", Json::Null),
        (
            "healthcheck: {interval: 5s, retries: 2}",
            of_image,
            json!({"interval": 5000, "retries": 2}),
        ),
        (
            "healthcheck: {timeout: 1s, start_period: 2s, start_interval: 3s}",
            of_image,
            json!({"timeout": 1000, "start_period": 2000, "start_interval": 3000}),
        ),
        ("healthcheck: {disable: true}", of_image, Json::Null),
        ("healthcheck: {test: [NONE]}", of_image, Json::Null),
        ("healthcheck: {test: [CMD, a]}", of_image, Json::Null),
        ("healthcheck: {test: [CMD, a]}", "/spec/health/test", json!({"exec": ["a"]})),
        (
            "healthcheck: {test: 'a $$B', interval: 5s}",
            "/spec/health/test",
            json!({"shell": "a $B"}),
        ),
        ("healthcheck: {test: a}", "/spec/health/interval", json!(30_000)),
        ("", "/spec/container/log_driver", Json::Null),
        ("logging: {driver: none}", "/spec/logs/keep", json!(false)),
        ("logging: {driver: none}", "/spec/container/log_driver", json!("none")),
        ("logging: {options: {max-size: 1m, max-file: 2}}", "/spec/logs/max_size", json!(1 << 20)),
        (
            "logging: {driver: gelf, options: {gelf-address: 'udp://h:1', tag: }}",
            "/spec/container/log_options",
            json!({"gelf-address": "udp://h:1", "tag": ""}),
        ),
    ]);
}

#[test]
fn steps_of_a_container() {
    let lowered = lower(&with(
        "pre_start: [{image: tools, command: ./migrate, privileged: true, working_dir: w}, {image: seed}],
         post_start: [{command: [warm], user: root, environment: {A: $PORT}, privileged: true}],
         pre_stop: [{command: bye}]",
    ));
    let spec = &lowered.stack.services["a"].spec;
    let step = &spec.pre_start[0];
    assert_eq!((step.image.as_deref(), step.privileged), (Some("tools"), true));
    assert_eq!(step.working_dir.as_deref(), Some("w".as_ref()));
    assert!(spec.pre_start[1].command.is_empty());
    let step = &spec.post_start[0];
    assert_eq!((step.user.as_deref(), step.privileged), (Some("root"), true));
    assert_eq!(step.environment["A"], "1");
    assert_eq!(lowered.further_images.keys().collect::<Vec<_>>(), ["seed", "tools"]);
    assert_eq!(lowered.notes, []);
}

#[test]
fn pull_policies() {
    let hours = |hours: u64| PullPolicy::Every(std::time::Duration::from_secs(hours * 3600));
    for (keys, expected) in [
        ("", PullPolicy::Missing),
        ("pull_policy: if_not_present", PullPolicy::Missing),
        ("pull_policy: missing", PullPolicy::Missing),
        ("pull_policy: always", PullPolicy::Always),
        ("pull_policy: never", PullPolicy::Never),
        ("pull_policy: build, build: .", PullPolicy::Build),
        ("pull_policy: daily", hours(24)),
        ("pull_policy: weekly", hours(7 * 24)),
        ("pull_policy: every_12h", hours(12)),
        ("pull_policy: every_2d", hours(48)),
        ("pull_policy: refresh, pull_refresh_after: 3h", hours(3)),
    ] {
        assert_eq!(lower(&with(keys)).images["a"].pull, expected, "{keys}");
    }
}

#[test]
fn builds() {
    let lowered = lower(
        "services:
  plain: {build: .}
  remote: {image: r, build: 'https://example.com/r.git#main'}
  full:
    image: registry.example/full:1
    platform: linux/amd64
    build:
      context: ./src
      dockerfile: d/Dockerfile
      args: {A: a, TOKEN: , GONE: }
      target: prod
      labels: [l=1]
      cache_from: [c]
      cache_to: [type=inline]
      no_cache: true
      no_cache_filter: deps
      pull: true
      network: host
      shm_size: 64m
      extra_hosts: [h=1.2.3.4]
      ulimits: {nofile: 7}
      additional_contexts: {one: ./one, two: 'docker-image://alpine', three: 'service:plain'}
      secrets: [token, {source: key, target: other}]
      ssh: [default, k=./id]
      tags: [t]
      platforms: [linux/amd64, linux/arm64]
      privileged: true
      entitlements: [network.host]
  inline: {build: {dockerfile_inline: FROM scratch}}
secrets: {token: {environment: TOKEN}, key: {file: key.pem}}
",
    );
    let image = |name: &str| serde_json::to_value(&lowered.images[name]).unwrap();
    assert_eq!(
        image("plain"),
        json!({"reference": "app-plain", "build": {"context": "/app", "dockerfile": "Dockerfile"}})
    );
    assert_eq!(lowered.stack.services["plain"].spec.image.as_deref(), Some("app-plain"));
    assert_eq!(image("remote")["build"]["context"], "https://example.com/r.git#main");
    assert_eq!(
        image("full"),
        json!({
            "reference": "registry.example/full:1",
            "platform": "linux/amd64",
            "build": {
                "context": "/app/src", "dockerfile": "d/Dockerfile", "args": {"A": "a", "TOKEN": "hush"},
                "target": "prod", "labels": {"l": "1"}, "cache_from": ["c"], "cache_to": ["type=inline"],
                "no_cache": true, "no_cache_filter": ["deps"], "pull": true, "network": "host",
                "shm_size": 64 << 20, "extra_hosts": {"h": ["1.2.3.4"]}, "ulimits": {"nofile": [7, 7]},
                "additional_contexts": {
                    "one": "/app/one", "two": "docker-image://alpine", "three": "service:plain"
                },
                "secrets": [{"id": "token", "content": "aHVzaA=="}, {"id": "other", "content": "cGVt"}],
                "ssh": {"default": null, "k": "/app/id"}, "tags": ["t"],
                "platforms": ["linux/amd64", "linux/arm64"], "privileged": true,
                "entitlements": ["network.host"],
            },
        })
    );
    assert_eq!(
        image("inline")["build"],
        json!({"context": "/app", "dockerfile_inline": "FROM scratch"})
    );
}

/// Only `a` is asked for, and `base` is not started with it.
#[test]
fn a_build_may_begin_with_what_a_service_builds_that_does_not_run() {
    let lower_a = |more: &str| {
        let compose = format!(
            "services:
  a: {{build: {{context: ., additional_contexts: {{base: 'service:base'}}}}}}
  base: {{build: {{context: ./base{more}}}}}
secrets: {{token: {{environment: TOKEN}}}}
"
        );
        let source = MemorySource::new().with("/app/compose.yaml", compose);
        let mut options = LoadOptions::new("/app", BTreeMap::new());
        options.services = vec!["a".to_owned()];
        load(&options, &source).unwrap().to_stack(&source)
    };
    let lowered = lower_a("").unwrap();
    assert_eq!(lowered.stack.services.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(lowered.images["base"].reference, "app-base");
    let found = lower_a(", secrets: [token]").unwrap_err()[0].to_string();
    assert!(
        found.contains("3:45: error: the secret `token` is for the build of a service"),
        "{found}"
    );
}

#[test]
fn watches() {
    let lowered = lower(&with(
        "build: ., develop: {watch: [
           {path: ./src, action: sync, target: /src, ignore: [node_modules], include: '*.js', initial_sync: true},
           {path: package.json, action: rebuild},
           {path: a, action: restart},
           {path: b, action: sync+restart, target: /b},
           {path: c, action: sync+exec, target: /c, exec: {command: reload, user: u}}]}",
    ));
    let rules = &lowered.watch["a"];
    let actions: Vec<WatchAction> = rules.iter().map(|rule| rule.action).collect();
    assert_eq!(
        actions,
        [
            WatchAction::Sync,
            WatchAction::Rebuild,
            WatchAction::Restart,
            WatchAction::SyncRestart,
            WatchAction::SyncExec
        ]
    );
    let first = &rules[0];
    assert_eq!(
        (first.path.to_str(), first.target.as_deref()),
        (Some("/app/src"), Some("/src".as_ref()))
    );
    assert_eq!(
        (&first.ignore[..], &first.include[..]),
        (&["node_modules".into()][..], &["*.js".into()][..])
    );
    assert!(first.initial_sync && first.exec.is_none());
    let step = rules[4].exec.as_ref().unwrap();
    assert_eq!((&step.command[..], step.user.as_deref()), (&["reload".to_owned()][..], Some("u")));
    assert_eq!(first.span.to_string(), "/app/compose.yaml:2:19");
    assert!(lowered.notes.is_empty(), "{:?}", lowered.notes);
}

/// Every row: keys of a service with an `@` where the error is, what it says, what it advises.
#[test]
fn what_is_refused() {
    for (keys, message, help) in [
        (
            "scale: 2, network_mode: @host, expose: [80]",
            "would all want its ports of the host",
            "one replica",
        ),
        (
            "scale: 2, networks: {back: {ipv4_address: @10.0.0.7}}",
            "the same `ipv4_address`",
            "one replica",
        ),
        (
            "deploy: {replicas: 2}, mac_address: @'02:42:ac:11:00:03'",
            "the same `mac_address`",
            "one replica",
        ),
        (
            "networks: {back: {ipv4_address: @'fd00::7'}}",
            "`fd00::7` is not an IPv4 address",
            "leave it out",
        ),
        (
            "network_mode: 'service:b', ports: @['80:80']",
            "can't publish ports",
            "at the service whose network it is",
        ),
        ("dns: [@resolver]", "`resolver` must be an IP address", "write for example"),
        ("security_opt: [@nothing]", "`nothing` is not a security option", "no-new-privileges"),
        (
            "security_opt: [@seccomp=gone.json]",
            "cannot read the seccomp profile /app/gone.json",
            "create the file",
        ),
        (
            "security_opt: [@seccomp=broken.json]",
            "/app/broken.json is not JSON",
            "correct the file",
        ),
        ("mem_swappiness: @101", "must be from 0 to 100, not 101", "write for example 10"),
        ("blkio_config: {weight: @5}", "from 10 to 1000, not 5", "write for example 500"),
        ("tmpfs: [@'/t:bogus']", "`bogus` is not a tmpfs option", "write for example"),
        (
            "volumes: [@{type: npipe, source: a, target: /a}]",
            "mounts of the type `npipe`",
            "use the type",
        ),
        ("volumes: [@{type: image, target: /a}]", "needs a `source`", "name the image"),
        ("pull_policy: @build", "there is no `build`", "add a `build`"),
        ("pull_policy: @alwayss", "`alwayss` is not a pull policy", "did you mean `always`?"),
        ("ports: [@'80:80/sctp']", "does not speak `sctp`", "use tcp or udp"),
        ("post_start: [@{command: []}]", "has no command", "give it a `command`"),
        ("stop_signal: @SIGNOPE", "`SIGNOPE` is not a signal", "write for example"),
    ] {
        let marked = with(keys);
        let column = marked.find('@').unwrap() + 1;
        let found = errors(&marked.replace('@', ""));
        let start = format!("/app/compose.yaml:1:{column}: error: ");
        assert_eq!(found.len(), 1, "{keys}: {found:#?}");
        assert!(found[0].starts_with(&start), "{keys}: {found:#?}");
        assert!(found[0].contains(message) && found[0].contains(help), "{keys}: {found:#?}");
    }
}

#[test]
fn images_that_cannot_be() {
    for (compose, message, help) in [
        (
            "services: {a: {command: ./a, x-keel: {runtime: container}}}",
            "1:48: error: the service `a` is to be a container but has no image",
            "give it an `image`",
        ),
        (
            "services: {a: {image: 'Nginx Latest'}}",
            "1:23: error: `Nginx Latest` is not the name",
            "nginx:1.27",
        ),
        (
            "services: {a: {image: reg/Nginx}}",
            "1:23: error: `reg/Nginx` is not the name",
            "write `reg/nginx`",
        ),
        (
            "services: {a: {image: x, ipc: 'service:p'}, p: {command: ./p}}",
            "1:31: error: `ipc` of `a` can't be that of `p`",
            "write `host`",
        ),
        (
            "services: {a: {image: x, networks: [n]}}\nnetworks: {n: {ipam: {config: [{subnet: 10.0.0}]}}}",
            "2:41: error: `10.0.0` is not a range of addresses",
            "172.28.0.0/16",
        ),
    ] {
        let found = errors(compose);
        assert_eq!(found.len(), 1, "{compose}: {found:#?}");
        assert!(found[0].contains(message) && found[0].contains(help), "{compose}: {found:#?}");
    }
    let models = "services: {a: {image: x, models: [m]}}\nmodels: {m: {model: m}}";
    assert!(errors(models)[0].contains("1:26: error: `models` does not work here"));
    for image in ["Registry/nginx", "localhost:5000/A/b:Tag"] {
        let found = lower_from(&format!("services: {{a: {{image: '{image}'}}}}"));
        assert_eq!(found.is_ok(), image.starts_with('R'), "{image}");
    }
}

#[test]
fn what_has_no_effect_is_told() {
    for (keys, message) in [
        ("x-keel: {network: isolated}", "`x-keel.network` has no effect"),
        ("ports: ['53:53/udp'], scale: 2", "UDP ports of the host lead to one replica of `a` only"),
        ("expose: ['53/udp']", "UDP has no effect inside the stack"),
        ("network_mode: host, ports: ['80:80']", "no port is published"),
        (
            "ports: ['53:53/udp'], deploy: {update_config: {order: start-first}}",
            "`start-first` has no effect",
        ),
        ("cpu_percent: 10", "Windows"),
        ("isolation: process", "Windows"),
        ("credential_spec: {file: c}", "Windows"),
        ("build: {context: ., provenance: true}", "nothing is attested"),
        ("deploy: {resources: {reservations: {cpus: '1'}}}", "nothing is reserved"),
        ("command: a && b", "&& b"),
    ] {
        let told = notes(&with(keys));
        assert!(told.iter().any(|note| note.contains(message)), "{keys}: {told:#?}");
    }
    let quiet = "privileged: true, build: {context: ., provenance: false}, cap_add: [A], hostname: h, networks: [back], read_only: true, dns: 192.0.2.1,
        volumes: ['data:/d:nocopy'], shm_size: 1m, deploy: {resources: {reservations: {memory: 1m}}}";
    assert_eq!(notes(&with(quiet)), Vec::<String>::new());
}

#[test]
fn kinds_mix() {
    let lowered = lower("services: {a: {command: ./a $PORT}, b: {image: x, command: [$PORT]}}");
    let spec = |name: &str| &lowered.stack.services[name].spec;
    assert_eq!(
        (spec("a").runtime, spec("b").runtime),
        (RuntimeKind::Process, RuntimeKind::Container)
    );
    assert_eq!((&spec("a").command[1], &spec("b").command[0]), (&"${PORT}".into(), &"1".into()));
    assert_eq!(lowered.images.keys().map(|name| name.as_str()).collect::<Vec<_>>(), ["b"]);
}

/// Every key that a container is said to have changes what is lowered.
#[test]
fn no_key_is_ignored_in_silence() {
    let plain = shown("command: x");
    for row in SERVICE_KEYS {
        if !matches!(row.container, Support::Honoured | Support::Partly(_))
            || SEEN_BEFORE.contains(&row.key)
        {
            continue;
        }
        let (_, value) = EXAMPLES
            .iter()
            .find(|(key, _)| *key == row.key)
            .unwrap_or_else(|| panic!("there is no example of `{}`", row.key));
        let command = if row.key == "command" { "" } else { "command: x, " };
        assert_ne!(shown(&format!("{command}{}: {value}", row.key)), plain, "{}", row.key);
    }
}

/// Keys that are gone when a service is lowered: what they bring has come into it, or it is not there at all.
const SEEN_BEFORE: [&str; 5] = ["image", "extends", "env_file", "label_file", "profiles"];

const EXAMPLES: [(&str, &str); 81] = [
    ("annotations", "{a: b}"),
    ("blkio_config", "{weight: 10}"),
    ("build", "."),
    ("cap_add", "[A]"),
    ("cap_drop", "[A]"),
    ("cgroup", "host"),
    ("cgroup_parent", "p"),
    ("command", "y"),
    ("configs", "[conf]"),
    ("container_name", "name"),
    ("cpu_period", "1000, cpu_quota: 500"),
    ("cpu_quota", "500"),
    ("cpu_rt_period", "1000"),
    ("cpu_rt_runtime", "1000"),
    ("cpu_shares", "7"),
    ("cpus", "2"),
    ("cpuset", "'0'"),
    ("depends_on", "[b]"),
    ("deploy", "{replicas: 3}"),
    ("develop", "{watch: [{path: ., action: rebuild}]}"),
    ("device_cgroup_rules", "['c 1:3 mr']"),
    ("devices", "[/dev/a]"),
    ("dns", "192.0.2.1"),
    ("dns_opt", "[a]"),
    ("dns_search", "a"),
    ("domainname", "a"),
    ("entrypoint", "a"),
    ("environment", "[A=b]"),
    ("expose", "[80]"),
    ("external_links", "[a]"),
    ("extra_hosts", "[a=192.0.2.1]"),
    ("gpus", "all"),
    ("group_add", "[a]"),
    ("healthcheck", "{disable: true}"),
    ("hostname", "a"),
    ("init", "true"),
    ("ipc", "host"),
    ("labels", "[a=b]"),
    ("links", "['b:other']"),
    ("logging", "{driver: journald}"),
    ("mac_address", "'02:42:ac:11:00:03'"),
    ("mem_limit", "1g"),
    ("mem_reservation", "1g"),
    ("mem_swappiness", "7"),
    ("memswap_limit", "1g"),
    ("network_mode", "none"),
    ("networks", "[back]"),
    ("oom_kill_disable", "true"),
    ("oom_score_adj", "7"),
    ("pid", "host"),
    ("pids_limit", "-1"),
    ("platform", "linux/arm64"),
    ("ports", "['80:80']"),
    ("post_start", "[{command: a}]"),
    ("pre_start", "[{command: a}]"),
    ("pre_stop", "[{command: a}]"),
    ("privileged", "true"),
    ("pull_policy", "always"),
    ("pull_refresh_after", "3h, pull_policy: refresh"),
    ("read_only", "true"),
    ("restart", "always"),
    ("runtime", "a"),
    ("scale", "3"),
    ("secrets", "[token]"),
    ("security_opt", "[a=b]"),
    ("shm_size", "1m"),
    ("stdin_open", "true"),
    ("stop_grace_period", "1s"),
    ("stop_signal", "INT"),
    ("storage_opt", "{a: b}"),
    ("sysctls", "{a: b}"),
    ("tmpfs", "/a"),
    ("tty", "true"),
    ("ulimits", "{nofile: 7}"),
    ("use_api_socket", "true"),
    ("user", "a"),
    ("userns_mode", "host"),
    ("uts", "host"),
    ("volumes", "[/a]"),
    ("volumes_from", "['container:a']"),
    ("working_dir", "/a"),
];

/// What is lowered, as text; notes are none of it.
fn shown(keys: &str) -> String {
    let mut lowered = lower(&with(keys));
    lowered.notes.clear();
    format!("{lowered:?}")
}

/// What the platform adds must not replace containers: what a spec leaves out is left out of its stored form.
#[test]
fn revisions_of_containers_are_the_same_in_every_version() {
    let spec = lower("services: {a: {image: x}}").stack.services["a"].spec.clone();
    let container = serde_json::to_value(spec.container.as_ref().unwrap()).unwrap();
    assert_eq!(
        container,
        json!({
            "from_image": {"health": {}, "stop_signal": true, "ports": true},
            "network": {"attached": [{"network": "app_default"}]},
        })
    );
}
