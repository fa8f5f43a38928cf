//! Processes and containers in one stack: each instance goes to the runtime that its spec names.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use keel_model::{Exit, HeldPort, Hook, InstanceId, RuntimeKind, StackName};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::once::Once;
use crate::types::{
    Capabilities, Error, ExecOutput, ExecRequest, ExecSpec, Launch, LogLine, LogQuery, Origin,
    Resources, Runtime, Seen, StartError, Started, VolumeInfo,
};

/// Two runtimes as one.
pub struct MixedRuntime {
    processes: Arc<dyn Runtime>,
    containers: Arc<dyn Runtime>,
    changed: watch::Sender<u64>,
    /// Joins the news of both, once somebody wants them.
    joined: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for MixedRuntime {
    fn drop(&mut self) {
        let joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner).take();
        joined.iter().for_each(JoinHandle::abort);
    }
}

impl MixedRuntime {
    /// Processes by one, containers by the other.
    #[must_use]
    pub fn new(processes: Arc<dyn Runtime>, containers: Arc<dyn Runtime>) -> Self {
        let changed = watch::Sender::new(0);
        Self { processes, containers, changed, joined: Mutex::default() }
    }

    fn of(&self, kind: RuntimeKind) -> &Arc<dyn Runtime> {
        match kind {
            RuntimeKind::Process => &self.processes,
            RuntimeKind::Container => &self.containers,
        }
    }

    /// The runtime that knows an instance; what nobody knows, either may say.
    fn with(&self, id: &InstanceId) -> &Arc<dyn Runtime> {
        match self.containers.seen(id) {
            Some(_) => &self.containers,
            None => &self.processes,
        }
    }

    fn join(&self) {
        let mut joined = self.joined.lock().unwrap_or_else(PoisonError::into_inner);
        if joined.is_some() {
            return;
        }
        let (mut one, mut other) = (self.processes.changed(), self.containers.changed());
        let changed = self.changed.clone();
        *joined = Some(tokio::spawn(async move {
            loop {
                let heard = tokio::select! {
                    heard = one.changed() => heard,
                    heard = other.changed() => heard,
                };
                if heard.is_err() {
                    return;
                }
                changed.send_modify(|count| *count += 1);
            }
        }));
    }
}

#[async_trait]
impl Runtime for MixedRuntime {
    fn capabilities(&self) -> Capabilities {
        // What an engine can do it can do anywhere; what is worth telling is what processes lack.
        self.processes.capabilities()
    }

    async fn start(&self, launch: Launch) -> Result<Started, StartError> {
        self.of(launch.spec.runtime).start(launch).await
    }

    async fn stop(&self, id: &InstanceId, signal: i32, grace: Duration) -> Result<Exit, Error> {
        self.with(id).stop(id, signal, grace).await
    }

    async fn signal(&self, id: &InstanceId, signal: i32) -> Result<(), Error> {
        self.with(id).signal(id, signal).await
    }

    async fn list(&self) -> Result<Vec<Seen>, Error> {
        let mut all = self.processes.list().await?;
        all.extend(self.containers.list().await?);
        Ok(all)
    }

    fn seen(&self, id: &InstanceId) -> Option<Seen> {
        self.with(id).seen(id)
    }

    fn origin(&self, id: &InstanceId) -> Option<Origin> {
        self.with(id).origin(id)
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.join();
        self.changed.subscribe()
    }

    async fn remove(&self, id: &InstanceId) -> Result<(), Error> {
        // Of what a failed start left, only the directory may know.
        self.containers.remove(id).await?;
        self.processes.remove(id).await
    }

    async fn exec(&self, id: &InstanceId, request: ExecRequest) -> Result<ExecOutput, Error> {
        self.with(id).exec(id, request).await
    }

    async fn run_hook(
        &self,
        launch: &Launch,
        hook: &Hook,
        timeout: Duration,
    ) -> Result<ExecOutput, Error> {
        self.of(launch.spec.runtime).run_hook(launch, hook, timeout).await
    }

    async fn exec_spec(&self, id: &InstanceId) -> Result<ExecSpec, Error> {
        self.with(id).exec_spec(id).await
    }

    async fn logs(
        &self,
        id: &InstanceId,
        query: LogQuery,
    ) -> Result<mpsc::Receiver<LogLine>, Error> {
        self.with(id).logs(id, query).await
    }

    async fn resources(&self, id: &InstanceId) -> Result<Resources, Error> {
        self.with(id).resources(id).await
    }

    async fn volumes(&self) -> Result<Vec<VolumeInfo>, Error> {
        let mut all = self.processes.volumes().await?;
        all.extend(self.containers.volumes().await?);
        Ok(all)
    }

    async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        self.containers.remove_volume(name).await?;
        self.processes.remove_volume(name).await
    }

    async fn adopt(&self, launch: Launch, container: &str) -> Result<Option<Started>, StartError> {
        self.of(launch.spec.runtime).adopt(launch, container).await
    }

    fn adopted(&self, id: &InstanceId) -> Option<Vec<HeldPort>> {
        self.with(id).adopted(id)
    }

    async fn tell_hosts(&self, id: &InstanceId, hosts: &[(IpAddr, String)]) -> Result<bool, Error> {
        self.with(id).tell_hosts(id, hosts).await
    }

    async fn make_once(&self, once: Once) -> Result<ExecSpec, StartError> {
        self.of(once.launch.spec.runtime).make_once(once).await
    }

    async fn remove_once(&self, stack: &StackName, id: Option<&InstanceId>) -> Result<(), Error> {
        self.containers.remove_once(stack, id).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::{launch, spec};
    use crate::fake::FakeRuntime;

    #[tokio::test]
    async fn each_instance_goes_where_its_spec_says() {
        let (processes, containers) = (Arc::new(FakeRuntime::new()), Arc::new(FakeRuntime::new()));
        let mixed = MixedRuntime::new(processes.clone(), containers.clone());
        let mut changed = mixed.changed();
        let process = launch("a", spec(vec!["a".into()]));
        let mut container = launch("b", spec(vec!["b".into()]));
        container.spec.runtime = RuntimeKind::Container;
        mixed.start(process.clone()).await.unwrap();
        changed.changed().await.unwrap();
        mixed.start(container.clone()).await.unwrap();
        assert!(processes.seen(&process.id).is_some() && processes.seen(&container.id).is_none());
        assert!(containers.seen(&container.id).is_some() && containers.seen(&process.id).is_none());
        assert_eq!(mixed.list().await.unwrap().len(), 2);
        for id in [&process.id, &container.id] {
            assert!(mixed.seen(id).is_some());
            mixed.stop(id, 15, Duration::from_secs(1)).await.unwrap();
            mixed.remove(id).await.unwrap();
        }
        assert_eq!(mixed.list().await.unwrap(), []);
    }
}
