//! The real engines, started with a configuration in a directory of its own.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};

use keel_render::{Engine, Options, Rendered, StreamModule, render};
use keel_route::snapshot::Snapshot;
use tempfile::TempDir;

use crate::echo::until;

/// The engines that are installed. Says which are not.
pub fn installed() -> Vec<Engine> {
    let engines = [Engine::Haproxy, Engine::Nginx].into_iter();
    engines
        .filter(|engine| {
            let there = Command::new(engine.command()).arg("-v").output().is_ok();
            if !there {
                eprintln!("skipped: no {}", engine.command());
            }
            there
        })
        .collect()
}

/// Options for a configuration that is started in `directory`.
pub fn options(directory: &Path) -> Options {
    let module = "/usr/lib/nginx/modules/ngx_stream_module.so";
    Options {
        socket_dir: directory.to_str().unwrap().to_owned(),
        stream: match Path::new(module).exists() {
            true => StreamModule::File(module.to_owned()),
            false => StreamModule::Absent,
        },
        user: None,
        workers: Some(1),
        max_connections: Some(500),
        ..Options::default()
    }
}

/// Writes the files of a configuration.
pub fn write(rendered: &Rendered, directory: &Path) {
    for (path, content) in &rendered.files {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    for (path, parts) in &rendered.joined {
        let parts: Vec<String> =
            parts.iter().map(|part| fs::read_to_string(part).unwrap()).collect();
        let path = directory.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, parts.join("\n")).unwrap();
    }
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).unwrap();
}

fn command(engine: Engine, directory: &Path, check: bool) -> Command {
    let mut command = Command::new(engine.command());
    match engine {
        Engine::Haproxy => {
            command.arg("-C").arg(directory).arg(if check { "-c" } else { "-db" }).arg("-f")
        }
        Engine::Nginx => {
            if check {
                command.arg("-t");
            }
            command.args(["-g", "daemon off;", "-p"]).arg(directory).arg("-c")
        }
    };
    command.arg(directory.join(engine.main_file()));
    command
}

/// What the engine's own check says; nothing if it has nothing to say.
pub fn complaints(engine: Engine, rendered: &Rendered) -> String {
    let directory = tempfile::tempdir().unwrap();
    write(rendered, directory.path());
    let output = command(engine, directory.path(), true).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let expected = ["syntax is ok", "test is successful", "NOTICE", "Configuration file is valid"];
    let telling: Vec<&str> = said
        .lines()
        .filter(|line| !line.trim().is_empty() && !expected.iter().any(|e| line.contains(e)))
        .collect();
    match output.status.success() && telling.is_empty() {
        true => String::new(),
        false => telling.join("\n"),
    }
}

/// An engine that serves a snapshot.
pub struct Running {
    pub directory: TempDir,
    pub rendered: Rendered,
    child: Child,
}

impl Running {
    pub fn start(engine: Engine, snapshot: &Snapshot) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let rendered = render(engine, snapshot, &options(directory.path()));
        write(&rendered, directory.path());
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let child = command(engine, directory.path(), false)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut running = Self { directory, rendered, child };
        for listener in &snapshot.listeners {
            until("the engine listens", || {
                if let Some(status) = running.child.try_wait().unwrap() {
                    panic!("{engine:?} ended: {status}\n{}\n{}", running.log(), running.config());
                }
                TcpStream::connect(listener.bind).ok()
            });
        }
        running
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    pub fn config(&self) -> String {
        self.rendered.files.values().cloned().collect::<Vec<_>>().join("\n")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // nginx ends its workers when told to, not when killed.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

/// An address of the loopback network that no other test of this process uses.
pub fn own_ip() -> Ipv4Addr {
    static NEXT: AtomicU8 = AtomicU8::new(1);
    let process = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, process[2] | 1, process[3], NEXT.fetch_add(1, Ordering::SeqCst))
}

/// An address to listen on.
pub fn own_address() -> SocketAddr {
    (own_ip(), 8080).into()
}
