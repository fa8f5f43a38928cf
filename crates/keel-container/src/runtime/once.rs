//! Containers for commands that run once beside the instances (`keel run`).
//!
//! The server makes them, as it knows names and secrets; whoever asked starts them, and has them taken away. No record is
//! kept: what there is, the engine knows by its label. With their stack they all go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use bollard::models::{ContainerCreateBody, NetworkConnectRequest, PortBinding};
use bollard::query_parameters::{CreateContainerOptions, ListContainersOptionsBuilder};
use keel_model::{InstanceId, StackName, StartFailure};
use keel_runtime::{ContainerExec, Error as RuntimeError, ExecSpec, Once, OncePort, StartError};

use super::body::{self, Setting};
use super::start::{reach, shared};
use super::{Inner, OwnVolumes, labels, sent};
use crate::Error;
use crate::answer::understood;

/// Makes one.
pub(super) async fn make(inner: &Arc<Inner>, once: Once) -> Result<ExecSpec, StartError> {
    let Once { launch, name, publish, auto_remove } = once;
    let failed = |message: String| StartError {
        failure: StartFailure::Environment,
        message: format!("service {}: {message}", launch.service),
    };
    let client = inner.engine.client().await.map_err(|error| failed(error.to_string()))?;
    let info = inner.engine.info().await.map_err(|error| failed(error.to_string()))?;
    let place = inner.engine.place().map_err(|error| failed(error.to_string()))?;
    let namespaces = shared(inner, &launch).map_err(failed)?;
    let made = inner.surround(&client, &info, &launch).await.map_err(failed)?;
    let setting = Setting {
        tag: &inner.tag,
        reach: reach(&info),
        shared: &namespaces.ids,
        files: &made.files,
        subpaths: &made.subpaths,
        // The engine makes one for each, which goes with the container.
        unnamed: &BTreeMap::new(),
    };
    let mut recipe = body::recipe(&launch, &setting);
    adapt(&mut recipe.body, &launch.id, &publish, auto_remove);
    let name = name.unwrap_or_else(|| launch.id.to_string());
    let options = CreateContainerOptions { name: Some(name), platform: recipe.platform };
    let refused = |error: bollard::errors::Error| failed(inner.engine.failed(&error).to_string());
    let created = client.create_container(Some(options), recipe.body).await;
    let created = match created.map_err(refused) {
        Ok(created) => created.id,
        Err(error) => {
            let _ = inner.forget(&launch.id);
            return Err(error);
        }
    };
    if !info.local
        && let Err(message) = sent::files(inner, &client, &created, &launch.spec).await
    {
        let _ = inner.remove_container(&created, OwnVolumes::Too).await;
        let _ = inner.forget(&launch.id);
        return Err(failed(message));
    }
    for (network, settings) in recipe.connect {
        let request =
            NetworkConnectRequest { container: created.clone(), endpoint_config: Some(settings) };
        if let Err(error) = client.connect_network(&network, request).await {
            let _ = inner.remove_container(&created, OwnVolumes::Too).await;
            let _ = inner.forget(&launch.id);
            return Err(refused(error));
        }
    }
    Ok(ExecSpec::Container(ContainerExec {
        instance: launch.id.clone(),
        container: created,
        engine: place.url,
        tls: place.tls.map(|tls| tls.directory),
    }))
}

/// What differs from an instance's container.
fn adapt(body: &mut ContainerCreateBody, id: &InstanceId, publish: &[OncePort], remove: bool) {
    // It must not be taken for an instance.
    if let Some(labels) = &mut body.labels {
        labels.remove(labels::INSTANCE);
        labels.insert(labels::ONCE.to_owned(), id.to_string());
    }
    if body.open_stdin == Some(true) {
        // The end of what is written to it is the end of its input.
        body.stdin_once = Some(true);
    }
    let mut bindings: HashMap<String, Option<Vec<PortBinding>>> = HashMap::new();
    let mut exposed = body.exposed_ports.take().unwrap_or_default();
    for port in publish {
        let key = format!("{}/{}", port.target, if port.udp { "udp" } else { "tcp" });
        if !exposed.contains(&key) {
            exposed.push(key.clone());
        }
        let at = PortBinding {
            host_ip: Some(port.ip.to_string()),
            host_port: Some(port.published.map(|port| port.to_string()).unwrap_or_default()),
        };
        bindings.entry(key).or_default().get_or_insert_default().push(at);
    }
    body.exposed_ports = Some(exposed);
    if let Some(host) = &mut body.host_config {
        host.port_bindings = Some(bindings);
        host.auto_remove = remove.then_some(true);
    }
}

/// Takes away one, or all of a stack.
pub(super) async fn remove(
    inner: &Inner,
    stack: &StackName,
    id: Option<&InstanceId>,
) -> Result<(), RuntimeError> {
    // Without an engine there is none.
    let Ok(client) = inner.engine.client().await else { return Ok(()) };
    let failed = |error: Error| {
        let error = std::io::Error::other(error.to_string());
        RuntimeError::system(format!("can't remove what ran once in stack {stack}"))(error)
    };
    let mut filters = inner.filters(stack);
    let wanted = id.map_or_else(|| labels::ONCE.to_owned(), |id| format!("{}={id}", labels::ONCE));
    filters.entry("label").or_default().push(wanted);
    let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
    let listed = understood(client.list_containers(Some(options)).await);
    let listed = listed.map_err(|error| failed(inner.engine.failed(&error)))?;
    let any = !listed.is_empty();
    for container in listed {
        inner
            .remove_container(&container.id.unwrap_or_default(), OwnVolumes::Too)
            .await
            .map_err(failed)?;
        let label = container.labels.unwrap_or_default().remove(labels::ONCE);
        let Some(id) = label.and_then(|label| InstanceId::new(label).ok()) else { continue };
        inner.forget(&id)?;
    }
    if any {
        inner.remove_networks(stack).await;
    }
    Ok(())
}
