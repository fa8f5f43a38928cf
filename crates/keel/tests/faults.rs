//! What the platform survives: its own death at any point, a full disk, a directory it may not write.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::{Running, Sandbox, free_port, get, is_alive, responder, wait_for};

/// Times that the server is killed in the midst of a change.
const KILLS: u32 = 12;

fn kill(pid: u32) {
    assert!(Command::new("kill").args(["-9", &pid.to_string()]).status().unwrap().success());
}

fn replicas(keel: &Running) -> u64 {
    let history = keel.json(&["history"]);
    let current = history.as_array().unwrap().iter().find(|entry| entry["current"] == true);
    let scale = current.unwrap()["services"]["web"]["scale"].as_str().unwrap().to_owned();
    scale.parse().unwrap()
}

/// Every acknowledged change is there after `kill -9` of the server at any point of it, an unacknowledged one is there
/// or not, and no instance that ran before is ended or restarted.
#[test]
fn an_acknowledged_change_survives_the_death_of_the_server() {
    let keel = Running::new("name: demo\nservices:\n  web:\n    command: sleep 100000\n");
    keel.run(&["up", "-d", "--wait"]).ok();
    let first = keel.pids();
    for round in 0..KILLS {
        let wanted = 2 + u64::from(round % 3);
        let before = replicas(&keel);
        let mut change = keel
            .command(&["scale", &format!("web={wanted}")])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let server = keel.server_pid();
        // A different point of the change each time; the pause is what is tested, not what is waited for.
        std::thread::sleep(Duration::from_millis(u64::from(round) * 7));
        let acknowledged = change.try_wait().unwrap().is_some_and(|status| status.success());
        kill(server);
        wait_for("the end of the server", || (!is_alive(server)).then_some(()));
        let _ = change.kill();
        let _ = change.wait();
        keel.run(&["server", "--detach"]).ok();
        let after = replicas(&keel);
        assert!(after == wanted || (!acknowledged && after == before), "{before} {wanted} {after}");
        wait_for("the wanted number of instances", || {
            (keel.pids().len() as u64 == after).then_some(())
        });
        for (name, pid) in &first {
            assert_eq!(keel.pids().get(name), Some(pid), "round {round}: {name} was restarted");
        }
    }
}

/// A service that is published at `port`.
fn web(port: u16) -> String {
    let command = responder("here");
    format!("name: demo\nservices:\n  web:\n    command: {command}\n    ports: [\"{port}:80\"]\n")
}

#[test]
fn a_killed_proxy_is_replaced_and_serves_again() {
    let port = free_port();
    let keel = Running::new(&web(port));
    keel.run(&["up", "-d", "--wait"]).ok();
    assert_eq!(get(port).as_deref(), Some("here"));
    for round in 1..=3 {
        let proxy = *proxies(&keel).last().unwrap();
        wait_for("copies of the sockets", || listens(keel.server_pid(), port).then_some(()));
        kill(proxy);
        wait_for("its end", || (!is_alive(proxy)).then_some(()));
        // Who connects in between waits for the next one.
        for _ in 0..20 {
            assert_eq!(get(port).as_deref(), Some("here"), "round {round}");
        }
        assert_eq!(proxies(&keel).len(), 1 + round);
    }
    let events = keel.run(&["events"]).ok();
    assert!(!events.contains("can't listen"), "{events}");
    let all = proxies(&keel);
    for proxy in &all[..3] {
        let ended = format!("the proxy (process {proxy}) ended by signal 9");
        assert_eq!(events.matches(&ended).count(), 1, "{events}");
    }
    let status = keel.json(&["server", "status"]);
    assert_eq!(status["proxy"]["pid"].as_u64(), all.last().map(|pid| u64::from(*pid)));
    assert_eq!(
        (&status["proxy"]["restarts"], &status["proxy"]["serves"]),
        (&3.into(), &"keel".into())
    );
    let rows = keel.run(&["server", "status"]).ok();
    assert!(
        rows.lines().any(|row| row.starts_with("proxy") && row.ends_with("3 restarts")),
        "{rows}"
    );
}

#[test]
fn what_the_proxy_closes_nobody_holds_open() {
    let (old, new) = (free_port(), free_port());
    let keel = Running::new(&web(old));
    keel.run(&["up", "-d", "--wait"]).ok();
    wait_for("copies of the sockets", || listens(keel.server_pid(), old).then_some(()));
    keel.sandbox.write("compose.yaml", &web(new));
    keel.run(&["up", "-d", "--wait"]).ok();
    assert_eq!(get(new).as_deref(), Some("here"));
    wait_for("the old port to be closed", || {
        std::net::TcpStream::connect(("127.0.0.1", old)).is_err().then_some(())
    });
    wait_for("copies of the new one", || listens(keel.server_pid(), new).then_some(()));
    assert!(!listens(keel.server_pid(), old));
}

/// To wait for a proxy that does not come would be worse than to be refused.
#[test]
fn connections_are_refused_when_no_proxy_comes_for_long() {
    let port = free_port();
    let keel = Running::new(&web(port));
    // A server whose program can be taken away.
    let program = keel.sandbox.app().join("keel");
    std::fs::copy(env!("CARGO_BIN_EXE_keel"), &program).unwrap();
    let like = keel.command(&["server", "--detach"]);
    let mut server = Command::new(&program);
    server.args(like.get_args()).current_dir(keel.sandbox.app()).env_clear();
    server.envs(like.get_envs().filter_map(|(name, value)| Some((name, value?))));
    assert!(server.status().unwrap().success());
    keel.run(&["up", "-d", "--wait"]).ok();
    wait_for("copies of the sockets", || listens(keel.server_pid(), port).then_some(()));
    let proxy = proxies(&keel)[0];
    std::fs::remove_file(&program).unwrap();
    kill(proxy);
    wait_for("its end", || (!is_alive(proxy)).then_some(()));
    std::net::TcpStream::connect(("127.0.0.1", port)).expect("somebody may come");
    wait_for("to be refused", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).is_err().then_some(())
    });
    let events = keel.run(&["events"]).ok();
    assert!(events.contains("/app/keel: No such file"), "{events}");
    assert_eq!(events.matches("the proxy can't be started").count(), 1, "{events}");
    wait_for("it to be told", || {
        keel.run(&["events"]).ok().contains("its sockets are closed").then_some(())
    });
    let rows = keel.run(&["server", "status"]).ok();
    assert!(rows.contains("down for") && rows.contains("No such file"), "{rows}");
    // The program is there again, and so is the service.
    std::fs::copy(env!("CARGO_BIN_EXE_keel"), &program).unwrap();
    wait_for("an answer", || (get(port).as_deref() == Some("here")).then_some(()));
}

/// Whether a process has a socket that listens on `port`.
fn listens(pid: u32, port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let listening = table.lines().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let inodes: Vec<_> = listening
        .filter(|row| row[1].ends_with(&format!(":{port:04X}")) && row[3] == "0A")
        .map(|row| format!("socket:[{}]", row[9]))
        .collect();
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let mut targets = open.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    targets.any(|target| inodes.iter().any(|inode| target.as_os_str() == inode.as_str()))
}

/// The processes of the proxies that were started.
fn proxies(keel: &Running) -> Vec<u32> {
    let events = keel.run(&["events"]).ok();
    let lines = events.lines().filter(|line| line.contains("proxy started"));
    let pids = lines.map(|line| line.rsplit_once("process ").unwrap().1.trim_end_matches(')'));
    pids.map(|pid| pid.parse().unwrap()).collect()
}

#[test]
fn a_proxy_that_hangs_is_replaced() {
    let port = free_port();
    let keel = Running::new(&web(port));
    keel.run(&["up", "-d", "--wait"]).ok();
    let first = proxies(&keel)[0];
    assert!(Command::new("kill").args(["-STOP", &first.to_string()]).status().unwrap().success());
    wait_for("its end", || (!is_alive(first)).then_some(()));
    wait_for("another proxy", || (proxies(&keel).len() == 2).then_some(()));
    wait_for("an answer", || (get(port).as_deref() == Some("here")).then_some(()));
    assert!(keel.run(&["events"]).ok().contains("answers nothing and is killed"));
}

#[test]
fn a_dead_server_stops_no_traffic() {
    let port = free_port();
    let keel = Running::new(&format!(
        "name: demo\nservices:\n  web:\n    command: {}\n    ports: [\"{port}:80\"]\n    deploy: {{replicas: 2}}\n",
        responder("here")
    ));
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();
    let server = keel.server_pid();
    kill(server);
    wait_for("the end of the server", || (!is_alive(server)).then_some(()));
    for _ in 0..20 {
        assert_eq!(get(port).as_deref(), Some("here"), "the proxy serves its last snapshot");
    }
    keel.run(&["server", "--detach"]).ok();
    assert_eq!(keel.pids(), before, "nothing was restarted");
    assert_eq!(get(port).as_deref(), Some("here"));
}

/// A process that stands still, and goes on whatever becomes of the test.
struct Halted(u32);

impl Halted {
    fn new(pid: u32) -> Self {
        assert!(Command::new("kill").args(["-STOP", &pid.to_string()]).status().unwrap().success());
        Self(pid)
    }
}

impl Drop for Halted {
    fn drop(&mut self) {
        let _ = Command::new("kill").args(["-CONT", &self.0.to_string()]).status();
    }
}

/// Longer than a proxy may take for an answer before it is taken for dead.
const HALTED: Duration = Duration::from_secs(12);

#[test]
fn a_server_that_stands_still_stops_no_traffic_and_takes_nothing_for_dead() {
    let port = free_port();
    let check = "{ test: [CMD, 'true'], interval: 500ms, timeout: 1s, retries: 1 }";
    let keel = Running::new(&format!(
        "name: demo\nservices:\n  web:\n    command: {}\n    ports: [\"{port}:80\"]\n    deploy: {{replicas: 3}}\n    healthcheck: {check}\n",
        responder("here")
    ));
    keel.run(&["up", "-d", "--wait"]).ok();
    let (server, before) = (keel.server_pid(), keel.pids());
    let (end, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let (is_over, answered) = (Arc::clone(&end), Arc::clone(&asked));
    let client = std::thread::spawn(move || {
        while !is_over.load(Ordering::SeqCst) {
            assert_eq!(get(port).as_deref(), Some("here"));
            answered.fetch_add(1, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(5));
        }
    });
    let more_answers = |client: &std::thread::JoinHandle<()>| {
        let from = asked.load(Ordering::SeqCst);
        wait_for("more answers", || {
            assert!(!client.is_finished(), "a request failed");
            (asked.load(Ordering::SeqCst) > from + 20).then_some(())
        });
    };
    more_answers(&client);
    let halted = Halted::new(server);
    let since = Instant::now();
    more_answers(&client);
    // Nobody is there to see it but the proxy.
    let (name, pid) = before.first_key_value().unwrap();
    kill(u32::try_from(*pid).unwrap());
    while since.elapsed() < HALTED {
        more_answers(&client);
    }
    drop(halted);

    wait_for("an instance in the place of the one that ended", || {
        let now = keel.pids();
        let others = before.iter().filter(|(other, _)| *other != name);
        let kept = others.clone().all(|(other, pid)| now.get(other) == Some(pid));
        assert!(kept, "{before:?} {now:?}");
        (now.len() == before.len() && now.get(name) != Some(pid)).then_some(())
    });
    // The proxy has answered all that it was asked before this.
    wait_for("counters", || {
        let edges = keel.json(&["edges", "--interval", "200ms"]);
        edges.as_array().unwrap().iter().any(|e| e["requests"].as_u64() > Some(0)).then_some(())
    });
    keel.run(&["scale", "web=2"]).ok();
    more_answers(&client);
    end.store(true, Ordering::SeqCst);
    client.join().unwrap();
    assert_eq!((keel.server_pid(), proxies(&keel).len()), (server, 1));
    let events = keel.run(&["events", "--all", "--output", "json"]).ok();
    for wrong in ["answers nothing", "instance_unhealthy", "proxy started to take over"] {
        assert!(!events.contains(wrong), "{events}");
    }
}

#[test]
fn a_second_server_is_refused() {
    let keel = Running::new("name: demo\nservices:\n  web:\n    command: sleep 100000\n");
    keel.run(&["up", "-d", "--wait"]).ok();
    let second = keel.run(&["server"]);
    assert_ne!(second.code, 0);
    let pid = keel.server_pid().to_string();
    assert!(
        second.stderr.contains("in use by") && second.stderr.contains(&pid),
        "{}",
        second.all()
    );
    assert_eq!(keel.pids().len(), 1);
}

#[test]
fn a_state_directory_that_cannot_be_written_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("compose.yaml", "name: demo\nservices:\n  web:\n    command: sleep 100000\n");
    let mut command = sandbox.command(&["up", "-d"]);
    let done = sandbox.done(command.env("KEEL_STATE_DIR", "/proc/keel").output().unwrap());
    assert_eq!(done.code, 4, "{}", done.all());
    assert!(done.stderr.contains("/proc/keel"), "{}", done.all());
    assert!(done.stderr.contains("hint:"), "{}", done.all());
}

/// A file system of 4 MiB for the state, where the rights allow it.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(sandbox: &Sandbox) -> Option<Self> {
        let directory = sandbox.state_dir();
        std::fs::create_dir(&directory).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m,mode=711", "tmpfs"])
            .arg(&directory)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(directory))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// With a full disk a change is refused with a reason, what runs goes on, and there is no need to restart anything
/// once there is room again.
#[test]
fn a_full_disk_refuses_changes_and_stops_nothing() {
    let keel = Running::new("name: demo\nservices:\n  web:\n    command: sleep 100000\n");
    let Some(disk) = SmallDisk::mount(&keel.sandbox) else {
        eprintln!("skipped: a file system can't be mounted here");
        return;
    };
    keel.run(&["up", "-d", "--wait"]).ok();
    let before = keel.pids();
    let filler = disk.0.join("filler");
    let zeros = vec![0_u8; 64 << 20];
    assert!(std::fs::write(&filler, zeros).is_err(), "the disk is full now");
    let refused =
        (2..60).map(|n| keel.run(&["scale", "--wait-timeout", "2", &format!("web={}", 2 + n % 2)]));
    let refused = refused.into_iter().find(|done| done.stderr.contains("no space left"));
    let refused = refused.expect("a change is refused when there is no room for it");
    assert_eq!(refused.code, 1, "{}", refused.all());
    for (name, pid) in &before {
        assert_eq!(keel.pids().get(name), Some(pid), "{name} runs on");
    }
    std::fs::remove_file(filler).unwrap();
    wait_for("a change that is accepted again", || {
        (keel.run(&["scale", "web=4"]).code == 0).then_some(())
    });
    assert_eq!(keel.pids().len(), 4);
    // The file system goes before the directory that it is mounted on.
    keel.run(&["down"]).ok();
    keel.run(&["server", "stop"]).ok();
    drop(disk);
}
