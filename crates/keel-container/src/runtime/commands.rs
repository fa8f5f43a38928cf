//! Commands inside containers and before them, what a container uses, and what only it had.

use std::time::Duration;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, StartExecOptions, StartExecResults};
use bollard::query_parameters::{
    CreateContainerOptions, ListContainersOptionsBuilder, ListNetworksOptionsBuilder,
    LogsOptionsBuilder, RemoveVolumeOptions, StatsOptionsBuilder,
};
use futures_util::{Stream, StreamExt as _};
use keel_model::{Hook, InstanceId, StackName};
use keel_runtime::{
    Error as RuntimeError, ExecOutput, ExecRequest, ExecSpec, ForeignProcess, Launch, Resources,
    Transfer, steps,
};

use super::body::{self, Setting};
use super::{Inner, OwnVolumes, labels, refused, sent, start};
use crate::Error;
use crate::answer::understood;

/// How long a command may take when the request does not say.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the engine may take to say what it knows of a command.
const ANSWER: Duration = Duration::from_secs(5);
/// How much output is kept when the request does not say.
const DEFAULT_OUTPUT: usize = 4 << 10;
/// How much output of a hook is kept.
const HOOK_OUTPUT: usize = 16 << 10;

/// The end of a command's output.
#[derive(Default)]
struct Tail {
    bytes: Vec<u8>,
    keep: usize,
}

impl Tail {
    fn add(&mut self, output: &LogOutput) {
        self.bytes.extend_from_slice(output.as_ref());
        if self.bytes.len() > self.keep {
            self.bytes.drain(..self.bytes.len() - self.keep);
        }
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

async fn collect(
    mut output: impl Stream<Item = Result<LogOutput, bollard::errors::Error>> + Unpin,
    tail: &mut Tail,
) -> Result<(), bollard::errors::Error> {
    while let Some(part) = output.next().await {
        tail.add(&part?);
    }
    Ok(())
}

fn code(code: Option<i64>) -> i32 {
    code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1)
}

/// What `keel exec` needs.
pub(super) fn exec_spec(inner: &Inner, id: &InstanceId) -> Result<ExecSpec, RuntimeError> {
    let kept = inner.running(id)?;
    let place = inner.engine.place().map_err(|error| refused(id, "no command can run", &error))?;
    Ok(ExecSpec::Container(keel_runtime::ContainerExec {
        instance: id.clone(),
        container: kept.container,
        engine: place.url,
        tls: place.tls.map(|tls| tls.directory),
    }))
}

/// Runs a command inside a running container.
pub(super) async fn exec(
    inner: &Inner,
    id: &InstanceId,
    request: ExecRequest,
) -> Result<ExecOutput, RuntimeError> {
    let kept = inner.running(id)?;
    let failed = |error: Error| refused(id, "a command can't be run inside", &error);
    let client = inner.engine.client().await.map_err(failed)?;
    let refuse = |error: bollard::errors::Error| match inner.engine.failed(&error) {
        // It has just ended.
        Error::Conflict { .. } | Error::NotFound { .. } => RuntimeError::NotRunning(id.clone()),
        error => failed(error),
    };
    let environment = request.environment.iter().map(|(key, value)| format!("{key}={value}"));
    let options = CreateExecOptions {
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        cmd: Some(request.command.clone()),
        env: Some(environment.collect()),
        user: request.user.clone(),
        privileged: request.privileged.then_some(true),
        working_dir: request.working_dir.as_ref().map(|dir| dir.display().to_string()),
        ..Default::default()
    };
    let exec = client.create_exec(&kept.container, options).await.map_err(refuse)?.id;
    let timeout = request.timeout.unwrap_or(DEFAULT_TIMEOUT);
    let keep = if request.max_output == 0 { DEFAULT_OUTPUT } else { request.max_output };
    let mut tail = Tail { keep, ..Tail::default() };
    let run = async {
        match client.start_exec(&exec, None::<StartExecOptions>).await? {
            StartExecResults::Attached { output, .. } => collect(output, &mut tail).await,
            StartExecResults::Detached => Ok(()),
        }
    };
    match tokio::time::timeout(timeout, run).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => return Err(refuse(error)),
        Err(_) => {
            // An engine that hangs has perhaps not even begun it.
            let asked = tokio::time::timeout(ANSWER, client.inspect_exec(&exec)).await;
            let hangs = |_| refuse(bollard::errors::Error::RequestTimeoutError);
            // The engine can't end a command; on this machine its process can be.
            let pid = asked.map_err(hangs)?.ok().and_then(|exec| exec.pid);
            let pid =
                pid.filter(|_| kept.process.is_some()).and_then(|pid| u32::try_from(pid).ok());
            if let Some(process) = pid.and_then(ForeignProcess::find) {
                let _ = process.signal(libc::SIGKILL);
            }
            return Err(RuntimeError::TimedOut(timeout));
        }
    }
    let done = client.inspect_exec(&exec).await.map_err(refuse)?;
    Ok(ExecOutput { code: code(done.exit_code), output: tail.text() })
}

/// Runs a step before the instance, in a container of its own that is gone afterwards.
pub(super) async fn run_hook(
    inner: &Inner,
    launch: &Launch,
    hook: &Hook,
    timeout: Duration,
) -> Result<ExecOutput, RuntimeError> {
    let id = &launch.id;
    let failed = |error: Error| refused(id, "a step before it can't be run", &error);
    let say = |message: String| failed(Error::Refused { status: None, message });
    let client = inner.engine.client().await.map_err(failed)?;
    let info = inner.engine.info().await.map_err(failed)?;
    let launch = hook_launch(launch, hook);
    let made = inner.surround(&client, &info, &launch).await.map_err(say)?;
    let setting = Setting {
        tag: &inner.tag,
        reach: start::reach(&info),
        shared: &std::collections::BTreeMap::new(),
        files: &made.files,
        subpaths: &made.subpaths,
        unnamed: &std::collections::BTreeMap::new(),
    };
    let mut recipe = body::recipe(&launch, &setting);
    if let Some(host) = &mut recipe.body.host_config {
        // Ports of the host belong to the instance.
        host.port_bindings = None;
        host.privileged = hook.privileged.then_some(true).or(host.privileged);
    }
    // It must not be taken for the instance.
    if let Some(labels) = &mut recipe.body.labels {
        labels.remove(labels::INSTANCE);
    }
    let name = format!("{id}-pre-start");
    // One that a server left that died meanwhile.
    inner.remove_own(&name).await.map_err(failed)?;
    let options = CreateContainerOptions { name: Some(name), platform: recipe.platform };
    let refuse = |error: bollard::errors::Error| failed(inner.engine.failed(&error));
    let container = client.create_container(Some(options), recipe.body).await.map_err(refuse)?.id;
    let run = async {
        if !info.local {
            sent::files(inner, &client, &container, &launch.spec).await.map_err(say)?;
        }
        client.start_container(&container, None).await.map_err(refuse)?;
        let options = LogsOptionsBuilder::default().follow(true).stdout(true).stderr(true).build();
        let mut tail = Tail { keep: HOOK_OUTPUT, ..Tail::default() };
        collect(client.logs(&container, Some(options)), &mut tail).await.map_err(refuse)?;
        let code = loop {
            let seen = inner.inspect(&client, &container).await.map_err(failed)?;
            let state = seen.state.unwrap_or_default();
            if state.running != Some(true) {
                break code(state.exit_code);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        Ok(ExecOutput { code, output: tail.text() })
    };
    let done = tokio::time::timeout(timeout, run).await;
    let removed = inner.remove_container(&container, OwnVolumes::Too).await;
    let output = done.unwrap_or(Err(RuntimeError::TimedOut(timeout)))?;
    let (dir, policy, said) = (inner.dir(id), launch.spec.logs.clone(), output.output.clone());
    super::blocking(move || steps::keep(&dir, &policy, &said)).await;
    removed.map_err(failed)?;
    Ok(output)
}

fn hook_launch(launch: &Launch, hook: &Hook) -> Launch {
    let mut launch = launch.clone();
    let spec = &mut launch.spec;
    spec.command.clone_from(&hook.command);
    spec.environment.extend(hook.environment.clone());
    spec.user = hook.user.clone().or(spec.user.take());
    spec.working_dir = hook.working_dir.clone().or(spec.working_dir.take());
    spec.ports.clear();
    let container = spec.container.get_or_insert_default();
    // As `docker compose run` does with an entrypoint: the step is what it says, not an argument of the service's.
    container.entrypoint = Some(Vec::new());
    container.publish_udp.clear();
    if let Some(image) = &hook.image {
        spec.image = Some(image.clone());
        container.image_id = None;
    }
    launch
}

/// What the container uses now: from its control groups where they are on this machine, otherwise from the engine.
pub(super) async fn resources(inner: &Inner, id: &InstanceId) -> Result<Resources, RuntimeError> {
    let kept = inner.running(id)?;
    if let Some(process) = kept.process.clone()
        && let Some(resources) = super::blocking(move || process.resources()).await
    {
        return Ok(resources);
    }
    let failed = |error: Error| refused(id, "what it uses is not known", &error);
    let client = inner.engine.client().await.map_err(failed)?;
    let options = StatsOptionsBuilder::default().stream(false).one_shot(true).build();
    let stats = client.stats(&kept.container, Some(options)).next().await;
    let stats = stats.ok_or_else(|| RuntimeError::NotRunning(id.clone()))?;
    let stats = stats.map_err(|error| failed(inner.engine.failed(&error)))?;
    let cpu = stats.cpu_stats.and_then(|cpu| cpu.cpu_usage?.total_usage).unwrap_or(0);
    let network = stats.networks.map(|networks| {
        let one = |it: bollard::models::ContainerNetworkStats| Transfer {
            inward: it.rx_bytes.unwrap_or(0),
            outward: it.tx_bytes.unwrap_or(0),
        };
        networks.into_values().map(one).sum()
    });
    let block = stats.blkio_stats.and_then(|stats| stats.io_service_bytes_recursive);
    let block = block.map(|entries| {
        let one = |it: bollard::models::ContainerBlkioStatEntry| {
            let bytes = it.value.unwrap_or(0);
            match it.op.unwrap_or_default().to_lowercase().as_str() {
                "read" => Transfer { inward: bytes, outward: 0 },
                "write" => Transfer { inward: 0, outward: bytes },
                _ => Transfer::default(),
            }
        };
        entries.into_iter().map(one).sum()
    });
    Ok(Resources {
        cpu_usec: cpu / 1000,
        memory_bytes: stats.memory_stats.and_then(|memory| memory.usage).unwrap_or(0),
        pids: stats.pids_stats.and_then(|pids| pids.current).unwrap_or(0),
        network,
        block,
    })
}

impl Inner {
    /// Takes the networks of a stack away once its last instance is gone.
    pub(super) async fn remove_networks(&self, stack: &StackName) {
        let mut known = self.networks.lock().await;
        if self.entries().values().any(|entry| entry.kept.launch.stack == *stack) {
            return;
        }
        let Ok(client) = self.engine.client().await else { return };
        let ours = self.filters(stack);
        let options = ListNetworksOptionsBuilder::default().filters(&ours).build();
        let Ok(networks) = client.list_networks(Some(options)).await else { return };
        for network in networks.into_iter().filter_map(|network| network.name) {
            known.remove(&network);
            if let Err(error) = client.remove_network(&network).await {
                // Somebody else's container is on it.
                let error = self.engine.failed(&error);
                tracing::info!(network, %error, "a network stays");
            }
        }
    }

    /// What is of a stack and of this server.
    pub(super) fn filters(
        &self,
        stack: &StackName,
    ) -> std::collections::HashMap<&'static str, Vec<String>> {
        let label = |key: &str, value: &str| format!("{key}={value}");
        let ours = vec![label(labels::SERVER, &self.tag), label(labels::STACK, stack.as_str())];
        std::collections::HashMap::from([("label", ours)])
    }

    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), RuntimeError> {
        let bad = |reason: String| RuntimeError::Volume { name: name.to_owned(), reason };
        // Without an engine there is none.
        let Ok(client) = self.engine.client().await else { return Ok(()) };
        // One of the same name may be another's, with data that is not ours to delete.
        let Ok(volume) = client.inspect_volume(name).await else { return Ok(()) };
        if volume.labels.get(labels::SERVER) != Some(&self.tag) {
            tracing::info!(
                name,
                "a volume of the container engine that this server did not make stays"
            );
            return Ok(());
        }
        let Err(error) = client.remove_volume(name, None::<RemoveVolumeOptions>).await else {
            return Ok(());
        };
        match self.engine.failed(&error) {
            Error::NotFound { .. } => Ok(()),
            Error::Conflict { message } => {
                let user = std::collections::HashMap::from([("volume", vec![name])]);
                let options =
                    ListContainersOptionsBuilder::default().all(true).filters(&user).build();
                let users =
                    understood(client.list_containers(Some(options)).await).unwrap_or_default();
                let names = users.into_iter().filter_map(|user| user.names?.into_iter().next());
                let names: Vec<_> =
                    names.map(|name| name.trim_start_matches('/').to_owned()).collect();
                Err(bad(if names.is_empty() {
                    message
                } else {
                    format!("it is used by {}", names.join(", "))
                }))
            }
            error => Err(bad(error.to_string())),
        }
    }
}
