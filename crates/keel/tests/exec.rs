//! `keel exec`: commands as other users, and with a terminal.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::io::{Read as _, Write as _};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex};

use support::{Running, wait_for};

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

/// A terminal in which a command runs, made by `script`.
struct Terminal {
    keys: ChildStdin,
    child: std::process::Child,
    screen: Arc<Mutex<String>>,
}

impl Terminal {
    /// Runs a shell command in the environment of `like`, in a window of 91 columns and 17 lines.
    fn open(like: &Command, command: &str) -> Self {
        let mut script = Command::new("script");
        script.args(["-qec", &format!("stty cols 91 rows 17; {command}"), "/dev/null"]);
        script.env_clear().env("SHELL", "/bin/sh").env("TERM", "vt100");
        script.current_dir(like.get_current_dir().unwrap());
        script.envs(like.get_envs().filter_map(|(key, value)| Some((key, value?))));
        script.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = script.spawn().unwrap();
        let (keys, mut output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let screen = Arc::new(Mutex::new(String::new()));
        let shown = screen.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 1024];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                shown.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { keys, child, screen }
    }

    fn press(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
        self.keys.flush().unwrap();
    }

    /// Waits until the screen shows `text`, and says all that it shows.
    #[track_caller]
    fn shows(&self, text: &str) -> String {
        wait_for(text, || {
            let screen = self.screen.lock().unwrap().clone();
            screen.contains(text).then_some(screen)
        })
    }
}

#[test]
fn a_shell_has_the_callers_terminal() {
    if Command::new("script").arg("--version").output().is_err() {
        println!("skipped: no program `script`");
        return;
    }
    let keel = Running::new("name: demo\nservices:\n  web:\n    command: sleep 1000\n");
    keel.run(&["up", "-d", "--wait"]).ok();
    let program = env!("CARGO_BIN_EXE_keel");
    for flags in ["", "-it "] {
        let command = format!("{program} exec {flags}web sh");
        let mut terminal = Terminal::open(&keel.command(&[]), &command);
        // What is typed is shown too: quotes tell it from what is answered.
        terminal.press("stty size; echo \"term=$TERM\"; tty; echo rea''dy\n");
        let screen = terminal.shows("ready");
        for part in ["17 91", "term=vt100", "/dev/pts/"] {
            assert!(screen.contains(part), "{part} is missing: {screen}");
        }
        assert!(!screen.contains("job control"), "{screen}");
        // Ctrl-C ends what runs in the shell, and neither the shell nor keel.
        terminal.press("sh -c 'echo run\"\"ning; exec sleep 1001'\n");
        terminal.shows("running");
        terminal.press("\x03");
        terminal.press("echo code=$?\n");
        terminal.shows("code=130");
        // Ctrl-Z stops it.
        terminal.press("sh -c 'echo go\"\"ing; exec sleep 1002'\n");
        terminal.shows("going");
        terminal.press("\x1a");
        terminal.shows("Stopped");
        terminal.press("exec sh -c 'exit 7'\n");
        let ended = wait_for("the end of the shell", || terminal.child.try_wait().unwrap());
        assert_eq!(ended.code(), Some(7), "{:?}", terminal.screen);
    }
    assert_eq!(keel.pids().len(), 1);
}

#[test]
fn a_terminal_that_is_insisted_on_must_be_there() {
    let done = Running::new(SLEEPER).run(&["exec", "-it", "web", "sh"]);
    assert_eq!(done.code, 2, "{}", done.all());
    assert!(done.stderr.contains("not a terminal"), "{}", done.all());
}
