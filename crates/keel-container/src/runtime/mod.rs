//! The container runtime: instances as containers of an engine.
//!
//! What runs, the engine knows; which attempt of which instance that is, our record says ([`kept`]). An engine that is
//! away takes nothing down: what is known stays known, ends are seen from the processes themselves, and when it is
//! back everything is looked at again. Nothing is started twice, as a container's name is the instance's.

mod adopt;
mod body;
mod commands;
mod hosts;
mod kept;
mod labels;
mod logs;
mod look;
mod once;
mod sent;
mod start;
mod surroundings;
mod unnamed;

pub(crate) use look::begun;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bollard::query_parameters::{
    KillContainerOptionsBuilder, ListVolumesOptionsBuilder, RemoveContainerOptionsBuilder,
};
use keel_model::{Exit, HeldPort, Hook, InstanceId, StackName};
use keel_runtime::{
    Capabilities, Capability, Error as RuntimeError, ExecOutput, ExecRequest, ExecSpec, Launch,
    LogLine, LogQuery, Once, Origin, Resources, Runtime, Seen, StartError, Started, VolumeInfo,
    record, steps,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::{Engine, Error};
use kept::Kept;

/// How long a container may take to be gone after SIGKILL.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// What becomes of the volumes without a name that a container has for itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OwnVolumes {
    /// They go with it.
    Too,
    /// Somebody else made them, and there may be data in them.
    Stay,
}

impl OwnVolumes {
    fn unless(adopted: bool) -> Self {
        if adopted { Self::Stay } else { Self::Too }
    }
}

/// Tries to take a container away while the engine fails at it.
const REMOVE_TRIES: u32 = 5;
/// Pause between two of them.
const REMOVE_PAUSE: Duration = Duration::from_millis(100);

/// One known instance.
struct Entry {
    kept: Kept,
    /// A start is under way: what the engine says is about the attempt before.
    starting: bool,
    watcher: Option<JoinHandle<()>>,
    /// Its process is known to have ended; how, the engine has not said yet.
    ended: bool,
}

impl Entry {
    fn new(kept: Kept, starting: bool) -> Self {
        Self { kept, starting, watcher: None, ended: false }
    }

    fn seen(&self, id: &InstanceId) -> Seen {
        let seen = self.kept.seen(id);
        Seen { pid: seen.pid.filter(|_| !self.ended), ..seen }
    }
}

struct Inner {
    engine: Engine,
    /// Of the records, one directory for each instance.
    dir: PathBuf,
    /// By which the containers of this server are told from those of others.
    tag: String,
    entries: Mutex<BTreeMap<InstanceId, Entry>>,
    gates: Mutex<BTreeMap<InstanceId, Arc<tokio::sync::Mutex<()>>>>,
    changed: watch::Sender<u64>,
    /// Networks that are known to be there. Held by whoever makes or takes away some.
    networks: tokio::sync::Mutex<BTreeSet<String>>,
    /// Volumes without a name in the file that are taken by an instance whose start is under way.
    claims: Mutex<BTreeMap<String, InstanceId>>,
}

/// Runs instances as containers; see the module.
pub struct ContainerRuntime {
    inner: Arc<Inner>,
    /// Follows what the engine tells, once [`Runtime::list`] was called.
    follower: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for ContainerRuntime {
    fn drop(&mut self) {
        let follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take();
        follower.iter().for_each(JoinHandle::abort);
        for entry in self.inner.entries().values() {
            entry.watcher.iter().for_each(JoinHandle::abort);
        }
    }
}

impl ContainerRuntime {
    /// Keeps its records below `state_dir`. Asks the engine nothing yet: call [`Runtime::list`].
    ///
    /// # Errors
    /// When the directory can't be used.
    pub fn new(state_dir: &Path, engine: Engine) -> Result<Self, RuntimeError> {
        let dir = state_dir.join("containers");
        let failed = |path: &Path| RuntimeError::system(format!("can't use {}", path.display()));
        fs::create_dir_all(&dir).map_err(failed(&dir))?;
        let dir = fs::canonicalize(&dir).map_err(failed(&dir))?;
        let mut private = fs::metadata(&dir).map_err(failed(&dir))?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut private, 0o700);
        fs::set_permissions(&dir, private).map_err(failed(&dir))?;
        let inner = Inner {
            engine,
            tag: tag(&dir),
            dir,
            entries: Mutex::default(),
            gates: Mutex::default(),
            changed: watch::Sender::new(0),
            networks: tokio::sync::Mutex::default(),
            claims: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner), follower: Mutex::default() })
    }

    fn follow(&self) {
        let mut follower = self.follower.lock().unwrap_or_else(PoisonError::into_inner);
        if follower.as_ref().is_none_or(JoinHandle::is_finished) {
            *follower = Some(tokio::spawn(look::follow(Arc::clone(&self.inner))));
        }
    }
}

/// A short name that differs between state directories.
fn tag(dir: &Path) -> String {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(dir.as_os_str().as_encoded_bytes());
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// Runs blocking work where it does not hold up others.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// An engine's refusal as the runtime's error.
fn refused(id: &InstanceId, what: &str, error: &Error) -> RuntimeError {
    if error.is_away() {
        return RuntimeError::Away(format!("instance {id}: {what}: {error}"));
    }
    RuntimeError::system(format!("instance {id}: {what}"))(std::io::Error::other(error.to_string()))
}

impl Inner {
    fn entries(&self) -> MutexGuard<'_, BTreeMap<InstanceId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dir(&self, id: &InstanceId) -> PathBuf {
        self.dir.join(id.as_str())
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// What start and remove of one instance take turns at.
    fn gate(&self, id: &InstanceId) -> Arc<tokio::sync::Mutex<()>> {
        let mut gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner);
        gates.entry(id.clone()).or_default().clone()
    }

    fn kept(&self, id: &InstanceId) -> Result<Kept, RuntimeError> {
        let entries = self.entries();
        let entry = entries.get(id).ok_or_else(|| RuntimeError::NoSuchInstance(id.clone()))?;
        Ok(entry.kept.clone())
    }

    /// The record of an instance that runs.
    fn running(&self, id: &InstanceId) -> Result<Kept, RuntimeError> {
        let kept = self.kept(id)?;
        if kept.exit.is_some() { Err(RuntimeError::NotRunning(id.clone())) } else { Ok(kept) }
    }

    /// Waits until the instance has ended.
    async fn ended(&self, id: &InstanceId) -> Result<Exit, RuntimeError> {
        let mut changed = self.changed.subscribe();
        loop {
            if let Some(exit) = self.kept(id)?.exit {
                return Ok(exit);
            }
            if changed.changed().await.is_err() {
                return Err(RuntimeError::NotRunning(id.clone()));
            }
        }
    }

    /// Sends a signal to the main process: through the engine, or to the process itself while the engine is away.
    async fn send(&self, id: &InstanceId, signal: i32) -> Result<(), RuntimeError> {
        let kept = self.running(id)?;
        let what = format!("can't be sent signal {signal}");
        let by_engine = async {
            let client = self.engine.client().await?;
            let options =
                KillContainerOptionsBuilder::default().signal(&signal.to_string()).build();
            let killed = client.kill_container(&kept.container, Some(options)).await;
            killed.map_err(|error| self.engine.failed(&error))
        };
        match (by_engine.await, &kept.process) {
            (Ok(()), _) => Ok(()),
            // It has just ended: the engine says that it does not run.
            (Err(Error::Conflict { .. } | Error::NotFound { .. }), _) => {
                self.look_at(id).await;
                Err(RuntimeError::NotRunning(id.clone()))
            }
            (Err(error), Some(process)) if error.is_away() => process
                .signal(signal)
                .map_err(RuntimeError::system(format!("instance {id}: {what}: {error}"))),
            (Err(error), _) => Err(refused(id, &what, &error)),
        }
    }

    async fn stop(
        &self,
        id: &InstanceId,
        signal: i32,
        grace: Duration,
    ) -> Result<Exit, RuntimeError> {
        if let Some(exit) = self.kept(id)?.exit {
            return Ok(exit);
        }
        match self.send(id, signal).await {
            Ok(()) | Err(RuntimeError::NotRunning(_)) => {}
            // A signal that does not exist must not keep an instance alive.
            Err(error) => tracing::warn!(instance = %id, %error, "stop signal not sent"),
        }
        if let Ok(exit) = tokio::time::timeout(grace, self.ended(id)).await {
            return exit;
        }
        match self.send(id, libc::SIGKILL).await {
            Ok(()) | Err(RuntimeError::NotRunning(_)) => {}
            Err(error) => return Err(error),
        }
        tokio::time::timeout(KILL_WAIT, self.ended(id)).await.unwrap_or_else(|_| {
            Err(RuntimeError::system(format!("instance {id} does not end after SIGKILL"))(
                std::io::ErrorKind::TimedOut.into(),
            ))
        })
    }

    /// Takes a container away.
    async fn remove_container(&self, container: &str, volumes: OwnVolumes) -> Result<(), Error> {
        let client = self.engine.client().await?;
        let volumes = volumes == OwnVolumes::Too;
        let options = RemoveContainerOptionsBuilder::default().force(true).v(volumes).build();
        let mut tries = 0;
        loop {
            let removed = client.remove_container(container, Some(options.clone())).await;
            let Err(error) = removed else { return Ok(()) };
            tries += 1;
            match self.engine.failed(&error) {
                Error::NotFound { .. } => return Ok(()),
                // Somebody else is about to.
                Error::Conflict { message } if message.contains("already in progress") => {
                    return Ok(());
                }
                // Podman takes one apart that has just ended, and fails if it is to do so twice at a time.
                Error::Refused { status: Some(500..), .. } if tries < REMOVE_TRIES => {
                    tokio::time::sleep(REMOVE_PAUSE).await;
                }
                error => return Err(error),
            }
        }
    }

    /// Takes a container away by its name, if this server made it.
    async fn remove_own(&self, name: &str) -> Result<(), Error> {
        let client = self.engine.client().await?;
        match self.inspect(&client, name).await {
            Ok(there) => {
                let labels = there.config.and_then(|config| config.labels).unwrap_or_default();
                if labels.get(labels::SERVER) == Some(&self.tag) {
                    let id = there.id.unwrap_or_default();
                    self.remove_container(&id, OwnVolumes::Too).await?;
                }
                Ok(())
            }
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let dir = self.dir(id);
        // Also one whose record could not be read, or that was never started to the end.
        let kept = self.entries().get(id).map(|entry| entry.kept.clone());
        let on_file = || record::read::<Kept>(&dir, kept::FILE);
        let Some(kept) = kept.or_else(on_file) else {
            if dir.exists() {
                let removed = self.remove_own(id.as_str()).await;
                removed.map_err(|error| refused(id, "its container can't be removed", &error))?;
                self.forget(id)?;
            }
            return Ok(());
        };
        let volumes = OwnVolumes::unless(kept.adopted.is_some());
        let removed = self.remove_container(&kept.container, volumes).await;
        removed.map_err(|error| refused(id, "its container can't be removed", &error))?;
        self.forget(id)?;
        self.remove_networks(&kept.launch.stack).await;
        Ok(())
    }

    fn forget(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let dir = self.dir(id);
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(RuntimeError::system(format!("can't remove {}", dir.display()))(error));
            }
            _ => {}
        }
        let entry = self.entries().remove(id);
        if let Some(watcher) = entry.and_then(|entry| entry.watcher) {
            watcher.abort();
        }
        self.bump();
        Ok(())
    }
}

#[async_trait]
impl Runtime for ContainerRuntime {
    fn capabilities(&self) -> Capabilities {
        let by_engine = || Capability::yes("by the container engine");
        Capabilities {
            limits: by_engine(),
            network: by_engine(),
            mounts: by_engine(),
            names: by_engine(),
            users: by_engine(),
        }
    }

    async fn start(&self, launch: Launch) -> Result<Started, StartError> {
        self.follow();
        let gate = self.inner.gate(&launch.id);
        let _turn = gate.lock().await;
        start::start(&self.inner, launch).await
    }

    async fn stop(
        &self,
        id: &InstanceId,
        signal: i32,
        grace: Duration,
    ) -> Result<Exit, RuntimeError> {
        self.inner.stop(id, signal, grace).await
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), RuntimeError> {
        self.inner.send(id, signal).await
    }

    async fn list(&self) -> Result<Vec<Seen>, RuntimeError> {
        look::read_records(&self.inner).await;
        look::all(&self.inner).await;
        if !self.inner.entries().is_empty() {
            self.follow();
        }
        Ok(self.inner.entries().iter().map(|(id, entry)| entry.kept.seen(id)).collect())
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        self.inner.entries().get(id).map(|entry| entry.seen(id))
    }

    fn origin(&self, id: &InstanceId) -> Option<Origin> {
        // Asked for each instance at every change: only what is wanted is copied.
        let entries = self.inner.entries();
        let kept = entries.get(id).map(|entry| &entry.kept).filter(|kept| kept.exit.is_none())?;
        (!kept.addresses.is_empty()).then(|| Origin::Addresses(kept.addresses.clone()))
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.inner.changed.subscribe()
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), RuntimeError> {
        let gate = self.inner.gate(id);
        let _turn = gate.lock().await;
        self.inner.remove(id).await?;
        self.inner.gates.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    async fn exec(
        &self,
        id: &InstanceId,
        request: ExecRequest,
    ) -> Result<ExecOutput, RuntimeError> {
        commands::exec(&self.inner, id, request).await
    }

    async fn run_hook(
        &self,
        launch: &Launch,
        hook: &Hook,
        timeout: Duration,
    ) -> Result<ExecOutput, RuntimeError> {
        let gate = self.inner.gate(&launch.id);
        let _turn = gate.lock().await;
        commands::run_hook(&self.inner, launch, hook, timeout).await
    }

    async fn exec_spec(&self, id: &InstanceId) -> Result<ExecSpec, RuntimeError> {
        commands::exec_spec(&self.inner, id)
    }

    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, RuntimeError> {
        let known = self.inner.kept(id);
        // Before its first start there is only what its first steps said.
        if query.follow || !steps::are_kept(&self.inner.dir(id)) {
            known?;
        }
        Ok(logs::read(Arc::clone(&self.inner), id.clone(), query))
    }

    async fn resources(&self, id: &InstanceId) -> Result<Resources, RuntimeError> {
        commands::resources(&self.inner, id).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, RuntimeError> {
        // Without an engine there are none; nobody who has no containers wants to hear of it.
        let Ok(client) = self.inner.engine.client().await else { return Ok(Vec::new()) };
        let ours = format!("{}={}", labels::SERVER, self.inner.tag);
        let ours = std::collections::HashMap::from([("label", vec![ours.as_str()])]);
        let options = ListVolumesOptionsBuilder::default().filters(&ours).build();
        let listed = client.list_volumes(Some(options)).await.map_err(|error| {
            let error = std::io::Error::other(self.inner.engine.failed(&error).to_string());
            RuntimeError::system("can't list the volumes of the container engine")(error)
        })?;
        let info = |volume: bollard::models::Volume| VolumeInfo {
            stack: volume.labels.get(labels::STACK).and_then(|it| StackName::new(it.clone()).ok()),
            name: volume.name,
            path: PathBuf::from(volume.mountpoint),
        };
        Ok(listed.volumes.unwrap_or_default().into_iter().map(info).collect())
    }

    async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        self.inner.remove_volume(name).await
    }

    async fn adopt(&self, launch: Launch, container: &str) -> Result<Option<Started>, StartError> {
        self.follow();
        let gate = self.inner.gate(&launch.id);
        let _turn = gate.lock().await;
        adopt::adopt(&self.inner, launch, container).await
    }

    fn adopted(&self, id: &InstanceId) -> Option<Vec<HeldPort>> {
        self.inner.entries().get(id)?.kept.adopted.clone()
    }

    async fn tell_hosts(
        &self,
        id: &InstanceId,
        hosts: &[(IpAddr, String)],
    ) -> Result<bool, RuntimeError> {
        hosts::tell(&self.inner, id, hosts).await
    }

    async fn make_once(&self, once: Once) -> Result<ExecSpec, StartError> {
        once::make(&self.inner, once).await
    }

    async fn remove_once(
        &self,
        stack: &StackName,
        id: Option<&InstanceId>,
    ) -> Result<(), RuntimeError> {
        once::remove(&self.inner, stack, id).await
    }
}
