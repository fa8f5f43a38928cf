//! A network namespace for one test: its engine may filter packets there, and its ports are nobody else's.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::process::{Child, Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::wait_for;

/// A process that holds the namespace.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn another() -> (Holder, String) {
    let sleeps = ["--net", "sleep", "100000"];
    let child = Command::new("unshare").args(sleeps).stdin(Stdio::null()).spawn().unwrap();
    let path = format!("/proc/{}/ns/net", child.id());
    let holder = Holder(child);
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    wait_for("a namespace", || fs::read_link(&path).ok().filter(|it| *it != own));
    (holder, path)
}

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(done.success(), "ip {arguments}");
}

/// Another machine, as far as networks go, which reaches this namespace at [`Outside::HERE`].
pub struct Outside {
    _holder: Holder,
    namespace: String,
}

impl Outside {
    /// The address of this namespace.
    pub const HERE: &str = "192.0.2.1";

    pub fn join() -> Self {
        let (holder, namespace) = another();
        let pid = holder.0.id();
        ip(&format!("link add keelv0 type veth peer name keelv1 netns {pid}"));
        ip(&format!("addr add {}/24 dev keelv0", Self::HERE));
        ip("link set keelv0 up");
        let outside = Self { _holder: holder, namespace };
        for words in ["ip addr add 192.0.2.2/24 dev keelv1", "ip link set keelv1 up"] {
            assert!(outside.command(words).status().unwrap().success(), "{words}");
        }
        outside
    }

    /// A command there.
    pub fn command(&self, words: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace)).args(words.split(' '));
        command
    }
}

/// Runs `test` in a network namespace of its own, on a thread of its own: what it starts is there too. Nothing is run
/// without root.
pub fn alone(test: impl FnOnce() + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can make a network namespace");
        return;
    }
    let (holder, path) = another();
    let thread = std::thread::spawn(move || {
        let namespace = File::open(&path).unwrap();
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        ip("link set lo up");
        test();
        drop(holder);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
