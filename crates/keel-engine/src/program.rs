//! The engine's program: whether it is there, what it can do, and what it says about a configuration.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use keel_render::{Engine, Options, StreamModule};

/// Where Debian's package puts nginx's module for opaque connections.
const STREAM_MODULE: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
/// Places to look for programs beyond `PATH`, which services and users often have without them.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Lines of what an engine complains about that are told.
const MAX_COMPLAINTS: usize = 20;

/// Why an engine can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not installed.
    #[error("{command} is not installed\n  hint: {hint}", command = .0.command(), hint = install_hint(*.0))]
    Absent(Engine),
    /// It can't be run.
    #[error("cannot run {command}: {source}", command = .engine.command())]
    NotRun {
        /// Which one.
        engine: Engine,
        /// The system's reason.
        source: io::Error,
    },
    /// Another proxy serves the same control socket.
    #[error(
        "a proxy already serves {path}; end it first (kill -TERM), or give this one another control socket"
    )]
    AlreadyServed {
        /// The control socket.
        path: PathBuf,
    },
    /// The running proxy did not give its place up.
    #[error(
        "cannot take over from the running proxy: {0}; it serves on, and a restart without taking over needs its end"
    )]
    TakeOver(#[source] io::Error),
    /// The control socket can't be made, or the driver can't be set up.
    #[error("cannot serve the control socket {path}: {source}")]
    ControlSocket {
        /// The control socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Its directory can't be used.
    #[error("cannot use the directory {path}: {source}")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// What was wrong.
        source: io::Error,
    },
    /// It did not start, or did not take over a new configuration.
    #[error("{command} did not take over its configuration: {said}", command = .engine.command())]
    NotTaken {
        /// Which one.
        engine: Engine,
        /// What it logged.
        said: String,
    },
    /// It does not accept a configuration.
    #[error("{command} does not accept the configuration:\n{said}", command = .engine.command())]
    Refused {
        /// Which one.
        engine: Engine,
        /// What it says.
        said: String,
    },
}

const fn install_hint(engine: Engine) -> &'static str {
    match engine {
        Engine::Haproxy => "on Debian and Ubuntu: apt install haproxy",
        Engine::Nginx => "on Debian and Ubuntu: apt install nginx-light libnginx-mod-stream",
    }
}

/// The engine's program.
pub(crate) fn program(engine: Engine) -> Result<PathBuf, Error> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(SBIN.map(PathBuf::from));
    let mut files = places.map(|place| place.join(engine.command()));
    files.find(|file| file.is_file()).ok_or(Error::Absent(engine))
}

/// What a configuration in `directory` has to know about this machine.
#[must_use]
pub fn options(engine: Engine, directory: &Path) -> Options {
    let stream = match engine {
        Engine::Nginx => stream_module(),
        Engine::Haproxy => StreamModule::Absent,
    };
    Options { socket_dir: directory.to_string_lossy().into_owned(), stream, ..Options::default() }
}

fn stream_module() -> StreamModule {
    if Path::new(STREAM_MODULE).is_file() {
        return StreamModule::File(STREAM_MODULE.to_owned());
    }
    let output = program(Engine::Nginx)
        .ok()
        .and_then(|program| Command::new(program).arg("-V").output().ok());
    let said = output.map(|output| String::from_utf8_lossy(&output.stderr).into_owned());
    let built_in = said.is_some_and(|said| said.split_whitespace().any(|w| w == "--with-stream"));
    if built_in { StreamModule::BuiltIn } else { StreamModule::Absent }
}

/// Whether the program is a HAProxy that can have several sockets at one address (2.5).
pub(crate) fn has_shards(engine: Engine, program: &Path) -> bool {
    let said = Command::new(program).arg("-v").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    engine == Engine::Haproxy && said.is_ok_and(|said| version(&said) >= Some((2, 5)))
}

/// The first two parts of the version in what HAProxy says of itself.
fn version(said: &str) -> Option<(u32, u32)> {
    let version = said.lines().next()?.split("version ").nth(1)?;
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

/// The arguments with which the engine reads the configuration in `directory`.
pub(crate) fn arguments(engine: Engine, directory: &Path) -> Vec<std::ffi::OsString> {
    let main = directory.join(engine.main_file());
    match engine {
        Engine::Haproxy => vec!["-C".into(), directory.into(), "-f".into(), main.into()],
        Engine::Nginx => vec!["-p".into(), directory.into(), "-c".into(), main.into()],
    }
}

/// The command that starts the engine with the configuration in `directory`.
#[must_use]
pub fn start_line(engine: Engine, directory: &Path) -> String {
    let arguments = arguments(engine, directory);
    let words = arguments.iter().map(|word| word.to_string_lossy().into_owned());
    std::iter::once(engine.command().to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

/// Lets the engine check the configuration in `directory`.
///
/// # Errors
/// When it is not there, or does not accept it.
pub fn check(engine: Engine, directory: &Path) -> Result<(), Error> {
    let flag = match engine {
        Engine::Haproxy => "-c",
        Engine::Nginx => "-t",
    };
    let output = Command::new(program(engine)?)
        .arg(flag)
        .args(arguments(engine, directory))
        .output()
        .map_err(|source| Error::NotRun { engine, source })?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Refused { engine, said: complaints(&output) }),
    }
}

/// What an engine complains about, without what it says in any case.
fn complaints(output: &Output) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let lines =
        said.lines().filter(|line| !line.starts_with("[NOTICE]") && !line.trim().is_empty());
    lines.take(MAX_COMPLAINTS).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_that_is_not_there_says_how_to_get_it() {
        let text = Error::Absent(Engine::Haproxy).to_string();
        assert!(text.contains("apt install haproxy"), "{text}");
    }

    #[test]
    fn haproxy_says_its_version() {
        let said =
            "HAProxy version 2.6.12-1+deb12u3 2025/10/03 - https://haproxy.org/\nStatus: long-term";
        assert_eq!(version(said), Some((2, 6)));
        assert_eq!(version("HA-Proxy version 1.8.19-1+deb10u3 2020/08/01"), Some((1, 8)));
        assert_eq!(version("HAProxy version 3.5-dev5-50872d 2026/08/21"), Some((3, 5)));
        assert_eq!(version("something else"), None);
    }

    #[test]
    fn what_is_wrong_is_told() {
        let directory = tempfile::tempdir().unwrap();
        for engine in [Engine::Haproxy, Engine::Nginx] {
            if program(engine).is_err() {
                eprintln!("skipped: no {}", engine.command());
                continue;
            }
            std::fs::write(directory.path().join(engine.main_file()), "nonsense {\n").unwrap();
            let error = check(engine, directory.path()).unwrap_err().to_string();
            assert!(error.contains("nonsense"), "{error}");
        }
    }
}
