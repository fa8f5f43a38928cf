//! Others that do the same, to compare with: HAProxy from the distribution, and hyper.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::TokioIo;

use crate::proxy::until;

/// A client made with hyper waits this long for two answers.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// HAProxy in front of one endpoint, with its defaults.
pub struct Haproxy {
    pub address: SocketAddr,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Haproxy {
    pub fn before(endpoint: SocketAddr) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("haproxy.cfg");
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let config = format!(
            "global\n  nbthread 1\n  maxconn 200\n\
             defaults\n  mode http\n  timeout connect 2s\n  timeout client 3s\n  timeout server 1s\n\
             \x20 timeout http-request 2s\n\
             frontend f\n  bind {address}\n  default_backend b\n\
             backend b\n  server s {endpoint}\n"
        );
        std::fs::write(&file, config).unwrap();
        let child = Command::new(program())
            .args(["-db", "-f"])
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("HAProxy is installed; scripts/setup.sh does it");
        until("HAProxy listens", || TcpStream::connect(address).ok());
        Self { address, child, _dir: dir }
    }

    /// Such as `2.6.12-1+deb12u4`.
    pub fn version() -> String {
        let output = Command::new(program()).arg("-v").output();
        let output = output.expect("HAProxy is installed; scripts/setup.sh does it");
        let text = String::from_utf8(output.stdout).unwrap();
        text.split(' ').nth(2).unwrap().to_owned()
    }
}

/// It lies where users without root have no path to.
fn program() -> &'static str {
    let usual = "/usr/sbin/haproxy";
    if std::path::Path::new(usual).exists() { usual } else { "haproxy" }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server made with hyper that notes its requests as [`crate::recorder::Recorder`] does. Ends with the process.
pub struct Hyper {
    pub address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

impl Hyper {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Arc::<Mutex<Vec<String>>>::default();
        let noted = Arc::clone(&log);
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let log = Arc::clone(&noted);
                    let service =
                        hyper::service::service_fn(move |request| note(request, Arc::clone(&log)));
                    let connection = hyper::server::conn::http1::Builder::new()
                        .half_close(true)
                        .serve_connection(TokioIo::new(stream), service);
                    // One after the other: when the client sees the end, all is noted.
                    let _ = connection.await;
                }
            });
        });
        Self { address, log }
    }

    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

/// What a client made with hyper hears when it asks for `/1` and then for `/2` on one connection, as far as that goes.
pub fn hyper_hears(endpoint: SocketAddr) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut heard = Vec::new();
    let asking = async {
        let stream = tokio::net::TcpStream::connect(endpoint).await.unwrap();
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.unwrap();
        tokio::spawn(connection);
        for path in ["/1", "/2"] {
            let request = hyper::Request::get(path).header("Host", "a");
            let request = request.body(http_body_util::Empty::<Bytes>::new()).unwrap();
            if sender.ready().await.is_err() {
                break;
            }
            let Ok(answer) = sender.send_request(request).await else { break };
            let status = answer.status().as_u16();
            let Ok(body) = answer.into_body().collect().await else { break };
            let body = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            heard.push(format!("{status} {body}").trim_end().to_owned());
        }
    };
    // It would wait for ever for what does not come.
    let in_time = async { tokio::time::timeout(IMPATIENCE, asking).await };
    let _ = runtime.block_on(in_time);
    heard
}

async fn note(
    request: hyper::Request<Incoming>,
    log: Arc<Mutex<Vec<String>>>,
) -> Result<hyper::Response<Full<Bytes>>, Infallible> {
    let path = request.uri().path_and_query().map_or("", |p| p.as_str());
    let line = format!("{} {path}", request.method());
    let at = {
        let mut log = log.lock().unwrap();
        log.push(format!("{line} …"));
        log.len() - 1
    };
    let mut answer = hyper::Response::new(Full::from("ok"));
    if let Ok(body) = request.into_body().collect().await {
        let content = body.to_bytes();
        let content = if content.len() > 40 {
            format!("{} bytes", content.len())
        } else {
            content.escape_ascii().to_string()
        };
        log.lock().unwrap()[at] = format!("{line} {content}").trim_end().to_owned();
    } else {
        *answer.status_mut() = hyper::StatusCode::BAD_REQUEST;
    }
    Ok(answer)
}
