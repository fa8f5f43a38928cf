//! Pebble and its DNS server as processes.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use keel_model::{Acme, AcmeChallenge};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

/// A running authority that knows every name as this machine.
pub struct Pebble {
    directory: tempfile::TempDir,
    port: u16,
    /// Where it looks for proofs: HTTP, TLS.
    pub proofs: (u16, u16),
    processes: Vec<Child>,
}

/// Ports that are free and are given to nobody else: below those that the system gives out by itself, and counted, so that
/// tests that run at the same time do not take each other's.
fn free<const N: usize>() -> [u16; N] {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    [(); N].map(|()| {
        for _ in 0..1000 {
            let of_process = u16::try_from(std::process::id() % 100).unwrap() * 150;
            let port = 12_000 + (of_process + NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000;
            if TcpListener::bind(("127.0.0.1", port)).is_ok() {
                return port;
            }
        }
        panic!("no port is free");
    })
}

impl Pebble {
    pub fn start() -> Self {
        let [port, management, http, tls] = free();
        let directory = tempfile::tempdir().unwrap();
        let mut pebble = Self { directory, port, proofs: (http, tls), processes: Vec::new() };
        pebble.write_certificate();
        let config = serde_json::json!({"pebble": {
            "listenAddress": format!("127.0.0.1:{port}"),
            "managementListenAddress": format!("127.0.0.1:{management}"),
            "certificate": pebble.path("cert.pem"),
            "privateKey": pebble.path("key.pem"),
            "httpPort": http,
            "tlsPort": tls,
            "ocspResponderURL": "",
            "externalAccountBindingRequired": false,
        }});
        std::fs::write(pebble.path("pebble.json"), config.to_string()).unwrap();
        pebble.launch();
        pebble
    }

    /// Starts it; it knows nothing of what was before.
    pub fn launch(&mut self) {
        let [dns, management] = free();
        let mut names = Command::new("pebble-challtestsrv");
        names
            .args(["-dns01", &format!("127.0.0.1:{dns}"), "-defaultIPv6", ""])
            .args(["-http01", "", "-https01", "", "-tlsalpn01", ""])
            .args(["-management", &format!("127.0.0.1:{management}")]);
        let mut authority = Command::new("pebble");
        authority
            .arg("-config")
            .arg(self.path("pebble.json"))
            .args(["-dnsserver", &format!("127.0.0.1:{dns}")])
            .env("PEBBLE_VA_NOSLEEP", "1");
        for command in [names, authority] {
            self.spawn(command);
        }
        self.wait();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn spawn(&mut self, mut command: Command) {
        let log = std::fs::File::options().create(true).append(true).open(self.path("log"));
        let log = log.unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("pebble is not installed; run scripts/setup.sh");
        self.processes.push(child);
    }

    /// Waits until it listens.
    fn wait(&self) {
        let since = Instant::now();
        while std::net::TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            assert!(since.elapsed() < Duration::from_secs(20), "pebble did not start");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its own certificate, by an authority that nobody else trusts.
    fn write_certificate(&self) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(self.path("ca.pem"), issuer.pem()).unwrap();
        std::fs::write(self.path("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(self.path("key.pem"), key.serialize_pem()).unwrap();
    }

    pub fn acme(&self, challenge: AcmeChallenge) -> Acme {
        Acme {
            directory: format!("https://127.0.0.1:{}/dir", self.port),
            email: Some("ops@shop.test".to_owned()),
            challenge,
            ca: Some(self.path("ca.pem")),
        }
    }

    /// Ends it; whoever asks is refused a connection.
    pub fn stop(&mut self) {
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
        self.processes.clear();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.path("log")).unwrap()
    }
}

impl Drop for Pebble {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
    }
}
