//! Drives nginx, which is told of nothing but by a new configuration.
//!
//! A reload starts new workers; those that there were end when what they have is done. How much that is can't be known,
//! only that it is done: an endpoint counts as busy as long as a worker is there whose configuration had it.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

use keel_model::EndpointState;
use keel_render::Engine;
use keel_route::snapshot::{Lacking, Snapshot};
use rustix::process::{Pid, Signal};
use tokio::time::{Instant, sleep};

use crate::limits::{LOOK, START};
use crate::listeners;
use crate::place::{Place, rendered_part};
use crate::process::{Process, children, title};
use crate::program::Error;

/// nginx under our control.
#[derive(Debug)]
pub struct Nginx {
    place: Place,
    master: Option<Process>,
    /// What the configuration in force was made from.
    applied: Option<Snapshot>,
    /// Addresses that are listened on.
    open: BTreeSet<SocketAddr>,
    /// The endpoints in it; those of an earlier driver are not known.
    current: Option<BTreeSet<SocketAddr>>,
    /// The endpoints in the configuration of each worker; a worker of an earlier driver may have any.
    workers: HashMap<Pid, Option<BTreeSet<SocketAddr>>>,
}

impl Nginx {
    /// Takes over what an earlier driver left running, if there is something.
    pub fn new(place: Place) -> Self {
        let master = place.files.find();
        if let Some(master) = &master {
            tracing::info!(pid = master.pid().as_raw_nonzero(), "nginx runs already");
        }
        let open = master.as_ref().map(|_| place.noted_open()).unwrap_or_default();
        let mut nginx =
            Self { place, master, applied: None, open, current: None, workers: HashMap::new() };
        nginx.look();
        nginx
    }

    /// The process to be watched.
    pub fn process(&self) -> Option<&Process> {
        self.master.as_ref()
    }

    /// What it can't do of what is wanted.
    pub fn lacks(&self) -> Vec<Lacking> {
        self.place.lacks()
    }

    /// Addresses that are listened on.
    pub fn open(&self) -> &BTreeSet<SocketAddr> {
        &self.open
    }

    /// Brings nginx in step with `snapshot`; when it returns, the workers that take new connections have it.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        let wanted = rendered_part(snapshot);
        if self.master.is_some() && self.applied.as_ref() == Some(&wanted) {
            return Ok(());
        }
        let rendered = self.place.prepare(snapshot, None).await?;
        self.place.tell_gaps(&rendered.gaps);
        let from = self.place.files.log_length();
        let before: HashSet<Pid> = self.living().into_iter().map(|(pid, _)| pid).collect();
        match &self.master {
            Some(master) => master.signal(Signal::HUP),
            None => {
                self.clear_sockets();
                let mut arguments = self.place.arguments();
                arguments.extend(["-g".into(), "daemon off;".into()]);
                let master = self.place.files.start(&self.place.program, &arguments);
                let failed = |source| Error::NotRun { engine: Engine::Nginx, source };
                self.master = Some(master.map_err(failed)?);
            }
        }
        let done = self.await_workers(&before).await;
        if done {
            let endpoints = snapshot.clusters.values().flat_map(|cluster| &cluster.endpoints);
            let ready = endpoints.filter(|e| e.state == EndpointState::Ready).map(|e| e.address);
            self.current = Some(ready.collect());
        }
        self.look();
        if !done {
            self.applied = None;
            let said = self.place.files.logged_since(from);
            return Err(Error::NotTaken { engine: Engine::Nginx, said: reasons(&said) });
        }
        self.open = wanted.listeners.iter().map(|listener| listener.bind).collect();
        self.place.note_open(&self.open);
        self.applied = Some(wanted);
        Ok(())
    }

    /// Waits until there are workers that are none of these, and these take no new connections. Whether that came.
    async fn await_workers(&self, before: &HashSet<Pid>) -> bool {
        let until = Instant::now() + START;
        while Instant::now() < until {
            let living = self.living();
            let new = living.iter().any(|(pid, leaving)| !leaving && !before.contains(pid));
            if new && living.iter().all(|(pid, leaving)| *leaving || !before.contains(pid)) {
                return true;
            }
            match &self.master {
                Some(master) if tokio::time::timeout(LOOK, master.ended()).await.is_ok() => {
                    return false;
                }
                Some(_) => {}
                None => sleep(LOOK).await,
            }
        }
        false
    }

    /// The workers, and whether each one is leaving.
    fn living(&self) -> Vec<(Pid, bool)> {
        let Some(master) = &self.master else { return Vec::new() };
        let titled = children(master.pid()).into_iter().map(|pid| (pid, title(pid)));
        let workers = titled.filter(|(_, title)| title.starts_with("nginx: worker process"));
        workers.map(|(pid, title)| (pid, title.contains("shutting down"))).collect()
    }

    /// Notes which workers there are. Those that are new have the endpoints in force.
    fn look(&mut self) {
        let living: HashMap<Pid, bool> = self.living().into_iter().collect();
        self.workers.retain(|pid, _| living.contains_key(pid));
        for (pid, leaving) in living {
            let current = self.current.clone().filter(|_| !leaving);
            self.workers.entry(pid).or_insert(current);
        }
    }

    /// Removes sockets that an nginx which was killed left behind: the next one would not start over them.
    fn clear_sockets(&self) {
        let entries = std::fs::read_dir(self.place.path("")).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("loop") && name.ends_with(".sock") {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    /// How many workers may have something in flight at each of these addresses, which no new worker knows.
    pub fn in_flight(&mut self, addresses: &[SocketAddr]) -> Vec<u64> {
        self.look();
        let may = |endpoints: &Option<BTreeSet<SocketAddr>>, address: &SocketAddr| {
            endpoints.as_ref().is_none_or(|endpoints| endpoints.contains(address))
        };
        let count = |address: &SocketAddr| {
            let busy = self.workers.values().filter(|endpoints| may(endpoints, address));
            u64::try_from(busy.count()).unwrap_or(u64::MAX)
        };
        addresses.iter().map(count).collect()
    }

    /// The process has ended. Workers that outlive it would serve what nobody can change any more: they are told to end
    /// what they have.
    pub async fn ended(&mut self) {
        if let Some(master) = self.master.take() {
            master.signal_group(Signal::QUIT);
        }
        (self.applied, self.current) = (None, None);
        self.workers.clear();
        listeners::released(&std::mem::take(&mut self.open)).await;
    }

    /// Tells it to end when all requests have.
    pub fn stop(&self) {
        if let Some(master) = &self.master {
            master.signal(Signal::QUIT);
        }
    }

    /// Ends it at once.
    pub fn kill(&self) {
        if let Some(master) = &self.master {
            master.signal(Signal::TERM);
        }
    }
}

/// The lines of a log that say why something was not done.
fn reasons(log: &str) -> String {
    let telling = |line: &&str| line.contains("[emerg]") || line.contains("[alert]");
    log.lines().filter(telling).collect::<Vec<_>>().join("\n")
}
