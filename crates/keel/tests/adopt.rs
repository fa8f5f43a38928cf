//! A project that `docker-compose` has started is taken over as it runs.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::sync::OnceLock;

use keel_container::testing::{self, IMAGE, Networks, Which};
use rustix::process::{Pid, Signal, kill_process};
use support::namespace::{Outside, alone};
use support::traffic::Traffic;
use support::{Running, get, wait_for};

/// The host port of `web`.
const PORT: u16 = 18080;

fn compose(word: &str) -> String {
    let serve = |port: u16, word: &str| {
        format!(
            "[sh, -c, 'mkdir /www; echo \"{word} end\" > /www/index.html; exec httpd -f -p {port} -h /www']"
        )
    };
    format!(
        "services:\n  \
         web: {{image: '{IMAGE}', init: true, command: {}, ports: ['{PORT}:8000'], depends_on: [api], restart: always,\n    \
         x-keel: {{rollout: {{min_healthy_time: 1s}}}}}}\n  \
         api: {{image: '{IMAGE}', init: true, command: {}, ports: ['9000:9000'], restart: unless-stopped,\n    \
         x-keel: {{rollout: {{min_healthy_time: 1s}}}}}}\n  \
         echo: {{image: '{IMAGE}', init: true, command: [busybox, nc, -ll, -p, '7000', -e, cat], ports: ['{ECHO}:7000'],\n    \
         environment: {{WORD: {word}}}, x-keel: {{rollout: {{min_healthy_time: 1s, drain_timeout: 60s}}}}}}\n  \
         db: {{image: '{IMAGE}', init: true, command: [sleep, '100000'], volumes: ['data:/data', '/own']}}\n  \
         job: {{image: '{IMAGE}', command: [sh, -c, 'echo run >> /data/runs'], volumes: ['data:/data'], restart: 'no'}}\n\
         volumes: {{data: }}\n",
        serve(8000, word),
        serve(9000, &format!("api {word}")),
    )
}

/// The host port of `echo`.
const ECHO: u16 = 17000;

/// What docker-compose calls the container of a service.
fn theirs(service: &str) -> String {
    static BETWEEN: OnceLock<&str> = OnceLock::new();
    let between = BETWEEN.get_or_init(|| {
        let said = Command::new("docker-compose").args(["version", "--short"]).output().unwrap();
        if said.stdout.starts_with(b"1.") { "_" } else { "-" }
    });
    format!("app{between}{service}{between}1")
}

/// A project that runs.
struct Project {
    keel: Running,
    engine: testing::Running,
}

/// Id, name, start and state of a container.
type Container = (String, String, String, String);

impl Project {
    fn up() -> Option<Self> {
        if Command::new("docker-compose").arg("version").output().is_err() {
            println!("skipped: no docker-compose");
            assert!(std::env::var_os("KEEL_TESTS_NEED_ENGINES").is_none());
            return None;
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine = runtime.block_on(testing::start(Which::Docker, Networks::Ruled))?;
        let keel = Running::with_engine(&compose("one"), &engine.socket);
        let project = Self { keel, engine };
        let mut up = project.tool("docker-compose");
        up.args(["-f", "compose.yaml", "up", "-d"]).current_dir(project.keel.sandbox.app());
        let done = up.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        wait_for("the project to answer", || get(PORT).filter(|body| body == "one end\n"));
        wait_for("the job to end", || {
            project.containers().iter().any(|it| it.3 == "exited").then_some(())
        });
        Some(project)
    }

    fn tool(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("DOCKER_HOST", format!("unix://{}", self.engine.socket.display()));
        command
    }

    fn docker(&self, arguments: &[&str]) -> String {
        let output = self.tool("docker").args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// All containers, by name.
    fn containers(&self) -> Vec<Container> {
        let ids = self.docker(&["ps", "-aq", "--no-trunc"]);
        let form = "{{.Id}} {{.Name}} {{.State.StartedAt}} {{.State.Status}}";
        let mut all: Vec<Container> = Vec::new();
        for id in ids.lines() {
            let line = self.docker(&["inspect", "--format", form, id]);
            let words: Vec<&str> = line.split_whitespace().collect();
            let [id, name, start, state] = words[..] else { continue };
            let name = name.trim_start_matches('/');
            all.push((id.into(), name.into(), start.into(), state.into()));
        }
        all.sort_by(|one, other| one.1.cmp(&other.1));
        all
    }

    fn runs(&self) -> String {
        self.docker(&["exec", &theirs("db"), "cat", "/data/runs"])
    }

    /// Ends the server as nothing else could.
    fn kill_server(&self) {
        kill(self.keel.server_pid());
    }

    fn proxy_pid(&self) -> u32 {
        let status = self.keel.json(&["server", "status"]);
        u32::try_from(status["proxy"]["pid"].as_u64().unwrap_or(0)).unwrap()
    }
}

fn kill(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
}

/// The rules of keel in the filter of this namespace.
fn rules() -> Vec<String> {
    let mut all = Vec::new();
    for (program, chain) in [
        ("iptables", "PREROUTING"),
        ("iptables", "OUTPUT"),
        ("ip6tables", "PREROUTING"),
        ("ip6tables", "OUTPUT"),
    ] {
        let output = Command::new(program).args(["-w", "-t", "nat", "-S", chain]).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        all.extend(text.lines().filter(|line| line.contains("keel ")).map(str::to_owned));
    }
    all
}

/// Whether one of our processes listens at the port itself.
fn listens(pid: u32) -> bool {
    let output = Command::new("ss").args(["-Hltnp", &format!("sport = :{PORT}")]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(&format!("pid={pid},"))
}

/// A connection to `echo`.
struct Echo(TcpStream);

impl Echo {
    fn to(address: &str) -> Self {
        let stream = TcpStream::connect((address, ECHO)).unwrap();
        stream.set_read_timeout(Some(support::DEADLINE)).unwrap();
        Self(stream)
    }

    #[track_caller]
    fn answers(&mut self) {
        let mut answer = [0; 5];
        self.0.write_all(b"hello").unwrap();
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"hello");
    }
}

/// The address of a bridge of the engine: who asks there is led by its rules, not by its program.
fn bridge() -> String {
    let output = Command::new("ip").args(["-br", "-4", "addr"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("keelt")).unwrap();
    line.split_whitespace().nth(2).unwrap().split('/').next().unwrap().to_owned()
}

/// Has a container that is not released call `api` by its name, and note what it got.
const CALLS: &str = "while true; do if busybox wget -q -O /tmp/got http://api:9000/; then echo >> /tmp/good; \
     else echo failed >> /tmp/bad; fi; done";

#[test]
fn a_project_is_taken_over_and_released_without_losing_a_request() {
    alone(|| {
        let Some(project) = Project::up() else { return };
        let keel = &project.keel;
        let before = project.containers();
        assert_eq!(project.runs(), "run\n");

        let shown = keel.run(&["adopt", "--dry-run"]).ok();
        assert!(shown.contains(&theirs("web")) && shown.contains("app-web-1"), "{shown}");
        assert!(shown.contains("adopted, and not run again"), "{shown}");
        assert_eq!((keel.run(&["ls", "-aq"]).ok(), rules()), (String::new(), Vec::new()));
        // A second database on the same volume would be the end of it.
        let beside = keel.run(&["up", "-d", "db"]);
        assert!(beside.code == 1 && beside.stderr.contains("keel adopt"), "{}", beside.all());
        assert!(beside.stderr.contains(&theirs("db")), "{}", beside.all());
        assert_eq!(
            (project.containers(), keel.run(&["ls", "-aq"]).ok()),
            (before.clone(), String::new())
        );

        let addresses = ["127.0.0.1".to_owned(), "[::1]".to_owned(), bridge()];
        let traffic = addresses.map(|address| Traffic::to(&format!("{address}:{PORT}")));
        project.docker(&["exec", "-d", &theirs("db"), "sh", "-c", CALLS]);
        let mut echo = [Echo::to("127.0.0.1"), Echo::to(&bridge())];
        let adopted = keel.run(&["adopt"]);
        assert_eq!(adopted.code, 0, "{}", adopted.all());
        project.kill_server();
        let again = keel.run(&["adopt"]);
        assert!(again.stderr.contains("nothing to take over"), "{}", again.all());
        assert_eq!(project.containers(), before, "no container is touched");
        assert_eq!(project.runs(), "run\n");
        let states = keel.json(&["ps", "-a"]);
        assert_eq!(states.as_array().unwrap().len(), 5, "{states}");
        let since = project.docker(&["inspect", "-f", "{{.State.StartedAt}}", &theirs("db")]);
        let db = states.as_array().unwrap().iter().find(|it| it["name"] == "app-db-1").unwrap();
        let seconds = "2026-01-01T00:00:00".len();
        assert_eq!(db["started_at"].as_str().unwrap()[..seconds], since[..seconds], "{db}");
        assert_eq!(keel.pids().len(), 4);
        echo.iter_mut().for_each(Echo::answers);

        // From here on requests go through the proxy, and names lead there.
        wait_for("the ports to be led around", || (rules().len() >= 12).then_some(()));
        wait_for("names", || {
            let hosts = project.docker(&["exec", &theirs("db"), "cat", "/etc/hosts"]);
            hosts.contains("\tapi").then_some(())
        });
        wait_for("requests through the proxy", || {
            let edges = keel.run(&["edges"]).ok();
            (edges.contains("app/web:8000") && edges.contains("app/api:9000")).then_some(())
        });

        released(&project, &before, echo);
        for traffic in traffic {
            let (answered, failed) = traffic.end();
            assert!(answered > 100, "{answered}");
            assert_eq!(failed, 0, "of {answered}");
        }
        let noted = |file: &str| project.docker(&["exec", &theirs("db"), "cat", file]);
        let (good, bad) = (noted("/tmp/good").lines().count(), noted("/tmp/bad"));
        assert!(good > 20 && bad.is_empty(), "{good} calls by name, {bad}");
        assert_eq!(project.runs(), "run\n");

        keel.run(&["down", "-v"]).ok();
        assert_eq!((project.containers(), rules()), (Vec::new(), Vec::new()));
        assert!(project.docker(&["volume", "ls", "-q"]).contains("app_data\n"), "it is not keel's");
        assert!(project.docker(&["network", "ls"]).contains("app_default"));
    });
}

/// The next revision of all services that requests are sent to.
fn released(project: &Project, before: &[Container], mut echo: [Echo; 2]) {
    let keel = &project.keel;
    keel.sandbox.write("compose.yaml", &compose("two"));
    let up = keel.command(&["up", "-d", "--wait"]).spawn().unwrap();
    wait_for("the new revision", || get(PORT).filter(|body| body == "two end\n"));
    let runs = |name: &str| project.containers().into_iter().find(|it| it.1 == name);
    wait_for("the old ones to go", || {
        let gone = ["web", "api"].map(theirs).iter().all(|name| runs(name).is_none());
        gone.then_some(())
    });
    // It is connected to past the proxy, and waited for.
    let draining = || {
        let ps = keel.json(&["ps", "-a"]);
        let ps = ps.as_array().unwrap().clone();
        ps.iter().any(|it| it["name"] == "app-echo-1" && it.to_string().contains("drain"))
    };
    wait_for("the old one to drain", || draining().then_some(()));
    std::thread::sleep(std::time::Duration::from_secs(3));
    echo.iter_mut().for_each(Echo::answers);
    Echo::to("127.0.0.1").answers();
    assert!(runs(&theirs("echo")).is_some());
    drop(echo);
    wait_for("it to go with its last connection", || runs(&theirs("echo")).is_none().then_some(()));
    let up = up.wait_with_output().unwrap();
    assert!(up.status.success(), "{}", String::from_utf8_lossy(&up.stderr));

    wait_for("the rules to go", || rules().is_empty().then_some(()));
    assert!(listens(project.proxy_pid()));
    let now = project.containers();
    let of = |all: &[Container], name: &str| all.iter().find(|it| it.1 == name).cloned();
    for name in ["db", "job"].map(theirs) {
        assert_eq!(of(&now, &name), of(before, &name));
    }
}

#[test]
fn whenever_the_server_dies_a_second_try_takes_over_what_is_left() {
    alone(|| {
        let Some(project) = Project::up() else { return };
        let keel = &project.keel;
        let before = project.containers();
        let traffic = Traffic::to(&format!("127.0.0.1:{PORT}"));
        keel.run(&["server", "--detach"]);
        for pause in [0, 20, 40, 60, 80, 120, 200] {
            let mut adopt = keel.command(&["adopt", "--wait-timeout", "5"]).spawn().unwrap();
            std::thread::sleep(std::time::Duration::from_millis(pause));
            let status = keel.run(&["server", "status", "--output", "json"]);
            let pid = serde_json::from_str::<serde_json::Value>(&status.stdout)
                .ok()
                .and_then(|status| status["pid"].as_u64());
            if let Some(pid) = pid {
                kill(u32::try_from(pid).unwrap());
            }
            adopt.wait().unwrap();
            let again = keel.run(&["adopt"]);
            assert_eq!(again.code, 0, "after {pause} ms: {}", again.all());
            wait_for("all to be known", || (keel.pids().len() == 4).then_some(()));
            assert_eq!(project.containers(), before, "after {pause} ms");
            // As if keel had never been here.
            wait_for("the port to be led around", || (rules().len() >= 2).then_some(()));
            keel.run(&["server", "stop"]).ok();
            let proxy = std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
                let line = std::fs::read(entry.path().join("cmdline")).ok()?;
                let line = String::from_utf8_lossy(&line).replace('\0', " ");
                let own = keel.sandbox.state_dir().display().to_string();
                let is_it = line.contains(" proxy ") && line.contains(&own);
                is_it.then(|| entry.file_name().to_str()?.parse::<u32>().ok()).flatten()
            });
            // Its listeners go with it, so that what is led there is led nowhere: first the rules.
            for line in rules() {
                let words = line.replacen("-A ", "-D ", 1).replace('"', "'");
                let v6 = if line.contains("ip6") { "ip6tables" } else { "iptables" };
                for program in [v6, "ip6tables"] {
                    let line = format!("{program} -w -t nat {words}");
                    let _ = Command::new("sh").args(["-c", &line]).output();
                }
            }
            assert_eq!(rules(), Vec::<String>::new());
            if let Some(proxy) = proxy {
                std::thread::sleep(std::time::Duration::from_millis(300));
                kill(proxy);
            }
            std::fs::remove_dir_all(keel.sandbox.state_dir()).unwrap();
        }
        let (answered, failed) = traffic.end();
        assert!(answered > 100, "{answered}");
        assert_eq!(failed, 0, "of {answered}");
        let all = ["web", "api", "db", "job", "echo"].map(theirs);
        let all: Vec<&str> =
            ["rm", "-f"].into_iter().chain(all.iter().map(String::as_str)).collect();
        project.docker(&all);
    });
}

#[test]
fn one_that_ends_is_started_again_as_it_is() {
    alone(|| {
        let Some(project) = Project::up() else { return };
        let keel = &project.keel;
        let id = |name: &str| {
            let all = project.containers();
            all.into_iter().find(|it| it.1 == name).map(|it| (it.0, it.3))
        };
        let before = id(&theirs("web")).unwrap();
        keel.run(&["adopt"]).ok();
        let names =
            || project.docker(&["exec", &theirs("web"), "cat", "/etc/hosts"]).contains("\tapi");
        wait_for("names", || names().then_some(()));
        let main = u32::try_from(keel.pids()["app-web-1"]).unwrap();
        kill(main);
        wait_for("it to be started again", || {
            let pid = keel.pids().get("app-web-1").copied();
            pid.filter(|pid| *pid != u64::from(main))
        });
        wait_for("its answer", || get(PORT).filter(|body| body == "one end\n"));
        assert_eq!(id(&theirs("web")), Some(before), "the engine has the port for it again");
        wait_for("names again", || names().then_some(()));
        // Stopped and started by hand too.
        keel.run(&["stop", "web"]).ok();
        assert_eq!(id(&theirs("web")).unwrap().1, "exited");
        keel.run(&["start", "web"]).ok();
        wait_for("its answer", || get(PORT).filter(|body| body == "one end\n"));
        // What is in a volume without a name is found by the next revision.
        project.docker(&["exec", &theirs("db"), "sh", "-c", "echo kept > /own/file"]);
        let next = compose("one").replace("'100000'", "'100001'");
        keel.sandbox.write("compose.yaml", &next);
        keel.run(&["up", "-d", "--wait"]).ok();
        assert_eq!(id(&theirs("db")), None);
        assert_eq!(project.docker(&["exec", "app-db-2", "cat", "/own/file"]), "kept\n");
        // One that somebody takes away is made anew, by keel's name.
        let web = id(&theirs("web")).unwrap();
        project.docker(&["rm", "-f", &theirs("web")]);
        wait_for("another", || id("app-web-1").filter(|it| it.0 != web.0));
        wait_for("its answer", || get(PORT).filter(|body| body == "one end\n"));
        wait_for("the proxy to have the port", || listens(project.proxy_pid()).then_some(()));
        keel.run(&["down"]).ok();
        assert_eq!((project.containers(), rules()), (Vec::new(), Vec::new()));
    });
}

#[test]
fn behind_a_firewall_what_is_led_around_is_let_in() {
    alone(|| {
        let Some(project) = Project::up() else { return };
        let keel = &project.keel;
        let outside = Outside::join();
        let url = format!("/bin/busybox wget -q -O - http://{}:{PORT}/", Outside::HERE);
        let fetched = || String::from_utf8(outside.command(&url).output().unwrap().stdout).unwrap();
        assert_eq!(fetched(), "one end\n");
        let filter = |words: &str| {
            let done = Command::new("iptables").args(words.split(' ')).output().unwrap();
            assert!(done.status.success(), "{words}: {done:?}");
            String::from_utf8(done.stdout).unwrap()
        };
        filter("-w -A INPUT -i lo -j ACCEPT");
        filter("-w -A INPUT -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT");
        filter("-w -P INPUT DROP");
        assert_eq!(fetched(), "one end\n", "the engine forwards it");
        let adopted = keel.run(&["adopt"]);
        assert!(adopted.stderr.contains("INPUT is DROP"), "{}", adopted.all());
        wait_for("the ports to be led around", || (rules().len() >= 12).then_some(()));
        assert!(filter("-w -S INPUT").contains("keel "));
        assert_eq!(fetched(), "one end\n");
        let edges = keel.run(&["edges"]).ok();
        assert!(edges.contains("app/web:8000"), "{edges}");
        // What it may not reach it is not told.
        let hosts = project.docker(&["exec", &theirs("web"), "cat", "/etc/hosts"]);
        assert!(!hosts.contains("keel"), "{hosts}");
        filter(&format!("-w -A INPUT -p tcp --dport {PORT} -j ACCEPT"));
        keel.sandbox.write("compose.yaml", &compose("two"));
        keel.run(&["up", "-d", "--wait"]).ok();
        wait_for("the rules to go", || rules().is_empty().then_some(()));
        assert_eq!(fetched(), "two end\n");
        assert!(!filter("-w -S INPUT").contains("keel "));
        filter("-w -P INPUT ACCEPT");
        keel.run(&["down"]).ok();
    });
}

#[test]
fn what_is_not_there_is_said() {
    alone(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let engine = runtime.block_on(testing::start(Which::Docker, Networks::Ruled));
        let Some(engine) = engine else { return };
        let keel = Running::with_engine(&compose("one"), &engine.socket);
        let none = keel.run(&["adopt"]);
        assert_eq!(none.code, 1, "{}", none.all());
        assert!(none.stderr.contains("no container of a Compose project `app`"), "{}", none.stderr);
        let unknown = keel.run(&["adopt", "wbe"]);
        assert!(unknown.code != 0 && unknown.stderr.contains("web"), "{}", unknown.all());
        assert_eq!(keel.run(&["ls", "-aq"]).stdout, "");
    });
}
