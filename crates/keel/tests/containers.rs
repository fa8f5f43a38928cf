//! Services with images, on an engine that the tests start.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};

use keel_container::testing::{self, IMAGE, Networks, Which};
use support::{Running, Sandbox, free_port, get, wait_for};

fn engine(which: Which) -> Option<testing::Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(testing::start(which, Networks::Here))
}

/// A service that answers with `body` and its own name.
fn web(body: &str) -> String {
    format!(
        "{{image: '{IMAGE}', init: true, command: [sh, -c, \
         'mkdir /www; echo {body} $$KEEL_INSTANCE > /www/index.html; exec httpd -f -p 8000 -h /www'], \
         expose: [8000], ulimits: {{nofile: 1024, nproc: 1024}}"
    )
}

/// What became of requests.
#[derive(Debug, Default)]
struct Counts {
    answered: AtomicUsize,
    /// Refused, or not answered, or answered with an error.
    failed: AtomicUsize,
    /// The answer had begun and broke off.
    broken: AtomicUsize,
}

/// Asks once, on a connection of its own.
fn ask(port: u16, counts: &Counts) {
    let mut answer = Vec::new();
    let asked = std::net::TcpStream::connect(("127.0.0.1", port)).and_then(|mut stream| {
        stream.set_read_timeout(Some(support::DEADLINE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        stream.read_to_end(&mut answer)
    });
    let text = String::from_utf8_lossy(&answer);
    let counter = match &asked {
        Ok(_) if text.starts_with("HTTP/1.1 200") && text.contains("-web-") => &counts.answered,
        _ if text.starts_with("HTTP/1.1 200") => &counts.broken,
        _ => &counts.failed,
    };
    if !std::ptr::eq(counter, &raw const counts.answered) {
        println!("{asked:?}: {text:?}");
    }
    counter.fetch_add(1, SeqCst);
}

/// Clients of [`Traffic`].
const CLIENTS: usize = 4;

/// Requests without pause until it ends.
struct Traffic {
    shared: Arc<(AtomicBool, Counts)>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Traffic {
    fn to(port: u16) -> Self {
        let shared = Arc::<(AtomicBool, Counts)>::default();
        let client = |_| {
            let shared = shared.clone();
            std::thread::spawn(move || {
                while !shared.0.load(SeqCst) {
                    ask(port, &shared.1);
                }
            })
        };
        Self { threads: (0..CLIENTS).map(client).collect(), shared }
    }

    /// How many were answered, how many not, and how many answers broke off.
    fn end(self) -> (usize, usize, usize) {
        self.shared.0.store(true, SeqCst);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap());
        let Counts { answered, failed, broken } = &self.shared.1;
        (answered.load(SeqCst), failed.load(SeqCst), broken.load(SeqCst))
    }
}

fn no_request_is_lost(which: Which) {
    let Some(engine) = engine(which) else { return };
    let port = free_port();
    let compose = |body: &str| {
        format!(
            "services:\n  web: {}, ports: ['{port}:8000'], deploy: {{replicas: 2, update_config: {{parallelism: 2}}}},\n    \
             x-keel: {{rollout: {{min_healthy_time: 1s}}}}}}\n",
            web(body)
        )
    };
    let keel = Running::with_engine(&compose("one"), &engine.socket);
    keel.run(&["up", "-d", "--wait"]).ok();
    assert!(get(port).unwrap().starts_with("one app-web-"));
    let traffic = Traffic::to(port);
    let before = keel.pids();
    let killed = *before.values().next().unwrap();
    rustix_kill(u32::try_from(killed).unwrap());
    wait_for("a killed container to be started again", || {
        let now = keel.pids();
        (now.len() == 2 && !now.values().any(|pid| *pid == killed)).then_some(())
    });
    // An answer that a program had begun when it was killed is nobody's to finish.
    let (answered, failed, broken) = traffic.end();
    assert!(answered > 100 && failed == 0 && broken <= CLIENTS, "{answered}, {failed}, {broken}");
    let traffic = Traffic::to(port);
    keel.run(&["scale", "web=4"]).ok();
    keel.sandbox.write("compose.yaml", &compose("two"));
    keel.run(&["up", "-d", "--wait"]).ok();
    rustix_kill(keel.server_pid());
    keel.run(&["up", "-d", "--wait"]).ok();
    keel.run(&["scale", "web=1"]).ok();
    let (answered, failed, broken) = traffic.end();
    assert!(answered > 100, "{answered}");
    assert_eq!((failed, broken), (0, 0), "of {answered}");
    assert!(get(port).unwrap().starts_with("two app-web-"));
    keel.run(&["down", "-v"]).ok();
    let left = keel.run(&["ps", "-aq"]);
    assert_eq!(left.stdout, "");
}

fn rustix_kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn no_request_is_lost_with_docker() {
    no_request_is_lost(Which::Docker);
}

#[test]
fn no_request_is_lost_with_podman() {
    no_request_is_lost(Which::Podman);
}

#[test]
fn containers_and_processes_reach_each_other_by_their_names() {
    let Some(engine) = engine(Which::Docker) else { return };
    let compose = format!(
        "services:\n  web: {}}}\n  local: {{command: {}, expose: [9000]}}\n  \
         job: {{image: '{IMAGE}', command: [sleep, '1000'], secrets: [word], volumes: ['data:/data'],\n    \
         environment: {{COLOUR: red}}, depends_on: [web, local],\n    \
         pre_start: [{{command: [sh, -c, 'echo step > /data/step']}}]}}\n\
         secrets: {{word: {{environment: WORD}}}}\nvolumes: {{data: }}\n",
        web("hello"),
        support::responder("from a process"),
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    let up = keel.command(&["up", "-d", "--wait"]).env("WORD", "hidden").output().unwrap();
    keel.sandbox.done(up).ok();
    let exec = |command: &[&str]| keel.run(&[&["exec", "-T", "job"], command].concat());
    assert!(exec(&["busybox", "wget", "-q", "-O", "-", "http://web:8000/"]).ok().contains("hello"));
    let local = exec(&["busybox", "wget", "-q", "-O", "-", "http://local:9000/"]).ok();
    assert_eq!(local, "from a process");
    assert_eq!(exec(&["cat", "/run/secrets/word", "/data/step"]).ok(), "hiddenstep\n");
    let said = exec(&["sh", "-c", "echo $COLOUR $KEEL_SERVICE; echo wrong >&2; exit 7"]);
    assert_eq!(
        (said.code, said.stdout.as_str(), said.stderr.as_str()),
        (7, "red job\n", "wrong\n")
    );
    // A process reaches a container too.
    let asked = keel.run(&["exec", "local", "python3", "-c",
        "import os, urllib.request; print(urllib.request.urlopen(os.environ['WEB_URL']).read().decode())"]);
    assert!(asked.ok().contains("hello app-web-1"));
    // Nothing has changed.
    let again = keel.command(&["up", "-d", "--wait"]).env("WORD", "hidden").output().unwrap();
    assert!(keel.sandbox.done(again).stderr.contains("up to date"));
    keel.run(&["down", "-v"]).ok();
    let foreign = "\nnetworks: {default: {external: true, name: nobodys}}\nvolumes: {data: {external: true}}\n";
    let file = format!("services:\n  web: {}, volumes: ['data:/data']}}{foreign}", web("hello"));
    keel.sandbox.write("compose.yaml", &file);
    let up = keel.run(&["up", "-d"]);
    let said = ["no network \"nobodys\"", "no volume \"data\"", "docker volume create data"];
    assert!(up.code == 1 && said.iter().all(|it| up.stderr.contains(it)), "{}", up.all());
    assert_eq!(keel.run(&["ls", "-aq"]).stdout, "");
}

#[test]
fn an_engine_that_is_away_makes_nobody_unhealthy() {
    let Some(mut engine) = engine(Which::Docker) else { return };
    let port = free_port();
    let check = "healthcheck: {test: [CMD, 'true'], interval: 200ms, retries: 1}";
    let compose =
        format!("services:\n  web: {}, ports: ['{port}:8000'], {check}}}\n", web("hello"));
    let keel = Running::with_engine(&compose, &engine.socket);
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();
    // Containers outlive an engine that dies.
    rustix_kill(engine.pid());
    let until = std::time::Instant::now() + std::time::Duration::from_secs(3);
    while std::time::Instant::now() < until {
        assert!(get(port).is_some_and(|body| body.starts_with("hello")));
        let instances = keel.json(&["ps"]);
        assert_eq!(instances[0]["health"], "healthy", "{instances}");
    }
    assert_eq!(keel.pids(), before);
    // The next engine ends what the one before left, and it is started again at once.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(engine.restart());
    wait_for("another container", || {
        let now = keel.pids();
        (now.len() == 1 && now != before && get(port).is_some()).then_some(())
    });
    let events = keel.run(&["events", "--since", "1h"]).ok();
    assert!(!events.contains("unhealthy"), "{events}");
}

/// Not every service of an image listens where the image says that one does.
#[test]
fn who_listens_at_no_port_of_its_image_is_ready_all_the_same() {
    let Some(engine) = engine(Which::Docker) else { return };
    let build =
        format!("build: {{dockerfile_inline: \"FROM {IMAGE}\\nENV PORT=9000\\nEXPOSE 8000\\n\"}}");
    let sleeps = "init: true, command: [sh, -c, 'echo port $$PORT; exec sleep 1000']";
    let compose = format!(
        "services:\n  checked: {{{build}, {sleeps}, healthcheck: {{test: [CMD, 'true'], interval: 1s}}}}\n  \
         plain: {{{build}, {sleeps}}}\n",
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    keel.run(&["up", "-d", "--wait", "--wait-timeout", "40"]).ok();
    // What the image sets stays as it is.
    assert!(keel.run(&["logs", "plain"]).ok().contains("port 9000"));
}

#[test]
fn who_is_not_ready_is_said_to_be_so_and_why() {
    let Some(engine) = engine(Which::Docker) else { return };
    let compose = format!(
        "services:\n  deaf: {{image: '{IMAGE}', init: true, command: [sleep, '1000'], expose: [8000]}}\n"
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    let up = keel.run(&["up", "-d", "--wait", "--wait-timeout", "6"]);
    assert_eq!(up.code, 1, "{}", up.all());
    // While it is waited for, and at the end.
    assert!(up.stderr.matches("Connection refused").count() >= 2, "{}", up.all());
    assert!(up.stderr.contains("0.0.0.0, not 127.0.0.1"), "{}", up.all());
    let ps = keel.run(&["ps"]).ok();
    assert!(ps.contains("(not ready: ") && ps.contains("Connection refused"), "{ps}");
}

#[test]
fn networks_keep_services_apart() {
    let Some(engine) = engine(Which::Docker) else { return };
    let on = |networks: &str| format!("{}, networks: [{networks}]}}", web("hello"));
    let compose = format!(
        "services:\n  web: {}\n  api: {}\n  db: {}\nnetworks: {{front: , back: }}\n",
        on("front"),
        on("front, back"),
        on("back"),
    );
    let keel = Running::with_engine(&compose, &engine.socket);
    keel.run(&["up", "-d", "--wait"]).ok();
    let call = |from: &str, to: &str| {
        let url = format!("http://{to}:8000/");
        let wget = ["busybox", "wget", "-q", "-O", "-", &url];
        keel.run(&[&["exec", "-T", from], &wget[..]].concat())
    };
    for (from, to, reached) in [
        ("web", "api", true),
        ("api", "web", true),
        ("api", "db", true),
        ("db", "api", true),
        ("web", "db", false),
        ("db", "web", false),
        ("db", "db", true),
    ] {
        let called = call(from, to);
        assert_eq!(called.code == 0, reached, "{from} calls {to}: {}", called.all());
    }
    let said = wait_for("the event", || {
        let events = keel.run(&["events", "--since", "1h"]).ok();
        events.contains("its calls to db at port 8000 are refused").then_some(events)
    });
    assert!(said.contains("its calls to web at port 8000 are refused"), "{said}");
    // The file is the whole truth, also for what runs.
    keel.sandbox.write("compose.yaml", &compose.replace("[back]", "[back, front]"));
    keel.run(&["up", "-d", "--wait"]).ok();
    call("web", "db").ok();
    call("db", "web").ok();
}

#[test]
fn what_is_missing_is_said_and_changes_nothing() {
    let sandbox = Sandbox::new();
    let keel = Running::with_engine(
        "services: {web: {image: 'no/such:1', command: [x]}}\n",
        &sandbox.app().join("no.sock"),
    );
    let up = keel.run(&["up", "-d"]);
    assert_ne!(up.code, 0);
    assert!(
        up.stderr.contains("no.sock") && up.stderr.contains("container engine"),
        "{}",
        up.stderr
    );
    assert_eq!(keel.run(&["ls", "-aq"]).stdout, "");
}

/// A container in the network of another's is started again in that of the next, whatever became of the first.
#[test]
fn who_shares_a_network_follows_it() {
    let Some(engine) = engine(Which::Docker) else { return };
    let compose = |version: u32| {
        format!(
            "services:\n  owner: {{image: '{IMAGE}', init: true, command: [sleep, '1000'], environment: {{V: '{version}'}}, stop_grace_period: 0s,\n    \
             x-keel: {{rollout: {{min_healthy_time: 100ms}}}}}}\n  \
             guest: {{image: '{IMAGE}', init: true, command: [sleep, '1000'], network_mode: 'service:owner', stop_grace_period: 0s}}\n"
        )
    };
    let keel = Running::with_engine(&compose(1), &engine.socket);
    keel.run(&["up", "-d", "--wait"]).ok();
    let of = |service: &str| {
        let all = keel.pids();
        let mine = all.into_iter().filter(|(id, _)| id.contains(service));
        let mine: Vec<u64> = mine.map(|(_, pid)| pid).collect();
        (mine.len() == 1).then(|| mine[0])
    };
    let network = |pid: u64| std::fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    let together = || {
        let (owner, guest) = (of("owner")?, of("guest")?);
        (network(owner).is_some() && network(owner) == network(guest)).then_some((owner, guest))
    };
    let (owner, guest) = wait_for("both to be in one network", together);
    let moved = |from: (u64, u64)| {
        let now = together()?;
        (now.0 != from.0 && now.1 != from.1).then_some(now)
    };
    rustix_kill(u32::try_from(owner).unwrap());
    let after_kill = wait_for("the guest to follow a killed owner", || moved((owner, guest)));
    keel.sandbox.write("compose.yaml", &compose(2));
    keel.run(&["up", "-d"]).ok();
    let after_release = wait_for("the guest to follow a new revision", || moved(after_kill));
    // One that ends itself is started where the owner is.
    rustix_kill(u32::try_from(after_release.1).unwrap());
    wait_for("the guest to be healed", || together().filter(|now| now.1 != after_release.1));
    keel.run(&["down"]).ok();
}

/// Of a stack with this service, and what is said when it can't be started.
fn refused(keel: &Running, words: &[&str]) {
    let up = keel.run(&["up", "-d", "--wait"]);
    assert_eq!(up.code, 1, "{}", up.all());
    for word in words {
        assert!(up.stderr.contains(word), "{word:?}: {}", up.stderr);
    }
}

#[test]
fn a_port_that_is_taken_is_named_with_who_has_it() {
    let Some(engine) = engine(Which::Docker) else { return };
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let udp_port = udp.local_addr().unwrap().port();
    let service = |ports: &str| format!("services:\n  web: {}, ports: ['{ports}']}}\n", web("x"));
    let compose = service(&format!("127.0.0.1:{port}:8000"));
    let keel = Running::with_engine(&compose, &engine.socket);
    let own = std::process::id().to_string();
    refused(&keel, &["service `web`", &port.to_string(), &own, "publish another port"]);
    assert_eq!(keel.run(&["ls", "-aq"]).stdout, "", "nothing was changed");
    // What the engine opens it can tell only when it tries.
    keel.sandbox.write("compose.yaml", &service(&format!("127.0.0.1:{udp_port}:8000/udp")));
    refused(&keel, &["web", &udp_port.to_string()]);
    drop((taken, udp));
    // The server has the engine that it was started with.
    let mut other = keel.command(&["up", "-d", "--wait"]);
    other.env("DOCKER_HOST", "unix:///run/none.sock");
    let up = keel.sandbox.done(other.output().unwrap());
    let warned = up
        .stderr
        .contains("DOCKER_HOST is unix:///run/none.sock, but the server was started with another");
    assert!(up.code == 0 && warned, "{}", up.all());
    let same = keel.run(&["up", "-d", "--wait"]);
    assert!(same.code == 0 && !same.stderr.contains("DOCKER_HOST"), "{}", same.all());
}

#[test]
fn a_socket_of_the_engine_that_may_not_be_used_is_named() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: only root can become somebody else");
    }
    let Some(engine) = engine(Which::Docker) else { return };
    let compose = format!("services:\n  web: {}}}\n", web("x"));
    let mut keel = Running::new(&compose);
    keel.engine_at(&engine.socket);
    // Somebody who may do anything in the sandbox, and nothing with the engine.
    const NOBODY: u32 = 65534;
    let sandbox = keel.sandbox.app().parent().unwrap().to_owned();
    for path in [&sandbox, &keel.sandbox.app(), &keel.sandbox.app().join("compose.yaml")] {
        std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // The program may be where nobody else may look.
    let program = sandbox.join("keel");
    std::fs::copy(env!("CARGO_BIN_EXE_keel"), &program).unwrap();
    let as_nobody = |arguments: &[&str]| {
        let like = keel.command(arguments);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
        command.args(arguments).current_dir(keel.sandbox.app()).env_clear();
        command.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.stdin(std::process::Stdio::null());
        keel.sandbox.done(command.output().unwrap())
    };
    let up = as_nobody(&["up", "-d"]);
    assert_eq!(up.code, 1, "{}", up.all());
    let socket = engine.socket.display().to_string();
    assert!(up.stderr.contains(&socket) && up.stderr.contains("permission"), "{}", up.stderr);
    assert!(up.stderr.contains("group"), "{}", up.stderr);
    assert_eq!(as_nobody(&["ls", "-aq"]).stdout, "");
    as_nobody(&["server", "stop"]);
}
