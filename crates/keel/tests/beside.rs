//! What is beside the instances of containers: volumes, what they use, files in and out, one-off commands, streams.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use keel_container::testing::{self, IMAGE, Networks, Which};
use support::{Done, Running, wait_for};

fn engine(which: Which) -> Option<testing::Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(testing::start(which, Networks::Here))
}

fn compose() -> String {
    let limits = "ulimits: {nofile: 1024, nproc: 1024}, init: true";
    format!(
        "services:\n  \
         base: {{image: '{IMAGE}', command: [sleep, '1000'], mem_limit: 64m, volumes: ['data:/data'], {limits}}}\n  \
         tool: {{image: '{IMAGE}', command: [echo, hello], profiles: [tools], depends_on: [base],\n    \
         environment: {{COLOUR: red}}, secrets: [word], volumes: ['data:/data', '/own'], {limits}}}\n  \
         local: {{command: [sleep, '1000'], working_dir: .}}\n\
         secrets: {{word: {{environment: WORD}}}}\nvolumes: {{data: }}\n"
    )
}

/// A stack with a container and a process that run.
struct Stack {
    keel: Running,
    engine: testing::Running,
}

impl Stack {
    fn up(which: Which) -> Option<Self> {
        let engine = engine(which)?;
        let keel = Running::with_engine(&compose(), &engine.socket);
        let stack = Self { keel, engine };
        stack.run(&["up", "-d", "--wait"]).ok();
        Some(stack)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.keel.command(arguments);
        command.env("WORD", "hidden");
        command
    }

    fn run(&self, arguments: &[&str]) -> Done {
        self.keel.sandbox.done(self.command(arguments).output().unwrap())
    }

    /// With something on standard input.
    fn fed(&self, arguments: &[&str], input: &[u8]) -> Done {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        self.keel.sandbox.done(child.wait_with_output().unwrap())
    }

    /// `keel` with these words, in a terminal.
    fn in_terminal(&self, words: &str) -> Command {
        let like = self.command(&[]);
        let mut script = Command::new("script");
        let program = env!("CARGO_BIN_EXE_keel");
        script.args(["-qec", &format!("{program} {words}"), "/dev/null"]).env_clear();
        script.current_dir(like.get_current_dir().unwrap());
        script.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?))));
        script.stdin(Stdio::null());
        script
    }

    /// Names of all containers of the engine.
    fn containers(&self) -> String {
        let mut command = Command::new("docker");
        let url = format!("unix://{}", self.engine.socket.display());
        let listed = command.env("DOCKER_HOST", url).args(["ps", "-a", "--format", "{{.Names}}"]);
        String::from_utf8(listed.output().unwrap().stdout).unwrap()
    }
}

/// What is said of steps, ports, and output that nobody keeps.
fn little_things_are_shown(which: Which) {
    let Some(engine) = engine(which) else { return };
    let (tcp, udp) = (support::free_port(), support::free_port());
    let limits = "ulimits: {nofile: 1024, nproc: 1024}, init: true, stop_grace_period: 1s";
    let compose = format!(
        "services:\n  \
         web: {{image: '{IMAGE}', command: [httpd, -f, -p, '8000', -h, /data], ports: ['127.0.0.1:{tcp}:8000', '127.0.0.1:{udp}:53/udp'],\n    \
         volumes: ['data:/data'], pre_start: [{{command: [sh, -c, 'echo stepped; echo x >> /data/steps']}}], {limits}}}\n  \
         plain: {{image: '{IMAGE}', tty: true, {limits}}}\n  \
         mute: {{image: '{IMAGE}', command: [sh, -c, 'echo unheard; exec sleep 1000'], logging: {{driver: none}}, {limits}}}\n  \
         local: {{command: [sleep, '1000'], pre_start: [{{command: [echo, prepared]}}]}}\n\
         volumes: {{data: }}\n"
    );
    let stack = Stack { keel: Running::with_engine(&compose, &engine.socket), engine };
    stack.run(&["up", "-d", "--wait"]).ok();
    // What a step said is with the log of what it was for.
    assert!(stack.run(&["logs", "web"]).ok().contains("| [pre_start] stepped"));
    assert!(stack.run(&["logs", "-n", "1", "web"]).ok().contains("[pre_start] stepped"));
    assert!(stack.run(&["logs", "local"]).ok().contains("| [pre_start] prepared"));
    // A command beside a service prepares nothing, as with docker compose.
    let steps = ["run", "--rm", "web", "cat", "/data/steps"];
    assert_eq!(stack.run(&steps).ok(), "x\n");
    // The image says what is run where nobody else does.
    let ps = stack.run(&["ps", "plain"]).ok();
    assert!(ps.lines().nth(1).unwrap().contains("/bin/sh"), "{ps}");
    assert_eq!(stack.run(&["port", "web", "8000"]).ok(), format!("127.0.0.1:{tcp}\n"));
    assert_eq!(
        stack.run(&["port", "--index", "1", "web", "8000/tcp"]).ok(),
        format!("127.0.0.1:{tcp}\n")
    );
    let found = stack.run(&["port", "--protocol", "udp", "web", "53"]).ok();
    assert_eq!(found, format!("127.0.0.1:{udp}\n"));
    assert_eq!(stack.run(&["port", "web", "53/udp"]).ok(), found);
    for absent in [
        &["port", "web", "53"][..],
        &["port", "web", "9/udp"],
        &["port", "--index", "2", "web", "8000"],
    ] {
        let absent = stack.run(absent);
        assert!(absent.code == 1 && !absent.stderr.is_empty(), "{}", absent.all());
    }
    assert_eq!(stack.run(&["port", "--protocol", "udp", "web", "53/tcp"]).code, 2);
    // That there is nothing to read is said once, and waited for.
    let mute = stack.run(&["logs", "mute"]).ok();
    assert!(mute.contains("keeps no output of this service"), "{mute}");
    let mut follow = stack.command(&["logs", "-f", "mute"]);
    let mut follow = follow.stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(600));
    stack.run(&["down", "-v"]).ok();
    wait_for("the end of the logs", || follow.try_wait().unwrap());
    let mut said = String::new();
    std::io::Read::read_to_string(&mut follow.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(said.matches("keeps no output").count(), 1, "{said}");
}

#[test]
fn little_things_are_shown_with_docker() {
    little_things_are_shown(Which::Docker);
}

#[test]
fn little_things_are_shown_with_podman() {
    little_things_are_shown(Which::Podman);
}

#[test]
fn volumes_usage_images_and_the_engine_are_shown() {
    let Some(stack) = Stack::up(Which::Docker) else { return };
    let volumes = stack.run(&["volumes"]).ok();
    let line = volumes.lines().nth(1).unwrap();
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["local", "app_data", "base"], "{volumes}");
    assert_eq!(stack.run(&["volumes", "-q", "base"]).ok(), "app_data\n");
    assert_eq!(stack.run(&["volumes", "-q", "local"]).ok(), "");
    let json = stack.keel.json(&["volumes"]);
    let path = json[0]["path"].as_str().unwrap();
    assert!(fs::metadata(path).unwrap().is_dir());

    let stats = stack.keel.json(&["stats", "--no-stream"]);
    let of = |service: &str| {
        let all = stats.as_array().unwrap().iter();
        all.clone().find(|row| row["service"] == service).unwrap().clone()
    };
    assert_eq!(of("base")["memory_limit"], 64 << 20);
    for service in ["base", "local"] {
        let row = of(service);
        assert!(row["cpu_percent"].is_number() && row["pids"].as_u64() > Some(0), "{row}");
        assert!(row["memory_bytes"].as_u64() > Some(0), "{row}");
        assert!(row["block"]["inward"].is_number(), "{row}");
    }
    // A container has a network of its own; this process shares that of the machine.
    assert!(of("base")["network"]["inward"].is_number(), "{stats}");
    assert!(of("local")["network"].is_null(), "{stats}");
    let table = stack.run(&["stats", "--no-stream", "base"]).ok();
    assert!(table.starts_with("NAME") && table.contains("/ 67MB"), "{table}");
    assert_eq!(table.lines().count(), 2, "{table}");

    let ps = stack.run(&["ps"]).ok();
    assert!(ps.lines().next().unwrap().contains("IMAGE"), "{ps}");
    assert!(ps.contains(IMAGE), "{ps}");
    assert!(ps.contains("sleep 1000"), "{ps}");
    let status = stack.run(&["server", "status"]).ok();
    assert!(status.contains("containers") && status.contains("Docker "), "{status}");
    assert_eq!(stack.keel.json(&["server", "status"])["containers"]["kind"], "docker");
}

fn files_go_in_and_out(which: Which) {
    let Some(stack) = Stack::up(which) else { return };
    let app = stack.keel.sandbox.app();
    stack.keel.sandbox.write("tree/deep/file", "content");
    std::os::unix::fs::symlink("deep/file", app.join("tree/link")).unwrap();
    let read = |name: &str| fs::read_to_string(app.join(name)).unwrap();
    for service in ["base", "local"] {
        let inside = |path: &str| match service {
            "base" => format!("base:/data/{path}"),
            // Relative to where the process was started.
            _ => format!("local:inside/{path}"),
        };
        fs::create_dir_all(app.join("inside")).unwrap();
        stack.run(&["cp", "tree", &inside("new")]).ok();
        stack.run(&["cp", "tree", &inside("new")]).ok();
        stack.run(&["cp", "tree/.", &inside("new")]).ok();
        stack.run(&["cp", "tree/deep/file", &inside("new/renamed")]).ok();
        let exec = |path: &str| match service {
            "base" => stack.run(&["exec", "-T", "base", "cat", &format!("/data/{path}")]).ok(),
            _ => read(&format!("inside/{path}")),
        };
        for path in ["new/deep/file", "new/tree/link", "new/renamed", "new/link"] {
            assert_eq!(exec(path), "content", "{service} {path}");
        }
        let out = format!("out-{service}");
        stack.run(&["cp", &inside("new"), &out]).ok();
        assert_eq!(read(&format!("{out}/tree/deep/file")), "content");
        assert!(fs::symlink_metadata(app.join(&out).join("link")).unwrap().is_symlink());
        stack.run(&["cp", "-L", &inside("new/link"), &out]).ok();
        assert!(fs::symlink_metadata(app.join(&out).join("link")).unwrap().is_file());
        // As archives.
        let archive = stack.command(&["cp", &inside("new/deep"), "-"]).output().unwrap().stdout;
        let names: Vec<String> = tar_names(&archive);
        assert_eq!(names, ["deep", "deep/file"], "{service}");
        stack.fed(&["cp", "-", &inside("new/tree")], &archive).ok();
        assert_eq!(exec("new/tree/deep/file"), "content");
        let absent = stack.run(&["cp", &inside("none"), "x"]);
        assert!(absent.code == 1 && absent.stderr.contains("there is no"), "{}", absent.all());
    }
    assert_eq!(stack.run(&["cp", "a", "b"]).code, 2);
    assert_eq!(stack.run(&["cp", "base:/a", "local:/b"]).code, 2);
}

/// What `tar` lists.
fn tar_names(archive: &[u8]) -> Vec<String> {
    let mut tar = Command::new("tar");
    let mut child = tar.arg("-t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(archive).unwrap();
    let listed = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
    listed.lines().map(|name| name.trim_end_matches('/').to_owned()).collect()
}

#[test]
fn files_go_in_and_out_with_docker() {
    files_go_in_and_out(Which::Docker);
}

#[test]
fn files_go_in_and_out_with_podman() {
    files_go_in_and_out(Which::Podman);
}

fn a_command_runs_once(which: Which) {
    let Some(stack) = Stack::up(which) else { return };
    assert_eq!(stack.run(&["run", "--rm", "tool"]).ok(), "hello\n");
    let script =
        "echo $COLOUR $SHAPE $(cat /run/secrets/word) $(id -u); pwd; cat; echo wrong >&2; exit 7";
    let command = [
        "run",
        "--rm",
        "-T",
        "-e",
        "SHAPE=round",
        "-u",
        "7",
        "-w",
        "/data",
        "tool",
        "sh",
        "-c",
        script,
    ];
    let done = stack.fed(&command, b"typed\n");
    let expected = "red round hidden 7\n/data\ntyped\n";
    // A secret is its owner's.
    let (got, wanted) = (done.stdout.replace("  ", " "), expected.replace(" hidden", ""));
    assert!(got == expected || got == wanted, "{}", done.all());
    assert_eq!((done.code, done.stderr.lines().last()), (7, Some("wrong")), "{}", done.all());
    let secret = ["run", "--rm", "--entrypoint", "cat /run/secrets/word", "tool"];
    assert_eq!(stack.run(&secret).ok(), "hidden");
    stack.keel.sandbox.write("seen", "from here");
    let mounted = ["run", "--rm", "-v", "./seen:/seen:ro", "tool", "cat", "/seen"];
    assert_eq!(stack.run(&mounted).ok(), "from here");
    // What is not there has the code that shells have for it.
    let none = stack.run(&["run", "--rm", "tool", "/no/such/program"]);
    // Podman's own init says so itself, and has another code for it.
    let code = if which == Which::Docker { 127 } else { 1 };
    assert_eq!(none.code, code, "{}", none.all());
    assert!(!stack.containers().contains("-run-"), "{}", stack.containers());

    // In the background, reachable at a port, and gone with its stack.
    let port = support::free_port();
    let publish = format!("{port}:8000");
    let serve = "echo once > /index.html; exec httpd -f -p 8000 -h /";
    let detached =
        ["run", "-d", "--name", "mine", "-p", &publish, "--no-deps", "tool", "sh", "-c", serve];
    assert_eq!(stack.run(&detached).ok(), "mine\n");
    let got = wait_for("an answer at the port", || support::get(port));
    assert_eq!(got, "once\n");
    assert!(!stack.run(&["ps", "-aq"]).ok().contains("run"), "it is no instance");
    let process = stack.run(&["run", "local", "true"]);
    assert!(process.code == 1 && process.stderr.contains("keel exec"), "{}", process.all());
    stack.run(&["down", "-v"]).ok();
    assert_eq!(stack.containers(), "");
}

#[test]
fn a_command_runs_once_with_docker() {
    a_command_runs_once(Which::Docker);
}

#[test]
fn a_command_runs_once_with_podman() {
    a_command_runs_once(Which::Podman);
}

fn what_a_command_depends_on_is_started_first(which: Which) {
    let Some(engine) = engine(which) else { return };
    let keel = Running::with_engine(&compose(), &engine.socket);
    let stack = Stack { keel, engine };
    // What follows the service is the command's.
    let shell = ["run", "--rm", "--entrypoint", "sh", "tool", "-e", "-c", "echo shell"];
    assert_eq!(stack.run(&shell).ok(), "shell\n");
    let script = "touch /data/x /own/y && echo done";
    assert_eq!(stack.run(&["run", "--rm", "tool", "sh", "-c", script]).ok(), "done\n");
    assert_eq!(stack.run(&["ps", "--services"]).ok(), "base\n");
    // Only the stack's volume is left of it.
    assert_eq!(stack.run(&["volumes", "-q"]).ok(), "app_data\n");
}

#[test]
fn what_a_command_depends_on_is_started_first_with_docker() {
    what_a_command_depends_on_is_started_first(Which::Docker);
}

#[test]
fn what_a_command_depends_on_is_started_first_with_podman() {
    what_a_command_depends_on_is_started_first(Which::Podman);
}

fn a_container_is_attached_to(which: Which) {
    let Some(engine) = engine(which) else { return };
    let compose = format!(
        "services:\n  \
         shell: {{image: '{IMAGE}', command: [sh, -c, 'read a; echo got $$a; exit 5'], stdin_open: true, restart: 'no', ulimits: {{nofile: 1024, nproc: 1024}}}}\n  \
         local: {{command: [sleep, '1000']}}\n"
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    let stack = Stack { keel, engine };
    stack.run(&["up", "-d"]).ok();
    let refused = stack.run(&["attach", "local"]);
    assert!(refused.code == 1 && refused.stderr.contains("keel logs"), "{}", refused.all());
    let done = stack.fed(&["attach", "shell"], b"it\n");
    assert_eq!((done.code, done.stdout.as_str()), (5, "got it\n"), "{}", done.all());
    let gone = stack.run(&["attach", "shell"]);
    // Who knows of the end first is a matter of milliseconds.
    let says =
        ["no instance", "is not running", "does not run"].iter().any(|it| gone.stderr.contains(it));
    assert!(gone.code == 1 && says, "{}", gone.all());
}

#[test]
fn a_container_is_attached_to_with_docker() {
    a_container_is_attached_to(Which::Docker);
}

#[test]
fn a_container_is_attached_to_with_podman() {
    a_container_is_attached_to(Which::Podman);
}

fn the_usual_keys_leave_a_terminal_that_runs_on(which: Which) {
    let Some(engine) = engine(which) else { return };
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: no program `script`");
        return;
    }
    let compose = format!(
        "services:\n  shell: {{image: '{IMAGE}', command: [sh], stdin_open: true, tty: true, stop_grace_period: 1s, ulimits: {{nofile: 1024, nproc: 1024}}}}\n"
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    let stack = Stack { keel, engine };
    stack.run(&["up", "-d"]).ok();
    let mut script = stack.in_terminal("attach shell");
    script.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = script.spawn().unwrap();
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"echo typed > /proof\n").unwrap();
    let exec = |command: &[&str]| stack.run(&[&["exec", "-T", "shell"], command].concat());
    wait_for("what was typed to be done", || (exec(&["cat", "/proof"]).code == 0).then_some(()));
    keys.write_all(b"\x10\x11").unwrap();
    let ended = wait_for("keel to leave", || child.try_wait().unwrap());
    assert!(ended.success(), "{ended}");
    assert_eq!(stack.keel.pids().len(), 1);
    // A command of its own has a terminal too.
    let mut script = stack.in_terminal("run --rm -it shell sh -c 'tty; exit 3'");
    let done = stack.keel.sandbox.done(script.output().unwrap());
    assert_eq!(done.code, 3, "{}", done.all());
    assert!(done.stdout.contains("/dev/pts/"), "{}", done.all());
}

#[test]
fn the_usual_keys_leave_a_terminal_that_runs_on_with_docker() {
    the_usual_keys_leave_a_terminal_that_runs_on(Which::Docker);
}

#[test]
fn the_usual_keys_leave_a_terminal_that_runs_on_with_podman() {
    the_usual_keys_leave_a_terminal_that_runs_on(Which::Podman);
}
