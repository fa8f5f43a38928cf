//! The part of the API that is about commands that run once beside the instances of a service.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::routing::{MethodRouter, post};
use keel_model::{InstanceId, RuntimeKind, ServiceName, StackName};
use keel_runtime::{ExecSpec, Once};

use super::{Answer, Api, Shared, body, stack_name};
use crate::agent;
use crate::api::once::{OnceRequest, OnceView, RemoveOnceRequest};
use crate::error::Refusal;
use crate::images;

pub(super) fn make() -> MethodRouter<Arc<Api>> {
    post(async |State(api): Shared, bytes: Bytes| -> Answer<OnceView> {
        Ok(Json(make_one(&api, body(&bytes)?).await?))
    })
}

async fn make_one(api: &Api, request: OnceRequest) -> Result<OnceView, Refusal> {
    let OnceRequest { mut stack, service, name, publish, auto_remove } = request;
    images::pin(&api.presence.images, &mut stack, Some(std::slice::from_ref(&service))).await?;
    let definition = stack.services.get(&service).ok_or_else(|| {
        Refusal::new(
            "no_such_service",
            format!("stack `{}` has no service `{service}`", stack.name),
        )
    })?;
    if definition.spec.runtime != RuntimeKind::Container {
        let message = format!("service `{service}` is a host process, not a container");
        return Err(Refusal::new("invalid", message));
    }
    let id = made_up(&stack.name, &service)?;
    let launch = agent::beside(&api.viewer, &stack, (&service, definition), id.clone());
    let once = Once { launch, name, publish, auto_remove };
    let made = api.runtime.make_once(once).await;
    match made.map_err(|error| Refusal::new("start", error.message))? {
        ExecSpec::Container(container) => Ok(OnceView { id, container }),
        ExecSpec::Process(_) => Err(Refusal::new("internal", "a process in place of a container")),
    }
}

/// `STACK-SERVICE-run-0123456789ab`, as `docker compose run` names them.
fn made_up(stack: &StackName, service: &ServiceName) -> Result<InstanceId, Refusal> {
    let mut random = [0; 6];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| Refusal::new("internal", format!("no random numbers: {error}")))?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    InstanceId::new(format!("{stack}-{service}-run-{digits}"))
        .map_err(|error| Refusal::new("invalid", error.to_string()))
}

pub(super) fn remove() -> MethodRouter<Arc<Api>> {
    post(async |State(api): Shared, Path(name): Path<String>, bytes: Bytes| -> Answer<_> {
        let RemoveOnceRequest { id } = body(&bytes)?;
        let removed = api.runtime.remove_once(&stack_name(&name)?, Some(&id)).await;
        removed.map_err(|error| Refusal::new("runtime", error.to_string()))?;
        Ok(Json(serde_json::json!({})))
    })
}

/// Takes away all of a stack that goes. What could not be is told in the log: the stack goes all the same.
pub(super) async fn remove_all(api: &Api, stack: &StackName) {
    if let Err(error) = api.runtime.remove_once(stack, None).await {
        tracing::warn!(%stack, %error, "a container of `keel run` stays");
    }
}
