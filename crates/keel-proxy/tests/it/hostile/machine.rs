//! A machine that runs out of file descriptors, and of room on its disk.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use keel_model::{EndpointState, Protocol};
use keel_route::snapshot::{FromProxy, ToProxy};

use super::serves;
use crate::backend::Backend;
use crate::client::{Client, get};
use crate::proxy::{CART, Process, Proxy, Server, cluster, listener, until};

/// Too few for the least number of connections that the proxy allows itself.
const DESCRIPTORS: u32 = 64;

#[test]
fn running_out_of_descriptors_loses_no_listener() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start_as(|dir| Process::start_with_descriptors(dir, DESCRIPTORS));
    let addresses = [proxy.address(), proxy.address()];
    let endpoints = [(backend.address, EndpointState::Ready)];
    let clusters = BTreeMap::from([(CART.to_owned(), cluster(&endpoints, true))]);
    let listeners = addresses.map(|address| listener(address, Protocol::Http)).to_vec();
    assert_eq!(proxy.server.replace(listeners.clone(), clusters.clone()), []);
    for _ in 0..3 {
        // Each of them wants a descriptor, and those that are served one more.
        let mut clients: Vec<_> = (0..100).map(|n| Client::connect(addresses[n % 2])).collect();
        for client in &mut clients {
            client.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n");
        }
        let pid = proxy.process.child.id();
        until("no descriptor is left", || {
            let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
            (open + 1 >= DESCRIPTORS as usize).then_some(())
        });
        // The control connection has its descriptor already.
        assert_eq!(proxy.server.replace(listeners.clone(), clusters.clone()), []);
        drop(clients);
        proxy.all_ended();
        addresses.into_iter().for_each(serves);
    }
    // One more can be opened, and the others are still there.
    let more = proxy.address();
    let listeners = [listeners, vec![listener(more, Protocol::Http)]].concat();
    assert_eq!(proxy.server.replace(listeners, clusters), []);
    [addresses[0], addresses[1], more].into_iter().for_each(serves);
    assert!(proxy.process.child.try_wait().unwrap().is_none(), "it never ended");
}

#[test]
fn what_cannot_be_listened_on_is_tried_again() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    let address = proxy.address();
    let taken = std::net::TcpListener::bind(address).unwrap();
    let endpoints = [(backend.address, EndpointState::Ready)];
    let clusters = BTreeMap::from([(CART.to_owned(), cluster(&endpoints, true))]);
    let failed = proxy.server.replace(vec![listener(address, Protocol::Http)], clusters);
    assert_eq!((failed.len(), failed[0].bind), (1, address));
    // Changes of other things do not make it forgotten.
    proxy.server.generation += 1;
    let generation = keel_model::Generation(proxy.server.generation);
    let cluster = cluster(&endpoints, true);
    proxy.server.send(&ToProxy::Cluster { generation, id: CART.into(), cluster });
    let mut told = |wanted: usize| {
        proxy.server.until("the listeners that failed", |message| match message {
            FromProxy::Ack { failed, .. } if failed.len() == wanted => Some(()),
            _ => None,
        });
    };
    told(1);
    drop(taken);
    told(0);
    serves(address);
}

#[test]
fn a_state_that_could_not_be_written_is_written_later() {
    let backend = Backend::named("a");
    let mut proxy = Proxy::start();
    // Where the new state is written beside the old one.
    let beside = proxy.dir.path().join("snapshot.new");
    fs::create_dir(&beside).unwrap();
    let log = fs::File::create(proxy.dir.path().join("log")).unwrap();
    proxy.process = {
        proxy.process.child.kill().unwrap();
        proxy.process.child.wait().unwrap();
        Process::start_logging(proxy.dir.path(), log)
    };
    proxy.server = Server::connect(proxy.dir.path());
    proxy.serve(Protocol::Http, &[backend.address]);
    until("writing has failed", || {
        let log = fs::read_to_string(proxy.dir.path().join("log")).unwrap();
        log.contains("cannot keep the last state").then_some(())
    });
    let file = proxy.dir.path().join("snapshot.json");
    assert!(!file.exists());
    fs::remove_dir(&beside).unwrap();
    // Nothing changes meanwhile.
    until("the state is kept", || file.exists().then_some(()));
}

/// A file system of 1 MiB, where the rights allow it.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(directory: &Path) -> Option<Self> {
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(directory)
            .stderr(Stdio::null())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(directory.to_owned()))
    }

    fn fill(&self) {
        let zeros = vec![0_u8; 2 << 20];
        assert!(fs::write(self.0.join("filler"), zeros).is_err(), "the disk is full now");
    }

    fn empty(&self) {
        fs::remove_file(self.0.join("filler")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_full_disk_costs_the_newest_state_and_nothing_else() {
    let mut disk = None;
    let mut proxy = Proxy::start_as(|dir| {
        disk = SmallDisk::mount(dir);
        Process::start_logging(dir, fs::File::create(dir.join("log")).unwrap())
    });
    let Some(disk) = disk else {
        eprintln!("skipped: a file system can't be mounted here");
        return;
    };
    let (old, new) = (Backend::named("old"), Backend::named("new"));
    let address = proxy.serve(Protocol::Http, &[old.address]);
    let file = disk.0.join("snapshot.json");
    let saved = |port: u16| {
        fs::read_to_string(&file)
            .is_ok_and(|json| json.contains(&format!(":{port}\"")))
            .then_some(())
    };
    until("the state is kept", || saved(old.address.port()));
    // So that there is something in the log while there is room for it.
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.generation = 1;
    disk.fill();
    let endpoints = [(new.address, EndpointState::Ready)];
    proxy.server.update(cluster(&endpoints, true));
    // Neither the state nor the log has room; both are tried for.
    for _ in 0..20 {
        assert_eq!(get(address, "/").body, "new:0");
        proxy.server = Server::connect(proxy.dir.path());
    }
    // By its end it has tried to write the state, and it ends as usual.
    proxy.process.signal("-TERM");
    assert!(proxy.process.wait().success());
    assert!(saved(old.address.port()).is_some(), "the state that was kept before is whole");
    assert!(!disk.0.join("snapshot.new").exists(), "half a state is of no use");
    // The newest state is unknown to a successor, until the server tells it again.
    proxy.process = Process::start(proxy.dir.path(), Duration::from_secs(20));
    until("the proxy is back", || TcpStream::connect(address).ok());
    assert_eq!(get(address, "/").body, "old:0");
    disk.empty();
    proxy.server = Server::connect(proxy.dir.path());
    proxy.server.generation = 10;
    proxy.server.update(cluster(&endpoints, true));
    assert_eq!(get(address, "/").body, "new:0");
    until("the state is kept again", || saved(new.address.port()));
    // The file system goes before the directory that it is mounted on.
    drop(disk);
}
