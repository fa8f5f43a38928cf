//! Engines and registries of the tests' own, below a temporary directory.

mod dockerd;
mod gate;
mod registry;

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

pub use dockerd::{Dockerd, compile, write_program};
pub use gate::{Gate, Then};
pub use registry::Registry;

/// How long a program may take to be there.
const START: Duration = Duration::from_secs(30);
/// How long it may take to end when it is asked to.
const END: Duration = Duration::from_secs(15);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Starts what the test needs, or says why it can't be and ends the test.
macro_rules! or_skip {
    ($started:expr) => {
        match $started {
            Ok(it) => it,
            Err(reason) => {
                println!("skipped: no engine: {reason}");
                assert!(std::env::var_os("KEEL_TESTS_NEED_ENGINES").is_none(), "{reason}");
                return;
            }
        }
    };
}
pub(crate) use or_skip;

/// A test on each engine, for functions that take which.
#[allow(unused_macros, reason = "one of the users of this module has its own engines")]
macro_rules! on_each_engine {
    ($($test:ident),* $(,)?) => {
        mod docker {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(keel_container::testing::Which::Docker).await;
            })*
        }
        mod podman {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                super::$test(keel_container::testing::Which::Podman).await;
            })*
        }
    };
}
#[allow(unused_imports, reason = "as above")]
pub(crate) use on_each_engine;

/// A program that ends with the test, however that ends.
struct Program {
    child: Child,
}

impl Program {
    /// Starts it and waits until `ready`.
    fn start(command: &[&str], log: &Path, ready: impl Fn() -> bool) -> Result<Self, String> {
        let name = command[0];
        let file = File::create(log).map_err(|error| format!("{}: {error}", log.display()))?;
        let copy = file.try_clone().map_err(|error| error.to_string())?;
        // The kernel ends it when the thread of the test is gone, even if that is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "TERM", "--"])
            .args(command)
            .stdin(Stdio::null())
            .stdout(copy)
            .stderr(file)
            .spawn()
            .map_err(|error| format!("{name}: {error}"))?;
        let mut program = Self { child };
        let begun = Instant::now();
        while !ready() {
            let ended = program.child.try_wait().ok().flatten();
            if ended.is_some() || begun.elapsed() > START {
                return Err(format!("{name} did not start: {}", tail(log)));
            }
            std::thread::sleep(LOOK);
        }
        Ok(program)
    }

    fn end(&mut self) {
        let Ok(pid) = i32::try_from(self.child.id()) else { return };
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let begun = Instant::now();
        while begun.elapsed() < END {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(LOOK);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.end();
    }
}

fn tail(log: &Path) -> String {
    let mut text = String::new();
    if let Ok(mut file) = File::open(log) {
        let length = file.metadata().map_or(0, |metadata| metadata.len());
        let _ = file.seek(SeekFrom::Start(length.saturating_sub(600)));
        let _ = file.read_to_string(&mut text);
    }
    text
}

/// Whether there is such a program.
fn installed(program: &str) -> Result<(), String> {
    let found = Command::new("sh")
        .args(["-c", &format!("command -v {program}")])
        .stdout(Stdio::null())
        .status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => Err(format!("{program} is not installed (scripts/setup.sh installs it)")),
    }
}

/// A port that was free just now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr()).unwrap().port()
}
