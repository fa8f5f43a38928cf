//! The examples, as a user runs them: `keel up` on their own Compose files, with the real programs of Debian.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::path::{Path, PathBuf};

use support::{Running, free_port, get, wait_for};

fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples").join(name).join("compose.yaml")
}

fn installed(programs: &[&str]) -> bool {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin";
    let missing = programs.iter().find(|program| {
        !path.split(':').any(|directory| Path::new(directory).join(program).is_file())
    });
    if let Some(program) = missing {
        eprintln!("skipped: {program} is not installed (scripts/setup.sh installs it)");
    }
    missing.is_none()
}

/// Brings an example up, gets a page that holds `needle`, kills one instance of each service, gets it again.
fn runs(name: &str, port_variable: &str, needle: &str) {
    let keel = Running::new("services: {}");
    let file = example(name);
    let file = file.to_str().unwrap();
    let port = free_port();
    let up = keel
        .command(&["-f", file, "up", "-d", "--wait", "--wait-timeout", "50"])
        .env(port_variable, port.to_string())
        .output()
        .unwrap();
    let up = keel.sandbox.done(up);
    assert_eq!(up.code, 0, "{}", up.all());
    let shows = || get(port).is_some_and(|page| page.contains(needle));
    wait_for("the page", || shows().then_some(()));
    let instances = keel.json(&["-p", name, "ps"]);
    let mut killed = std::collections::BTreeSet::new();
    for instance in instances.as_array().unwrap() {
        if killed.insert(instance["service"].as_str().unwrap()) {
            let pid = instance["pid"].as_u64().unwrap().to_string();
            assert!(
                std::process::Command::new("kill").args(["-9", &pid]).status().unwrap().success()
            );
        }
    }
    wait_for("the page after the deaths", || shows().then_some(()));
    let down = keel.run(&["-p", name, "down", "-v"]);
    assert_eq!(down.code, 0, "{}", down.all());
}

#[test]
fn the_guestbook_runs_and_heals() {
    if installed(&["redis-server", "redis-cli", "nginx", "python3"]) {
        runs("guestbook", "GUESTBOOK_PORT", "uestbook");
    }
}

#[test]
fn the_picture_mill_runs_and_heals() {
    if installed(&["python3"]) {
        runs("jobs", "JOBS_PORT", "icture");
    }
}
