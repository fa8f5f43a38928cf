//! Images from the command line: built, looked for before anything is changed, and pinned.

#![allow(clippy::unwrap_used, reason = "these are tests")]

#[path = "../../keel-container/tests/it/rig/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of the crate below use the rest")]
mod rig;
mod support;

use std::fs;
use std::path::Path;

use rig::{Dockerd, or_skip};
use support::{Done, Running};

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
    assert!(!again.stderr.contains("Step"), "{}", again.stderr);
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
    assert!(failed.stderr.contains("Step 2/2 : COPY none /"), "{}", failed.stderr);
    assert_eq!(docker.docker(&["inspect", "--format", "{{.Image}}", "built-a-1"]), ids[0]);
    here.run(&["down"]).ok();
}
