//! Requests that the proxy itself makes to see whether endpoints are well (active health checks).
//!
//! They run on the control thread, one task for each endpoint of a cluster that wants it. What they find is one bit
//! that every worker sees. Endpoints that speak TLS or HTTP/2 are only connected to: a word of HTTP/1 in clear
//! would say nothing about them.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use keel_model::{ActiveCheck, EndpointState, Protocol};
use keel_route::active_check::{Checked, first_in, is_success, next_in};
use keel_route::balance::Random;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::cluster::ClusterChange;
use crate::notices;
use crate::shared::{ClusterShared, EndpointShared, Shared};

/// As much of an answer as is looked at: `HTTP/1.1 200`.
const STATUS_LINE: usize = 12;

/// The checks that run.
#[derive(Debug, Default)]
pub struct Checks {
    /// By the endpoint's place in memory, which stays its own while its task runs.
    running: HashMap<usize, (ActiveCheck, AbortHandle)>,
}

impl Checks {
    /// Whether there are any.
    pub fn are_running(&self) -> bool {
        !self.running.is_empty()
    }

    /// Starts and ends checks so that they are those that `clusters` want.
    pub fn update<'a>(
        &mut self,
        clusters: impl Iterator<Item = &'a ClusterChange>,
        proxy: &Arc<Shared>,
    ) {
        let mut before = std::mem::take(&mut self.running);
        for cluster in clusters {
            let Some(check) = &cluster.policy.check else { continue };
            let plain = cluster.policy.tls.is_none() && cluster.protocol != Protocol::Http2;
            let ready = cluster.endpoints.iter().filter(|(_, s)| *s == EndpointState::Ready);
            for (endpoint, _) in ready {
                let key = Arc::as_ptr(endpoint) as usize;
                let running = match before.remove(&key) {
                    Some((known, task)) if known == *check => (known, task),
                    changed => {
                        if let Some((_, task)) = changed {
                            task.abort();
                        }
                        let check = check.clone();
                        let checker = Checker {
                            verdict: Verdict(Arc::clone(endpoint)),
                            cluster: Arc::clone(&cluster.shared),
                            proxy: Arc::clone(proxy),
                            check: check.clone(),
                            plain,
                        };
                        (check, tokio::spawn(checker.run()).abort_handle())
                    }
                };
                self.running.insert(key, running);
            }
        }
        // Whoever is checked no more is well until something else says otherwise.
        before.into_values().for_each(|(_, task)| task.abort());
    }
}

/// Forgets what the checks have found when they end.
struct Verdict(Arc<EndpointShared>);

impl Drop for Verdict {
    fn drop(&mut self) {
        self.0.set_checked_out(false);
    }
}

/// Checks one endpoint of one cluster.
struct Checker {
    verdict: Verdict,
    cluster: Arc<ClusterShared>,
    proxy: Arc<Shared>,
    check: ActiveCheck,
    plain: bool,
}

impl Checker {
    async fn run(self) {
        let Self { verdict: Verdict(endpoint), cluster, proxy, check, plain } = &self;
        let mut random = Random::new(u64::from(endpoint.address.port()) << 32 | 1);
        let mut checked = Checked::default();
        tokio::time::sleep(first_in(check, &mut random)).await;
        loop {
            let pause = next_in(check, &mut random);
            let next = tokio::time::Instant::now() + pause;
            let asked = tokio::time::timeout(check.timeout, ask(endpoint, &check.path, *plain));
            let said = match asked.await {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err(format!("no answer within {:?}", check.timeout)),
            };
            let was_out = checked.is_out();
            checked = checked.observe(said.is_ok(), check);
            endpoint.set_checked_out(checked.is_out());
            if checked.is_out() != was_out {
                let notice = notices::checked(&cluster.id, &endpoint.instance, check, &said);
                proxy.notices.add(proxy.now_ms(), notice);
            }
            tokio::time::sleep_until(next).await;
        }
    }
}

/// Asks once; an error if the answer is not as it should be.
async fn ask(endpoint: &EndpointShared, path: &str, plain: bool) -> io::Result<()> {
    let mut stream = TcpStream::connect(endpoint.address).await?;
    if !plain {
        return Ok(());
    }
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nUser-Agent: keel-proxy\r\nConnection: close\r\n\r\n",
        endpoint.address
    );
    stream.write_all(request.as_bytes()).await?;
    let mut line = [0; STATUS_LINE];
    stream.read_exact(&mut line).await?;
    let status = std::str::from_utf8(&line[9..]).ok().and_then(|digits| digits.parse().ok());
    match status.filter(|_| line.starts_with(b"HTTP/1.")) {
        Some(status) if is_success(status) => Ok(()),
        Some(status) => Err(io::Error::other(format!("it answered {status}"))),
        None => Err(io::Error::other("its answer is no HTTP/1")),
    }
}
