//! A rolling update by keel and by Docker Swarm, with the same image and the same client.
//!
//! Swarm's own balancer (its ingress, and the virtual addresses of overlay networks) is IPVS, which the kernels that
//! this runs on lack. So for Swarm the client balances by itself, as a load balancer beside Swarm would: it asks the
//! healthy tasks, whose addresses it looks up all the time. It has a new connection for each request, for both.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::super::Error;
use super::super::figure::Figure;
use super::docker::{Docker, IMAGE};
use super::{PORT, lossless, platform, written};

/// Updates, one after the other.
const UPDATES: usize = 3;
/// Threads of the client.
const THREADS: usize = 4;
/// Pause of a thread between two requests: about 500 a second altogether.
const PAUSE: Duration = Duration::from_millis(8);
/// Time between two looks at which tasks there are.
const LOOK: Duration = Duration::from_millis(20);
/// An answer that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long tasks may take to be healthy.
const LOOKS: usize = 3000;

/// Failed requests of both.
pub fn figures(docker: &Docker) -> Result<Vec<Figure>, Error> {
    let (asked, failed) = keel(docker)?;
    let (their_asked, their_failed) = swarm(docker)?;
    let name =
        |who: &str, asked: usize| format!("{UPDATES} rolling updates, failed of {asked}: {who}");
    let described = name("Docker Swarm, healthy tasks asked directly", their_asked);
    #[allow(clippy::cast_precision_loss)]
    Ok(vec![
        Figure::new(name("keel", asked), failed as f64, 0.0, ""),
        Figure::told(described, their_failed as f64, ""),
    ])
}

fn keel(docker: &Docker) -> Result<(usize, usize), Error> {
    let file = written("lossless", &lossless::stack())?;
    let mut platform = platform("containers-update", &file, docker)?;
    platform.keel(&["up", "-d", "--wait"])?;
    let client = Client::start();
    client.asks(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, lossless::ENTRY))]);
    for update in 0..UPDATES {
        platform.set("VERSION", &format!("update-{update}"));
        platform.keel(&["up", "-d", "--wait"])?;
    }
    Ok(client.end())
}

fn swarm(docker: &Docker) -> Result<(usize, usize), Error> {
    let said = |words: &[&str]| -> Result<(), Error> {
        let output =
            Command::new("docker").args(words).env("DOCKER_HOST", docker.host()).output()?;
        let error = || String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(error().into()) }
    };
    said(&["swarm", "init", "--advertise-addr=127.0.0.1", "--listen-addr=127.0.0.1:23771"])?;
    let check = format!("--health-cmd=/shop check http://127.0.0.1:{PORT}/healthz");
    let port = format!("--env=PORT={PORT}");
    let create = ["service", "create", "--quiet", "--detach", "--name=web", "--replicas=2"];
    let update = ["--update-order=start-first", "--update-parallelism=1", "--update-monitor=2s"];
    let rest = ["--stop-grace-period=10s", "--no-resolve-image", "--health-interval=1s"];
    let what = [check.as_str(), &port, IMAGE, "/shop", "catalog"];
    said(&[&create[..], &update, &rest, &what].concat())?;
    let client = Client::start();
    let done = Arc::new(AtomicBool::new(false));
    let outcome = std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                client.asks(tasks(docker).unwrap_or_default());
                std::thread::sleep(LOOK);
            }
        });
        let outcome = (0..LOOKS)
            .find(|_| {
                std::thread::sleep(LOOK);
                client.knows() == 2
            })
            .ok_or_else(|| "Swarm's tasks do not run".into())
            .and_then(|_| {
                (0..UPDATES).try_for_each(|update| {
                    let version = format!("--env-add=SHOP_VERSION=update-{update}");
                    said(&["service", "update", "--quiet", "--no-resolve-image", &version, "web"])
                })
            });
        done.store(true, Ordering::SeqCst);
        let _ = looking.join();
        outcome
    });
    let counted = client.end();
    said(&["swarm", "leave", "--force"])?;
    outcome.map(|()| counted)
}

/// Where the healthy tasks are.
fn tasks(docker: &Docker) -> Result<Vec<SocketAddr>, Error> {
    let containers = docker.call("GET", "/containers/json", None)?;
    let addresses = containers.as_array().into_iter().flatten().filter_map(|container| {
        let healthy = container["Status"].as_str()?.contains("(healthy)");
        container["Labels"].get("com.docker.swarm.service.name")?;
        let address = container["NetworkSettings"]["Networks"]["bridge"]["IPAddress"].as_str()?;
        let address: Ipv4Addr = address.parse().ok()?;
        healthy.then_some(SocketAddr::from((address, PORT)))
    });
    Ok(addresses.collect())
}

/// Requests from several threads to one address after the other.
struct Client {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    addresses: Mutex<Vec<SocketAddr>>,
    ended: AtomicBool,
    asked: AtomicUsize,
    failed: AtomicUsize,
}

impl Client {
    fn start() -> Self {
        let shared = Arc::<Shared>::default();
        let threads = (0..THREADS).map(|_| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.ask())
        });
        Self { threads: threads.collect(), shared }
    }

    /// From now on these.
    fn asks(&self, addresses: Vec<SocketAddr>) {
        *self.shared.addresses.lock().unwrap_or_else(PoisonError::into_inner) = addresses;
    }

    fn knows(&self) -> usize {
        self.shared.addresses.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// How many were asked, and how many failed.
    fn end(self) -> (usize, usize) {
        self.shared.ended.store(true, Ordering::SeqCst);
        for thread in self.threads {
            let _ = thread.join();
        }
        let count = |of: &AtomicUsize| of.load(Ordering::SeqCst);
        (count(&self.shared.asked), count(&self.shared.failed))
    }
}

impl Shared {
    fn ask(&self) {
        while !self.ended.load(Ordering::SeqCst) {
            let next = {
                let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
                let turn = self.asked.load(Ordering::SeqCst) % addresses.len().max(1);
                addresses.get(turn).copied()
            };
            if let Some(address) = next {
                let good = answered(address).unwrap_or(false);
                self.asked.fetch_add(1, Ordering::SeqCst);
                self.failed.fetch_add(usize::from(!good), Ordering::SeqCst);
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn answered(address: SocketAddr) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /products HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.starts_with("HTTP/1.1 200"))
}
