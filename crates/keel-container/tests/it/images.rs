//! Images, with a real engine and real registries.

use std::time::Duration;

use keel_container::images::{Credentials, Error, Images, Progress, Secret};
use keel_container::{Engine, Place};
use tokio::sync::mpsc;

use keel_container::testing::Which;

use crate::rig::{Dockerd, Gate, Registry, Then, free_port, on_each_engine, or_skip};

on_each_engine!(
    an_image_is_pulled_once_and_told_layer_by_layer,
    what_is_wrong_with_an_image_is_told_apart,
    credentials_are_asked_for_and_used,
    a_registry_may_break_down_in_the_middle,
    a_registry_that_comes_back_is_asked_again,
    a_full_disk_is_called_that,
);

const MEGABYTE: usize = 1 << 20;

/// All that was told.
pub fn told(mut receiver: mpsc::Receiver<Progress>) -> Vec<Progress> {
    let mut all = Vec::new();
    while let Ok(progress) = receiver.try_recv() {
        all.push(progress);
    }
    all
}

/// Pushes an image to a registry and forgets it.
fn publish(docker: &Dockerd, name: &str) {
    docker.docker(&["push", "--quiet", name]);
    docker.docker(&["image", "rm", name]);
}

async fn an_image_is_pulled_once_and_told_layer_by_layer(which: Which) {
    let registry = or_skip!(Registry::start());
    let own = free_port();
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port(), own]));
    let name = format!("{}/app:1", registry.name());
    docker.make_image(&name, MEGABYTE, &["CMD [\"/x\"]", "USER 7", "EXPOSE 80"]);
    publish(&docker, &name);
    let images = Images::new(docker.engine());
    assert_eq!(images.inspect(&name).await.unwrap(), None);

    let gate = Gate::open_at(own, registry.port(), i64::MAX / 2, Then::Gone).await;
    let through = format!("{}/app:1", gate.name());
    let (to_one, one) = mpsc::channel(1000);
    let (to_two, two) = mpsc::channel(1000);
    let (first, second) = tokio::join!(
        images.pull(&through, None, None, Some(to_one)),
        images.pull(&through, None, None, Some(to_two)),
    );
    let facts = first.unwrap();
    assert_eq!(second.unwrap(), facts);
    assert_eq!((facts.user.as_str(), facts.runs), ("7", true));
    assert!(facts.digests[0].contains("@sha256:"), "{facts:?}");
    for told in [told(one), told(two)] {
        // Podman and containerd say no more than this.
        let says_more = which == Which::Docker && !docker.has_image_store();
        let last = if says_more { "Pull complete" } else { "Download complete" };
        let done = told.iter().any(|it| !it.layer.is_empty() && it.status == last);
        let sized = !says_more || told.iter().any(|it| it.total.is_some());
        assert!(done && sized, "{told:?}");
    }
    let connections = gate.connections.load(std::sync::atomic::Ordering::SeqCst);
    images.pull(&through, None, None, None).await.unwrap();
    assert!(connections > 0);
    assert_eq!(images.inspect(&facts.id).await.unwrap().map(|it| it.id), Some(facts.id));
}

async fn what_is_wrong_with_an_image_is_told_apart(which: Which) {
    let registry = or_skip!(Registry::start());
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port()]));
    let images = Images::new(docker.engine());
    let code = |it: Result<_, Error>| {
        let error = it.unwrap_err();
        println!("{error} // {:?}", error.hint());
        (error.code(), error)
    };

    let absent = format!("{}/absent:1", registry.name());
    assert_eq!(code(images.pull(&absent, None, None, None).await).0, "image_not_found");

    let name = format!("{}/app:1", registry.name());
    docker.make_image(&name, MEGABYTE, &[]);
    publish(&docker, &name);
    let (found, error) = code(images.pull(&name, Some("linux/s390x"), None, None).await);
    assert_eq!(found, "image_platform");
    assert!(error.to_string().contains("linux/s390x"), "{error}");

    drop(registry);
    let (to, told_of) = mpsc::channel(1000);
    assert_eq!(code(images.pull(&name, None, None, Some(to)).await).0, "registry_away");
    let tries = told(told_of).iter().filter(|it| it.status.contains("again in")).count();
    assert_eq!(tries, 2);

    assert_eq!(code(images.pull("No/Name", None, None, None).await).0, "invalid");
}

async fn credentials_are_asked_for_and_used(which: Which) {
    // In the usual alphabet of base64 some of these become `+` and `/`, wherever they stand.
    let password = "~~~???>>>p";
    let registry = or_skip!(Registry::start_for("me", password));
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port()]));
    let images = Images::new(docker.engine());
    let name = format!("{}/app:1", registry.name());
    docker.make_image(&name, MEGABYTE, &[]);
    docker.docker_fed(
        &["login", "-u", "me", "--password-stdin", &registry.name()],
        password.as_bytes(),
    );
    publish(&docker, &name);

    let error = images.pull(&name, None, None, None).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { whom, .. } if whom.contains("without")), "{error}");
    assert!(error.hint().unwrap().contains("docker login localhost:"), "{error:?}");
    let mut credentials = Credentials {
        server: registry.name(),
        username: "me".into(),
        password: Secret::new("wr0ng"),
        ..Credentials::default()
    };
    let wrong = images.pull(&name, None, Some(credentials.clone()), None).await.unwrap_err();
    assert!(matches!(&wrong, Error::Denied { whom, .. } if whom.contains("me")), "{wrong}");
    assert!(!format!("{wrong} {wrong:?}").contains("wr0ng"));
    credentials.password = Secret::new(password);
    images.pull(&name, None, Some(credentials), None).await.unwrap();
}

async fn a_registry_may_break_down_in_the_middle(which: Which) {
    let registry = or_skip!(Registry::start());
    let gates = [free_port(), free_port(), free_port()];
    let trusted = [&[registry.port()], &gates[..]].concat();
    let docker = or_skip!(Dockerd::start_one(which, &trusted));
    let name = format!("{}/big:1", registry.name());
    docker.make_image(&name, 8 * MEGABYTE, &[]);
    publish(&docker, &name);
    let images = Images::new(docker.engine()).with_quiet(Duration::from_secs(2));
    let some = 2 << 20;

    let gate = Gate::open_at(gates[0], registry.port(), some, Then::Gone).await;
    let error = images.pull(&format!("{}/big:1", gate.name()), None, None, None).await.unwrap_err();
    assert_eq!(error.code(), "registry_away", "{error}");

    let gate = Gate::open_at(gates[1], registry.port(), some, Then::Silent).await;
    let error = images.pull(&format!("{}/big:1", gate.name()), None, None, None).await.unwrap_err();
    assert!(matches!(error, Error::Stalled { .. }), "{error}");

    let gate = Gate::open_at(gates[2], registry.port(), some, Then::Again).await;
    images.pull(&format!("{}/big:1", gate.name()), None, None, None).await.unwrap();
}

async fn a_registry_that_comes_back_is_asked_again(which: Which) {
    let registry = or_skip!(Registry::start());
    let port = free_port();
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port(), port]));
    let name = format!("{}/app:1", registry.name());
    docker.make_image(&name, MEGABYTE, &[]);
    publish(&docker, &name);
    let images = Images::new(docker.engine());
    let (to, mut told) = mpsc::channel(1000);
    let name = format!("localhost:{port}/app:1");
    let pull = tokio::spawn(async move { images.pull(&name, None, None, Some(to)).await });
    let first = told.recv().await.unwrap();
    assert!(first.status.contains("again in 1 s"), "{first:?}");
    let _gate = Gate::open_at(port, registry.port(), i64::MAX / 2, Then::Gone).await;
    pull.await.unwrap().unwrap();
}

async fn a_full_disk_is_called_that(which: Which) {
    let registry = or_skip!(Registry::start());
    let trusted = [registry.port()];
    let docker = or_skip!(Dockerd::start_one(which, &trusted));
    let small = or_skip!(Dockerd::start_with(which, &trusted, Some(24)));
    let name = format!("{}/big:1", registry.name());
    docker.make_image(&name, 32 * MEGABYTE, &[]);
    publish(&docker, &name);
    let error = Images::new(small.engine()).pull(&name, None, None, None).await.unwrap_err();
    assert_eq!(error.code(), "disk_full", "{error}");
    assert!(error.hint().unwrap().contains("docker image prune"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_may_be_absent() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = format!("unix://{}", dir.path().join("none.sock").display());
    let images = Images::new(Engine::at(Place::at(&nowhere, "the test")));
    let error = images.pull("app:1", None, None, None).await.unwrap_err();
    assert_eq!(error.code(), "engine_away", "{error}");
    assert_eq!(images.inspect("app:1").await.unwrap_err().code(), "engine_away");
}
