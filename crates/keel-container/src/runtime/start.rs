//! From a [`Launch`] to a running container.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bollard::Docker;
use bollard::models::{ContainerInspectResponse, HostConfig, NetworkConnectRequest};
use bollard::query_parameters::CreateContainerOptions;
use keel_model::{
    ContainerNetwork, ContainerSpec, HeldPort, PortBinding, SharesWith, StartFailure,
};
use keel_runtime::{ForeignProcess, Launch, StartError, Started, record};

use super::body::{self, Reach, Setting};
use super::kept::{FILE, Kept};
use super::unnamed::Claimed;
use super::{Entry, Inner, OwnVolumes, labels, look, sent};
use crate::{EngineInfo, Error};

pub(super) fn failed(launch: &Launch, message: impl std::fmt::Display) -> StartError {
    StartError {
        failure: StartFailure::Environment,
        message: format!("instance {}: {message}", launch.id),
    }
}

/// The engine did not do it.
fn refused(launch: &Launch, error: &Error) -> StartError {
    let failure = if error.is_away() { StartFailure::Away } else { StartFailure::Environment };
    StartError { failure, ..failed(launch, error) }
}

pub(super) fn started(kept: &Kept) -> Started {
    Started {
        pid: kept.pid,
        ports: kept.ports.clone(),
        address: kept.address,
        not_enforced: kept.not_enforced.clone(),
        shares: kept.shares.clone(),
        started_at: kept.started_at,
    }
}

/// Starts one attempt. The caller holds the instance's gate.
pub(super) async fn start(inner: &Arc<Inner>, mut launch: Launch) -> Result<Started, StartError> {
    if let Ok(kept) = inner.running(&launch.id) {
        if kept.launch.attempt == launch.attempt {
            return Ok(started(&kept));
        }
        return Err(failed(
            &launch,
            format!("it still runs its attempt {}; stop it first", kept.launch.attempt),
        ));
    }
    let client = inner.engine.client().await.map_err(|error| refused(&launch, &error))?;
    let info = inner.engine.info().await.map_err(|error| refused(&launch, &error))?;
    // A port of the host can be one instance's only.
    if inner.has_sibling(&launch)
        && let Some(container) = &mut launch.spec.container
    {
        container.publish_udp.retain(|port| port.published.is_none());
    }
    let shared = shared(inner, &launch).map_err(|message| failed(&launch, message))?;
    let at = Attempt { inner, client, info: &info, launch, shared };
    match at.begun().await {
        // Somebody has taken one away that was there.
        Err(error) if error.message.contains("network") && inner.forget_networks().await => {
            at.begun().await
        }
        started => started,
    }
}

/// One attempt under way.
struct Attempt<'a> {
    inner: &'a Arc<Inner>,
    client: Docker,
    info: &'a EngineInfo,
    launch: Launch,
    shared: Shared,
}

/// A container that is ready to be started.
struct Ready {
    id: String,
    /// When it was started last.
    before: String,
    /// It was made for this attempt, and goes again if that fails.
    is_new: bool,
    /// It was taken over, with these ports of the host.
    adopted: Option<Vec<HeldPort>>,
}

impl Attempt<'_> {
    fn failed(&self, message: impl std::fmt::Display) -> StartError {
        failed(&self.launch, message)
    }

    fn refused(&self, error: &bollard::errors::Error) -> Error {
        self.inner.engine.failed(error)
    }

    async fn begun(&self) -> Result<Started, StartError> {
        let (container, claimed) = self.container().await?;
        self.run(container, claimed).await
    }

    /// The container of the attempt before, so that a restart finds the files that it left, or a new one.
    async fn container(&self) -> Result<(Ready, Claimed<'_>), StartError> {
        // Without a trace of one there is mostly none, and if there is, making another fails.
        let traced = self.inner.dir(&self.launch.id).exists();
        if traced && let Some(left) = self.left().await? {
            return Ok(left);
        }
        let claimed = self.inner.claim(&self.launch);
        if let Some(ready) = self.create(&claimed).await? {
            return Ok((ready, claimed));
        }
        drop(claimed);
        if let Some(left) = self.left().await? {
            return Ok(left);
        }
        let claimed = self.inner.claim(&self.launch);
        let ready = self.create(&claimed).await?;
        let taken = || self.failed("somebody else takes its container's name again and again");
        Ok((ready.ok_or_else(taken)?, claimed))
    }

    /// The container that has the instance's name, if it is to be started again; one that is to be replaced is taken away.
    async fn left(&self) -> Result<Option<(Ready, Claimed<'_>)>, StartError> {
        // One that was taken over keeps the name that others know it by.
        let adopted = self.inner.kept(&self.launch.id).ok().filter(|kept| kept.adopted.is_some());
        let there = match &adopted {
            Some(kept) => self.inner.inspect(&self.client, &kept.container).await,
            None => Err(Error::NotFound { message: String::new() }),
        };
        let there = match there {
            Err(Error::NotFound { .. }) => {
                self.inner.inspect(&self.client, self.launch.id.as_str()).await
            }
            there => there,
        };
        match there {
            Ok(there) => {
                let adopted = adopted.filter(|kept| there.id.as_ref() == Some(&kept.container));
                if let Some(ready) = self.fate(&there, adopted.as_ref())?
                    && let Some(claimed) = self.inner.claim_again(&self.launch)
                {
                    return Ok(Some((ready, claimed)));
                }
                let id = there.id.unwrap_or_default();
                let volumes = OwnVolumes::unless(adopted.is_some());
                let removed = self.inner.remove_container(&id, volumes).await;
                removed.map_err(|error| self.failed(error))?;
                Ok(None)
            }
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// What becomes of the container that has the instance's name: it is started again, or (`None`) replaced.
    fn fate(
        &self,
        there: &ContainerInspectResponse,
        adopted: Option<&Kept>,
    ) -> Result<Option<Ready>, StartError> {
        let config = there.config.as_ref();
        let label = |key| config?.labels.as_ref()?.get(key).map(String::as_str);
        if adopted.is_none() && label(labels::SERVER) != Some(&self.inner.tag) {
            return Err(self.failed(format!(
                "the name is taken by a container that this server did not start; remove it with `docker rm {0}`, or \
                 stop what started it (`docker compose down`)",
                self.launch.id
            )));
        }
        let state = there.state.clone().unwrap_or_default();
        let revision = match adopted {
            Some(kept) => Some(kept.launch.revision.as_str()),
            None => label(labels::REVISION),
        };
        // A container can't move to the namespaces of another.
        let same = revision == Some(self.launch.revision.as_str())
            && self.shared.are_of(there.host_config.as_ref());
        let running = state.running == Some(true);
        Ok((same && !running).then(|| Ready {
            id: there.id.clone().unwrap_or_default(),
            before: state.started_at.unwrap_or_default(),
            is_new: false,
            adopted: adopted.and_then(|kept| kept.adopted.clone()),
        }))
    }

    /// Makes a container; `None` if there is one of that name.
    async fn create(&self, claimed: &Claimed<'_>) -> Result<Option<Ready>, StartError> {
        let launch = &self.launch;
        let made = self.inner.make_unnamed(&self.client, launch, claimed).await;
        made.map_err(|message| self.failed(message))?;
        let made = self.inner.surround(&self.client, self.info, launch).await;
        let made = made.map_err(|message| self.failed(message))?;
        let setting = Setting {
            tag: &self.inner.tag,
            reach: reach(self.info),
            shared: &self.shared.ids,
            files: &made.files,
            subpaths: &made.subpaths,
            unnamed: &claimed.volumes,
        };
        let recipe = body::recipe(launch, &setting);
        let options =
            CreateContainerOptions { name: Some(launch.id.to_string()), platform: recipe.platform };
        // By this a server that comes after a crash knows that there may be a container, even without a record.
        let dir = self.inner.dir(&launch.id);
        std::fs::create_dir_all(&dir)
            .map_err(|error| self.failed(format!("can't make {}: {error}", dir.display())))?;
        let created = self.client.create_container(Some(options), recipe.body).await;
        let created = match created.map_err(|error| self.refused(&error)) {
            Ok(created) => created,
            Err(Error::Conflict { .. }) => return Ok(None),
            Err(error) => return Err(self.start_error(&error)),
        };
        for warning in created.warnings {
            tracing::info!(instance = %launch.id, warning, "the container engine warns");
        }
        if !self.info.local
            && let Err(message) =
                sent::files(self.inner, &self.client, &created.id, &launch.spec).await
        {
            self.discard(&created.id).await;
            return Err(self.failed(message));
        }
        for (network, settings) in recipe.connect {
            let request = NetworkConnectRequest {
                container: created.id.clone(),
                endpoint_config: Some(settings),
            };
            if let Err(error) = self.client.connect_network(&network, request).await {
                let error = self.refused(&error);
                self.discard(&created.id).await;
                return Err(self.failed(format!("network {network}: {error}")));
            }
        }
        Ok(Some(Ready { id: created.id, before: String::new(), is_new: true, adopted: None }))
    }

    /// Takes away what was made for an attempt that failed.
    async fn discard(&self, container: &str) {
        if let Err(error) = self.inner.remove_container(container, OwnVolumes::Too).await {
            tracing::warn!(instance = %self.launch.id, %error, "a container that did not start stays");
        }
    }

    /// Starts the container and finds out where it answers.
    async fn run(&self, ready: Ready, claimed: Claimed<'_>) -> Result<Started, StartError> {
        let id = &self.launch.id;
        // The engine's own time of a start is later than the first lines of its output.
        let mut kept = Kept {
            unnamed: claimed.volumes.clone(),
            shares: self.shared.with.clone(),
            adopted: ready.adopted.clone(),
            ..Kept::begins(&self.launch, ready.id.clone(), ready.before.clone())
        };
        let before = self.inner.entries().get(id).map(|entry| entry.kept.clone());
        let begun = match self.inner.put(&kept, true) {
            Ok(()) => self.begin(&mut kept).await,
            Err(message) => Err(self.failed(message)),
        };
        if let Err(error) = begun {
            if ready.is_new {
                self.discard(&ready.id).await;
                self.inner.entries().remove(id);
                let _ = std::fs::remove_dir_all(self.inner.dir(id));
            } else if let Some(before) = before {
                let _ = self.inner.put(&before, false);
            }
            return Err(error);
        }
        if let Err(message) = self.inner.put(&kept, false) {
            // It runs; the record from before the start leads to it, and the engine knows the rest.
            tracing::warn!(instance = %id, message, "a start could not be noted");
        }
        look::watch(self.inner, id);
        if kept.process.is_none() {
            // It may have ended while what the engine told was not heard.
            self.inner.look_at(id).await;
        }
        self.inner.bump();
        Ok(started(&kept))
    }

    async fn begin(&self, kept: &mut Kept) -> Result<(), StartError> {
        let begun = self.client.start_container(&kept.container, None).await;
        begun.map_err(|error| self.start_error(&self.refused(&error)))?;
        let seen = self.inner.inspect(&self.client, &kept.container).await;
        let seen = seen.map_err(|error| refused(&self.launch, &error))?;
        kept.find(&seen, self.info);
        if let Some(exit) = look::exit(&seen) {
            kept.exit = Some(exit);
        }
        Ok(())
    }

    /// Why the engine could not make or start it.
    fn start_error(&self, error: &Error) -> StartError {
        if error.is_away() {
            return refused(&self.launch, error);
        }
        let text = error.to_string();
        if let Some(port) = taken_port(&text) {
            return self.failed(format!("port {port} of the host is in use by somebody else"));
        }
        if let Some(init) = absent_init(&text) {
            return self.failed(format!(
                "the engine has no {init}, which `init: true` asks for; install it, or leave out `init`"
            ));
        }
        let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
        let container = self.launch.spec.container.as_deref();
        let program = container.and_then(|container| container.entrypoint.as_ref()?.first());
        let program = program.or(self.launch.spec.command.first());
        let named = program.map_or_else(String::new, |program| format!(" (program {program:?})"));
        let failure = if says(&["permission denied", "Permission denied"])
            && says(&["exec", "starting container process"])
        {
            StartFailure::NotExecutable
        } else if says(&["executable file not found", "no such file or directory", "not found in"])
            && says(&["exec", "starting container process", "stat"])
        {
            StartFailure::NotFound
        } else {
            StartFailure::Environment
        };
        StartError {
            failure,
            ..self.failed(format!("its container can't be started{named}: {text}"))
        }
    }
}

/// The port of the host that an engine could not open because it is taken, out of what it says about that.
fn taken_port(text: &str) -> Option<String> {
    let before = ["address already in use", "port is already allocated"]
        .iter()
        .find_map(|words| Some(&text[..text.find(words)?]))?;
    // `listen udp4 127.0.0.1:53: bind:`, `Bind for 0.0.0.0:53 failed:`, `listen udp :53: bind:`
    let port = |word: &str| {
        let word = word.trim_end_matches([':', ',']);
        let (host, port) = word.rsplit_once(':')?;
        let address = host.is_empty() || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        (address && port.parse::<u16>().is_ok()).then(|| word.trim_start_matches(':').to_owned())
    };
    before.split_whitespace().rev().find_map(port)
}

/// The engine's own first process, if that is what it says it can't find.
fn absent_init(text: &str) -> Option<&'static str> {
    let inits = ["catatonit", "docker-init"];
    inits.into_iter().find(|init| text.contains(&format!("\"{init}\": executable file not found")))
}

impl Inner {
    /// Whether another instance of the service runs.
    fn has_sibling(&self, launch: &Launch) -> bool {
        self.entries().iter().any(|(id, entry)| {
            let other = &entry.kept.launch;
            *id != launch.id
                && entry.kept.exit.is_none()
                && (&other.stack, &other.service) == (&launch.stack, &launch.service)
        })
    }

    /// Remembers an instance, in memory and on the disk.
    pub(super) fn put(&self, kept: &Kept, starting: bool) -> Result<(), String> {
        let id = &kept.launch.id;
        let dir = self.dir(id);
        let written = std::fs::create_dir_all(&dir).and_then(|()| record::write(&dir, FILE, kept));
        let entry = Entry::new(kept.clone(), starting);
        let mut entries = self.entries();
        let old = entries.insert(id.clone(), entry);
        if let Some(watcher) = old.and_then(|old| old.watcher) {
            watcher.abort();
        }
        drop(entries);
        written.map_err(|error| {
            format!("can't write into {}: {error}; is the disk full?", dir.display())
        })
    }
}

impl Kept {
    /// Takes from what the engine knows which process it is, and where it answers.
    pub(super) fn find(&mut self, seen: &ContainerInspectResponse, info: &EngineInfo) {
        self.pid = look::pid(seen);
        self.process = info.local.then(|| ForeignProcess::find(self.pid)).flatten();
        (self.address, self.ports) = addresses(&self.launch, seen, info);
        self.addresses = match reach(info) {
            Reach::Own => all_addresses(seen),
            Reach::Published(_) => Vec::new(),
        };
    }
}

/// Whose namespaces a container shares.
#[derive(Default)]
pub(super) struct Shared {
    /// Ids of containers by how the spec names them.
    pub(super) ids: BTreeMap<String, String>,
    /// The same as instances.
    pub(super) with: Vec<SharesWith>,
}

impl Shared {
    /// Whether a container that is there is in the namespaces of just these.
    pub(super) fn are_of(&self, host: Option<&HostConfig>) -> bool {
        let Some(host) = host else { return self.ids.is_empty() };
        let modes = [&host.network_mode, &host.ipc_mode, &host.pid_mode];
        let mut others = modes.into_iter().flatten().filter_map(|it| it.strip_prefix("container:"));
        let ours: Vec<&String> = self.ids.values().collect();
        ours.is_empty() || others.all(|other| ours.iter().any(|id| *id == other))
    }
}

/// Finds the containers whose namespaces this one shares: of several that run, the newest, which will stay longest.
pub(super) fn shared(inner: &Inner, launch: &Launch) -> Result<Shared, String> {
    let mut shared = Shared::default();
    let Some(container) = &launch.spec.container else { return Ok(shared) };
    let network = match &container.network {
        ContainerNetwork::Service(name) => Some(format!("service:{name}")),
        _ => None,
    };
    let modes = [network.as_ref(), container.ipc.as_ref(), container.pid.as_ref()];
    for mode in modes.into_iter().flatten() {
        let Some(service) = mode.strip_prefix("service:") else { continue };
        let entries = inner.entries();
        let running = entries.values().filter(|entry| {
            let known = &entry.kept.launch;
            known.stack == launch.stack
                && known.service.as_str() == service
                && entry.kept.exit.is_none()
                && !entry.starting
        });
        let found = running.max_by_key(|entry| entry.kept.started_at);
        let found = found.ok_or_else(|| {
            format!("it shares namespaces of service {service}, of which no container runs")
        })?;
        shared.ids.insert(mode.clone(), found.kept.container.clone());
        let with = SharesWith {
            service: found.kept.launch.service.clone(),
            id: found.kept.launch.id.clone(),
            attempt: found.kept.launch.attempt,
        };
        if !shared.with.contains(&with) {
            shared.with.push(with);
        }
    }
    Ok(shared)
}

/// How the containers of this engine are reached.
pub(super) fn reach(info: &EngineInfo) -> Reach {
    match info.local && !info.rootless {
        true => Reach::Own,
        false => Reach::Published(info.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))),
    }
}

/// Every address that a container calls from.
fn all_addresses(seen: &ContainerInspectResponse) -> Vec<IpAddr> {
    let networks = seen.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let texts = networks
        .into_iter()
        .flat_map(|networks| networks.values())
        .flat_map(|settings| [&settings.ip_address, &settings.global_ipv6_address]);
    texts.flatten().filter_map(|text| text.parse().ok()).collect()
}

/// Where a running container answers.
fn addresses(
    launch: &Launch,
    seen: &ContainerInspectResponse,
    info: &EngineInfo,
) -> (Option<IpAddr>, Vec<PortBinding>) {
    let none = ContainerSpec::default();
    let container = launch.spec.container.as_deref().unwrap_or(&none);
    let targets = launch.spec.ports.iter().copied();
    let settings = seen.network_settings.clone().unwrap_or_default();
    match (&container.network, reach(info)) {
        (ContainerNetwork::None, _) => (None, Vec::new()),
        (ContainerNetwork::Host, _) => {
            let host = info.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
            (None, targets.map(|target| bound(target, host, target)).collect())
        }
        (_, Reach::Published(host)) => {
            let ports = settings.ports.unwrap_or_default();
            let published = |target: u16| {
                let at = ports.get(&format!("{target}/tcp"))?.as_ref()?.first()?;
                let port = at.host_port.as_ref()?.parse().ok()?;
                Some(bound(target, host, port))
            };
            (None, targets.filter_map(published).collect())
        }
        (network, Reach::Own) => {
            let networks = settings.networks.unwrap_or_default();
            let address = |name: &str| {
                let settings = networks.get(name)?;
                let texts = [&settings.ip_address, &settings.global_ipv6_address];
                texts.into_iter().flatten().find_map(|text| text.parse::<IpAddr>().ok())
            };
            let first = match network {
                ContainerNetwork::Attached(attachments) => {
                    attachments.first().and_then(|to| address(&to.network))
                }
                _ => None,
            };
            let any = || networks.keys().find_map(|name| address(name));
            let Some(address) = first.or_else(any) else { return (None, Vec::new()) };
            (Some(address), targets.map(|target| bound(target, address, target)).collect())
        }
    }
}

fn bound(target: u16, ip: IpAddr, port: u16) -> PortBinding {
    PortBinding { target, address: SocketAddr::new(ip, port) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_found_in_what_an_engine_says() {
        let docker = "driver failed programming external connectivity on endpoint a-1 (27f0:9): Error starting \
                      userland proxy: listen udp4 127.0.0.1:57692: bind: address already in use";
        assert_eq!(taken_port(docker).as_deref(), Some("127.0.0.1:57692"));
        let other = "Bind for 0.0.0.0:53 failed: port is already allocated";
        assert_eq!(taken_port(other).as_deref(), Some("0.0.0.0:53"));
        let podman = "cannot listen on the UDP port: listen udp4 :53: bind: address already in use";
        assert_eq!(taken_port(podman).as_deref(), Some("53"));
        let six = "listen udp6 [::1]:53: bind: address already in use";
        assert_eq!(taken_port(six).as_deref(), Some("[::1]:53"));
        assert_eq!(taken_port("no such image: a:1"), None);
    }

    #[test]
    fn an_init_that_is_absent_is_not_taken_for_the_program() {
        let podman = "container create: lookup init binary: exec: \"catatonit\": executable file not found in $PATH";
        assert_eq!(absent_init(podman), Some("catatonit"));
        let docker = "exec: \"docker-init\": executable file not found in $PATH";
        assert_eq!(absent_init(docker), Some("docker-init"));
        assert_eq!(absent_init("exec: \"httpd\": executable file not found in $PATH"), None);
    }
}
