//! What instances are given for themselves: mounts, secrets, names, users, limits, networks. Needs root for most.

#![allow(clippy::unwrap_used, reason = "test code")]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use keel_model::{Content, FileMount, Mount, MountSource, NetworkMode, Probe};
use keel_runtime::conformance::{Harness, PATIENCE, ended, logged};
use keel_runtime::{LogQuery, Origin, Runtime};
use support::{Process, inside, kill, root, shell, wait};

fn mount(source: MountSource, target: impl Into<PathBuf>, read_only: bool) -> Mount {
    Mount { source, target: target.into(), read_only, options: None }
}

fn secret(name: &str, content: &str, target: &str) -> FileMount {
    FileMount {
        name: name.into(),
        content: Content::new(content.into()),
        target: target.into(),
        uid: None,
        gid: None,
        mode: 0o400,
        secret: true,
    }
}

#[tokio::test]
async fn secrets_are_files_of_that_process_alone() {
    if !root("a secret in a mount namespace") {
        return;
    }
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("secret", "cat $KEEL_SECRETS_DIR/key; exec sleep 1000");
    launch.spec.user = Some("nobody".into());
    launch.spec.files = vec![
        secret("key", "open sesame\n", "/run/secrets/key"),
        FileMount {
            mode: 0o444,
            secret: false,
            ..secret("conf", "x=1\n", "/keel-test-conf/app.conf")
        },
    ];
    let started = runtime.start(launch.clone()).await.unwrap();
    assert_eq!(started.not_enforced, Vec::<String>::new());
    assert_eq!(logged(&*runtime, &launch.id, 1).await, ["open sesame"]);
    let look = "stat -c '%a %U' /run/secrets/key; cat /keel-test-conf/app.conf; \
                echo x > /keel-test-conf/app.conf || echo read-only; touch /run/secrets/a || echo closed";
    let output = inside(&runtime, &launch, look).await;
    for part in ["400 nobody", "x=1", "read-only", "closed"] {
        assert!(output.output.contains(part), "{}", output.output);
    }
    // Nobody else sees it, not even root, and it is on no disk.
    assert!(!Path::new("/run/secrets/key").exists());
    for entry in walk(&process.dir) {
        let content = fs::read(&entry).unwrap_or_default();
        let found = content.windows(11).any(|window| window == b"open sesame");
        let log = entry.file_name().is_some_and(|name| name == "log");
        assert!(!found || log, "{}", entry.display());
    }
    runtime.remove(&launch.id).await.unwrap();
    // Mount points stay.
    fs::remove_dir_all("/keel-test-conf").unwrap();
}

#[tokio::test]
async fn without_mounts_secrets_are_in_a_private_directory() {
    if rustix::process::getuid().is_root() || Path::new("/run/secrets").exists() {
        println!("skipped: only without root and /run/secrets");
        return;
    }
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("secret", "cat $KEEL_SECRETS_DIR/key; exec sleep 1000");
    launch.spec.files = vec![secret("key", "open sesame\n", "/run/secrets/key")];
    let started = runtime.start(launch.clone()).await.unwrap();
    assert!(started.not_enforced[0].contains("KEEL_SECRETS_DIR"), "{:?}", started.not_enforced);
    assert_eq!(logged(&*runtime, &launch.id, 1).await, ["open sesame"]);
    let dir = process.instance_dir(&launch).join("secrets");
    assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(dir.join("key")).unwrap().permissions().mode() & 0o777, 0o400);
}

fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            all.extend(walk(&entry.path()));
        } else if kind.is_file() {
            all.push(entry.path());
        }
    }
    all
}

#[tokio::test]
async fn volumes_binds_and_memory_are_mounted() {
    if !root("mounts") {
        return;
    }
    let process = Process::new();
    let runtime = process.get();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("given"), "from the host\n").unwrap();
    let volume = |name: &str| MountSource::Volume { name: name.into(), subpath: None };
    let bind = MountSource::Bind { path: host.path().into(), create: false };
    let mut launch = shell("mounts", "exec sleep 1000");
    launch.spec.user = Some("nobody".into());
    launch.spec.mounts = vec![
        mount(volume("t_data"), "/keel-test-data", false),
        mount(MountSource::Anonymous, "/keel-test-data/inner", false),
        mount(bind, "/keel-test-bind", true),
        mount(MountSource::Tmpfs { size: Some(1 << 20), mode: None }, "/keel-test-tmp", false),
    ];
    runtime.start(launch.clone()).await.unwrap();
    let write = "echo kept > /keel-test-data/file && echo a > /keel-test-data/inner/a && cat /keel-test-bind/given; \
                 touch /keel-test-bind/x || echo read-only; \
                 head -c 3000000 /dev/zero > /keel-test-tmp/big || echo full";
    let output = inside(&runtime, &launch, write).await.output;
    for part in ["from the host", "read-only", "full"] {
        assert!(output.contains(part), "{output}");
    }
    assert!(!Path::new("/keel-test-data/file").exists(), "the host sees no mount");
    let kept = process.dir.join("volumes/t_data/file");
    assert_eq!(fs::read_to_string(&kept).unwrap(), "kept\n");
    let error = runtime.remove_volume("t_data").await.unwrap_err();
    assert!(error.to_string().contains("t-mounts-1"), "{error}");
    runtime.remove(&launch.id).await.unwrap();
    // The empty mount points stay; see `surroundings`. `remove_dir` proves that they are empty.
    for left in ["/keel-test-data", "/keel-test-bind", "/keel-test-tmp"] {
        fs::remove_dir(left).unwrap();
    }
    assert!(kept.exists(), "a named volume outlives its instances");
    let volumes = runtime.volumes().await.unwrap();
    let [volume] = volumes.as_slice() else { panic!("{volumes:?}") };
    assert_eq!((volume.name.as_str(), volume.stack.as_ref()), ("t_data", Some(&launch.stack)));
    runtime.remove_volume("t_data").await.unwrap();
    assert!(!kept.exists());
    assert_eq!(runtime.volumes().await.unwrap(), []);
    assert!(runtime.remove_volume("../instances").await.is_err());
}

#[tokio::test]
async fn replicas_do_not_take_each_others_mounts_away() {
    if !root("mounts") {
        return;
    }
    let process = Process::new();
    let runtime = process.get();
    let make = |service: &str| {
        let mut launch = shell(service, "exec sleep 1000");
        let volume = MountSource::Volume { name: "t_shared".into(), subpath: None };
        launch.spec.mounts = vec![mount(volume, "/keel-test-shared", false)];
        launch.spec.files = vec![secret("key", "open sesame\n", "/run/secrets/key")];
        launch
    };
    let (first, second) = (make("replica1"), make("replica2"));
    runtime.start(first.clone()).await.unwrap();
    runtime.start(second.clone()).await.unwrap();
    inside(&runtime, &first, "echo hello > /keel-test-shared/file").await;
    runtime.remove(&first.id).await.unwrap();
    let look = "cat /keel-test-shared/file /run/secrets/key";
    assert_eq!(inside(&runtime, &second, look).await.output, "hello\nopen sesame\n");
    runtime.remove(&second.id).await.unwrap();
    fs::remove_dir("/keel-test-shared").unwrap();
}

#[tokio::test]
async fn a_missing_bind_source_is_named_or_made() {
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("bind", "exec sleep 1000");
    let path = process.dir.join("made");
    let bind = |create| MountSource::Bind { path: path.clone(), create };
    launch.spec.mounts = vec![mount(bind(false), path.clone(), false)];
    let error = runtime.start(launch.clone()).await.unwrap_err();
    assert!(error.message.contains("/made does not exist"), "{error}");
    launch.spec.mounts = vec![mount(bind(true), path.clone(), false)];
    runtime.start(launch.clone()).await.unwrap();
    assert!(path.is_dir());
}

#[tokio::test]
async fn names_of_services_resolve_for_host_processes() {
    let process = Process::new();
    let runtime = process.get();
    if !runtime.capabilities().names.available {
        println!("skipped: names: {}", runtime.capabilities().names.reason);
        return;
    }
    let mut launch = shell("names", "exec sleep 1000");
    launch.hosts = vec![
        ("10.77.0.9".parse().unwrap(), "cart".into()),
        ("10.77.0.9".parse().unwrap(), "cart.shop.keel.internal".into()),
    ];
    launch.spec.hosts = [("extra".to_owned(), vec!["192.0.2.1".to_owned()])].into();
    launch.nameserver = Some(("10.77.0.1".parse().unwrap(), vec!["shop.keel.internal".into()]));
    runtime.start(launch.clone()).await.unwrap();
    let look = "getent hosts cart.shop.keel.internal; getent hosts extra; getent hosts localhost; \
                cat /etc/resolv.conf";
    let output = inside(&runtime, &launch, look).await.output;
    for part in
        ["10.77.0.9", "192.0.2.1", "localhost", "nameserver 10.77.0.1", "search shop.keel.internal"]
    {
        assert!(output.contains(part), "{part} is not in {output}");
    }
    assert!(!fs::read_to_string("/etc/hosts").unwrap().contains("keel.internal"));
}

#[tokio::test]
async fn a_user_and_its_groups_are_taken_on() {
    if !root("another user") {
        return;
    }
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("user", "id -u; id -G; echo $HOME $USER; exec sleep 1000");
    launch.spec.user = Some("nobody:daemon".into());
    launch.spec.groups = vec!["games".into(), "4242".into()];
    runtime.start(launch.clone()).await.unwrap();
    let lines = logged(&*runtime, &launch.id, 3).await;
    assert_eq!(lines, ["65534", "1 60 4242", "/nonexistent nobody"]);
    assert_eq!(inside(&runtime, &launch, "id -un").await.output, "nobody\n");
}

#[tokio::test]
async fn memory_process_and_cpu_limits_hold() {
    let process = Process::new();
    let runtime = process.get();
    if !runtime.capabilities().limits.available {
        println!("skipped: limits: {}", runtime.capabilities().limits.reason);
        return;
    }
    let mut hungry = shell("hungry", "exec tail /dev/zero");
    hungry.spec.limits.memory = Some(32 << 20);
    let started = runtime.start(hungry.clone()).await.unwrap();
    assert_eq!(started.not_enforced, Vec::<String>::new());
    let exit = ended(&*runtime, &hungry.id).await;
    assert_eq!((exit.code, exit.signal, exit.oom), (None, Some(9), true));
    // The next attempt is not blamed for it.
    hungry.attempt = 2;
    hungry.spec.command = vec!["/bin/sleep".into(), "1000".into()];
    runtime.start(hungry.clone()).await.unwrap();
    assert!(!runtime.stop(&hungry.id, 9, PATIENCE).await.unwrap().oom);

    let mut forks = shell("forks", "for i in 1 2 3 4 5 6 7 8 9; do sleep 1000 & done; wait");
    forks.spec.limits.pids = Some(5);
    runtime.start(forks.clone()).await.unwrap();
    let all = async {
        let query = LogQuery { follow: true, ..LogQuery::default() };
        let mut lines = runtime.logs(&forks.id, query).await.unwrap();
        let line = tokio::time::timeout(PATIENCE, lines.recv()).await.unwrap().unwrap();
        assert!(line.text.contains("fork"), "{line:?}");
    };
    all.await;
    runtime.remove(&forks.id).await.unwrap();

    let mut busy = shell("busy", "while :; do :; done");
    busy.spec.limits.cpu_milli = Some(200);
    runtime.start(busy.clone()).await.unwrap();
    let begin = runtime.resources(&busy.id).await.unwrap().cpu_usec;
    let at = std::time::Instant::now();
    tokio::time::sleep(Duration::from_millis(1000)).await;
    let used = runtime.resources(&busy.id).await.unwrap().cpu_usec - begin;
    let share = used as f64 / at.elapsed().as_micros() as f64;
    assert!((0.05..0.35).contains(&share), "{share}");
    runtime.remove(&busy.id).await.unwrap();
}

/// What the kernel says of the sockets of a process is what the runtime says of the instance.
#[tokio::test]
async fn calls_of_an_instance_are_known_by_its_cgroup() {
    let process = Process::new();
    let runtime = process.get();
    let launch = shell("calls", "exec sleep 1000");
    let started = runtime.start(launch.clone()).await.unwrap();
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", started.pid)).unwrap();
    let group = groups.lines().find_map(|line| line.strip_prefix("0::/keel/"));
    let Some(group) = group else {
        println!("skipped: cgroups: there is no unified hierarchy, or no right to use it");
        assert_eq!(runtime.origin(&launch.id), None);
        return;
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mount = mounts.lines().find(|line| line.contains(" - cgroup2 ")).unwrap();
    let path = Path::new(mount.split(' ').nth(4).unwrap()).join("keel").join(group);
    let id = fs::metadata(path).unwrap().ino();
    assert_eq!(runtime.origin(&launch.id), Some(Origin::Cgroup(id)));
    runtime.stop(&launch.id, 9, PATIENCE).await.unwrap();
    assert_eq!(runtime.origin(&launch.id), None, "it calls nobody any more");
}

#[tokio::test]
async fn the_order_of_sacrifice_is_set() {
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("score", "cat /proc/self/oom_score_adj; exec sleep 1000");
    launch.spec.limits.oom_score_adj = Some(300);
    runtime.start(launch.clone()).await.unwrap();
    assert_eq!(logged(&*runtime, &launch.id, 1).await, ["300"]);
    launch = shell("score2", "cat /proc/self/oom_score_adj; exec sleep 1000");
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    runtime.start(launch.clone()).await.unwrap();
    // The shim is spared more than its workload, which inherits nothing of that.
    assert_eq!(logged(&*runtime, &launch.id, 1).await, [own.trim()]);
    let begin = fs::write("/proc/self/oom_score_adj", "-1");
    if begin.is_err() {
        println!("skipped: a spared shim: this machine does not let us");
        launch.spec.limits.oom_score_adj = Some(-100);
        launch.attempt = 2;
        runtime.stop(&launch.id, 9, PATIENCE).await.unwrap();
        let started = runtime.start(launch).await.unwrap();
        assert!(started.not_enforced[0].contains("oom_score_adj"), "{:?}", started.not_enforced);
        return;
    }
    let spared = format!("/proc/{}/oom_score_adj", process.shim_pid(&launch));
    wait("a spared shim", || fs::read_to_string(&spared).unwrap().trim() == "-900").await;
}

#[tokio::test]
async fn ulimits_are_set_and_bad_names_refused() {
    let process = Process::new();
    let runtime = process.get();
    let mut launch = shell("ulimit", "ulimit -Sn; ulimit -Hn; exec sleep 1000");
    launch.spec.limits.ulimits = [("nofile".to_owned(), (100, 200))].into();
    runtime.start(launch.clone()).await.unwrap();
    assert_eq!(logged(&*runtime, &launch.id, 2).await, ["100", "200"]);
    runtime.remove(&launch.id).await.unwrap();
    launch.spec.limits.ulimits = [("nofiles".to_owned(), (100, 200))].into();
    let error = runtime.start(launch.clone()).await.unwrap_err();
    assert!(error.message.contains("nofiles"), "{error}");
}

#[tokio::test]
async fn an_isolated_instance_has_its_own_address_and_fixed_port() {
    let process = Process::new();
    let runtime = process.get();
    let serve = "import http.server as h\n\
                 h.HTTPServer(('', 8080), h.SimpleHTTPRequestHandler).serve_forever()";
    let make = |service: &str| {
        let mut launch = shell(service, "");
        launch.spec.command = vec!["python3".into(), "-c".into(), serve.into()];
        launch.spec.network = NetworkMode::Isolated;
        launch.spec.ports = vec![8080];
        launch
    };
    let (mut first, second) = (make("own"), make("own2"));
    if !runtime.capabilities().network.available {
        let error = runtime.start(first).await.unwrap_err();
        println!("skipped: {error}");
        assert!(error.message.contains("network: isolated"));
        return;
    }
    let one = runtime.start(first.clone()).await.unwrap();
    let two = runtime.start(second.clone()).await.unwrap();
    let address = one.ports[0].address;
    assert_eq!((address.port(), two.ports[0].address.port()), (8080, 8080));
    assert_ne!(address, two.ports[0].address);
    assert_eq!((one.address, two.address), (Some(address.ip()), Some(two.ports[0].address.ip())));
    assert_eq!(runtime.seen(&first.id).unwrap().address, one.address);
    for at in [address, two.ports[0].address] {
        let probe = Probe::Http { path: "/".into() };
        let deadline = std::time::Instant::now() + PATIENCE;
        while let Err(error) = keel_runtime::check(&probe, at, Duration::from_secs(1)).await {
            assert!(std::time::Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // It reaches what the host listens on at any of its addresses.
    let listener = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dial = format!("import socket; socket.create_connection(('169.254.77.1', {port}), 5)");
    let accept = tokio::spawn(async move { listener.accept().await.unwrap().1 });
    let output = inside(&runtime, &first, &format!("python3 -c \"{dial}\"")).await;
    assert_eq!(output.code, 0, "{}", output.output);
    assert_eq!(accept.await.unwrap().ip(), address.ip(), "with its own address");
    assert_eq!(runtime.origin(&first.id), Some(Origin::Addresses(vec![address.ip()])));
    // A restart, even one after the server's, keeps the address; removal takes all away.
    drop(runtime);
    process.reopen();
    let runtime = process.get();
    runtime.list().await.unwrap();
    runtime.stop(&first.id, 9, PATIENCE).await.unwrap();
    first.attempt = 2;
    assert_eq!(runtime.start(first.clone()).await.unwrap().ports[0].address, address);
    runtime.remove(&first.id).await.unwrap();
    runtime.remove(&second.id).await.unwrap();
    let routes = fs::read_to_string("/proc/net/route").unwrap();
    let std::net::IpAddr::V4(ip) = address.ip() else { panic!("an IPv4 address") };
    let hex = format!("{:08X}", u32::from(ip).to_be());
    assert!(!routes.contains(&hex), "the route is left");
}

#[tokio::test]
async fn a_full_disk_loses_lines_and_nothing_else() {
    if !root("a small file system") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
        .arg(place.path())
        .status()
        .unwrap();
    assert!(status.success());
    let process = Process::at(place.path());
    let runtime = process.get();
    let script = "i=0; while :; do echo \"some words that fill a disk $i\"; i=$((i+1)); done";
    let launch = shell("full", script);
    let started = runtime.start(launch.clone()).await.unwrap();
    let shim = process.shim_pid(&launch);
    let log = process.instance_dir(&launch).join("log");
    let ballast = process.dir.join("ballast");
    let full = || rustix::fs::statvfs(place.path()).unwrap().f_bavail <= 4;
    wait("a full disk", full).await;
    let size = fs::metadata(&log).unwrap().len();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(support::alive(i64::from(started.pid)) && support::alive(i64::from(shim)));
    assert!(fs::metadata(&log).unwrap().len() <= size + (64 << 10));
    // With room again, the loss is noted and writing goes on.
    let status = std::process::Command::new("mount")
        .args(["-o", "remount,size=4m"])
        .arg(place.path())
        .status()
        .unwrap();
    assert!(status.success());
    let grown = || fs::metadata(&log).unwrap().len() > 1_200_000;
    wait("the log to go on", grown).await;
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("lines were lost"));
    let odd = text.lines().find(|line| line.get(19..20) != Some("."));
    assert_eq!(odd, None, "only whole lines");
    // Full once more, an exit is still recorded.
    wait("a full disk", full).await;
    kill(i32::try_from(started.pid).unwrap());
    assert_eq!(ended(&*runtime, &launch.id).await.signal, Some(9));
    let record = process.instance_dir(&launch).join("exit.json");
    assert!(fs::read_to_string(record).unwrap().contains("\"signal\":9"));
    // And a start there says what is wrong.
    let _ = fs::write(&ballast, vec![0u8; 4 << 20]);
    let error = runtime.start(shell("another", "true")).await.unwrap_err();
    assert!(error.message.contains("No space left"), "{error}");
    let _ = fs::remove_file(&ballast);
    runtime.remove(&launch.id).await.unwrap();
    drop(runtime);
    drop(process);
    let _ = std::process::Command::new("umount").arg("-l").arg(place.path()).status();
}

#[tokio::test]
async fn records_are_private() {
    let process = Process::new();
    let runtime = process.get();
    let launch = shell("private", "exec sleep 1000");
    runtime.start(launch.clone()).await.unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let dir = process.instance_dir(&launch);
    assert_eq!(mode(&dir), 0o711, "it can be passed, not listed");
    assert_eq!(mode(&dir.join("launch.json")), 0o600);
    assert_eq!(mode(&dir.join("running.json")), 0o600);
    assert_eq!(fs::metadata(&dir).unwrap().uid(), rustix::process::getuid().as_raw());
}
