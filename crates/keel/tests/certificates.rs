//! Certificates with the real binary: issued by Pebble over the real proxy, with either proof, and kept over the server's death.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../keel-acme/tests/pebble/authority.rs"]
mod authority;
mod support;

use std::io::Write as _;
use std::process::{Command, Stdio};

use authority::Pebble;
use keel_model::AcmeChallenge;
// Used by `authority`, which belongs to another crate's tests.
use rcgen as _;
use support::{Running, responder, wait_for};

fn compose(pebble: &Pebble, challenge: &str) -> String {
    let acme = pebble.acme(AcmeChallenge::default());
    let (http, tls) = pebble.proofs;
    format!(
        "name: secure
x-keel:
  entrypoints: {{ web: '127.0.0.1:{http}', websecure: '127.0.0.1:{tls}' }}
  acme: {{ directory: '{}', challenge: {challenge}, ca: '{}' }}
services:
  web:
    command: {}
    expose: ['80']
    x-keel:
      routes: [{{ host: [shop.test, www.shop.test], tls: acme }}]
",
        acme.directory,
        acme.ca.unwrap().display(),
        responder("over TLS")
    )
}

/// Who issued the certificate that is shown for `shop.test`, and its serial number.
fn shown(port: u16) -> String {
    let connection = Command::new("openssl")
        .args(["s_client", "-connect", &format!("127.0.0.1:{port}"), "-servername", "shop.test"])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let mut reader = Command::new("openssl")
        .args(["x509", "-noout", "-issuer", "-serial"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // It ends early when there is no certificate in it.
    let _ = reader.stdin.take().unwrap().write_all(&connection.stdout);
    String::from_utf8(reader.wait_with_output().unwrap().stdout).unwrap()
}

fn issued(challenge: &str) {
    let pebble = Pebble::start();
    let tls = pebble.proofs.1;
    let keel = Running::new(&compose(&pebble, challenge));
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]);
    assert_eq!(up.code, 0, "{}", up.all());
    let first = wait_for("a certificate of Pebble", || {
        let shown = shown(tls);
        shown.contains("Pebble Intermediate").then_some(shown)
    });
    let events = keel.run(&["events"]).ok();
    assert!(events.contains("certificate for shop.test, www.shop.test issued by"), "{events}");
    let answer = Command::new("curl")
        .args(["-sSk", "--resolve", &format!("shop.test:{tls}:127.0.0.1")])
        .arg(format!("https://shop.test:{tls}/"))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout), "over TLS", "{answer:?}");

    let server = rustix::process::Pid::from_raw(i32::try_from(keel.server_pid()).unwrap()).unwrap();
    rustix::process::kill_process(server, rustix::process::Signal::KILL).unwrap();
    assert_eq!(shown(tls), first, "nobody needs the server for that");
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]);
    assert_eq!(up.code, 0, "{}", up.all());
    for _ in 0..20 {
        assert_eq!(shown(tls), first, "a new server knows it from the first moment");
    }
}

#[test]
fn a_certificate_is_issued_over_http() {
    issued("http-01");
}

#[test]
fn a_certificate_is_issued_over_tls() {
    issued("tls-alpn-01");
}
