//! `keel exec`: commands as other users, and with a terminal.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use support::Running;

const SLEEPER: &str = "\
name: demo
services:
  web:
    command: sleep 1000
  as-nobody:
    command: sleep 1000
    user: nobody
    group_add: [\"4321\"]
    environment: { USER: own }
";

#[test]
fn a_command_runs_as_the_user_that_is_asked_for() {
    let root = rustix::process::getuid().is_root();
    let keel =
        Running::new(if root { SLEEPER } else { &SLEEPER[..SLEEPER.find("  as-").unwrap()] });
    keel.run(&["up", "-d", "--wait"]).ok();
    let who = "echo $(id -u):$(id -g) $(id -G) $HOME $USER";
    let exec =
        |user: &str, service: &str| keel.run(&["exec", "-u", user, service, "sh", "-c", who]);
    let own = keel.run(&["exec", "web", "sh", "-c", who]).ok();
    assert_eq!(exec("", "web").ok(), own, "no user is the instance's own");
    assert_eq!(exec(&rustix::process::getuid().as_raw().to_string(), "web").ok(), own);
    for (user, file) in [("no-such-user", "/etc/passwd"), ("root:no-such-group", "/etc/group")] {
        let done = exec(user, "web");
        assert_eq!(done.code, 1, "{}", done.all());
        assert!(done.stderr.contains(file) && done.stdout.is_empty(), "{}", done.all());
    }
    if !root {
        let done = exec("root", "web");
        assert_eq!(done.code, 1, "{}", done.all());
        assert!(done.stderr.contains("run keel as root"), "{}", done.all());
        println!("skipped: becoming another user needs root");
        return;
    }
    assert_eq!(exec("1234:4", "web").ok(), "1234:4 4 / 1234\n");
    assert_eq!(exec("nobody", "web").ok(), "65534:65534 65534 /nonexistent nobody\n");
    // Back to root, with the groups of the service, and what it sets itself stays.
    assert_eq!(exec("0:0", "as-nobody").ok(), "0:0 0 4321 /root own\n");
}
