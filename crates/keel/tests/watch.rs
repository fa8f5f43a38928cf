//! `keel watch` and `keel up --watch`: what becomes of files that change.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::Read as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use keel_container::copy::{Files, Removal};
use keel_container::testing::{self, IMAGE, Networks, Which};
use keel_model::InstanceId;
use keel_runtime::ContainerExec;
use support::{Running, Sandbox, free_port, wait_for};

fn engine(which: Which) -> Option<testing::Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(testing::start(which, Networks::Here))
}

/// A command that runs beside the test, with what it has said so far.
struct Beside {
    child: Child,
    said: tempfile::NamedTempFile,
}

impl Beside {
    fn start(mut command: Command) -> Self {
        let said = tempfile::NamedTempFile::new().unwrap();
        // Both streams in one file, in the order in which they came.
        let file = fs::OpenOptions::new().append(true).open(said.path()).unwrap();
        command.stdout(file.try_clone().unwrap()).stderr(file).stdin(Stdio::null());
        Self { child: command.spawn().unwrap(), said }
    }

    fn said(&self) -> String {
        let mut text = String::new();
        self.said.reopen().unwrap().read_to_string(&mut text).unwrap();
        text
    }

    /// Waits until it has said something, and gives all that it has said.
    #[track_caller]
    fn says(&mut self, words: &str) -> String {
        wait_for(&format!("{words:?} of the watch: {}", self.said()), || {
            let said = self.said();
            if said.contains(words) {
                return Some(said);
            }
            assert!(self.child.try_wait().unwrap().is_none(), "it has ended: {said}");
            None
        })
    }

    /// Ctrl-C, and how it ended.
    fn interrupt(&mut self) -> (Option<i32>, String) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let ended = wait_for("the watch to end", || self.child.try_wait().unwrap());
        (ended.code(), self.said())
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("the command said:\n{}", self.said());
        }
    }
}

/// Requests without pause until it ends; how many were answered, and how many not.
struct Traffic {
    shared: Arc<(AtomicBool, AtomicUsize, AtomicUsize)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn to(port: u16) -> Self {
        let shared = Arc::<(AtomicBool, AtomicUsize, AtomicUsize)>::default();
        let client = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                while !shared.0.load(SeqCst) {
                    let answered = support::get(port).is_some_and(|body| body.contains("page"));
                    if answered { &shared.1 } else { &shared.2 }.fetch_add(1, SeqCst);
                }
            })
        };
        Self { threads: (0..2).map(client).collect(), shared }
    }

    #[track_caller]
    fn lost_nothing(self) {
        self.shared.0.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let (answered, lost) = (self.shared.1.load(SeqCst), self.shared.2.load(SeqCst));
        assert!(answered > 10 && lost == 0, "{answered} answered, {lost} lost");
    }
}

const DOCKERFILE: &str = "COPY VERSION /VERSION\nCOPY src /app\n";

fn compose(port: u16) -> String {
    format!(
        "services:
  web:
    build: {{context: ., network: none}}
    init: true
    command: [httpd, -f, -p, '8000', -h, /app]
    ports: ['{port}:8000']
    stop_grace_period: 1s
    ulimits: {{nofile: 1024, nproc: 1024}}
    deploy: {{replicas: 2}}
    x-keel: {{rollout: {{min_healthy_time: 1s}}}}
    develop:
      watch:
        - {{path: ./src, action: sync, target: /app, ignore: ['*.log']}}
        - {{path: ./conf, action: sync+restart, target: /conf}}
        - {{path: ./hook, action: sync+exec, target: /hook, exec: {{command: [sh, -c, 'echo ran $$(cat /hook) $$WORD; cat /hook > /ran'], environment: [WORD=once]}}}}
        - {{path: ./VERSION, action: rebuild}}
"
    )
}

/// A stack with a service of two containers that is watched.
struct Watched {
    watch: Beside,
    keel: Running,
    engine: testing::Running,
    port: u16,
}

impl Watched {
    fn start(which: Which) -> Option<Self> {
        let engine = engine(which)?;
        let port = free_port();
        let keel = Running::with_engine(&compose(port), &engine.socket);
        let sandbox = &keel.sandbox;
        sandbox.write("Dockerfile", &format!("FROM {IMAGE}\n{DOCKERFILE}"));
        for (name, text) in [
            ("VERSION", "1"),
            ("hook", "x"),
            ("src/index.html", "page one"),
            ("src/old", "old"),
            ("src/dir/inside", "old"),
            ("conf/a", "a"),
        ] {
            sandbox.write(name, text);
        }
        let mut watch = Beside::start(keel.command(&["watch"]));
        watch.says("; Ctrl-C ends the watch");
        keel.run(&["up", "-d", "--wait"]).ok();
        Some(Self { watch, keel, engine, port })
    }

    fn write(&self, name: &str, text: &str) {
        self.keel.sandbox.write(name, text);
    }

    /// What a command says in one of the two.
    fn inside(&self, index: usize, script: &str) -> String {
        let index = index.to_string();
        self.keel.run(&["exec", "-T", "--index", &index, "web", "sh", "-c", script]).stdout
    }

    /// Waits until a command says this in both.
    #[track_caller]
    fn both_say(&self, script: &str, expected: &str) {
        for index in [1, 2] {
            let mut last = String::new();
            let deadline = std::time::Instant::now() + support::DEADLINE;
            while last != expected {
                last = self.inside(index, script);
                let late = std::time::Instant::now() > deadline;
                assert!(!late, "{index}: {script}: {last:?}, not {expected:?}");
            }
        }
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let url = format!("unix://{}", self.engine.socket.display());
        let output = Command::new("docker").env("DOCKER_HOST", url).args(arguments).output();
        String::from_utf8(output.unwrap().stdout).unwrap()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("keel ps:\n{}", self.keel.run(&["ps", "-a"]).all());
            println!("keel events:\n{}", self.keel.run(&["events"]).all());
            println!("the engine's containers:\n{}", self.docker(&["ps", "-a"]));
        }
    }
}

fn files_are_synced(which: Which) {
    let Some(mut it) = Watched::start(which) else { return };
    let app = it.keel.sandbox.app();
    // A change, a removal, a link, a mode, what editors do, and what is left out.
    it.write("src/index.html", "page two");
    fs::remove_file(app.join("src/old")).unwrap();
    fs::remove_dir_all(app.join("src/dir")).unwrap();
    it.write("src/tool", "#!/bin/sh\necho tool\n");
    fs::set_permissions(app.join("src/tool"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("index.html", app.join("src/link")).unwrap();
    it.write("src/noise.log", "x");
    it.both_say("cat /app/index.html /app/link", "page twopage two");
    it.both_say("/app/tool", "tool\n");
    it.both_say("ls /app", "index.html\nlink\ntool\n");
    // A directory that is filled while it is found, in the place of one that went.
    for part in 0..50 {
        it.write(&format!("src/dir/deep/{part}/file"), "x");
    }
    it.both_say("cat /app/dir/deep/*/file", &"x".repeat(50));
    it.write("src/index.new", "page three");
    fs::rename(app.join("src/index.new"), app.join("src/index.html")).unwrap();
    it.both_say("cat /app/index.html", "page three");
    it.both_say("ls /app/index.new 2>&1 | cat", "ls: /app/index.new: No such file or directory\n");
    // A whole checkout is one batch.
    for number in 0..2000 {
        it.write(&format!("src/many/{number}"), "x");
    }
    it.both_say("ls /app/many | busybox wc -l", "2000\n");
    // A command that follows.
    it.write("hook", "hooked");
    it.both_say("cat /ran", "hooked");
    let said = it.watch.says("sh run in 2 instances");
    assert!(said.contains("ran hooked once"), "{said}");
    // One that is made anew has all of it at once.
    let gone = it.docker(&["ps", "-q"]);
    it.docker(&["rm", "-f", gone.lines().next().unwrap()]);
    it.watch.says("brought to 1 instance");
    it.both_say(
        "cat /app/index.html /app/link /hook; ls /app/old 2>/dev/null",
        "page threepage threehooked",
    );
    // Where an engine is on another machine, its containers have to do it.
    let container = it.docker(&["ps", "-q"]).lines().next().unwrap().to_owned();
    let into = ContainerExec {
        instance: InstanceId::new("app-web-1").unwrap(),
        container: container.clone(),
        engine: format!("unix://{}", it.engine.socket.display()),
        tls: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let paths = ["/app/many", "/app/link", "/none"].map(PathBuf::from);
    runtime.block_on(Files::new(&into).remove(&paths, Removal::Command)).unwrap();
    assert_eq!(it.docker(&["exec", &container, "ls", "/app"]), "dir\nindex.html\ntool\n");
    let (code, said) = it.watch.interrupt();
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(it.keel.pids().len(), 2, "what runs, runs on");
}

#[test]
fn files_are_synced_with_docker() {
    files_are_synced(Which::Docker);
}

#[test]
fn files_are_synced_with_podman() {
    files_are_synced(Which::Podman);
}

#[test]
fn restarts_and_rebuilds_lose_no_request() {
    let Some(mut it) = Watched::start(Which::Docker) else { return };
    let traffic = Traffic::to(it.port);
    let before = it.keel.pids();
    it.write("src/extra", "synced");
    it.both_say("cat /app/extra", "synced");
    // A restart finds what was copied, also before.
    it.write("conf/a", "b");
    it.watch.says("copied to 2 instances, restarted");
    it.both_say("cat /conf/a /app/extra", "bsynced");
    let restarted = it.keel.pids();
    assert!(restarted.keys().eq(before.keys()), "{before:?} {restarted:?}");
    assert!(restarted.iter().all(|(name, pid)| before[name] != *pid), "{before:?} {restarted:?}");
    // A release is a new container, and has the rest as well.
    it.write("VERSION", "2");
    it.watch.says("built and released");
    it.both_say("cat /VERSION /conf/a", "2b");
    // What can't be built changes nothing.
    it.keel.sandbox.write("Dockerfile", &format!("FROM {IMAGE}\nCOPY none /\n"));
    it.write("VERSION", "3");
    let said = it.watch.says("not built, what ran before runs on");
    assert!(said.contains("COPY none"), "{said}");
    it.both_say("cat /VERSION", "2");
    traffic.lost_nothing();
    it.keel.run(&["down"]).ok();
    it.watch.says("was removed");
}

#[test]
fn a_process_is_restarted_and_nothing_is_copied_to_it() {
    let port = free_port();
    let compose = format!(
        "services:\n  web:\n    command: {}\n    ports: ['{port}:8000']\n    develop:\n      watch:\n        \
         - {{path: ./src, action: sync+restart, target: /nowhere}}\n        \
         - {{path: ./src, action: sync+exec, target: ./src, exec: {{command: [echo, followed]}}}}\n",
        support::responder("page")
    );
    let keel = Running::new(&compose);
    keel.sandbox.write("src/a", "1");
    let mut up = Beside::start(keel.command(&["up", "--watch"]));
    let said = up.says("; Ctrl-C ends the watch");
    assert!(said.contains("nothing is copied to /nowhere"), "{said}");
    let before = keel.pids();
    keel.sandbox.write("src/a", "2");
    let said = up.says("1 file: restarted");
    assert!(said.contains("followed"), "{said}");
    let after = keel.pids();
    assert!(after.values().all(|pid| !before.values().any(|it| it == pid)), "{before:?} {after:?}");
    let (code, said) = up.interrupt();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("is stopped"), "{said}");
}

#[test]
fn what_fails_at_the_start_is_mended_while_it_is_watched() {
    let keel = Running::new("");
    let app = keel.sandbox.app();
    let compose = format!(
        "services:\n  web:\n    command: [sleep, '1000']\n    restart: 'no'\n    pre_start: [{{command: [test, -e, '{}/src/fine']}}]\n    \
         develop: {{watch: [{{path: ./src, action: restart}}]}}\n",
        app.display()
    );
    keel.sandbox.write("compose.yaml", &compose);
    keel.sandbox.write("src/a", "1");
    let mut watch = Beside::start(keel.command(&["watch"]));
    let said = watch.says("; Ctrl-C ends the watch");
    assert!(said.contains("error: ") && said.contains("pre_start step failed"), "{said}");
    keel.sandbox.write("src/fine", "2");
    watch.says("restarted");
    wait_for("it to run", || (keel.pids().len() == 1).then_some(()));
    assert_eq!(watch.interrupt().0, Some(0));
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let sandbox = Sandbox::new();
    let write = |rules: &str| {
        sandbox.write(
            "compose.yaml",
            &format!(
                "services:\n  web:\n    command: [sleep, '9']\n    develop:\n      watch:\n{rules}"
            ),
        );
    };
    write("        - {path: ./none, action: restart}\n");
    let absent = sandbox.run(&["watch"]);
    assert_eq!(absent.code, 3, "{}", absent.all());
    assert!(absent.stderr.contains("there is no [DIR]/app/none to watch"), "{}", absent.stderr);
    assert!(absent.stderr.contains("compose.yaml:6:18"), "{}", absent.stderr);
    sandbox.write("compose.yaml", "services: {web: {command: [sleep, '9']}}\n");
    let nothing = sandbox.run(&["watch", "web"]);
    assert_eq!(nothing.code, 3, "{}", nothing.all());
    assert!(nothing.stderr.contains("no `develop.watch` for web"), "{}", nothing.stderr);
    assert!(!sandbox.state_dir().exists(), "no server was started");
}

#[test]
fn a_limit_of_the_kernel_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("src/a/b/c", "x");
    sandbox.write(
        "compose.yaml",
        "services: {web: {command: [sleep, '9'], develop: {watch: [{path: ./src, action: restart}]}}}\n",
    );
    let keel = sandbox.command(&["watch", "--no-up"]);
    // A user namespace has limits of its own.
    let mut limited = Command::new("unshare");
    let script = "echo 2 > /proc/sys/user/max_inotify_watches && exec \"$@\"";
    limited.args(["-Ur", "sh", "-c", script, "sh"]).arg(keel.get_program());
    limited.args(keel.get_args()).current_dir(sandbox.app()).env_clear();
    limited.envs(keel.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let Ok(output) = limited.output() else { return println!("skipped: no `unshare`") };
    let done = sandbox.done(output);
    if done.stderr.contains("unshare") || done.stderr.contains("max_inotify_watches:") {
        return println!("skipped: {}", done.stderr);
    }
    assert_eq!(done.code, 1, "{}", done.all());
    assert!(done.stderr.contains("sysctl -w fs.inotify.max_user_watches="), "{}", done.stderr);
    assert!(Path::new(&sandbox.app()).exists());
}
