//! The real binary with real processes: from `up` to `down`, and everything that goes wrong in between.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use support::{Running, free_port, get, is_alive, responder, wait_for};

const SLEEPER: &str = "\
name: demo
services:
  web:
    command: [\"sh\", \"-c\", \"echo hello from $$KEEL_INSTANCE; exec sleep 1000\"]
    deploy: { replicas: 2 }
";

/// Sends a signal to a command that this test started.
fn signal(child: &Child, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_child(child);
    rustix::process::kill_process(pid, signal).unwrap();
}

fn kill_9(pid: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn a_stack_comes_up_serves_scales_and_goes() {
    let port = free_port();
    let data = tempfile::tempdir().unwrap();
    let keel = Running::new(&format!(
        "name: demo\nservices:\n  web:\n    command: {}\n    ports: [\"{port}:80\"]\n    deploy: {{ replicas: 2 }}\n    \
         volumes: ['data:{}']\nvolumes: {{data: }}\n",
        responder("v1"),
        data.path().display(),
    ));
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "60"]);
    assert_eq!(up.code, 0, "{}", up.all());
    assert!(up.stderr.contains("demo is up: 1 service, 2 instances"), "{}", up.stderr);
    assert_eq!(get(port).as_deref(), Some("v1"));

    let ps = keel.run(&["ps"]).ok();
    let head: Vec<&str> = ps.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(head, ["NAME", "SERVICE", "REVISION", "STATUS", "PORTS", "COMMAND"]);
    assert!(ps.contains(&format!("0.0.0.0:{port}->80/tcp")), "{ps}");
    assert_eq!(keel.run(&["port", "web", "80"]).ok(), format!("0.0.0.0:{port}\n"));
    assert_eq!(keel.run(&["ps", "-q"]).ok(), "demo-web-1\ndemo-web-2\n");
    assert_eq!(keel.run(&["ls", "-q"]).ok(), "demo\n");

    let scaled = keel.json(&["scale", "web=4"]);
    assert_eq!(scaled["result"], "converged");
    assert_eq!(keel.pids().len(), 4);
    assert_eq!(keel.run(&["up", "-d", "--wait"]).code, 0);

    let down = keel.run(&["down"]);
    assert_eq!(down.code, 0, "{}", down.all());
    assert_eq!(keel.run(&["ls", "-aq"]).ok(), "");
    // Its data outlives it, until that is asked for.
    assert_eq!(keel.run(&["volumes", "-q"]).ok(), "demo_data\n");
    keel.run(&["down", "-v"]).ok();
    assert_eq!(keel.run(&["volumes"]).code, 1);
    assert_eq!(keel.run(&["ps"]).code, 1);
    assert_eq!(keel.run(&["down"]).code, 0);
    assert!(get(port).is_none());
}

#[test]
fn a_killed_instance_is_replaced() {
    let keel = Running::new(SLEEPER);
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();
    let victim = *before.values().next().unwrap();
    kill_9(victim);
    wait_for("two instances again", || {
        let after = keel.pids();
        (after.len() == 2 && !after.values().any(|pid| *pid == victim)).then_some(())
    });
    let events = keel.run(&["events"]).ok();
    assert!(events.contains("instance_exited demo-web-1"), "{events}");
    let json = keel.run(&["events", "--json"]).ok();
    assert!(json.lines().all(|l| serde_json::from_str::<serde_json::Value>(l).is_ok()), "{json}");
}

#[test]
fn two_commands_at_the_same_time_start_one_server() {
    let keel = Running::new(SLEEPER);
    let start = |name: &str| {
        keel.command(&["-p", name, "up", "-d", "--wait"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let children: Vec<Child> = ["one", "two", "three"].map(start).into_iter().collect();
    for child in children {
        let done = keel.sandbox.done(child.wait_with_output().unwrap());
        assert_eq!(done.code, 0, "{}", done.all());
    }
    assert_eq!(keel.run(&["ls", "-q"]).ok(), "one\nthree\ntwo\n");
    let second = keel.run(&["server", "run"]);
    assert_eq!(second.code, 75, "{}", second.all());
    assert!(second.stderr.contains("in use by"), "{}", second.stderr);
}

#[test]
fn ctrl_c_stops_an_attached_stack() {
    let keel = Running::new(SLEEPER);
    let mut child =
        keel.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = [lines.next().unwrap().unwrap(), lines.next().unwrap().unwrap()];
    seen.sort();
    assert_eq!(seen, ["web-1  | hello from demo-web-1", "web-2  | hello from demo-web-2"]);
    let pids = keel.pids();
    assert_eq!(pids.len(), 2);
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
    assert!(pids.values().all(|pid| !is_alive(u32::try_from(*pid).unwrap())));
    let all = keel.json(&["ps", "-a"]);
    assert!(all.as_array().unwrap().iter().all(|i| i["state"] == "exited"), "{all}");

    keel.run(&["start"]).ok();
    assert_eq!(keel.pids().len(), 2);
    keel.run(&["stop", "web"]).ok();
    assert_eq!(keel.pids().len(), 0);
    let removed = keel.json(&["rm", "-f"]);
    assert_eq!(removed["removed"].as_array().unwrap().len(), 2);
}

#[test]
fn a_second_ctrl_c_leaves_at_once() {
    let keel = Running::new(
        "name: stubborn\nservices:\n  web:\n    command: [\"sh\", \"-c\", \"trap '' TERM; echo up; while :; do sleep 1; done\"]\n    stop_grace_period: 20s\n",
    );
    let mut child =
        keel.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "web-1  | up");
    let pids = keel.pids();
    signal(&child, rustix::process::Signal::INT);
    let talk = BufReader::new(child.stderr.take().unwrap()).lines();
    let stopping = talk.map_while(Result::ok).find(|line| line.starts_with("stopping"));
    assert!(stopping.is_some());
    signal(&child, rustix::process::Signal::INT);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    for pid in pids.values() {
        kill_9(*pid);
    }
}

#[test]
fn a_job_that_ends_ends_an_attached_up() {
    let keel = Running::new(
        "name: job\nservices:\n  once:\n    command: [\"sh\", \"-c\", \"echo one; echo two >&2\"]\n",
    );
    let done = keel.run(&["up", "--no-log-prefix", "--build", "--pull", "always"]);
    // They are about images, and there is none: no engine is looked for, and nothing is said.
    let said =
        ["engine", "image", "warning", "note"].into_iter().find(|it| done.stderr.contains(it));
    assert_eq!(said, None, "{}", done.all());
    assert_eq!((done.code, done.stdout.as_str()), (0, "one\ntwo\n"), "{}", done.all());
}

#[test]
fn a_program_on_the_wrong_port_is_explained() {
    let rows = [
        r#"command: ["sh", "-c", "echo bind: Address already in use; exit 1"]"#,
        "command: sleep 1000\n    expose: [\"80\"]",
    ];
    for service in rows {
        let keel = Running::new(&format!(
            "name: demo\nservices:\n  web:\n    {service}\n    restart: \"no\"\n"
        ));
        let done = keel.run(&["up", "--wait", "--wait-timeout", "5"]);
        assert_eq!(done.code, 1, "{service}: {}", done.all());
        assert!(done.stderr.contains("$PORT names"), "{service}: {}", done.all());
    }
}

#[test]
fn a_failed_service_does_not_end_an_attached_up() {
    let keel = Running::new(
        "name: mixed\nservices:\n  bad:\n    command: [\"sh\", \"-c\", \"echo so sad; exit 4\"]\n    restart: \"no\"\n  good:\n    command: [\"sh\", \"-c\", \"while :; do echo still here; sleep 0.2; done\"]\n  late:\n    command: sleep 1000\n    depends_on: { bad: { condition: service_completed_successfully } }\n",
    );
    let mut child =
        keel.command(&["up"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut talk = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut logs = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    assert!(talk.any(|line| line.contains("what runs, runs on and is followed")));
    assert!(logs.any(|line| line.contains("still here")));
    assert_eq!(keel.pids().len(), 1);
    signal(&child, rustix::process::Signal::INT);
    let rest: Vec<String> = talk.collect();
    assert!(!rest.iter().any(|line| line.starts_with("error: ")), "told twice: {rest:?}");
    assert_eq!(child.wait().unwrap().code(), Some(1), "{rest:?}");

    keel.sandbox.write(
        "compose.yaml",
        "name: alone\nservices:\n  bad:\n    command: [\"sh\", \"-c\", \"echo so sad; exit 4\"]\n    restart: \"no\"\n  late:\n    command: sleep 1000\n    depends_on: { bad: { condition: service_completed_successfully } }\n",
    );
    let done = keel.run(&["up"]);
    assert_eq!(done.code, 1, "{}", done.all());
    assert_eq!(done.stderr.matches("error: ").count(), 1, "{}", done.all());
    assert!(done.stderr.contains("all services have ended"), "{}", done.all());
}

#[test]
fn a_volume_that_another_stack_uses_stays_and_that_is_said() {
    let keel = Running::new(
        "services:\n  web: {command: [sleep, '1000'], volumes: ['data:/keel-test-shared']}\nvolumes: {data: {name: shared}}\n",
    );
    for name in ["one", "two"] {
        keel.run(&["-p", name, "up", "-d", "--wait"]).ok();
    }
    let down = keel.run(&["-p", "one", "down", "-v"]);
    let says = "warning: volume shared can't be deleted: stack two uses it too";
    assert!(down.code == 0 && down.stderr.contains(says), "{}", down.all());
    assert_eq!(keel.run(&["-p", "one", "volumes", "-q"]).ok(), "shared\n");
    let down = keel.run(&["-p", "two", "down", "-v"]);
    assert!(down.code == 0 && !down.stderr.contains("warning"), "{}", down.all());
    assert_eq!(keel.run(&["-p", "one", "volumes"]).code, 1);
    let _ = std::fs::remove_dir("/keel-test-shared");
}

#[test]
fn all_that_fail_are_named_at_once() {
    let failing = |name: &str, after: &str| {
        format!(
            "  {name}: {{command: [sh, -c, 'sleep {after}; echo {name} is sad; exit 3'], restart: 'no'}}\n"
        )
    };
    let slow =
        "  slow: {command: [sleep, '1000'], healthcheck: {test: 'false', interval: 1000s}}\n";
    let (one, two) = (failing("one", "0"), failing("two", "0.2"));
    let keel = Running::new(&format!("name: demo\nservices:\n{one}{two}{slow}"));
    let up = keel.run(&["up", "-d", "--wait"]);
    assert_eq!(up.code, 1, "{}", up.all());
    let error = up.stderr.lines().find(|line| line.starts_with("error: ")).unwrap();
    assert_eq!(error, "error: services one, two of stack demo failed", "{}", up.all());
    for words in ["one is sad", "two is sad"] {
        assert!(up.stderr.contains(words), "{}", up.all());
    }
}

#[test]
fn a_revision_that_fails_is_rolled_back_and_explained() {
    let port = free_port();
    let file = |command: &str| {
        format!(
            "name: demo\nservices:\n  web:\n    command: {command}\n    ports: [\"{port}:80\"]\n"
        )
    };
    let keel = Running::new(&file(&responder("v1")));
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();

    let bad = r#"["sh", "-c", "echo cannot find my configuration >&2; exit 3"]"#;
    keel.sandbox.write("compose.yaml", &file(bad));
    let diff = keel.run(&["diff", "--exit-code"]);
    assert_eq!(diff.code, 1, "{}", diff.all());
    assert!(diff.stdout.starts_with("~ web  (replace"), "{}", diff.stdout);
    let done = keel.run(&["up", "-d", "--wait"]);
    assert_eq!(done.code, 1, "{}", done.all());
    for needle in ["rolled back", "exited with code 3", "cannot find my configuration", "hint:"] {
        assert!(done.stderr.contains(needle), "{needle} is missing: {}", done.all());
    }
    assert_eq!(keel.pids(), before);
    assert_eq!(get(port).as_deref(), Some("v1"));

    // The file is not what runs.
    let diff = keel.run(&["diff"]).ok();
    assert!(diff.starts_with("~ web  (retry, its last release failed: "), "{diff}");
    let history = keel.json(&["history"]);
    assert_eq!(history.as_array().unwrap().len(), 2);
    let back = keel.run(&["rollback"]);
    assert_eq!(back.code, 0, "{}", back.all());
    assert_eq!(keel.pids(), before);
}

/// The rows of the table of bad input that need a server: one clear error, exit code 1, and what ran, runs on.
#[test]
fn what_cannot_run_is_explained() {
    let keel = Running::new(SLEEPER);
    keel.run(&["up", "-d", "--wait"]).ok();
    keel.sandbox.write("plain.txt", "not a program\n");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let rows = [
        ("command not found", "command: ./nowhere".to_owned(), "./nowhere"),
        ("not executable", "command: ./plain.txt".to_owned(), "plain.txt"),
        ("exits at once", "command: [\"sh\", \"-c\", \"echo so sad; exit 4\"]".to_owned(), "so sad"),
        (
            "never healthy",
            "command: sleep 1000\n    healthcheck: { test: \"echo no pulse; exit 1\", interval: 200ms, retries: 1, start_period: 0s }"
                .to_owned(),
            "no pulse",
        ),
        (
            "a pre_start step fails",
            "command: sleep 1000\n    pre_start: [{ command: [\"sh\", \"-c\", \"echo no luck; exit 5\"] }]"
                .to_owned(),
            "no luck",
        ),
        (
            "killed for want of memory",
            "command: [\"python3\", \"-c\", \"x = [bytearray(1 << 20) for _ in range(300)]\"]\n    mem_limit: 40m"
                .to_owned(),
            "want of memory",
        ),
        (
            "port in use",
            format!("command: sleep 1000\n    ports: [\"127.0.0.1:{port}:80\"]"),
            "in use",
        ),
    ];
    let limited = keel.json(&["server", "status"])["limitations"] == serde_json::json!([]);
    for (name, service, needle) in rows {
        if name == "killed for want of memory" && !limited {
            eprintln!("skipped: memory is not limited here");
            continue;
        }
        let file = format!("name: bad\nservices:\n  web:\n    {service}\n    restart: \"no\"\n");
        keel.sandbox.write("bad.yaml", &file);
        let done = keel.run(&["-f", "bad.yaml", "up", "-d", "--wait", "--wait-timeout", "50"]);
        assert_eq!(done.code, 1, "{name}: {}", done.all());
        assert!(done.stderr.contains(needle), "{name}: {}", done.all());
        keel.run(&["-p", "bad", "down"]);
    }
    let profile = keel.run(&["--profile", "dev", "up", "-d"]);
    assert_eq!(profile.code, 3, "{}", profile.all());
    let scale = keel.run(&["scale", "wbe=2"]);
    assert_eq!(scale.code, 1, "{}", scale.all());
    assert!(scale.stderr.contains("web"), "{}", scale.all());
    assert_eq!(keel.pids().len(), 2);
}

#[test]
fn logs_and_exec_reach_the_instance() {
    let keel = Running::new(SLEEPER);
    keel.run(&["up", "-d", "--wait"]).ok();
    let mut lines: Vec<String> = wait_for("both lines", || {
        let lines: Vec<String> = keel.run(&["logs"]).ok().lines().map(str::to_owned).collect();
        (lines.len() == 2).then_some(lines)
    });
    lines.sort();
    assert_eq!(lines, ["web-1  | hello from demo-web-1", "web-2  | hello from demo-web-2"]);
    assert_eq!(
        keel.run(&["logs", "--no-log-prefix", "demo-web-2"]).ok(),
        "hello from demo-web-2\n"
    );
    assert_eq!(keel.run(&["logs", "--until", "1h"]).ok(), "");
    assert_eq!(keel.run(&["logs", "wbe"]).code, 1);

    let script = "echo $KEEL_INSTANCE $EXTRA; pwd; exit 7";
    let arguments =
        ["exec", "-T", "-e", "EXTRA=more", "-w", "/", "--index", "2", "web", "sh", "-c", script];
    let done = keel.run(&arguments);
    assert_eq!((done.code, done.stdout.as_str()), (7, "demo-web-2 more\n/\n"), "{}", done.all());
    assert_eq!(keel.run(&["exec", "--index", "3", "web", "true"]).code, 1);
}

/// Promise 3: killing the server stops no workload, and a command that follows goes on with the next server.
#[test]
fn the_server_may_die_meanwhile() {
    let keel = Running::new(
        "name: demo\nservices:\n  web:\n    command: [\"sh\", \"-c\", \"i=0; while :; do i=$$((i+1)); echo tick $$i; sleep 0.05; done\"]\n",
    );
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();
    let mut child =
        keel.command(&["logs", "-f", "--no-log-prefix"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || {
        let line = lines.next().unwrap().unwrap();
        line.strip_prefix("tick ").unwrap().parse::<u32>().unwrap()
    };
    assert_eq!(next(), 1);
    let server = keel.server_pid();
    kill_9(u64::from(server));
    keel.run(&["server", "--detach"]).ok();
    assert_ne!(keel.server_pid(), server);
    assert_eq!(keel.pids(), before);
    let last = next() + 100;
    for expected in 3..=last {
        assert_eq!(next(), expected, "a line was lost or came twice");
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_preference_for_a_zone_that_is_not_known_is_told() {
    let keel = Running::new(&SLEEPER.replace(
        "    deploy: { replicas: 2 }\n",
        "    expose: ['80']\n    x-keel: { traffic: { prefer_zone: true } }\n",
    ));
    let up = keel.run(&["up", "-d"]);
    assert!(up.stderr.contains("warning: `prefer_zone` has no effect (web)"), "{}", up.all());
    keel.run(&["server", "stop"]).ok();
    keel.run(&["server", "--detach", "--zone", "east"]).ok();
    assert_eq!(keel.json(&["server", "status"])["zone"], "east");
    let up = keel.run(&["up", "-d"]);
    assert!(up.code == 0 && !up.stderr.contains("prefer_zone"), "{}", up.all());
    let done = keel.run(&["server", "--zone", "no zone"]);
    assert!(done.code == 2 && done.stderr.contains("zone name"), "{}", done.all());
}
