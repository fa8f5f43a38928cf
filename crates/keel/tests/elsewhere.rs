//! Engines that are not the usual ones: on another machine, over TCP with and without TLS, and without root.
//!
//! Each has network namespaces of its own, without a way out: an address that is taken for a container's by mistake leads
//! nowhere.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../keel-container/tests/it/rig/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    unused_macros,
    reason = "the tests of the crate below use the rest"
)]
mod rig;
mod support;

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rig::or_skip;
use sha2::{Digest as _, Sha256};
use support::{Done, Running, wait_for};

/// A shell and its tools in one static program (Debian's busybox-static).
const BUSYBOX: &str = "/bin/busybox";
const DOCKERFILE: &str = "FROM scratch\nCOPY busybox /bin/busybox\n";
const COMPOSE: &str = "
name: far
services:
  web:
    build: {context: ., network: none}
    init: true
    command: [/bin/busybox, sh, -c, 'busybox mkdir /www; echo hi $$KEEL_INSTANCE > /www/index.html; exec busybox httpd -f -p 8000 -h /www']
    expose: [8000]
    ports: ['127.0.0.1:18080:8000']
    secrets: [word]
    volumes: ['data:/data']
    ulimits: {nofile: 1024, nproc: 1024}
    stop_grace_period: 1s
    deploy: {replicas: 2}
secrets: {word: {environment: WORD}}
volumes: {data: }
";

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let done = Command::new(program).args(arguments).output();
    let done = done.map_err(|error| format!("{program}: {error}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    if done.status.success() { Ok(()) } else { Err(format!("{program} {arguments:?}: {said}")) }
}

/// A network namespace that goes with the test.
struct Namespace(String);

impl Namespace {
    fn make(name: &str) -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("only root makes network namespaces".to_owned());
        }
        let name = format!("kt{}{name}", std::process::id());
        run("ip", &["netns", "add", &name])?;
        let made = Self(name);
        run("ip", &["-n", &made.0, "link", "set", "lo", "up"])?;
        Ok(made)
    }

    /// The same command inside, as this user. Control groups stay as they are, which `ip netns exec` hides.
    fn inside(&self, user: Option<u32>, command: &Command) -> Command {
        let mut all = Command::new("nsenter");
        all.arg(format!("--net=/run/netns/{}", self.0));
        if let Some(user) = user {
            let user = user.to_string();
            all.args(["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"]);
        }
        all.arg(command.get_program()).args(command.get_args()).stdin(Stdio::null());
        if let Some(directory) = command.get_current_dir() {
            all.current_dir(directory);
        }
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => all.env(name, value),
                None => all.env_remove(name),
            };
        }
        all
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = run("ip", &["netns", "del", &self.0]);
    }
}

/// A program of the test's, ended by its number.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

/// Commands that use an engine.
struct Here<'a> {
    running: Running,
    namespace: &'a Namespace,
    user: Option<u32>,
    environment: Vec<(&'static str, String)>,
}

impl Here<'_> {
    fn run(&self, arguments: &[&str]) -> Done {
        let mut command = self.running.sandbox.command(arguments);
        command.env("WORD", "hidden");
        command.envs(self.environment.iter().map(|(name, value)| (*name, value)));
        let output = self.namespace.inside(self.user, &command).output().unwrap();
        self.running.sandbox.done(output)
    }

    fn answer(&self) -> Option<String> {
        let mut command = Command::new("curl");
        command.args(["--silent", "--max-time", "2", "http://127.0.0.1:18080/"]);
        let output = self.namespace.inside(self.user, &command).output().unwrap();
        Some(String::from_utf8(output.stdout).unwrap())
            .filter(|text| text.starts_with("hi far-web-"))
    }

    /// A stack comes up, serves, is healed, and goes.
    fn works(&self) {
        let up = self.run(&["up", "--detach", "--wait"]);
        assert_eq!(up.code, 0, "{}", up.all());
        assert!(self.answer().is_some(), "{}", self.run(&["ps"]).all());
        let word = self.run(&["exec", "-T", "web", "/bin/busybox", "cat", "/run/secrets/word"]);
        assert_eq!(word.ok(), "hidden");
        let instances = || -> serde_json::Value {
            serde_json::from_str(&self.run(&["ps", "--output", "json"]).ok()).unwrap()
        };
        let first = |all: &serde_json::Value| all[0]["pid"].as_u64().filter(|pid| *pid > 0);
        let before = first(&instances()).unwrap();
        let pid = rustix::process::Pid::from_raw(i32::try_from(before).unwrap()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        wait_for("a killed container to be started again", || {
            let now = instances();
            let healed = first(&now).is_some_and(|pid| pid != before);
            let ready = now.as_array().unwrap().iter().all(|it| it["ready"] == true);
            (healed && ready).then_some(())
        });
        assert!(self.answer().is_some(), "{}", self.run(&["ps"]).all());
        let logs = self.run(&["logs"]);
        assert_eq!(logs.code, 0, "{}", logs.all());
        let down = self.run(&["down", "-v"]);
        assert_eq!(down.code, 0, "{}", down.all());
        self.run(&["server", "stop"]).ok();
    }
}

fn prepared(compose: &str) -> Running {
    let running = Running::new(compose);
    running.sandbox.write("Dockerfile", DOCKERFILE);
    fs::copy(BUSYBOX, running.sandbox.app().join("busybox")).unwrap();
    running
}

/// A `dockerd` that listens where `arguments` say.
fn dockerd(namespace: &Namespace, dir: &Path, arguments: &[String]) -> Result<Ended, String> {
    let log = fs::File::create(dir.join("log")).map_err(|error| error.to_string())?;
    let path = |name: &str| dir.join(name).display().to_string();
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig", "TERM", "--", "dockerd", "--iptables=false"])
        .args([
            "--data-root",
            &path("data"),
            "--exec-root",
            &path("exec"),
            "--pidfile",
            &path("pid"),
        ])
        .args(arguments);
    let mut command = namespace.inside(None, &command);
    let second = log.try_clone().map_err(|error| error.to_string())?;
    let child = command.stdout(log).stderr(second).spawn();
    Ok(Ended(child.map_err(|error| error.to_string())?))
}

/// A directory for an engine: not in memory, as layers of file systems need one that they can lie on.
fn directory() -> tempfile::TempDir {
    let program = std::env::current_exe().unwrap();
    tempfile::tempdir_in(program.parent().unwrap()).unwrap()
}

fn can_be_tried() -> Result<(), String> {
    for program in ["dockerd", "nsenter", "setpriv", "curl"] {
        run("sh", &["-c", &format!("command -v {program}")])?;
    }
    if Path::new(BUSYBOX).exists() { Ok(()) } else { Err("no busybox-static".to_owned()) }
}

/// The certificates of an authority, a server at `address` and a client, as Docker's tools want them.
fn certificates(dir: &Path, address: &str) {
    let key = || rcgen::KeyPair::generate().unwrap();
    let authority_key = key();
    let mut authority = rcgen::CertificateParams::new([]).unwrap();
    // Who has the name of the authority would be taken for it.
    authority.distinguished_name.push(rcgen::DnType::CommonName, "authority");
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = authority.self_signed(&authority_key).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    fs::write(dir.join("ca.pem"), root.pem()).unwrap();
    let usages =
        [rcgen::ExtendedKeyUsagePurpose::ServerAuth, rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    for (name, usage) in [("server-", usages[0].clone()), ("", usages[1].clone())] {
        let own = key();
        let mut params = rcgen::CertificateParams::new([address.to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        params.distinguished_name.push(rcgen::DnType::CommonName, format!("{name}end"));
        let signed = params.signed_by(&own, &issuer).unwrap();
        fs::write(dir.join(format!("{name}cert.pem")), signed.pem()).unwrap();
        fs::write(dir.join(format!("{name}key.pem")), own.serialize_pem()).unwrap();
    }
}

#[test]
fn an_engine_on_another_machine_is_used_over_tls() {
    or_skip!(can_be_tried());
    let near = or_skip!(Namespace::make("a"));
    let far = or_skip!(Namespace::make("b"));
    let part = std::process::id() % 250;
    let [ours, theirs] = [1, 2].map(|host| format!("10.127.{part}.{host}"));
    let link = format!("kv{}", std::process::id());
    let peer = [
        "link", "add", &link, "netns", &near.0, "type", "veth", "peer", "name", "eth0", "netns",
        &far.0,
    ];
    or_skip!(run("ip", &peer));
    for (namespace, device, address) in [(&near, link.as_str(), &ours), (&far, "eth0", &theirs)] {
        or_skip!(run(
            "ip",
            &["-n", &namespace.0, "addr", "add", &format!("{address}/24"), "dev", device]
        ));
        or_skip!(run("ip", &["-n", &namespace.0, "link", "set", device, "up"]));
    }
    let dir = directory();
    certificates(dir.path(), &theirs);
    let file = |name: &str| dir.path().join(name).display().to_string();
    let arguments = [
        format!("--host=tcp://{theirs}:2376"),
        "--tlsverify".to_owned(),
        format!("--tlscacert={}", file("ca.pem")),
        format!("--tlscert={}", file("server-cert.pem")),
        format!("--tlskey={}", file("server-key.pem")),
    ];
    let _engine = or_skip!(dockerd(&far, dir.path(), &arguments));
    let here = Here {
        running: prepared(COMPOSE),
        namespace: &near,
        user: None,
        environment: vec![("DOCKER_CONTEXT", "far".to_owned())],
    };
    // As `docker context create` writes it.
    let id: String = Sha256::digest("far").iter().map(|byte| format!("{byte:02x}")).collect();
    let home = here.running.sandbox.app().parent().unwrap().join(".docker/contexts");
    let (meta, tls) = (home.join("meta").join(&id), home.join("tls").join(&id).join("docker"));
    fs::create_dir_all(&meta).unwrap();
    fs::create_dir_all(&tls).unwrap();
    let text =
        format!(r#"{{"Name":"far","Endpoints":{{"docker":{{"Host":"tcp://{theirs}:2376"}}}}}}"#);
    fs::write(meta.join("meta.json"), text).unwrap();
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        fs::copy(dir.path().join(name), tls.join(name)).unwrap();
    }
    wait_for("the engine", || dir.path().join("pid").exists().then_some(()));
    wait_for("the engine to answer", || {
        let tried = ["--max-time", "2", "--silent", "--fail", "--cacert", &file("ca.pem")];
        let mut command = Command::new("curl");
        command.args(tried).args(["--cert", &file("cert.pem"), "--key", &file("key.pem")]);
        command.arg(format!("https://{theirs}:2376/_ping"));
        near.inside(None, &command).output().unwrap().status.success().then_some(())
    });
    here.works();

    // With variables in the place of the context.
    let here = Here {
        environment: vec![
            ("DOCKER_HOST", format!("tcp://{theirs}:2376")),
            ("DOCKER_TLS_VERIFY", "1".to_owned()),
            ("DOCKER_CERT_PATH", dir.path().display().to_string()),
        ],
        ..here
    };
    here.works();
}

#[test]
fn an_engine_on_a_loopback_port_is_used_through_its_ports() {
    or_skip!(can_be_tried());
    let namespace = or_skip!(Namespace::make("c"));
    let dir = directory();
    let arguments = ["--host=tcp://127.0.0.1:2375".to_owned()];
    let _engine = or_skip!(dockerd(&namespace, dir.path(), &arguments));
    let host = ("DOCKER_HOST", "tcp://127.0.0.1:2375".to_owned());
    let running = prepared(COMPOSE);
    let here = Here { running, namespace: &namespace, user: None, environment: vec![host] };
    wait_for("the engine to answer", || {
        let mut command = Command::new("curl");
        command.args(["--max-time", "2", "--silent", "--fail", "http://127.0.0.1:2375/_ping"]);
        namespace.inside(None, &command).output().unwrap().status.success().then_some(())
    });
    here.works();
}

/// A user that goes with the test, with all of its processes.
struct User {
    name: String,
    id: u32,
}

impl User {
    fn make(engine: Rootless) -> Result<Self, String> {
        let programs = engine.programs().iter().chain(&["newuidmap", "slirp4netns", "useradd"]);
        for program in programs {
            run("sh", &["-c", &format!("command -v {program}")])?;
        }
        let name = format!("keelt{}", std::process::id());
        run("useradd", &["--create-home", &name])?;
        let id = Command::new("id").args(["--user", &name]).output();
        let id = id.map_err(|error| error.to_string())?.stdout;
        let id = String::from_utf8_lossy(&id).trim().parse().unwrap();
        Ok(Self { name, id })
    }

    fn processes(&self) -> Vec<rustix::process::Pid> {
        let all = fs::read_dir("/proc").unwrap().flatten();
        let numbers = all.filter_map(|it| it.file_name().to_str()?.parse::<i32>().ok());
        // Those of its containers are of users that are given to it.
        let own = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find(|line| line.starts_with("Uid:"));
            line.is_some_and(|line| line.split_whitespace().nth(1) == Some(&self.id.to_string()))
        };
        numbers.filter(own).filter_map(rustix::process::Pid::from_raw).collect()
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let started = std::time::Instant::now();
        while !self.processes().is_empty() && started.elapsed() < support::DEADLINE {
            for pid in self.processes() {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        let _ = run("userdel", &["--remove", &self.name]);
    }
}

/// Where Debian has it.
const DOCKERD_ROOTLESS: &str = "/usr/share/docker.io/contrib/dockerd-rootless.sh";

/// An engine that needs no root.
#[derive(Clone, Copy)]
enum Rootless {
    Docker,
    Podman,
}

impl Rootless {
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Docker => &["rootlesskit", DOCKERD_ROOTLESS],
            Self::Podman => &["podman"],
        }
    }

    /// How it is started by its user.
    fn command(self, home: &Path, runs: &Path, socket: &Path) -> String {
        let (home, runs, socket) = (home.display(), runs.display(), socket.display());
        match self {
            Self::Docker => format!(
                "{DOCKERD_ROOTLESS} --host unix://{socket} --data-root {home}/docker \
                 --exec-root {runs}/docker --pidfile {runs}/docker.pid --storage-driver vfs"
            ),
            Self::Podman => format!(
                "podman --runtime runc --cgroup-manager cgroupfs system service --time=0 unix://{socket}"
            ),
        }
    }
}

fn an_engine_without_root_is_used_through_its_ports(engine: Rootless) {
    or_skip!(can_be_tried());
    or_skip!(Path::new("/dev/net/tun").exists().then_some(()).ok_or("no /dev/net/tun"));
    let namespace = or_skip!(Namespace::make("d"));
    let user = or_skip!(User::make(engine));
    let home = PathBuf::from(format!("/home/{}", user.name));
    let runs = PathBuf::from(format!("/run/{}", user.name));
    fs::create_dir(&runs).unwrap();
    fs::set_permissions(&runs, fs::Permissions::from_mode(0o700)).unwrap();
    chown(&runs, Some(user.id), Some(user.id)).unwrap();
    let socket = runs.join("engine.sock");
    // The device for networks of users belongs to root here; elsewhere it is everybody's.
    let tun = home.join("tun");
    let id = user.id;
    let script = format!(
        "mknod {0} c 10 200 && chmod 666 {0} && mount --bind {0} /dev/net/tun && exec setpriv --reuid {id} --regid {id} \
         --clear-groups --pdeathsig TERM env -i HOME={1} XDG_RUNTIME_DIR={2} PATH=/usr/sbin:/usr/bin:/sbin:/bin {3}",
        tun.display(),
        home.display(),
        runs.display(),
        engine.command(&home, &runs, &socket),
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]).current_dir("/");
    let log = fs::File::create(home.join("log")).unwrap();
    let child = namespace.inside(None, &command).stderr(log).spawn().unwrap();
    let engine = Ended(child);
    let running = prepared(COMPOSE);
    let environment = vec![
        ("DOCKER_HOST", format!("unix://{}", socket.display())),
        ("XDG_RUNTIME_DIR", runs.display().to_string()),
    ];
    let here = Here { running, namespace: &namespace, user: Some(user.id), environment };
    let all = here.running.sandbox.app().parent().unwrap().to_owned();
    run("chown", &["-R", &format!("{0}:{0}", user.id), all.to_str().unwrap()]).unwrap();
    wait_for("the engine", || socket.exists().then_some(()));
    here.works();
    drop(here);
    drop(engine);
    drop(user);
    let _ = fs::remove_dir_all(&runs);
}

#[test]
fn docker_without_root_is_used_through_its_ports() {
    an_engine_without_root_is_used_through_its_ports(Rootless::Docker);
}

#[test]
fn podman_without_root_is_used_through_its_ports() {
    an_engine_without_root_is_used_through_its_ports(Rootless::Podman);
}
