//! Builds by the engine's BuildKit: what its steps may ask for, and what is left when one fails or is given up.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use keel_container::Engine;
use keel_container::images::{Context, Error, ImageFacts, Images, Logins, Order, Progress, Recipe};
use keel_model::{Build, BuildSecret, Content};
use tempfile::TempDir;
use tokio::sync::mpsc;

use crate::images::told;
use crate::rig::{Dockerd, compile, or_skip};

/// A shell and its tools in one static program (Debian's busybox-static).
const BUSYBOX: &str = "/bin/busybox";
/// How long what was given up may take to be gone.
const GONE: Duration = Duration::from_secs(20);

/// A context with a shell, and a Dockerfile that begins with it.
fn context(steps: &str) -> (TempDir, Build) {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(BUSYBOX, dir.path().join("busybox")).unwrap();
    let text = format!(
        "FROM scratch AS base\nCOPY busybox /bin/busybox\nSHELL [\"/bin/busybox\", \"sh\", \"-c\"]\n\
         ENV PATH=/bin\nRUN /bin/busybox --install -s /bin\n{steps}"
    );
    fs::write(dir.path().join("Dockerfile"), text).unwrap();
    let context = dir.path().display().to_string();
    let build = Build { context, network: Some("none".into()), ..Build::default() };
    (dir, build)
}

async fn build(
    engine: &Engine,
    build: &Build,
    name: &str,
    to: Option<mpsc::Sender<Progress>>,
) -> Result<ImageFacts, Error> {
    let context = Context::open(build)?;
    let recipe = Recipe::new(build, name, None, "Dockerfile");
    let order = Order { recipe, build: build.clone(), context, logins: Logins::default() };
    Images::new(engine.clone()).build_by_buildkit(order, to).await
}

#[tokio::test(flavor = "multi_thread")]
async fn steps_have_secrets_and_caches_that_stay_out_of_the_image() {
    let docker = or_skip!(Dockerd::start());
    let (dir, mut it) = context(
        "ARG WHO=nobody\nRUN --mount=type=secret,id=token,required=true test $(wc -c < /run/secrets/token) = 7 && echo the secret is right\n\
         RUN --mount=type=cache,target=/cache echo x >> /cache/runs && wc -l < /cache/runs > /runs\n\
         COPY . /all/\nRUN ls -a /all && echo \"hello $WHO\"\nLABEL who=$WHO\nCMD [\"/bin/sh\"]\nFROM base AS other\nRUN false\n",
    );
    fs::write(dir.path().join(".dockerignore"), "left-out\nDockerfile\ndocs\n!docs/kept\n")
        .unwrap();
    fs::create_dir(dir.path().join("docs")).unwrap();
    for name in ["left-out", "there", "docs/kept", "docs/gone"] {
        fs::write(dir.path().join(name), name).unwrap();
    }
    it.target = Some("base".into());
    it.tags = vec!["kit:two".into()];
    it.args.insert("WHO".into(), "a b&c".into());
    it.labels.insert("k".into(), "v".into());
    it.secrets =
        vec![BuildSecret { id: "token".into(), content: Content::new(b"hunter2".to_vec()) }];
    let (to, lines) = mpsc::channel(10_000);
    let facts = build(&docker.engine(), &it, "kit:one", Some(to)).await.unwrap();
    let lines: Vec<String> = told(lines).into_iter().map(|it| it.status).collect();
    let said = |text: &str| lines.iter().any(|line| line.ends_with(text));
    assert!(said(" the secret is right") && said(" hello a b&c"), "{lines:#?}");
    assert!(said(" there") && !said(" left-out") && !said(" Dockerfile"), "{lines:#?}");
    let files = docker.docker(&[
        "run",
        "--rm",
        "--network=none",
        "kit:two",
        "/bin/sh",
        "-c",
        "ls /all/docs; cat /runs; ls /run 2>/dev/null || true",
    ]);
    // Of the mount older ones leave an empty directory.
    assert_eq!(files.trim_end_matches("\nsecrets"), "kept\n1");
    let history = docker.docker(&["history", "--no-trunc", "kit:one"]);
    let shown = docker.docker(&["inspect", "kit:one"]);
    assert!(!history.contains("hunter2") && !shown.contains("hunter2"), "{history}");
    assert!(shown.contains("\"k\": \"v\"") && shown.contains("\"who\": \"a b&c\""), "{shown}");
    assert!(lines.iter().all(|line| !line.contains("hunter2")), "{lines:#?}");

    // Nothing has changed: nothing is run again. A changed file is seen.
    let (to, lines) = mpsc::channel(10_000);
    assert_eq!(build(&docker.engine(), &it, "kit:one", Some(to)).await.unwrap().id, facts.id);
    assert!(told(lines).iter().any(|line| line.status.ends_with("CACHED")));
    fs::write(dir.path().join("there"), "other").unwrap();
    assert_ne!(build(&docker.engine(), &it, "kit:one", None).await.unwrap().id, facts.id);
    // Without the secret the step fails, and says so.
    it.secrets.clear();
    it.no_cache = true;
    let error = build(&docker.engine(), &it, "kit:one", None).await.unwrap_err();
    assert!(error.to_string().contains("token"), "{error}");
    drop(dir);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_step_that_fails_is_shown_with_its_last_words() {
    let docker = or_skip!(Dockerd::start());
    let (_dir, it) = context("RUN echo one; echo last words >&2; exit 3\n");
    let error = build(&docker.engine(), &it, "bad", None).await.unwrap_err();
    let Error::Build { step, message, output, .. } = &error else { panic!("{error:?}") };
    assert!(step.ends_with("RUN echo one; echo last words >&2; exit 3"), "{step}");
    assert!(message.contains('3') && !message.starts_with("failed to solve"), "{message}");
    // What is written to one stream may overtake what is written to the other.
    let mut output = output.clone();
    output.sort();
    assert_eq!(output, ["last words", "one"]);
    for (steps, says) in [
        ("COPY none /\n", "none"),
        ("NONSENSE\n", "NONSENSE"),
        ("FROM localhost:1/none\n", "localhost:1"),
    ] {
        let (_dir, it) = context(steps);
        let error = build(&docker.engine(), &it, "bad", None).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
    let images = Images::new(docker.engine());
    assert_eq!(images.inspect("bad").await.unwrap(), None);
}

/// Asks the agent which keys it has, and prints how many.
const COUNT_KEYS: &str = r#"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un at = { .sun_family = AF_UNIX };
    const char *path = getenv("SSH_AUTH_SOCK");
    if (!path) return 2;
    strncpy(at.sun_path, path, sizeof at.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, (void *)&at, sizeof at)) return 3;
    unsigned char ask[] = {0, 0, 0, 1, 11}, answer[9] = {0};
    if (write(fd, ask, 5) != 5) return 4;
    for (int n = 0; n < 9;) { int r = read(fd, answer + n, 9 - n); if (r <= 0) return 5; n += r; }
    printf("the agent has %d keys\n", answer[8]);
    return 0;
}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn steps_speak_to_an_agent_that_holds_a_key() {
    let docker = or_skip!(Dockerd::start());
    let (dir, mut it) = context(
        "COPY count /\nRUN --mount=type=ssh /count\nRUN --mount=type=ssh,id=key,required=true /count\n",
    );
    compile(&dir.path().join("count"), COUNT_KEYS);
    let key = dir.path().join("key");
    let made =
        Command::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key).status();
    or_skip!(made.map_err(|error| format!("ssh-keygen: {error}")));
    it.ssh =
        [("default".to_owned(), Some(key.clone())), ("key".to_owned(), Some(key.clone()))].into();
    let (to, lines) = mpsc::channel(10_000);
    build(&docker.engine(), &it, "kit:ssh", Some(to)).await.unwrap();
    let lines = told(lines);
    let counts = lines.iter().filter(|it| it.status.ends_with("the agent has 1 keys")).count();
    assert_eq!(counts, 2, "{lines:#?}");
    let left = fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    assert_eq!(
        left.filter(|it| it.file_name().to_string_lossy().starts_with("keel-ssh-")).count(),
        0
    );

    it.ssh = [("default".to_owned(), Some("/no/such/key".into()))].into();
    let error = build(&docker.engine(), &it, "kit:ssh", None).await.unwrap_err().to_string();
    assert!(error.contains("/no/such/key"), "{error}");
    fs::write(&key, "no key").unwrap();
    it.ssh = [("default".to_owned(), Some(key))].into();
    let error = build(&docker.engine(), &it, "kit:ssh", None).await.unwrap_err().to_string();
    assert!(error.contains("can't be used"), "{error}");
    // A step that needs an agent, in a build that has none.
    it.ssh.clear();
    it.no_cache = true;
    let error = build(&docker.engine(), &it, "kit:ssh", None).await.unwrap_err().to_string();
    assert!(error.contains("ssh"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_is_given_up_leaves_nothing() {
    let docker = or_skip!(Dockerd::start());
    let (_dir, it) = context(&format!("RUN echo it runs; sleep {}\n", long()));
    let (to, mut lines) = mpsc::channel(10_000);
    let engine = docker.engine();
    let building = tokio::spawn(async move { build(&engine, &it, "kit:never", Some(to)).await });
    while let Some(line) = lines.recv().await {
        if line.status.ends_with("it runs") {
            break;
        }
    }
    let begun = Instant::now();
    while !sleeps() {
        assert!(begun.elapsed() < GONE, "the step does not run");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    building.abort();
    let begun = Instant::now();
    while sleeps() {
        assert!(begun.elapsed() < GONE, "the step still runs");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let images = Images::new(docker.engine());
    assert_eq!(images.inspect("kit:never").await.unwrap(), None);
    // And the engine builds on.
    let (_dir, it) = context("RUN true\n");
    build(&docker.engine(), &it, "kit:next", None).await.unwrap();
}

/// Whether a step of the test above runs.
fn sleeps() -> bool {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let mut commands = processes.filter_map(|it| fs::read(it.path().join("cmdline")).ok());
    let ours = format!("sleep\0{}\0", long());
    commands.any(|command| command == ours.as_bytes())
}

/// A time in seconds by which the step is known.
fn long() -> u32 {
    1_000_000_000 + std::process::id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_called_that() {
    let docker = or_skip!(Dockerd::start_small(32));
    let (_dir, it) = context("RUN dd if=/dev/urandom of=/big bs=1M count=64\n");
    let error = build(&docker.engine(), &it, "kit:big", None).await.unwrap_err();
    let output = match &error {
        Error::Build { output, .. } => output.join("\n"),
        _ => String::new(),
    };
    // A step that finds no room says so itself; what the engine writes has an error of its own.
    assert!(error.code() == "disk_full" || output.contains("No space left"), "{error:?}");
    let (dir, it) = context("COPY large /\n");
    let written = Command::new("dd")
        .args(["if=/dev/urandom", "bs=1M", "count=48"])
        .arg(format!("of={}", dir.path().join("large").display()))
        .stderr(Stdio::null())
        .status();
    assert!(written.unwrap().success() && Path::new(BUSYBOX).exists());
    let error = build(&docker.engine(), &it, "kit:big", None).await.unwrap_err();
    assert_eq!(error.code(), "disk_full", "{error:?}");
    assert_eq!(Images::new(docker.engine()).inspect("kit:big").await.unwrap(), None);
}
