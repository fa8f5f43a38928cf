//! Images from the command line: built, looked for before anything is changed, and pinned.

#![allow(clippy::unwrap_used, reason = "these are tests")]

#[path = "../../keel-container/tests/it/rig/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of the crate below use the rest")]
mod rig;
mod support;

use std::fs;
use std::path::Path;

use keel_container::testing::Which;
use rig::{Dockerd, Registry, or_skip};
use support::{Done, Running, wait_for};

/// A shell in one static program (Debian's busybox-static).
const BUSYBOX: &str = "/bin/busybox";
const COMPOSE: &str = "
name: built
services:
  a: {build: {context: ., network: none}, network_mode: none, stop_grace_period: 1s}
  b: {image: built-a, pull_policy: never, network_mode: none, stop_grace_period: 1s}
";
const DOCKERFILE: &str = "FROM scratch
COPY busybox /bin/busybox
LABEL version=1
RUN [\"/bin/busybox\", \"echo\", \"a word of the step\"]
HEALTHCHECK --interval=1s CMD [\"/bin/busybox\", \"true\"]
CMD [\"/bin/busybox\", \"sleep\", \"1000\"]
";

/// Commands that use this engine.
struct Here {
    running: Running,
    url: String,
}

impl Here {
    fn run(&self, arguments: &[&str]) -> Done {
        let mut command = self.running.command(arguments);
        command.env("DOCKER_HOST", &self.url);
        self.running.sandbox.done(command.output().unwrap())
    }
}

#[test]
fn images_are_built_first_and_pinned() {
    let docker = or_skip!(Dockerd::start());
    let busybox = Path::new(BUSYBOX);
    or_skip!(busybox.exists().then_some(()).ok_or("busybox-static is not installed"));
    let here = Here { running: Running::new(COMPOSE), url: docker.url() };
    let sandbox = &here.running.sandbox;
    sandbox.write("Dockerfile", DOCKERFILE);
    fs::copy(busybox, sandbox.app().join("busybox")).unwrap();

    let refused = here.run(&["up", "--detach", "--no-build"]);
    assert_eq!(refused.code, 1, "{}", refused.all());
    assert!(refused.stderr.contains("image built-a is not on this machine"), "{}", refused.stderr);
    assert!(refused.stderr.contains("keel build"), "{}", refused.stderr);
    let refused = here.run(&["diff"]);
    let both = ["service `a`: image built-a", "service `b`: image built-a"];
    assert!(both.iter().all(|line| refused.stderr.contains(line)), "{}", refused.stderr);

    let up = here.run(&["up", "--detach", "--wait"]);
    assert_eq!(up.code, 0, "{}", up.all());
    assert!(up.stderr.contains("a word of the step"), "{}", up.stderr);
    assert!(here.run(&["ps"]).ok().contains("(healthy)"));
    let again = here.run(&["up", "--detach"]);
    assert!(again.stderr.contains("up to date"), "{}", again.all());
    assert!(!again.stderr.contains("RUN"), "{}", again.stderr);
    let listed = here.run(&["images", "--quiet"]).ok();
    let ids: Vec<&str> = listed.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1] && ids[0].starts_with("sha256:"), "{listed}");

    // The name stands for another content now: that is a change, and nothing happens before it is asked for.
    sandbox.write("Dockerfile", &DOCKERFILE.replace("version=1", "version=2"));
    here.run(&["build", "--quiet"]).ok();
    assert_ne!(here.run(&["images", "--quiet"]).ok(), listed);
    let used = docker.docker(&["inspect", "--format", "{{.Image}}", "built-a-1"]);
    assert_eq!(used, ids[0]);
    let diff = here.run(&["diff", "--exit-code"]);
    assert_eq!(diff.code, 1, "{}", diff.all());

    sandbox.write("Dockerfile", "FROM scratch\nCOPY none /\n");
    let failed = here.run(&["up", "--detach", "--build"]);
    assert_eq!(failed.code, 1, "{}", failed.all());
    assert!(failed.stderr.contains("COPY none /"), "{}", failed.stderr);
    assert_eq!(docker.docker(&["inspect", "--format", "{{.Image}}", "built-a-1"]), ids[0]);
    here.run(&["down"]).ok();
}

/// What is built on, with further contexts: a directory with what it leaves out, the image of another service, and one
/// in the place of an image.
const CONTEXTS: &str = "
name: contexts
services:
  base:
    build: {context: base, network: none}
    network_mode: none
  app:
    build:
      context: .
      network: none
      dockerfile_inline: |
        FROM nowhere.invalid/shell AS shell
        FROM shell
        COPY --from=lib . /lib/
        COPY . /own/
        RUN [\"/bin/busybox\", \"ls\", \"-a\", \"/lib\", \"/own\"]
      additional_contexts:
        lib: ./library
        nowhere.invalid/shell: service:base
    network_mode: none
";

#[test]
fn builds_have_further_contexts_on_every_builder() {
    let busybox = Path::new(BUSYBOX);
    or_skip!(busybox.exists().then_some(()).ok_or("busybox-static is not installed"));
    for (which, buildkit) in [(Which::Docker, "1"), (Which::Docker, "0"), (Which::Podman, "1")] {
        let docker = or_skip!(Dockerd::start_one(which, &[]));
        let here = Here { running: Running::new(CONTEXTS), url: docker.url() };
        let sandbox = &here.running.sandbox;
        sandbox.write("base/Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\n");
        fs::copy(busybox, sandbox.app().join("base/busybox")).unwrap();
        sandbox.write("library/.dockerignore", "gone\n.dockerignore\n");
        for name in ["library/there", "library/gone", "mine"] {
            sandbox.write(name, name);
        }
        // What it is built from is built too.
        let mut command = here.running.command(&["build", "app"]);
        command.env("DOCKER_HOST", &here.url).env("DOCKER_BUILDKIT", buildkit);
        let built = here.running.sandbox.done(command.output().unwrap());
        assert_eq!(built.code, 0, "{which:?} {buildkit}: {}", built.all());
        let said = |name: &str| built.stderr.lines().any(|line| line.ends_with(name));
        assert!(said(" there") && said(" mine") && !said(" gone"), "{which:?}: {}", built.stderr);
        assert!(!said(".keel.dockerfile"), "{which:?} {buildkit}: {}", built.stderr);
        let images = docker.docker(&["images", "--format", "{{.Repository}}"]);
        assert!(!images.contains("keel-context"), "{which:?} {buildkit}: {images}");
    }
}

#[test]
fn what_a_builder_does_not_know_is_said_before_it_begins() {
    let docker = or_skip!(Dockerd::start());
    let compose = "name: odd\nservices: {a: {build: {context: ., network: none}}}\n";
    let here = Here { running: Running::new(compose), url: docker.url() };
    here.running.sandbox.write("Dockerfile", "FROM scratch\nRUN <<EOF\nls\nEOF\n");
    let built = here.run(&["build"]);
    // There is no shell in the image, which only those find out that know what to do with it.
    if built.stderr.contains("/bin/sh") {
        println!("skipped: this engine knows here-documents");
        return;
    }
    assert!(built.stderr.contains("does not know here-documents"), "{}", built.stderr);
    assert!(built.stderr.contains("# syntax=docker/dockerfile:1"), "{}", built.stderr);
}

/// A helper of Docker's clients that knows one user, or misbehaves as its file `mode` says.
const HELPER: &str = r#"#!/bin/sh
dir=$(dirname "$0")
read -r server || true
case $(cat "$dir/mode") in
hangs) exec sleep 1000 ;;
fails) echo "the keychain is locked"; exit 1 ;;
garbage) echo "hunter2 is no JSON"; exit 0 ;;
none) echo "credentials not found in native keychain"; exit 1 ;;
esac
case $1 in
get) printf '{"ServerURL":"%s","Username":"me","Secret":"hunter2"}' "$server" ;;
list) printf '{"%s":"me"}' "$(cat "$dir/registry")" ;;
esac
"#;

#[test]
fn credentials_come_from_helpers() {
    let registry = or_skip!(Registry::start_for("me", "hunter2"));
    let docker = or_skip!(Dockerd::start());
    let busybox = Path::new(BUSYBOX);
    or_skip!(busybox.exists().then_some(()).ok_or("busybox-static is not installed"));
    let name = registry.name();
    let compose = format!(
        "name: helped\nservices:\n  base: {{image: '{name}/base:1', build: {{context: ., network: none}}}}\n  \
         app: {{build: {{context: ., dockerfile_inline: 'FROM {name}/base:1', pull: true, network: none}}}}\n"
    );
    let here = Here { running: Running::new(&compose), url: docker.url() };
    let sandbox = &here.running.sandbox;
    sandbox.write("Dockerfile", "FROM scratch\nCOPY busybox /bin/busybox\n");
    fs::copy(busybox, sandbox.app().join("busybox")).unwrap();
    let (bin, config) = (sandbox.app().join("bin"), sandbox.app().join("docker"));
    sandbox.write("bin/docker-credential-keeltest", HELPER);
    sandbox.write("bin/registry", &name);
    let program = bin.join("docker-credential-keeltest");
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let as_user = |mode: &str, buildkit: &str, arguments: &[&str]| {
        sandbox.write("bin/mode", mode);
        let mut command = here.running.command(arguments);
        command.env("DOCKER_HOST", &here.url).env("DOCKER_CONFIG", &config);
        command.env("DOCKER_BUILDKIT", buildkit);
        // Without the `docker` of this machine.
        command.env("PATH", format!("{}:/usr/bin:/bin", bin.display()));
        sandbox.done(command.output().unwrap())
    };
    for text in [
        r#"{"credsStore": "keeltest"}"#.to_owned(),
        format!(r#"{{"credHelpers": {{"{name}": "keeltest"}}}}"#),
    ] {
        sandbox.write("docker/config.json", &text);
        as_user("", "1", &["build", "base"]).ok();
        let pushed = as_user("", "1", &["push", "base"]);
        assert_eq!(pushed.code, 0, "{text}: {}", pushed.all());
        docker.docker(&["image", "rm", &format!("{name}/base:1")]);
        let pulled = as_user("", "1", &["pull", "base"]);
        assert_eq!(pulled.code, 0, "{text}: {}", pulled.all());
        for buildkit in ["1", "0"] {
            docker.docker(&["image", "rm", "--force", &format!("{name}/base:1"), "helped-app"]);
            let built = as_user("", buildkit, &["build", "app"]);
            assert_eq!(built.code, 0, "{text} {buildkit}: {}", built.all());
            as_user("", "1", &["pull", "base"]).ok();
        }
        for (mode, says) in [
            ("fails", "the keychain is locked"),
            ("garbage", "its answer is not understood"),
            ("none", "docker login"),
        ] {
            docker.docker(&["image", "rm", "--force", &format!("{name}/base:1"), "helped-app"]);
            for arguments in [&["pull", "base"][..], &["build", "app"]] {
                let failed = as_user(mode, "1", arguments);
                assert_eq!(failed.code, 1, "{mode}: {}", failed.all());
                assert!(failed.stderr.contains(says), "{mode} {arguments:?}: {}", failed.stderr);
                assert!(!failed.all().contains("hunter2"), "{mode}: {}", failed.all());
                let errors = failed.stderr.lines().filter(|line| line.starts_with("error")).count();
                assert_eq!(errors, 1, "{mode} {arguments:?}: {}", failed.stderr);
            }
            as_user("", "1", &["build", "base"]).ok();
        }
    }
}

/// A stack with one service that runs what a registry has.
fn from_registry(name: &str) -> String {
    format!(
        "name: again\nservices:\n  app: {{image: '{name}', pull_policy: always, network_mode: none, stop_grace_period: 0s,\n    \
         build: {{context: ., network: none}}, x-keel: {{rollout: {{min_healthy_time: 100ms}}}}}}\n"
    )
}

#[test]
fn a_rollback_has_its_image_or_changes_nothing() {
    let registry = or_skip!(Registry::start());
    let docker = or_skip!(Dockerd::start());
    let busybox = Path::new(BUSYBOX);
    or_skip!(busybox.exists().then_some(()).ok_or("busybox-static is not installed"));
    let name = format!("{}/app:1", registry.name());
    let here = Here { running: Running::new(&from_registry(&name)), url: docker.url() };
    let sandbox = &here.running.sandbox;
    fs::copy(busybox, sandbox.app().join("busybox")).unwrap();
    let used = || {
        let all = docker.docker(&["ps", "--quiet", "--no-trunc"]);
        docker.docker(&["inspect", "--format", "{{.Image}}", all.lines().next().unwrap()])
    };
    let version = |number: u32| {
        let text = DOCKERFILE.replace("version=1", &format!("version={number}"));
        sandbox.write("Dockerfile", &text);
        here.run(&["build", "--quiet"]).ok();
    };
    let forget = |id: &str| {
        docker.docker(&["image", "rm", "--force", id]);
    };
    version(1);
    here.run(&["push", "--quiet"]).ok();
    docker.docker(&["image", "rm", &name]);
    here.run(&["pull"]).ok();
    here.run(&["up", "--detach", "--wait", "--no-build"]).ok();
    let first = used();
    version(2);
    here.run(&["push", "--quiet"]).ok();
    here.run(&["pull"]).ok();
    here.run(&["up", "--detach", "--wait", "--no-build"]).ok();
    let second = used();
    assert_ne!(first, second);

    // It came from a registry, whose tag is another's by now: it is fetched by its digest.
    forget(&first);
    let back = here.run(&["rollback"]);
    assert_eq!(back.code, 0, "{}", back.all());
    assert_eq!(used(), first);

    // It is nowhere any more.
    here.run(&["rollback"]).ok();
    assert_eq!(used(), second);
    forget(&first);
    drop(registry);
    let generations = || here.run(&["history"]).ok().lines().count();
    let before = generations();
    let refused = here.run(&["rollback"]);
    assert_eq!(refused.code, 1, "{}", refused.all());
    let says = ["service `app`", &first, "not on this machine any more", "can't be fetched again"];
    assert!(says.iter().all(|text| refused.stderr.contains(text)), "{}", refused.stderr);
    assert_eq!((used(), generations()), (second, before));

    // What was kept for a stack that went while the server did is let go of by the next.
    let kept = || docker.docker(&["images", "--quiet", "keel/again/app"]);
    wait_for("images to be kept", || (!kept().is_empty()).then_some(()));
    here.run(&["down"]).ok();
    let pid = here.running.server_pid();
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    here.run(&["images"]).ok();
    wait_for("kept images to be let go of", || kept().is_empty().then_some(()));
}
