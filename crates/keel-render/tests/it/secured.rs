//! TLS on the real engines, in front and behind.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;

use keel_model::{ClientAuth, Protocol, RouteKind, Rule, UpstreamTls};
use keel_route::snapshot::ListenerTls;

use crate::echo::{Echo, ask};
use crate::engine::{Running, installed, own_address};
use crate::make::{cluster, host, id, prefix, route, routed, with_policy};
use crate::tls::{authority, certificate};
use crate::traffic::{HERE, curl, direct, greeter, secure};

#[test]
fn certificates_by_name_and_http2_by_alpn() {
    let echo = Echo::new("one");
    let authority = authority();
    for engine in installed() {
        let bind = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let snapshot = routed(bind, vec![route("all", prefix("/"), "one")], clusters);
        let mut snapshot = secure(snapshot, ListenerTls::default());
        Arc::make_mut(&mut snapshot.certificates).push(certificate(&authority, &["first.example"]));
        Arc::make_mut(&mut snapshot.certificates)
            .push(certificate(&authority, &["a.example", "*.b.example"]));
        let running = Running::start(engine, &snapshot);
        let ca = running.directory.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let port = bind.port();
        for (name, good) in [
            ("a.example", true),
            ("x.b.example", true),
            ("first.example", true),
            ("c.example", false),
        ] {
            let output = Command::new("curl")
                .args(["-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_version} %{http_code}"])
                .arg("--cacert")
                .arg(&ca)
                .args(["--resolve", &format!("{name}:{port}:{}", bind.ip())])
                .arg(format!("https://{name}:{port}/"))
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said == "2 200", good, "{engine:?}, {name}: {said}");
        }
    }
}

#[test]
fn certificates_of_clients_and_the_oldest_version() {
    let echo = Echo::new("one");
    let authority = authority();
    let client = certificate(&authority, &["client"]);
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (ca, cert, key) = (
        file("ca.pem", &authority.pem()),
        file("cert.pem", &client.chain),
        file("key.pem", &client.key),
    );
    for engine in installed() {
        let bind = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let snapshot = routed(bind, vec![route("all", prefix("/"), "one")], clusters);
        let tls = ListenerTls {
            min: keel_model::TlsVersion::V1_3,
            client_auth: Some(ClientAuth { ca: ca.clone().into(), optional: false }),
        };
        let mut snapshot = secure(snapshot, tls);
        Arc::make_mut(&mut snapshot.certificates).push(certificate(&authority, &["a.example"]));
        let _running = Running::start(engine, &snapshot);
        let url = format!("https://{bind}/");
        assert!(curl(&["--cert", &cert, "--key", &key, &url]).contains("2 200"), "{engine:?}");
        assert!(!curl(&[&url]).contains(" 200"), "{engine:?}: without a certificate");
        let old = curl(&["--cert", &cert, "--key", &key, "--tls-max", "1.2", &url]);
        assert!(!old.contains(" 200"), "{engine:?}: {old}");
    }
}

#[test]
fn tls_towards_services() {
    let echo = Echo::new("one");
    let (good, bad) = (authority(), authority());
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let identity = certificate(&good, &["proxy"]);
    let (ca, other) = (file("good.pem", &good.pem()), file("bad.pem", &bad.pem()));
    let (cert, key) = (file("cert.pem", &identity.chain), file("key.pem", &identity.key));
    for engine in installed() {
        // The service is an engine as well: it ends TLS, and wants to see a certificate.
        let inner = own_address();
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let behind = routed(inner, vec![route("all", prefix("/"), "one")], clusters);
        let auth = ClientAuth { ca: ca.clone(), optional: false };
        let tls = ListenerTls { client_auth: Some(auth), ..ListenerTls::default() };
        let mut behind = secure(behind, tls);
        Arc::make_mut(&mut behind.certificates).push(certificate(&good, &["service.example"]));
        let _behind = Running::start(engine, &behind);
        for (trusted, name, status) in [
            (&ca, "service.example", 200),
            (&other, "service.example", 502),
            (&ca, "wrong.example", 502),
        ] {
            let bind = own_address();
            let tls = UpstreamTls {
                server_name: Some(name.to_owned()),
                ca: Some(trusted.clone()),
                identity: Some((cert.clone(), key.clone())),
                insecure: false,
            };
            let one = with_policy(cluster(&[("one", inner)]), |policy| policy.tls = Some(tls));
            let _running = Running::start(engine, &direct(bind, Protocol::Http, one));
            // nginx wants the host of a request to be that of the handshake where it asks for certificates.
            let request = b"GET / HTTP/1.1\r\nHost: service.example\r\nConnection: close\r\n\r\n";
            let found = ask(bind, HERE, request).status;
            let refused = status == 502 && (found == 502 || found == 503);
            assert!(found == status || refused, "{engine:?}, {name}: {found}");
        }
    }
}

#[test]
fn connections_by_server_name_beside_requests() {
    let echo = Echo::new("web");
    let (passed, ended) = (own_address(), greeter("ended"));
    let authority = authority();
    for engine in installed() {
        // What is passed through ends its TLS itself, with a certificate of its own.
        let clusters = crate::cases::clusters(&[("one", echo.address)]);
        let inner = routed(passed, vec![route("inner", prefix("/"), "one")], clusters);
        let mut inner = secure(inner, ListenerTls::default());
        Arc::make_mut(&mut inner.certificates).push(certificate(&authority, &["pass.example"]));
        let _inner = Running::start(engine, &inner);

        let bind = own_address();
        let mut clusters = crate::cases::clusters(&[("one", echo.address)]);
        for (name, address) in [("pass", passed), ("tcp", ended)] {
            let mut one = cluster(&[(name, address)]);
            one.protocol = Protocol::Tcp;
            clusters.insert(id(name), one);
        }
        let mut pass = route("pass", Rule::Sni("pass.example".to_owned()), "pass");
        pass.kind = RouteKind::Passthrough;
        let mut tcp = route("tcp", Rule::Sni("*.tcp.example".to_owned()), "tcp");
        tcp.kind = RouteKind::Tcp;
        let routes = vec![pass, tcp, route("web", host("web.example"), "one")];
        let mut snapshot = secure(routed(bind, routes, clusters), ListenerTls::default());
        Arc::make_mut(&mut snapshot.certificates)
            .push(certificate(&authority, &["web.example", "*.tcp.example"]));
        let running = Running::start(engine, &snapshot);
        let ca = running.directory.path().join("ca.pem");
        std::fs::write(&ca, authority.pem()).unwrap();
        let ca = ca.to_str().unwrap();
        let port = bind.port();
        let ip = bind.ip();
        for name in ["web.example", "pass.example"] {
            let resolve = format!("{name}:{port}:{ip}");
            let url = format!("https://{name}:{port}/");
            let output = Command::new("curl")
                .args(["-s", "-m", "10", "--cacert", ca, "--resolve", &resolve, &url])
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stdout).to_lowercase();
            assert!(text.starts_with("web\n"), "{engine:?}, {name}: {text}\n{}", running.config());
            if name == "web.example" {
                assert!(text.contains("x-forwarded-for: 127.0.0.1"), "{engine:?}: {text}");
            }
        }
        let mut client = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-CAfile", ca])
            .args(["-servername", "x.tcp.example", "-verify_hostname", "x.tcp.example"])
            .args(["-connect", &bind.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut said = [0; 11];
        let read = client.stdout.take().unwrap().read_exact(&mut said);
        let _ = client.kill();
        client.wait().unwrap();
        assert!(read.is_ok() && said == *b"I am ended\n", "{engine:?}: {}", running.config());
    }
}
