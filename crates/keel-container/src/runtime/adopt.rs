//! Takes over containers that something else has started.
//!
//! The container is neither stopped nor renamed: others may find it by its name, and the record knows it by its id. The
//! one thing that changes is that the engine does not start it again by itself any more, as the platform does.

use std::sync::Arc;

use bollard::Docker;
use bollard::models::{
    ContainerInspectResponse, ContainerUpdateBody, RestartPolicy, RestartPolicyNameEnum,
};
use keel_model::InstanceId;
use keel_runtime::{Launch, StartError, Started};

use super::kept::Kept;
use super::start::{failed, shared, started};
use super::{Inner, look};
use crate::Error;
use crate::compose::{held_ports, volumes};

/// Notes `container` as the attempt of `launch`. The caller holds the instance's gate.
pub(super) async fn adopt(
    inner: &Arc<Inner>,
    launch: Launch,
    container: &str,
) -> Result<Option<Started>, StartError> {
    if let Ok(kept) = inner.kept(&launch.id) {
        return Ok(Some(started(&kept)));
    }
    let client = inner.engine.client().await.map_err(|error| failed(&launch, error))?;
    let info = inner.engine.info().await.map_err(|error| failed(&launch, error))?;
    let seen = match inner.inspect(&client, container).await {
        Ok(seen) => seen,
        Err(Error::NotFound { .. }) => return Ok(None),
        Err(error) => return Err(failed(&launch, error)),
    };
    if let Some(owner) = owner(inner, container) {
        return Err(failed(&launch, format!("its container is instance {owner} already")));
    }
    let shares = match shared(inner, &launch) {
        _ if look::exit(&seen).is_some() => Vec::new(),
        Ok(shared) if shared.are_of(seen.host_config.as_ref()) => shared.with,
        Ok(_) => Vec::new(),
        // Whose namespaces it is in has to be taken over first; its worker waits for that.
        Err(message) => return Err(failed(&launch, message)),
    };
    // Before it is noted: whoever dies in between does it again.
    let left = no_restarts(inner, &client, &seen).await.map_err(|error| failed(&launch, error))?;
    let unnamed = volumes(&launch.spec, &seen);
    let remembered = inner.remember(&launch, &unnamed);
    remembered.map_err(|error| failed(&launch, error))?;
    let id = seen.id.clone().unwrap_or_else(|| container.to_owned());
    // What is known of it begins now: it is not late to become ready because it is old.
    let mut kept = Kept {
        exit: look::exit(&seen),
        unnamed,
        not_enforced: left.into_iter().collect(),
        shares,
        adopted: Some(held_ports(&seen)),
        ..Kept::begins(&launch, id, String::new())
    };
    kept.find(&seen, &info);
    if kept.exit.is_some() {
        kept.started_at = look::begun(&seen).unwrap_or(kept.started_at);
    }
    inner.put(&kept, false).map_err(|message| failed(&launch, message))?;
    look::watch(inner, &launch.id);
    inner.look_at(&launch.id).await;
    inner.bump();
    Ok(Some(started(&kept)))
}

/// The instance that has this container.
fn owner(inner: &Inner, container: &str) -> Option<InstanceId> {
    let entries = inner.entries();
    let owner = entries.iter().find(|(_, entry)| entry.kept.container == container);
    owner.map(|(id, _)| id.clone())
}

/// Has the engine not start it again by itself; what is said of one that can't be had so.
async fn no_restarts(
    inner: &Inner,
    client: &Docker,
    seen: &ContainerInspectResponse,
) -> Result<Option<String>, Error> {
    let policy = seen.host_config.as_ref().and_then(|host| host.restart_policy.as_ref()?.name);
    let none = [None, Some(RestartPolicyNameEnum::EMPTY), Some(RestartPolicyNameEnum::NO)];
    if none.contains(&policy) {
        return Ok(None);
    }
    let never =
        RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: Some(0) };
    let update = ContainerUpdateBody { restart_policy: Some(never), ..Default::default() };
    let id = seen.id.as_deref().unwrap_or_default();
    match client.update_container(id, update).await.map_err(|error| inner.engine.failed(&error)) {
        Ok(()) => Ok(None),
        // Podman has no such request.
        Err(Error::NotFound { .. } | Error::Refused { .. }) => {
            Ok(Some("the engine starts it again too, until it is replaced".to_owned()))
        }
        Err(error) => Err(error),
    }
}
