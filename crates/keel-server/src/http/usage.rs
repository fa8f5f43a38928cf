//! The part of the API that is about what a stack uses.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use axum::Json;
use axum::extract::{Path, State};
use axum::routing::{MethodRouter, get};
use futures_util::{StreamExt as _, stream};
use keel_model::{InstanceId, MountSource, Phase, ServiceName, Stack, StackName};
use keel_runtime::VolumeInfo;

use super::{Answer, Api, Shared, stack_name};
use crate::api::usage::{UsageView, VolumeView};
use crate::volumes;

/// Instances that are measured at the same time.
const AT_ONCE: usize = 16;

/// Where the clock of measurements began.
static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(super) fn volumes() -> MethodRouter<Arc<Api>> {
    get(async |State(api): Shared, Path(name): Path<String>| -> Answer<Vec<VolumeView>> {
        let name = stack_name(&name)?;
        let world = api.viewer.worlds.current();
        let record = world.stacks.get(&name).and_then(|stack| stack.record.as_ref());
        let known = volumes::all(&*api.runtime).await?;
        let mut views = record.map_or_else(Vec::new, |it| of_stack(&it.value.stack, &known));
        views.extend(left(&name, &views, &known));
        if views.is_empty() {
            // Refuses a stack that does not exist.
            api.viewer.stack(&name)?;
        }
        Ok(Json(views))
    })
}

/// The volumes of a stack among those that are known.
fn of_stack(stack: &Stack, known: &[VolumeInfo]) -> Vec<VolumeView> {
    let mut views = Vec::new();
    for (key, volume) in &stack.volumes {
        let view = |path| VolumeView {
            key: key.clone(),
            name: volume.name.clone(),
            driver: volume.driver.clone().unwrap_or_else(|| "local".to_owned()),
            path,
            external: volume.external,
            used_by: users(stack, &volume.name),
        };
        let places = known.iter().filter(|it| it.name == volume.name);
        let before = views.len();
        // A process and a container may both have one of this name: these are two.
        views.extend(places.map(|it| view(Some(it.path.clone()))));
        if volume.external && views.len() == before {
            views.push(view(None));
        }
    }
    views
}

/// Those that were made for a stack and that it does not define any more, or not while it is down.
fn left(stack: &StackName, defined: &[VolumeView], known: &[VolumeInfo]) -> Vec<VolumeView> {
    let others = known.iter().filter(|it| {
        it.stack.as_ref() == Some(stack) && defined.iter().all(|view| view.name != it.name)
    });
    let view = |volume: &VolumeInfo| VolumeView {
        key: volume.name.clone(),
        name: volume.name.clone(),
        driver: "local".to_owned(),
        path: Some(volume.path.clone()),
        external: false,
        used_by: Vec::new(),
    };
    others.map(view).collect()
}

fn users(stack: &Stack, volume: &str) -> Vec<ServiceName> {
    let mounts =
        |source: &MountSource| matches!(source, MountSource::Volume { name, .. } if name == volume);
    let uses = stack
        .services
        .iter()
        .filter(|(_, service)| service.spec.mounts.iter().any(|mount| mounts(&mount.source)));
    uses.map(|(name, _)| name.clone()).collect()
}

pub(super) fn stats() -> MethodRouter<Arc<Api>> {
    get(async |State(api): Shared, Path(name): Path<String>| -> Answer<Vec<UsageView>> {
        let name = stack_name(&name)?;
        let view = api.viewer.stack(&name)?;
        let world = api.viewer.worlds.current();
        let total = machine_memory();
        let limit = |service: &ServiceName, revision: &_| {
            let definition = world.stacks.get(&name)?.definition(service, revision)?;
            definition.spec.limits.memory.filter(|limit| *limit > 0)
        };
        let running = view.services.iter().flat_map(|(service, shown)| {
            let running = shown.instances.iter().filter(|it| it.phase == Some(Phase::Running));
            running.map(|it| {
                let limit = limit(service, &it.revision).unwrap_or(total);
                (it.id.clone(), service.clone(), limit)
            })
        });
        let running: Vec<_> = running.collect();
        let usages =
            stream::iter(running).map(|(id, service, limit)| measure(&api, id, service, limit));
        let usages = usages.buffered(AT_ONCE).filter_map(std::future::ready);
        Ok(Json(usages.collect().await))
    })
}

/// What one uses; nothing of one that has just ended.
async fn measure(
    api: &Api,
    instance: InstanceId,
    service: ServiceName,
    memory_limit: u64,
) -> Option<UsageView> {
    let began = *BEGAN;
    let used = api.runtime.resources(&instance).await.ok()?;
    let at_usec = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
    Some(UsageView {
        instance,
        service,
        at_usec,
        cpu_usec: used.cpu_usec,
        memory_bytes: used.memory_bytes,
        memory_limit,
        pids: used.pids,
        network: used.network,
        block: used.block,
    })
}

/// All memory of this machine in bytes; 0 if it is not known.
fn machine_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_of_this_machine_is_known() {
        assert!(machine_memory() > 1 << 20);
    }

    #[test]
    fn only_volumes_of_the_stack_are_shown() {
        let json = serde_json::json!({
            "name": "app", "directory": "/", "services": {},
            "volumes": {
                "data": {"name": "app_data", "external": false},
                "old": {"name": "old", "external": true},
                "unborn": {"name": "app_unborn", "external": false},
            },
        });
        let stack: Stack = serde_json::from_value(json).unwrap();
        let info = |name: &str| VolumeInfo {
            name: name.into(),
            path: format!("/v/{name}").into(),
            stack: None,
        };
        let views = of_stack(&stack, &[info("app_data"), info("other_data")]);
        let shown: Vec<_> = views.iter().map(|it| (it.name.as_str(), it.path.is_some())).collect();
        assert_eq!(shown, [("app_data", true), ("old", false)]);
    }
}
