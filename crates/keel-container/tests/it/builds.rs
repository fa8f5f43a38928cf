//! Builds, pushes and what is kept, with a real engine.

use std::collections::BTreeMap;
use std::fs;

use futures_util::stream;
use keel_container::images::{Context, Error, ImageFacts, Images, Progress, Recipe};
use keel_model::{Build, RevisionId, ServiceName, StackName};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::images::told;
use keel_container::testing::Which;

use crate::rig::{Dockerd, Registry, on_each_engine, or_skip, write_program};

on_each_engine!(
    an_image_is_built_as_the_file_says,
    a_step_that_fails_is_shown,
    a_context_that_breaks_off_is_said,
    images_are_pushed_and_kept_for_revisions,
);

/// A context of these files, and a program `say` that prints `hello there` and ends with the code.
fn context(dockerfile: &str, code: u8) -> (TempDir, Build) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("Dockerfile"), dockerfile).unwrap();
    fs::write(dir.path().join("kept-file"), "x").unwrap();
    fs::write(dir.path().join("left-out-file"), "x").unwrap();
    fs::write(dir.path().join(".dockerignore"), "left-out-file\nDockerfile").unwrap();
    write_program(&dir.path().join("say"), "hello there", code);
    let build = Build { context: dir.path().display().to_string(), ..Build::default() };
    (dir, build)
}

async fn build(
    images: &Images,
    build: &Build,
    name: &str,
    to: Option<mpsc::Sender<Progress>>,
) -> Result<ImageFacts, Error> {
    let context = Context::open(build)?.unwrap();
    let recipe = Recipe::new(build, name, None, context.dockerfile());
    let pieces = context.pack();
    let pieces =
        stream::unfold(pieces, |mut pieces| async { Some((pieces.recv().await?, pieces)) });
    images.build(&recipe, &[], Some(pieces), to).await
}

async fn an_image_is_built_as_the_file_says(which: Which) {
    let docker = or_skip!(Dockerd::start_one(which, &[]));
    let images = Images::new(docker.engine());
    let text = "FROM scratch AS base\nARG WHO=nobody\nCOPY . /\nRUN [\"/say\"]\nENV WHO=$WHO\n\
                HEALTHCHECK --interval=7s CMD [\"/say\"]\nSTOPSIGNAL SIGQUIT\nCMD [\"/say\"]\nFROM scratch\n";
    let (_dir, mut it) = context(text, 0);
    it.target = Some("base".into());
    it.args = BTreeMap::from([("WHO".into(), "a b&c".into())]);
    it.labels = BTreeMap::from([("k".into(), "v".into())]);
    it.tags = vec!["built:two".into()];
    it.ulimits = BTreeMap::from([("nofile".into(), (99, 99))]);
    it.shm_size = Some(1 << 20);
    it.network = Some("none".into());
    it.extra_hosts = BTreeMap::from([("db".into(), vec!["10.0.0.1".into()])]);
    let (to, lines) = mpsc::channel(1000);
    let facts = build(&images, &it, "built:one", Some(to)).await.unwrap();
    assert_eq!((facts.stop_signal, facts.health.is_some()), (Some(3), true));
    assert!(told(lines).iter().any(|line| line.status == "hello there"));
    assert_eq!(images.inspect("built:two").await.unwrap().unwrap().id, facts.id);
    let shown =
        docker.docker(&["inspect", "-f", "{{.Config.Env}} {{.Config.Labels}}", "built:one"]);
    assert!(shown.contains("WHO=a b&c") && shown.contains("k:v"), "{shown}");
    let id = docker.docker(&["create", "built:one"]);
    let files = docker.docker(&["export", &id]);
    assert!(files.contains("kept-file") && !files.contains("left-out-file\0"));
    // Nothing has changed: the same image again.
    assert_eq!(build(&images, &it, "built:one", None).await.unwrap().id, facts.id);
}

async fn a_step_that_fails_is_shown(which: Which) {
    let docker = or_skip!(Dockerd::start_one(which, &[]));
    let images = Images::new(docker.engine());
    let (_dir, it) = context("FROM scratch\nCOPY say /\nRUN [\"/say\"]\n", 3);
    let it = Build { network: Some("none".into()), ..it };
    let Err(Error::Build { step, message, output, .. }) = build(&images, &it, "bad", None).await
    else {
        panic!("it was built");
    };
    assert!(
        step.ends_with("RUN [\"/say\"]") && step.to_lowercase().starts_with("step 3/3"),
        "{step}"
    );
    assert!(output.iter().any(|line| line == "hello there"), "{output:?}");
    assert!(message.contains("code: 3") || message.contains("exit status 3"), "{message}");

    for (text, says) in [
        ("FROM scratch\nCOPY none /\n", "none"),
        ("FROM scratch\nNONSENSE\n", "NONSENSE"),
        ("", "Dockerfile"),
        ("FROM scratch\nCOPY say /\nRUN --mount=type=cache,target=/x x\n", "BuildKit"),
    ] {
        // Podman's builder knows these steps.
        if which == Which::Podman && says == "BuildKit" {
            continue;
        }
        let (_dir, it) = context(text, 0);
        let error = build(&images, &it, "bad", None).await.unwrap_err();
        assert_eq!(error.code(), "build_failed", "{error:?}");
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(error.hint().is_some(), says == "BuildKit");
    }
    let (_dir, it) = context("FROM localhost:1/none\n", 0);
    let error = build(&images, &it, "bad", None).await.unwrap_err();
    assert!(error.to_string().contains("localhost:1"), "{error}");
}

async fn a_context_that_breaks_off_is_said(which: Which) {
    let docker = or_skip!(Dockerd::start_one(which, &[]));
    let images = Images::new(docker.engine());
    let recipe = Recipe { reference: "bad".into(), ..Recipe::default() };
    let broken = stream::iter([Err(std::io::Error::other("x: it became shorter"))]);
    let error = images.build(&recipe, &[], Some(broken), None).await.unwrap_err();
    assert!(matches!(&error, Error::Context { message } if message.contains("shorter")), "{error}");
}

async fn images_are_pushed_and_kept_for_revisions(which: Which) {
    let registry = or_skip!(Registry::start());
    let docker = or_skip!(Dockerd::start_one(which, &[registry.port()]));
    let images = Images::new(docker.engine());
    let name = format!("{}/app:1", registry.name());
    assert_eq!(images.push(&name, None, None).await.unwrap_err().code(), "image_absent");
    docker.make_image(&name, 1000, &["CMD [\"/x\"]"]);
    images.push(&name, None, None).await.unwrap();
    assert!(images.remove(&name).await.unwrap());
    images.pull(&name, None, None, None).await.unwrap();

    let (stack, service) = (StackName::new("shop").unwrap(), ServiceName::new("Api").unwrap());
    let mut revisions = Vec::new();
    for number in 0..3 {
        let name = format!("api:{number}");
        docker.make_image(&name, 1000 + number, &["CMD [\"/x\"]"]);
        let id = images.inspect(&name).await.unwrap().unwrap().id;
        revisions.push((RevisionId::new(format!("00000000000{number}")).unwrap(), id));
        images.keep(&stack, &service, &revisions).await.unwrap();
        images.remove(&name).await.unwrap();
    }
    docker.docker(&["image", "prune", "--force"]);
    for (_, id) in &revisions {
        assert!(images.inspect(id).await.unwrap().is_some(), "{id} was taken");
    }
    docker.docker(&["create", &revisions[1].1]);
    let taken = images.keep(&stack, &service, &revisions[2..]).await.unwrap();
    assert_eq!(taken.len(), 1, "{taken:?}");
    let found = async |number: usize| images.inspect(&revisions[number].1).await.unwrap().is_some();
    assert_eq!((found(0).await, found(1).await, found(2).await), (false, true, true));
    images.forget(&stack, &service).await.unwrap();
    assert!(!found(2).await);
    let names: Vec<String> =
        images.list().await.unwrap().into_iter().flat_map(|image| image.tags).collect();
    assert!(names.contains(&name), "{names:?}");
}
