//! Who calls, found by the cgroup that a process of this host is in.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use keel_model::{EndpointState, Protocol};
use keel_route::snapshot::{Listener, Refused, Snapshot};

use crate::backend::Backend;
use crate::client::get;
use crate::proxy::{CART, Proxy, cluster, listener};

const GROUP: &str = "KEEL_TEST_CALLER_GROUP";
const TARGET: &str = "KEEL_TEST_CALLER_TARGET";

/// The other end of [`call_from`].
pub fn call_as_told() {
    let group = PathBuf::from(std::env::var(GROUP).expect("set by the test that starts this"));
    fs::write(group.join("cgroup.procs"), std::process::id().to_string()).unwrap();
    for target in std::env::var(TARGET).unwrap().split(' ') {
        assert_eq!(get(target.parse().unwrap(), "/").status, 200);
    }
}

/// A cgroup of version 2, taken away when dropped.
struct Group(PathBuf);

impl Group {
    /// `None` where there is no such hierarchy, or no right to make groups in it.
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let mount = mounts.lines().find(|line| line.contains(" - cgroup2 "))?.split(' ').nth(4)?;
        let path = PathBuf::from(mount).join(format!("keel-test-{name}-{}", std::process::id()));
        fs::create_dir(&path).ok()?;
        let group = Self(path);
        // A group whose processes may not be joined from here is of no use.
        fs::OpenOptions::new().write(true).open(group.0.join("cgroup.procs")).ok()?;
        Some(group)
    }

    fn id(&self) -> u64 {
        fs::metadata(&self.0).unwrap().ino()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Has a process in `group` call each of `targets`.
fn call_from(group: &Group, targets: &str) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "caller_process", "--ignored", "--nocapture"])
        .env(GROUP, &group.0)
        .env(TARGET, targets)
        .stdout(Stdio::null())
        .status();
    assert!(status.unwrap().success());
}

#[test]
fn processes_of_this_host_are_told_apart_by_their_cgroups() {
    let (Some(web), Some(other)) = (Group::new("web"), Group::new("other")) else { return };
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let (inside, outside) = (proxy.address(), proxy.address());
    let published = Listener { published: true, ..listener(outside, Protocol::Auto) };
    let snapshot = Snapshot {
        listeners: vec![listener(inside, Protocol::Auto), published],
        clusters: BTreeMap::from([(
            CART.to_owned(),
            cluster(&[(backend.address, EndpointState::Ready)], true),
        )]),
        caller_cgroups: BTreeMap::from([(web.id(), "shop/web".to_owned())]),
        ..Snapshot::default()
    };
    assert_eq!(proxy.server.apply(snapshot), []);
    call_from(&web, &format!("{inside} {inside} {outside}"));
    call_from(&other, &inside.to_string());
    // A published port is for clients outside, whoever they are.
    assert_eq!(calls(&mut proxy), [(String::new(), 2), ("shop/web".into(), 2)].into());
    proxy.server.callers(BTreeMap::from([(other.id(), "shop/other".to_owned())]));
    call_from(&web, &inside.to_string());
    call_from(&other, &inside.to_string());
    let wanted = [(String::new(), 3), ("shop/web".into(), 2), ("shop/other".into(), 1)];
    assert_eq!(calls(&mut proxy), wanted.into());
}

#[test]
fn who_shares_no_network_with_a_service_is_refused() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let (inside, outside) = (proxy.address(), proxy.address());
    let published = Listener { published: true, ..listener(outside, Protocol::Auto) };
    let refuses = BTreeSet::from(["shop/web".to_owned()]);
    let apart = Listener { refuses, ..listener(inside, Protocol::Auto) };
    let mut snapshot = Snapshot {
        listeners: vec![apart, published],
        clusters: BTreeMap::from([(
            CART.to_owned(),
            cluster(&[(backend.address, EndpointState::Ready)], true),
        )]),
        callers: BTreeMap::from([(Ipv4Addr::LOCALHOST.into(), "shop/web".to_owned())]),
        ..Snapshot::default()
    };
    assert_eq!(proxy.server.apply(snapshot.clone()), []);
    for _ in 0..3 {
        let mut refused = TcpStream::connect(inside).unwrap();
        refused.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        // It may be closed before this comes.
        let _ = refused.write_all(b"GET / HTTP/1.1\r\nHost: cart\r\n\r\n");
        let mut answer = Vec::new();
        let _ = refused.read_to_end(&mut answer);
        assert_eq!(answer, b"");
    }
    assert_eq!(get(outside, "/").status, 200, "it is open to all");
    let told = proxy.all_stats().notices.refused;
    assert_eq!(told, [Refused { caller: "shop/web".to_owned(), cluster: CART.to_owned() }]);
    snapshot.callers.insert(Ipv4Addr::LOCALHOST.into(), "shop/api".to_owned());
    assert_eq!(proxy.server.apply(snapshot.clone()), []);
    assert_eq!(get(inside, "/").status, 200);
    snapshot.callers.insert(Ipv4Addr::LOCALHOST.into(), "shop/web".to_owned());
    snapshot.listeners[0].refuses.clear();
    assert_eq!(proxy.server.apply(snapshot), []);
    assert_eq!(get(inside, "/").status, 200);
}

fn calls(proxy: &mut Proxy) -> BTreeMap<String, u64> {
    let edges = proxy.all_stats().edges;
    edges.iter().map(|edge| (edge.caller.clone(), edge.requests())).collect()
}
