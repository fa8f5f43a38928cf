//! The process runtime: instances as host processes, each under a shim.
//!
//! State is in files ([`crate::record`]); memory only caches it. Every instance that runs has a watcher task here
//! that waits on process descriptors, so that an exit is known within a millisecond or so.

mod commands;
mod environment;
mod network;
mod ports;
mod start;
mod surroundings;
pub(crate) mod users;
mod volumes;
mod watch;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keel_model::{Exit, Hook, InstanceId, PortBinding, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch as watch_channel};
use tokio::task::JoinHandle;

use crate::cgroup::{Group, Hierarchies, Slice};
use crate::record::{self, Ended, Running};
use crate::types::{
    Capabilities, Capability, Error, ExecOutput, ExecRequest, ExecSpec, Identity, Launch, LogLine,
    LogQuery, Namespaces, Origin, Resources, Runtime, Seen, StartError, Started, VolumeInfo,
};
use ports::Ports;

/// How long an instance may take to be gone after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How a process runtime is set up.
#[derive(Clone, Debug)]
pub struct ProcessOptions {
    /// Absolute directory for everything that is kept.
    pub state_dir: PathBuf,
    /// The program whose `main` hands `shim` to [`crate::shim_main`]; usually the running one.
    pub shim_program: PathBuf,
    /// From where instances in the host's network get their ports.
    pub port_range: RangeInclusive<u16>,
    /// First address of the /16 from which isolated instances get theirs.
    pub subnet: std::net::Ipv4Addr,
}

impl ProcessOptions {
    /// The usual ones: ports 20000–29999, addresses from 10.78.0.0/16.
    #[must_use]
    pub fn new(state_dir: impl Into<PathBuf>, shim_program: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            shim_program: shim_program.into(),
            port_range: 20_000..=29_999,
            subnet: std::net::Ipv4Addr::new(10, 78, 0, 0),
        }
    }
}

/// What is kept of an instance for as long as it exists; `launch.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Kept {
    /// Without the content of secrets and configs.
    launch: Launch,
    ports: Vec<PortBinding>,
    /// The port of a service that names none.
    port: u16,
    environment: BTreeMap<String, String>,
    placeholders: BTreeMap<String, String>,
    user: Identity,
    working_dir: PathBuf,
    namespaces: Namespaces,
    group: Group,
    network: Option<network::Network>,
    not_enforced: Vec<String>,
    prepared_at: Timestamp,
}

/// One known instance.
struct Entry {
    kept: Kept,
    running: Option<Running>,
    exit: Option<Exit>,
    watcher: Option<JoinHandle<()>>,
}

impl Entry {
    fn seen(&self, id: &InstanceId) -> Seen {
        let started = self.running.as_ref().map(|running| running.started_at);
        Seen {
            id: id.clone(),
            attempt: self.kept.launch.attempt,
            pid: match (&self.running, &self.exit) {
                (Some(running), None) => u32::try_from(running.pid).ok(),
                _ => None,
            },
            ports: self.kept.ports.clone(),
            address: self.kept.network.as_ref().map(|network| network.address.into()),
            started_at: started.unwrap_or(self.kept.prepared_at),
            exit: self.exit.clone(),
            not_enforced: self.kept.not_enforced.clone(),
            shares: Vec::new(),
        }
    }
}

/// Everything that tasks share.
struct Inner {
    options: ProcessOptions,
    instances_dir: PathBuf,
    volumes_dir: PathBuf,
    slice: Slice,
    shim_group: Group,
    own: (u32, u32),
    capabilities: Capabilities,
    ports: Ports,
    networks: network::Networks,
    entries: Mutex<BTreeMap<InstanceId, Entry>>,
    gates: Mutex<BTreeMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    changed: watch_channel::Sender<u64>,
}

/// Runs instances as host processes; see the module.
pub struct ProcessRuntime {
    inner: Arc<Inner>,
}

impl ProcessRuntime {
    /// Sets up the directories and finds out what this machine and our rights allow. Adopts nothing yet:
    /// call [`Runtime::list`].
    ///
    /// # Errors
    /// When the state directory can't be used.
    pub fn new(options: ProcessOptions) -> Result<Self, Error> {
        let root = options.state_dir.clone();
        let failed = |path: &Path| Error::system(format!("can't use {}", path.display()));
        fs::create_dir_all(&root).map_err(failed(&root))?;
        let root = fs::canonicalize(&root).map_err(failed(&root))?;
        let (instances_dir, volumes_dir) = (root.join("instances"), root.join("volumes"));
        for dir in [&instances_dir, &volumes_dir] {
            surroundings::passable_dir(dir).map_err(failed(dir))?;
        }
        let own = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let slice = Slice::new(Hierarchies::detect(), &tag(&root));
        let networks = network::Networks::new(options.subnet, &tag(&root));
        let capabilities = capabilities(&options, &slice, &networks, own);
        let shim_group =
            if capabilities.limits.available { slice.create_for_shims() } else { Group::default() };
        let ports = Ports::new(options.port_range.clone());
        let inner = Inner {
            options,
            instances_dir,
            volumes_dir,
            slice,
            shim_group,
            own,
            capabilities,
            ports,
            networks,
            entries: Mutex::default(),
            gates: Mutex::default(),
            changed: watch_channel::Sender::new(0),
        };
        Ok(Self { inner: Arc::new(inner) })
    }
}

/// A short name that differs between state directories.
fn tag(root: &Path) -> String {
    // FNV-1a: stable across versions of the program, unlike the standard library's hasher.
    let hash =
        root.as_os_str().as_encoded_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
            (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{:08x}", hash & 0xffff_ffff)
}

fn capabilities(
    options: &ProcessOptions,
    slice: &Slice,
    networks: &network::Networks,
    own: (u32, u32),
) -> Capabilities {
    let limits = match slice.check() {
        Ok(how) => Capability::yes(how),
        Err(why) => Capability::no(why),
    };
    let probed = std::process::Command::new(&options.shim_program)
        .args(["shim", "probe"])
        .stdin(std::process::Stdio::null())
        .output();
    let mounts = match probed {
        Ok(output) if output.status.success() => Capability::yes("mount namespaces"),
        Ok(output) => Capability::no(format!(
            "this user may not have mounts of its own here ({})",
            String::from_utf8_lossy(&output.stderr).trim()
        )),
        Err(error) => Capability::no(format!("{}: {error}", options.shim_program.display())),
    };
    let names = match mounts.available {
        true => Capability::yes("an /etc/hosts of its own for each instance"),
        false => Capability::no(mounts.reason.clone()),
    };
    let users = match own.0 {
        0 => Capability::yes("root"),
        _ => Capability::no("only root may start programs as another user"),
    };
    Capabilities { limits, network: networks.capability(own), mounts, names, users }
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, id: &InstanceId) -> PathBuf {
        self.instances_dir.join(id.as_str())
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What start, stop and remove of one instance take turns at.
    fn gate(&self, id: &InstanceId) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.entry(id.clone()).or_default().clone()
    }

    /// The running process of an instance.
    fn running(&self, id: &InstanceId) -> Result<(Kept, Running), Error> {
        let entries = self.entries();
        let entry = entries.get(id).ok_or_else(|| Error::NoSuchInstance(id.clone()))?;
        match (&entry.running, &entry.exit) {
            (Some(running), None) => Ok((entry.kept.clone(), running.clone())),
            _ => Err(Error::NotRunning(id.clone())),
        }
    }

    fn exit(&self, id: &InstanceId) -> Result<Option<Exit>, Error> {
        let entries = self.entries();
        let entry = entries.get(id).ok_or_else(|| Error::NoSuchInstance(id.clone()))?;
        Ok(entry.exit.clone())
    }

    /// Waits until the instance has ended.
    async fn ended(&self, id: &InstanceId) -> Result<Exit, Error> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(exit) = self.exit(id)? {
                return Ok(exit);
            }
            if changed.changed().await.is_err() {
                return Err(Error::NotRunning(id.clone()));
            }
        }
    }

    fn send(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        let (_, running) = self.running(id)?;
        let failed = Error::system(format!("can't send signal {signal} to instance {id}"));
        let process = watch::pinned(&running).map_err(|_| Error::NotRunning(id.clone()))?;
        crate::sys::pidfd_signal(std::os::fd::AsFd::as_fd(&process), signal).map_err(failed)
    }

    async fn stop(&self, id: &InstanceId, signal: i32, grace: Duration) -> Result<Exit, Error> {
        if let Some(exit) = self.exit(id)? {
            return Ok(exit);
        }
        match self.send(id, signal) {
            Ok(()) | Err(Error::NotRunning(_)) => {}
            // A signal that does not exist must not keep an instance alive.
            Err(error) => tracing::warn!(instance = %id, %error, "stop signal not sent"),
        }
        if let Ok(exit) = tokio::time::timeout(grace, self.ended(id)).await {
            return exit;
        }
        match self.send(id, libc::SIGKILL) {
            Ok(()) | Err(Error::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        tokio::time::timeout(KILL_WAIT, self.ended(id)).await.unwrap_or_else(|_| {
            Err(Error::system(format!("instance {id} does not end after SIGKILL"))(
                io::ErrorKind::TimedOut.into(),
            ))
        })
    }

    /// Takes away what an instance has besides its directory. Blocking.
    fn tear_down(&self, kept: &Kept) -> Result<(), Error> {
        let id = &kept.launch.id;
        kept.group.kill();
        kept.group.remove().map_err(Error::system(format!("can't remove the cgroup of {id}")))?;
        if let Some(network) = &kept.network {
            self.networks.remove(network);
        }
        // Mount points that were made for it stay. Removing a directory on which another instance has something
        // mounted, in a mount namespace of its own, would take that mount away from it under its feet.
        Ok(())
    }

    fn remove_files(&self, id: &InstanceId) -> Result<(), Error> {
        let dir = self.dir(id);
        for name in [record::LAUNCH, record::FAILED] {
            if let Some(kept) = record::read::<Kept>(&dir, name) {
                self.tear_down(&kept)?;
            }
        }
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::system(format!("can't remove {}", dir.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

/// Runs blocking work where it does not hold up others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities.clone()
    }

    async fn start(&self, launch: Launch) -> Result<Started, StartError> {
        let gate = self.inner.gate(&launch.id);
        let _turn = gate.lock().await;
        start::start(&self.inner, launch).await
    }

    async fn stop(&self, id: &InstanceId, signal: i32, grace: Duration) -> Result<Exit, Error> {
        self.inner.stop(id, signal, grace).await
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        self.inner.send(id, signal)
    }

    async fn list(&self) -> Result<Vec<Seen>, Error> {
        watch::rescan(&self.inner).await?;
        Ok(self.inner.entries().iter().map(|(id, entry)| entry.seen(id)).collect())
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        self.inner.entries().get(id).map(|entry| entry.seen(id))
    }

    fn origin(&self, id: &InstanceId) -> Option<Origin> {
        let group = {
            let entries = self.inner.entries();
            let entry = entries.get(id).filter(|entry| entry.exit.is_none())?;
            if let Some(network) = &entry.kept.network {
                return Some(Origin::Addresses(vec![network.address.into()]));
            }
            entry.running.as_ref()?.group.clone()
        };
        group.id().map(Origin::Cgroup)
    }

    fn changed(&self) -> watch_channel::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        let gate = self.inner.gate(id);
        let _turn = gate.lock().await;
        match self.inner.stop(id, libc::SIGKILL, KILL_WAIT).await {
            Ok(_) | Err(Error::NoSuchInstance(_)) => {}
            Err(error) => return Err(error),
        }
        watch::shim_gone(&self.inner.dir(id)).await;
        let (inner, owned) = (self.inner.clone(), id.clone());
        blocking(move || inner.remove_files(&owned)).await?;
        self.inner.ports.release(id);
        let entry = self.inner.entries().remove(id);
        if let Some(watcher) = entry.and_then(|entry| entry.watcher) {
            watcher.abort();
        }
        self.inner.gates.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        self.inner.bump();
        Ok(())
    }

    async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<ExecOutput, Error> {
        commands::exec(&self.inner, id, request).await
    }

    async fn run_hook(
        &self,
        launch: &Launch,
        hook: &Hook,
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        let gate = self.inner.gate(&launch.id);
        let _turn = gate.lock().await;
        commands::run_hook(&self.inner, launch, hook, timeout).await
    }

    async fn exec_spec(&self, id: &InstanceId) -> Result<ExecSpec, Error> {
        let spec = commands::exec_spec(&self.inner, id)?;
        Ok(ExecSpec::Process(Box::new(spec)))
    }

    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Error> {
        let ended = self.inner.exit(id)?.is_some();
        let dir = self.inner.dir(id);
        if ended {
            // The last lines may still be on their way through the shim.
            watch::shim_gone(&dir).await;
        }
        Ok(crate::logs::read(dir, query))
    }

    async fn resources(&self, id: &InstanceId) -> Result<Resources, Error> {
        let (_, running) = self.inner.running(id)?;
        Ok(blocking(move || commands::resources(&running)).await)
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, Error> {
        let dir = self.inner.volumes_dir.clone();
        let failed = Error::system(format!("can't list {}", dir.display()));
        blocking(move || volumes::list(&dir)).await.map_err(failed)
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let bad = |reason: String| Error::Volume { name: name.to_owned(), reason };
        let path = volumes::dir_of(&self.inner.volumes_dir, name).map_err(bad)?;
        let user = self.inner.entries().iter().find_map(|(id, entry)| {
            let uses = entry.kept.launch.spec.mounts.iter().any(|mount| {
                matches!(&mount.source,
                    keel_model::MountSource::Volume { name: used, .. } if used == name)
            });
            uses.then(|| id.clone())
        });
        if let Some(id) = user {
            return Err(bad(format!("instance {id} uses it; remove that first")));
        }
        let failed = Error::system(format!("can't remove {}", path.display()));
        let (dir, name) = (self.inner.volumes_dir.clone(), name.to_owned());
        blocking(move || volumes::remove(&dir, &name)).await.map_err(failed)
    }
}

impl Drop for ProcessRuntime {
    /// Ends the watchers, and nothing else: shims and workloads go on.
    fn drop(&mut self) {
        for entry in self.inner.entries().values_mut() {
            if let Some(watcher) = entry.watcher.take() {
                watcher.abort();
            }
        }
    }
}

/// The record of an exit of `attempt`, when there is one.
fn recorded_exit(dir: &Path, attempt: u32) -> Option<Exit> {
    record::read::<Ended>(dir, record::EXIT)
        .filter(|ended| ended.attempt == attempt)
        .map(|ended| ended.exit)
}
