//! `keel render` of the state that a proxy kept: the configuration, what the engine can't do, and no secrets on the way.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;

use keel_model::{BasicAuth, Endpoint, EndpointState, Filters, InstanceId, RouteKind, Rule};
use keel_route::snapshot::{Cluster, Listener, RouteEntry, RouteTable, Snapshot};
use support::Sandbox;

/// A service behind a route with a password, and at a virtual address of its own.
fn kept() -> Sandbox {
    let instance = InstanceId::new("shop-web-1").unwrap();
    let address = "127.0.0.1:20000".parse().unwrap();
    let endpoint = Endpoint { instance, address, state: EndpointState::Ready };
    let cluster = Cluster { endpoints: vec![endpoint], ..Cluster::default() };
    let users = vec!["ann:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC".to_owned()];
    let route = RouteEntry {
        name: "shop/web".to_owned(),
        rule: Rule::Host("shop.test".to_owned()),
        priority: 10,
        kind: RouteKind::Http,
        clusters: vec![("shop/web:80".to_owned(), 1000)],
        filters: Filters {
            basic_auth: Some(BasicAuth {
                realm: "shop".to_owned(),
                users,
                user_header: None,
                remove_header: false,
            }),
            ..Filters::default()
        },
        timeout_ms: None,
    };
    let at = |bind: &str| Listener { bind: bind.parse().unwrap(), ..Listener::default() };
    let snapshot = Snapshot {
        listeners: vec![
            Listener { table: Some("web".to_owned()), ..at("0.0.0.0:8080") },
            Listener { cluster: "shop/web:80".to_owned(), ..at("127.77.0.1:80") },
        ],
        clusters: BTreeMap::from([("shop/web:80".to_owned(), cluster)]),
        tables: BTreeMap::from([(
            "web".to_owned(),
            RouteTable { routes: vec![route], redirect_https: None },
        )]),
        ..Snapshot::default()
    };
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.state_dir()).unwrap();
    let json = serde_json::to_vec(&snapshot).unwrap();
    std::fs::write(sandbox.state_dir().join("proxy.snapshot"), json).unwrap();
    sandbox
}

#[test]
fn haproxy_gets_one_file() {
    insta::assert_snapshot!(kept().run(&["render", "haproxy"]).all());
}

#[test]
fn nginx_gets_one_file_and_what_it_lacks_is_told() {
    if !std::path::Path::new("/usr/lib/nginx/modules/ngx_stream_module.so").exists() {
        eprintln!("skipped: no libnginx-mod-stream");
        return;
    }
    insta::assert_snapshot!(kept().run(&["render", "nginx"]).all());
}

#[test]
fn a_directory_gets_all_files() {
    let sandbox = kept();
    for (engine, main) in [("haproxy", "haproxy.cfg"), ("nginx", "nginx.conf")] {
        let done = sandbox.run(&["render", engine, "--out", engine]);
        assert_eq!((done.code, done.stdout.as_str()), (0, ""), "{}", done.all());
        assert!(done.stderr.contains(" to nginx; ") || done.stderr.contains(" to haproxy; "));
        assert!(sandbox.app().join(engine).join(main).exists(), "{}", done.all());
    }
}

#[test]
fn programs_get_the_files_and_the_gaps() {
    let json = kept().run(&["render", "nginx", "--output", "json"]).ok();
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["engine"], &json["main"]), (&"nginx".into(), &"nginx.conf".into()));
    assert!(json["files"]["nginx.conf"].as_str().unwrap().contains("shop.test"));
    let gaps = json["gaps"].as_array().unwrap();
    assert!(
        gaps.iter().any(|gap| gap["where"] == "listener 127.77.0.1:80 (shop/web:80)"),
        "{gaps:?}"
    );
}

#[test]
fn without_any_state_there_is_nothing_to_render() {
    let done = Sandbox::new().run(&["render", "haproxy"]);
    assert_eq!(done.code, 4, "{}", done.all());
    insta::assert_snapshot!(done.stderr);
}
