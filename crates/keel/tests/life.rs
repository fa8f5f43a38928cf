//! The examples with containers, as a user runs them, on the image that `scripts/images.sh` makes.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use keel_container::testing::{self, Networks, Which};
use support::{DEADLINE, Done, Running, free_port, wait_for};

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// An engine that has the image, or a word about why there is none.
fn engine() -> Option<testing::Running> {
    let installed = |program: &str| {
        Command::new("sh")
            .args(["-c", &format!("command -v {program}")])
            .output()
            .unwrap()
            .status
            .success()
    };
    if let Some(missing) = ["mmdebstrap", "docker"].into_iter().find(|it| !installed(it)) {
        println!("skipped: {missing} is not installed (scripts/setup.sh installs it)");
        return None;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let engine = runtime.block_on(testing::start(Which::Docker, Networks::Here))?;
    // Beside this program, so that the archive outlives the test: it is made once.
    let program = std::env::current_exe().unwrap();
    let target = program.ancestors().nth(3).unwrap();
    let made = Command::new(root().join("scripts/images.sh"))
        .env("DOCKER_HOST", format!("unix://{}", engine.socket.display()))
        .env("CARGO_TARGET_DIR", target)
        .output()
        .unwrap();
    if !made.status.success() {
        // No packages without a network.
        let why = String::from_utf8_lossy(&made.stderr);
        println!("skipped: no image: {why}");
        assert!(std::env::var_os("KEEL_TESTS_NEED_ENGINES").is_none(), "{why}");
        return None;
    }
    Some(engine)
}

/// Status and body of an answer.
fn ask(port: u16, request: &str, body: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(DEADLINE)).ok()?;
    let length = body.len();
    let head = format!("{request} HTTP/1.1\r\nConnection: close\r\nContent-Length: {length}\r\n");
    let host = if head.contains("Host:") { "" } else { "Host: example\r\n" };
    stream.write_all(format!("{head}{host}\r\n{body}").as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

fn kill(pid: u64) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// An example that runs, with what a test adds to its file.
struct Example {
    keel: Running,
    files: Vec<String>,
    environment: Vec<(&'static str, String)>,
}

impl Example {
    fn new(name: &str, engine: &testing::Running) -> Self {
        let keel = Running::with_engine("services: {}", &engine.socket);
        let file = root().join("examples").join(name).join("compose.yaml");
        Self { keel, files: vec![file.display().to_string()], environment: Vec::new() }
    }

    fn with(&mut self, more: &str) {
        let file = self.keel.sandbox.write("more.yaml", more);
        self.files.push(file.display().to_string());
    }

    fn set(&mut self, key: &'static str, value: impl ToString) {
        self.environment.retain(|(known, _)| *known != key);
        self.environment.push((key, value.to_string()));
    }

    fn output(&self, arguments: &[&str]) -> Output {
        let files = self.files.iter().flat_map(|file| ["-f", file]);
        let all: Vec<&str> = files.chain(arguments.iter().copied()).collect();
        let mut command = self.keel.command(&all);
        command.envs(self.environment.iter().map(|(key, value)| (*key, value)));
        command.output().unwrap()
    }

    fn run(&self, arguments: &[&str]) -> Done {
        self.keel.sandbox.done(self.output(arguments))
    }

    #[track_caller]
    fn up(&self) -> Done {
        let up = self.run(&["up", "-d", "--wait", "--wait-timeout", "90"]);
        let logs = if up.code == 0 { String::new() } else { self.run(&["logs"]).all() };
        assert_eq!(up.code, 0, "{}\n{logs}", up.all());
        up
    }

    /// The process of an instance of `service`.
    fn pid(&self, service: &str) -> u64 {
        let listed = self.run(&["--output", "json", "ps", service]).ok();
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        listed[0]["pid"].as_u64().unwrap()
    }

    /// Installs the program anew, and waits until server and proxy run the new one.
    fn upgrade(&mut self) {
        let new = fs::metadata(self.keel.sandbox.install()).unwrap().ino();
        self.run(&["server", "stop"]).ok();
        wait_for("the new server and its proxy", || {
            self.run(&["server", "--detach"]);
            let status = self.keel.json(&["server", "status"]);
            let is_new = |pid: &serde_json::Value| {
                let program = fs::metadata(format!("/proc/{}/exe", pid.as_u64()?)).ok()?;
                Some(program.ino() == new)
            };
            (is_new(&status["pid"])? && is_new(&status["proxy"]["pid"])?).then_some(())
        });
    }

    fn sql(&self, statement: &str) -> String {
        let psql = ["psql", "-h", "/run/postgresql", "-U", "guestbook", "-tAc", statement];
        self.run(&[&["exec", "-T", "db"], &psql[..]].concat()).ok()
    }
}

/// Entries, written without pause until the end.
struct Writers {
    done: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<(Vec<String>, Vec<String>)>>,
}

impl Writers {
    fn to(port: u16) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let threads = (0..4).map(|writer| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                let (mut written, mut failed) = (Vec::new(), Vec::new());
                for number in 0.. {
                    if done.load(SeqCst) {
                        break;
                    }
                    let key = format!("{writer}-{number}");
                    let entry = format!(r#"{{"key": "{key}", "name": "test", "text": "entry"}}"#);
                    match ask(port, "POST /entries", &entry) {
                        Some((201, _)) => written.push(key),
                        other => failed.push(format!("{key}: {other:?}")),
                    }
                }
                (written, failed)
            })
        });
        Self { threads: threads.collect(), done }
    }

    /// What was acknowledged, and what failed.
    fn end(self) -> (Vec<String>, Vec<String>) {
        self.done.store(true, SeqCst);
        let (mut written, mut failed) = (Vec::new(), Vec::new());
        for thread in self.threads {
            let (more, less) = thread.join().unwrap();
            written.extend(more);
            failed.extend(less);
        }
        (written, failed)
    }
}

/// Short steps of a release, and pgbench, once, through the platform's own name for PostgreSQL.
const PGBENCH: &str = "services:
  api: {x-keel: {rollout: {min_healthy_time: 1s}}}
  pgbench:
    image: keel-examples/debian:1
    networks: [back]
    restart: 'no'
    secrets: [db-password]
    environment: {PGHOST: db, PGUSER: guestbook, PGDATABASE: guestbook}
    command:
      - bash
      - -c
      - |
        export PGPASSWORD=$$(cat /run/secrets/db-password)
        pgbench --initialize --quiet && exec pgbench --client 4 --time 20
    depends_on: {db: {condition: service_healthy}}
";

#[test]
fn nothing_committed_is_lost_and_no_request_fails() {
    let Some(engine) = engine() else { return };
    let mut example = Example::new("guestbook-containers", &engine);
    example.keel.sandbox.install();
    let port = free_port();
    example.set("GUESTBOOK_PORT", port);
    example.up();
    assert_eq!(ask(port, "GET /", "").unwrap().0, 200);
    assert!(example.up().stderr.contains("up to date"));
    example.with(PGBENCH);
    let writers = Writers::to(port);
    for release in 2..7 {
        example.set("RELEASE", release);
        let up = example.run(&["up", "-d"]);
        assert_eq!(up.code, 0, "{}", up.all());
        if release % 2 == 0 {
            // In the middle of the release; the next command starts it again.
            kill(example.keel.server_pid().into());
        }
        if release == 5 {
            example.upgrade();
        }
        wait_for("the release", || {
            example.run(&["server", "--detach"]);
            let page = ask(port, "GET /", "").unwrap_or_default().1;
            page.contains(&format!(r#""release": "{release}""#)).then_some(())
        });
    }
    let done = wait_for("pgbench to end", || {
        let log = example.run(&["logs", "pgbench"]).ok();
        log.contains("tps = ").then_some(log)
    });
    let (written, failed) = writers.end();
    assert_eq!(failed, Vec::<String>::new(), "of {}", written.len());
    assert!(written.len() > 100, "{}", written.len());
    let number = |label: &str| -> u64 {
        let rest = done.split_once(label).unwrap_or_else(|| panic!("no {label}: {done}")).1;
        rest.trim_start().split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
    };
    assert_eq!(number("number of failed transactions:"), 0, "{done}");
    let committed = number("number of transactions actually processed:");
    assert!(committed > 100 && !done.contains("aborted"), "{done}");
    // PostgreSQL dies too, and its volume has everything.
    let before = example.pid("db");
    kill(before);
    wait_for("another PostgreSQL", || {
        let page = ask(port, "GET /", "").unwrap_or_default();
        (page.0 == 200 && example.pid("db") != before).then_some(())
    });
    let kept: BTreeSet<String> =
        example.sql("SELECT key FROM entry").lines().map(str::to_owned).collect();
    let lost: Vec<&String> = written.iter().filter(|key| !kept.contains(*key)).collect();
    assert!(lost.is_empty(), "{lost:?}");
    assert_eq!(example.sql("SELECT count(*) FROM pgbench_history").trim(), committed.to_string());
    println!("{} entries and {committed} transactions, all there", written.len());
}

/// What each of the small examples answers, by host and path; asked until it is so.
const SHAPES: &[(&str, &[(&str, &str)])] = &[
    ("nginx-python", &[("GET /", "hello from ")]),
    ("redis-counter", &[("GET /", "seen 1 times"), ("GET /", "seen 2 times")]),
    ("postgres-admin", &[("GET /", "pg_catalog.pg_class")]),
    ("static-api", &[("GET /", "The page"), ("GET /api/version", "{\"version\": 1}")]),
    (
        "routes",
        &[
            ("GET / HTTP/1.1\r\nHost: shop.localhost\r\nX:", "the shop"),
            ("GET /admin/ HTTP/1.1\r\nHost: shop.localhost\r\nX:", "the back office"),
            ("GET /", "everything else"),
        ],
    ),
    ("php-postgres", &[("GET /", "reader number 1."), ("GET /", "reader number 2.")]),
    ("workers", &[("GET /", "prepared=1"), ("GET /", "done=2")]),
    ("profiles", &[("GET /", "hello, green")]),
];

#[test]
fn the_shapes_answer_and_stay_as_they_are() {
    let Some(engine) = engine() else { return };
    for (name, answers) in SHAPES {
        let mut example = Example::new(&format!("shapes/{name}"), &engine);
        let port = free_port();
        example.set("SHAPE_PORT", port);
        example.set("DB_PASSWORD", "only here");
        let up = example.up();
        assert!(!up.stderr.contains("warning"), "{name}: {}", up.stderr);
        for (request, expected) in *answers {
            wait_for(&format!("{expected:?} of {name}"), || {
                ask(port, request, "")
                    .is_some_and(|(_, body)| body.contains(expected))
                    .then_some(())
            });
        }
        let again = example.up();
        assert!(again.stderr.contains("up to date"), "{name}: {}", again.stderr);
        example.run(&["down", "-v"]).ok();
    }
}
