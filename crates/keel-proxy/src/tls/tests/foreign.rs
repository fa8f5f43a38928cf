//! OpenSSL and curl as clients of a listener.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use keel_model::{ClientAuth, TlsVersion};
use keel_route::snapshot::{Certificate, Challenges, ListenerTls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::super::{ClientCertificate, ListenerConfig, Listeners, accept};
use super::authority::Authority;
use super::{PATIENCE, deadline, first_bytes};

/// A listener in a thread of its own. Answers every request with a line about the connection, and large bodies on demand.
struct Server {
    address: SocketAddr,
    _stop: tokio::sync::oneshot::Sender<()>,
}

impl Server {
    fn start(config: ListenerConfig) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let set = tokio::task::LocalSet::new();
            runtime.unwrap().block_on(set.run_until(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                tell.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, config) => {}
                }
            }));
        });
        Self { address: told.recv().unwrap(), _stop: stop }
    }
}

async fn serve(listener: TcpListener, config: ListenerConfig) {
    loop {
        let (tcp, _) = listener.accept().await.unwrap();
        let config = config.clone();
        tokio::task::spawn_local(async move {
            let (hello, first) = first_bytes(&tcp).await;
            let deadline = deadline(PATIENCE);
            let config = config.for_hello(&hello);
            let Ok(mut tls) = accept(tcp.into(), &hello, &first, config, &deadline).await else {
                return;
            };
            let client = tls.peer_certificates().and_then(|chain| {
                ClientCertificate::from_der(chain.first()?).map(|client| client.subject)
            });
            let mut about = format!(
                "sni={} alpn={} resumed={} client={}\n",
                tls.sni().unwrap_or("-"),
                String::from_utf8_lossy(&tls.alpn().unwrap_or_default()),
                tls.is_resumed(),
                client.unwrap_or_default(),
            );
            let mut request = vec![0; 4096];
            let Ok(n @ 1..) = tls.read(&mut request).await else { return };
            if request[..n].starts_with(b"GET /large") {
                about = "x".repeat(LARGE);
            }
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", about.len());
            tls.write_all((head + &about).as_bytes()).await.unwrap();
            tls.shutdown().await.unwrap();
        });
    }
}

const LARGE: usize = 3_000_000;

fn listeners(certificates: &[Certificate]) -> Listeners {
    let listeners = Listeners::default();
    assert_eq!(listeners.set_certificates(certificates, &Challenges::default()), []);
    listeners
}

/// `openssl s_client` that asks one question.
fn s_client(server: &Server, arguments: &[&str]) -> Output {
    let mut child = Command::new("openssl")
        .args(["s_client", "-connect", &server.address.to_string()])
        .args(["-ign_eof"])
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have given up before it reads this.
    let _ = std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"GET / HTTP/1.0\n\n");
    child.wait_with_output().unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

fn answer(output: &Output) -> String {
    let text = text(output);
    let line = text.lines().find(|line| line.contains("sni="));
    line.unwrap_or_else(|| panic!("no answer: {text}")).to_owned()
}

fn utf8(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn sessions_are_resumed_with_either_version() {
    let authority = Authority::new("root");
    let listeners = listeners(&[authority.issue(&["a.test"])]);
    let server = Server::start(listeners.config(&ListenerTls::default()).unwrap());
    for version in ["-tls1_2", "-tls1_3"] {
        let file = authority.path("session");
        let first = ["-servername", "a.test", version, "-sess_out", utf8(&file)];
        assert!(answer(&s_client(&server, &first)).contains("resumed=false"), "{version}");
        let second = ["-servername", "a.test", version, "-sess_in", utf8(&file)];
        assert!(answer(&s_client(&server, &second)).contains("resumed=true"), "{version}");
    }
    // Without tickets: by session id, which only TLS 1.2 has.
    let file = authority.path("session");
    let first = ["-servername", "a.test", "-tls1_2", "-no_ticket", "-sess_out", utf8(&file)];
    assert!(answer(&s_client(&server, &first)).contains("resumed=false"));
    let second = ["-servername", "a.test", "-tls1_2", "-no_ticket", "-sess_in", utf8(&file)];
    assert!(answer(&s_client(&server, &second)).contains("resumed=true"));
}

#[test]
fn old_versions_are_refused() {
    let authority = Authority::new("root");
    let listeners = listeners(&[authority.issue(&["a.test"])]);
    let tls = ListenerTls { min: TlsVersion::V1_3, client_auth: None };
    let strict = Server::start(listeners.config(&tls).unwrap());
    assert!(text(&s_client(&strict, &["-tls1_2"])).contains("alert protocol version"));
    assert!(answer(&s_client(&strict, &["-tls1_3"])).contains("sni="));
    let open = Server::start(listeners.config(&ListenerTls::default()).unwrap());
    assert!(text(&s_client(&open, &["-tls1_1"])).contains("alert"));
    assert!(answer(&s_client(&open, &["-tls1_2"])).contains("sni="));
}

#[test]
fn clients_that_know_only_rsa_get_rsa() {
    let authority = Authority::new("root");
    let listeners = listeners(&[
        authority.issue_with(&["a.test"], &rcgen::PKCS_RSA_SHA256, |_| {}),
        authority.issue(&["a.test"]),
    ]);
    let server = Server::start(listeners.config(&ListenerTls::default()).unwrap());
    let kind = |arguments: &[&str]| {
        let text = text(&s_client(&server, &[&["-servername", "a.test"], arguments].concat()));
        let line = text.lines().find(|line| line.starts_with("Peer signature type"));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert!(kind(&[]).ends_with("ECDSA"));
    assert!(kind(&["-sigalgs", "RSA-PSS+SHA256"]).contains("RSA"));
    assert!(kind(&["-tls1_2", "-cipher", "ECDHE-RSA-AES128-GCM-SHA256"]).contains("RSA"));
}

#[test]
fn certificates_of_clients_are_demanded_verified_and_told() {
    let (authority, other) = (Authority::new("clients"), Authority::new("others"));
    let listeners = listeners(&[authority.issue(&["a.test"])]);
    let server = |optional| {
        let client_auth = Some(ClientAuth { ca: authority.file(), optional });
        Server::start(
            listeners.config(&ListenerTls { client_auth, ..ListenerTls::default() }).unwrap(),
        )
    };
    let (chain, key) = authority.identity("ann");
    let known = ["-cert", utf8(&chain), "-key", utf8(&key)];
    let (other_chain, other_key) = other.identity("eve");
    let unknown = ["-cert", utf8(&other_chain), "-key", utf8(&other_key)];
    for version in ["-tls1_2", "-tls1_3"] {
        let required = server(false);
        let said = answer(&s_client(&required, &[&known[..], &[version]].concat()));
        assert!(said.ends_with(r"client=O=A\, B,CN=ann"), "{said}");
        assert!(text(&s_client(&required, &[version])).contains("alert"));
        assert!(text(&s_client(&required, &[&unknown[..], &[version]].concat())).contains("alert"));
        let optional = server(true);
        assert!(answer(&s_client(&optional, &[version])).ends_with("client="));
        assert!(
            answer(&s_client(&optional, &[&known[..], &[version]].concat())).contains("CN=ann")
        );
        assert!(text(&s_client(&optional, &[&unknown[..], &[version]].concat())).contains("alert"));
    }
}

#[test]
fn curl_gets_a_large_answer_whole() {
    let authority = Authority::new("root");
    let listeners = listeners(&[authority.issue(&["a.test"])]);
    let server = Server::start(listeners.config(&ListenerTls::default()).unwrap());
    let port = server.address.port();
    for version in ["1.2", "1.3"] {
        let output = Command::new("curl")
            .args(["-sS", "--http1.1", "--tls-max", version, "--cacert", utf8(&authority.file())])
            .args(["--resolve", &format!("a.test:{port}:127.0.0.1")])
            .arg(format!("https://a.test:{port}/large"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", text(&output));
        assert_eq!(output.stdout.len(), LARGE);
    }
}

#[test]
fn a_proof_is_shown_to_an_authority_that_asks_for_it() {
    let authority = Authority::new("root");
    let proof = authority.issue_with(&["new.test"], &rcgen::PKCS_ECDSA_P256_SHA256, |params| {
        params.custom_extensions = vec![rcgen::CustomExtension::new_acme_identifier(&[7; 32])];
    });
    let listeners = Arc::new(Listeners::default());
    let challenges = Challenges { tls_alpn: vec![proof], ..Challenges::default() };
    assert_eq!(listeners.set_certificates(&[authority.issue(&["old.test"])], &challenges), []);
    // An authority shows no certificate, whatever the listener demands.
    let client_auth = Some(ClientAuth { ca: authority.file(), optional: false });
    let tls = ListenerTls { client_auth, ..ListenerTls::default() };
    let server = Server::start(listeners.config(&tls).unwrap());
    let ask = |name| text(&s_client(&server, &["-servername", name, "-alpn", "acme-tls/1"]));
    let shown = ask("new.test");
    assert!(shown.contains("ALPN protocol: acme-tls/1"), "{shown}");
    assert!(shown.contains("Server certificate"), "{shown}");
    assert!(ask("old.test").contains("alert"), "no certificate of another kind");
    assert!(listeners.set_certificates(&[], &Challenges::default()).is_empty());
    assert!(ask("new.test").contains("alert"), "withdrawn");
}
