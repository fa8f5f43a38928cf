//! What the runtime does while its engine restarts, hangs or is used by others.

use std::sync::Arc;
use std::time::Duration;

use bollard::query_parameters::{RemoveContainerOptionsBuilder, StopContainerOptionsBuilder};
use keel_container::{ContainerRuntime, Place};
use keel_model::StartFailure;
use keel_runtime::conformance::{Harness as _, PATIENCE, ended, logged};
use keel_runtime::{Launch, Runtime as _};

use crate::conformance::Containers;
use crate::rig::on_each_engine;
use keel_container::testing::{self, Networks, Which};

async fn docker() -> Option<Containers> {
    Some(Containers::new(testing::start(Which::Docker, Networks::Apart).await?))
}

async fn running(containers: &Containers, service: &str) -> (Arc<ContainerRuntime>, Launch) {
    let runtime = containers.get();
    let launch = containers.launch(service, "trap 'exit 0' TERM; sleep 1000 & wait");
    runtime.start(launch.clone()).await.unwrap();
    (runtime, launch)
}

fn signal(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

#[tokio::test]
async fn an_engine_that_restarts_takes_its_containers_along_and_they_are_started_again() {
    let Some(mut containers) = docker().await else { return };
    let (runtime, mut launch) = running(&containers, "restarted").await;
    containers.engine.restart().await;
    // Without live-restore the engine ends what it runs.
    let exit = ended(&*runtime, &launch.id).await;
    assert!(exit.code.is_some() || exit.signal.is_some(), "{exit:?}");
    launch.attempt = 2;
    runtime.start(launch.clone()).await.unwrap();
    let seen = runtime.seen(&launch.id).unwrap();
    assert_eq!((seen.attempt, seen.exit), (2, None));
    runtime.remove(&launch.id).await.unwrap();
}

#[tokio::test]
async fn an_end_is_seen_and_a_stop_works_while_the_engine_hangs() {
    let Some(containers) = docker().await else { return };
    let (runtime, launch) = running(&containers, "hung").await;
    let (_, other) = running(&containers, "hung-too").await;
    let pid = runtime.seen(&launch.id).unwrap().pid.unwrap();
    let engine = containers.engine.pid();
    signal(engine, rustix::process::Signal::STOP);
    signal(pid, rustix::process::Signal::KILL);
    let mut changed = runtime.changed();
    let gone = loop {
        let seen = runtime.seen(&launch.id).unwrap();
        if seen.pid.is_none() {
            break seen;
        }
        changed.changed().await.unwrap();
    };
    assert_eq!(gone.exit, None, "that it is gone is known before how it ended");
    let exit = ended(&*runtime, &launch.id).await;
    // A server that begins meanwhile takes nothing for dead that lives.
    containers.reopen();
    let next = containers.get();
    let seen = next.list().await.unwrap();
    signal(engine, rustix::process::Signal::CONT);
    assert_eq!(exit.code, None, "nobody could say how");
    let state = |id| seen.iter().find(|seen| seen.id == id).unwrap().exit.is_some();
    assert!(state(launch.id.clone()));
    assert!(!state(other.id.clone()));
    assert_eq!(next.stop(&other.id, 15, PATIENCE).await.unwrap().code, Some(0));
    next.remove(&launch.id).await.unwrap();
    next.remove(&other.id).await.unwrap();
}

#[tokio::test]
async fn what_others_do_to_a_container_is_seen() {
    let Some(containers) = docker().await else { return };
    let (runtime, mut launch) = running(&containers, "removed-by-hand").await;
    let client = containers.engine.engine().client().await.unwrap();
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(launch.id.as_str(), Some(force.clone())).await.unwrap();
    ended(&*runtime, &launch.id).await;
    launch.attempt = 2;
    runtime.start(launch.clone()).await.unwrap();
    runtime.remove(&launch.id).await.unwrap();
    assert!(client.inspect_container(launch.id.as_str(), None).await.is_err());
    // A name that somebody else has is not taken from them.
    let other = containers.launch("taken", "sleep 1000");
    let body = bollard::models::ContainerCreateBody {
        image: Some(testing::IMAGE.into()),
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some("none".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let name = bollard::query_parameters::CreateContainerOptions {
        name: Some(other.id.to_string()),
        ..Default::default()
    };
    client.create_container(Some(name), body).await.unwrap();
    let error = runtime.start(other.clone()).await.unwrap_err();
    assert_eq!(error.failure, StartFailure::Environment);
    assert!(error.message.contains("did not start") && error.message.contains("docker rm"));
    runtime.remove(&other.id).await.unwrap();
    client.inspect_container(other.id.as_str(), None).await.expect("it is still there");
    client.remove_container(other.id.as_str(), Some(force)).await.unwrap();
}

async fn one_that_another_stops_has_not_ended_well(which: Which) {
    let Some(engine) = testing::start(which, Networks::Apart).await else { return };
    let containers = Containers::new(engine);
    let runtime = containers.get();
    let launch =
        containers.launch("stopped", "trap 'echo asked' TERM; while :; do sleep 0.1; done");
    runtime.start(launch.clone()).await.unwrap();
    drop(runtime);
    containers.reopen();
    let client = containers.engine.engine().client().await.unwrap();
    let options = StopContainerOptionsBuilder::default().t(3).build();
    let id = launch.id.clone();
    let stop = tokio::spawn(async move { client.stop_container(id.as_str(), Some(options)).await });
    // Server after server looks while it is asked to end.
    let mut looks = 0;
    let end = loop {
        let runtime = containers.get();
        let seen = runtime.list().await.unwrap().remove(0);
        if seen.exit.is_some() {
            break seen.exit;
        }
        looks += 1;
        containers.reopen();
    };
    // Podman may fail at taking its network apart, which does not keep it from ending.
    let _ = stop.await.unwrap();
    assert!(looks > 2, "{looks}");
    assert_eq!(end.as_ref().and_then(|exit| exit.signal), Some(9), "{end:?}");
    containers.get().remove(&launch.id).await.unwrap();
}

on_each_engine!(one_that_another_stops_has_not_ended_well);

#[tokio::test]
async fn a_network_that_was_there_and_is_not_any_more_is_made_again() {
    let Some(containers) = docker().await else { return };
    let (runtime, first) = running(&containers, "connected").await;
    let client = containers.engine.engine().client().await.unwrap();
    let force = RemoveContainerOptionsBuilder::default().force(true).build();
    client.remove_container(first.id.as_str(), Some(force)).await.unwrap();
    ended(&*runtime, &first.id).await;
    assert_eq!(first.networks.len(), 1);
    client.remove_network(&first.networks[0].name).await.unwrap();
    let second = containers.launch("connected-too", "sleep 1000");
    runtime.start(second.clone()).await.unwrap();
    client.inspect_network(&first.networks[0].name, None).await.unwrap();
    runtime.remove(&first.id).await.unwrap();
    runtime.remove(&second.id).await.unwrap();
    let left = client.inspect_network(&first.networks[0].name, None).await;
    assert!(left.is_err(), "it goes with the last instance");
}

#[tokio::test]
async fn a_restart_finds_the_files_that_the_attempt_before_left() {
    let Some(containers) = docker().await else { return };
    let runtime = containers.get();
    let script = "cat /left 2>/dev/null || echo none; echo here > /left; sleep 0.1; exit 1";
    let mut launch = containers.launch("files", script);
    for attempt in 1..=2 {
        launch.attempt = attempt;
        runtime.start(launch.clone()).await.unwrap();
        assert_eq!(ended(&*runtime, &launch.id).await.code, Some(1));
    }
    assert_eq!(logged(&*runtime, &launch.id, 2).await, ["none", "here"]);
    runtime.remove(&launch.id).await.unwrap();
}

#[tokio::test]
async fn an_engine_that_is_absent_is_named_with_a_remedy() {
    let state = tempfile::tempdir().unwrap();
    let place = Place::at("unix:///run/keel-test-no-such.sock", "DOCKER_HOST");
    let runtime = ContainerRuntime::new(state.path(), keel_container::Engine::at(place)).unwrap();
    assert_eq!(runtime.list().await.unwrap(), []);
    let launch = keel_runtime::conformance::launch(
        "absent",
        keel_runtime::conformance::spec(vec!["true".into()]),
    );
    let started = tokio::time::timeout(Duration::from_secs(10), runtime.start(launch)).await;
    let error = started.expect("it is said at once").unwrap_err();
    assert!(error.message.contains("/run/keel-test-no-such.sock"), "{error}");
}

/// What is written into a volume that the file does not name is there for the next container of the service, and
/// two that run never share it.
#[tokio::test]
async fn unnamed_volumes_belong_to_the_service() {
    let Some(containers) = docker().await else { return };
    let runtime = containers.get();
    let instance = |number: u32| {
        let script = "cat /data/who 2>/dev/null || echo nobody; echo $KEEL_INSTANCE >> /data/who; sleep 1000";
        let mut launch = containers.launch("unnamed", script);
        launch.id =
            keel_model::InstanceId::numbered(&launch.stack, &launch.service, u64::from(number));
        launch.spec.mounts.push(keel_model::Mount {
            source: keel_model::MountSource::Anonymous,
            target: "/data".into(),
            read_only: false,
            options: None,
        });
        launch
    };
    let (first, second, third) = (instance(1), instance(2), instance(3));
    let (one, two) = tokio::join!(runtime.start(first.clone()), runtime.start(second.clone()));
    one.unwrap();
    two.unwrap();
    for id in [&first.id, &second.id] {
        assert_eq!(logged(&*runtime, id, 1).await, ["nobody"]);
    }
    runtime.stop(&first.id, 9, PATIENCE).await.unwrap();
    runtime.start(third.clone()).await.unwrap();
    assert_eq!(logged(&*runtime, &third.id, 1).await, [first.id.as_str()]);
    // The one whose volume is another's now gets a new one when it comes back.
    let again = Launch { attempt: 2, ..first.clone() };
    runtime.start(again).await.unwrap();
    assert_eq!(logged(&*runtime, &first.id, 1).await, ["nobody"]);
    for id in [&first.id, &second.id, &third.id] {
        runtime.remove(id).await.unwrap();
    }
    let volumes = runtime.volumes().await.unwrap();
    assert_eq!(volumes.len(), 3, "{volumes:?}");
    for volume in volumes {
        assert_eq!(volume.stack.as_ref(), Some(&first.stack));
        runtime.remove_volume(&volume.name).await.unwrap();
    }
    assert_eq!(runtime.volumes().await.unwrap(), []);
}

/// The record of an instance, changed as if the server had died at some point of a start.
fn rewrite(containers: &Containers, launch: &Launch, change: impl FnOnce(&mut serde_json::Value)) {
    let path =
        containers.state().join("containers").join(launch.id.as_str()).join("container.json");
    let mut record = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&path, serde_json::to_vec(&record).unwrap()).unwrap();
}

#[tokio::test]
async fn a_server_that_dies_within_a_start_leaves_nothing_that_is_misread() {
    let Some(containers) = docker().await else { return };
    // After the start, before it was noted where it answers.
    let (runtime, launch) = running(&containers, "unnoted").await;
    let seen = runtime.seen(&launch.id).unwrap();
    drop(runtime);
    rewrite(&containers, &launch, |record| {
        record["pid"] = 0.into();
        record["ports"] = serde_json::json!([]);
        (record["process"], record["address"]) = Default::default();
    });
    containers.reopen();
    let runtime = containers.get();
    let again = runtime.list().await.unwrap();
    assert_eq!(again, [seen]);
    let pid = again[0].pid.unwrap();
    signal(pid, rustix::process::Signal::KILL);
    assert_eq!(ended(&*runtime, &launch.id).await.signal, Some(9), "it is watched");
    // Before the start: made, and never begun. That is no success.
    let client = containers.engine.engine().client().await.unwrap();
    let made = client.inspect_container(launch.id.as_str(), None).await.unwrap();
    runtime.remove(&launch.id).await.unwrap();
    let config = made.config.unwrap();
    let body = bollard::models::ContainerCreateBody {
        image: config.image,
        labels: config.labels,
        host_config: Some(bollard::models::HostConfig {
            network_mode: Some("none".into()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let name = bollard::query_parameters::CreateContainerOptions {
        name: Some(launch.id.to_string()),
        ..Default::default()
    };
    let (runtime, other) = running(&containers, "never-begun").await;
    let id = client.create_container(Some(name.clone()), body.clone()).await.unwrap().id;
    let before = runtime.seen(&other.id).unwrap().pid;
    drop(runtime);
    rewrite(&containers, &other, |record| record["container"] = id.clone().into());
    containers.reopen();
    let runtime = containers.get();
    let exit = runtime.list().await.unwrap().remove(0).exit.unwrap();
    assert_eq!((exit.code, exit.signal, exit.success()), (None, None, false));
    signal(before.unwrap(), rustix::process::Signal::KILL);
    runtime.remove(&other.id).await.unwrap();
    // Without a record at all: whoever removes the instance takes the container along.
    client.create_container(Some(name), body).await.unwrap();
    let dir = containers.state().join("containers").join(launch.id.as_str());
    std::fs::create_dir_all(&dir).unwrap();
    runtime.remove(&launch.id).await.unwrap();
    assert!(client.inspect_container(launch.id.as_str(), None).await.is_err());
    assert!(!dir.exists());
}

#[tokio::test]
async fn the_volume_of_another_is_not_deleted() {
    let Some(containers) = docker().await else { return };
    let client = containers.engine.engine().client().await.unwrap();
    let request =
        bollard::models::VolumeCreateRequest { name: Some("t_data".into()), ..Default::default() };
    client.create_volume(request).await.unwrap();
    containers.get().remove_volume("t_data").await.unwrap();
    client.inspect_volume("t_data").await.expect("it is still there");
}

#[tokio::test]
async fn the_last_lines_since_a_time_are_followed() {
    let Some(containers) = docker().await else { return };
    let runtime = containers.get();
    let launch = containers.launch("tail", "for n in 1 2 3 4 5; do echo $n; done; exec sleep 1000");
    runtime.start(launch.clone()).await.unwrap();
    logged(&*runtime, &launch.id, 5).await;
    let query = keel_runtime::LogQuery {
        since: Some(runtime.seen(&launch.id).unwrap().started_at),
        tail: Some(2),
        follow: true,
        ..Default::default()
    };
    let mut lines = runtime.logs(&launch.id, query).await.unwrap();
    let texts = keel_runtime::conformance::texts(&mut lines, 2).await;
    assert_eq!(texts, ["4", "5"]);
    let again = Launch { attempt: 2, ..launch.clone() };
    runtime.stop(&launch.id, 9, PATIENCE).await.unwrap();
    runtime.start(again).await.unwrap();
    assert_eq!(keel_runtime::conformance::texts(&mut lines, 2).await, ["1", "2"], "what comes");
    runtime.remove(&launch.id).await.unwrap();
}
