//! Routes with the real binary: listed, shown as a difference, changed under running instances, refused when taken.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use support::{Running, free_port, responder};

fn compose(name: &str, port: u16, rule: &str, host: &str) -> String {
    format!(
        "name: {name}
x-keel:
  entrypoints: {{ web: '127.0.0.1:{port}' }}
services:
  web:
    command: {}
    expose: ['80']
    labels:
      - traefik.http.routers.site.rule={rule}
    x-keel:
      routes:
        - host: {host}
          path: /api
          rate_limit: 100/s
",
        responder(name)
    )
}

#[test]
fn routes_change_in_place_and_are_refused_when_taken() {
    let port = free_port();
    let keel = Running::new(&compose("one", port, "Host(`a.example.com`)", "b.example.com"));
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]);
    assert_eq!(up.code, 0, "{}", up.all());
    assert!(!up.stderr.contains("warning"), "{}", up.stderr);

    let table = keel.run(&["routes"]).ok().replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(table);
    let json = keel.json(&["routes", "web"]);
    assert_eq!(json[0]["rule"], "Host(`b.example.com`) && PathPrefix(`/api`)");
    assert_eq!(json[0]["filters"], serde_json::json!(["rate_limit"]));
    assert_eq!(json[1]["name"], "site");
    assert_eq!(json[1]["entrypoints"][0]["address"], format!("127.0.0.1:{port}"));
    assert_eq!(keel.run(&["routes", "wbe"]).code, 1);

    let before = keel.pids();
    keel.sandbox.write(
        "compose.yaml",
        &compose("one", port, "Host(`c.example.com`)", "b.example.com").replace("100/s", "200/s"),
    );
    let diff = keel.run(&["diff"]).ok();
    insta::assert_snapshot!(diff);
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]);
    assert_eq!(up.code, 0, "{}", up.all());
    assert_eq!(keel.pids(), before, "no instance is replaced");

    keel.sandbox.write("two.yaml", &compose("two", port, "Host(`d.example.com`)", "b.example.com"));
    let refused = keel.run(&["-f", "two.yaml", "up", "-d"]);
    assert_eq!(refused.code, 1, "{}", refused.all());
    insta::assert_snapshot!(refused.stderr.replace(&port.to_string(), "PORT"));
    assert_eq!(
        keel.run(&["ls", "-q"]).ok(),
        "one\n",
        "a refused change leaves everything as it was"
    );
    assert!(keel.run(&["routes", "--all"]).ok().contains("c.example.com"));
}
