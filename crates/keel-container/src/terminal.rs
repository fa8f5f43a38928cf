//! A command inside a container with the caller's own terminal.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::StreamExt as _;
use keel_runtime::ContainerExec;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::AsyncWriteExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::{Engine, Error, Place, Tls};

/// What is to be run.
#[derive(Clone, Debug, Default)]
pub struct Command {
    /// Program and arguments.
    pub command: Vec<String>,
    /// On top of the container's environment.
    pub environment: BTreeMap<String, String>,
    /// Where, when not in the container's directory.
    pub working_dir: Option<PathBuf>,
    /// As whom, when not as the container's user.
    pub user: Option<String>,
    /// With a pseudo-terminal in the container; the caller's is raw meanwhile.
    pub terminal: bool,
}

/// The caller's terminal as it was, which it is again when this is dropped.
struct Raw(Termios);

impl Raw {
    fn begin() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

/// What is typed. A thread of its own reads it: nothing else ends a read of a terminal but the end of the process.
fn typed() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(1);
    std::thread::spawn(move || {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(count @ 1..) = io::stdin().lock().read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                return;
            }
        }
    });
    receiver
}

fn write(part: &LogOutput) -> io::Result<()> {
    match part {
        LogOutput::StdErr { message } => io::stderr().write_all(message),
        other => {
            let mut out = io::stdout().lock();
            out.write_all(other.as_ref())?;
            out.flush()
        }
    }
}

/// Runs a command inside the container that `into` describes, with this process's own streams. Its exit code.
///
/// # Errors
/// When it could not be run.
pub async fn exec(into: &ContainerExec, command: Command) -> Result<i32, Error> {
    let tls = into.tls.clone().map(|directory| Tls { directory });
    let place = Place { url: into.engine.clone(), named_by: "the server".into(), tls };
    let engine = Engine::at(place);
    let client = engine.client().await?;
    let failed = |error: bollard::errors::Error| engine.failed(&error);
    let environment = command.environment.iter().map(|(key, value)| format!("{key}={value}"));
    let options = CreateExecOptions {
        attach_stdin: Some(true),
        attach_stdout: Some(true),
        attach_stderr: Some(true),
        tty: Some(command.terminal),
        env: Some(environment.collect()),
        cmd: Some(command.command),
        user: command.user,
        working_dir: command.working_dir.map(|dir| dir.display().to_string()),
        ..Default::default()
    };
    let exec = client.create_exec(&into.container, options).await.map_err(failed)?.id;
    let start = StartExecOptions { tty: command.terminal, ..Default::default() };
    let started = client.start_exec(&exec, Some(start)).await.map_err(failed)?;
    let StartExecResults::Attached { mut output, mut input } = started else {
        return Ok(0);
    };
    let resize = async || {
        let Ok(size) = tcgetwinsize(io::stdin()) else { return };
        let size = ResizeExecOptions { height: size.ws_row, width: size.ws_col };
        let _ = client.resize_exec(&exec, size).await;
    };
    let raw = (command.terminal && io::stdin().is_terminal()).then(Raw::begin).and_then(Result::ok);
    if raw.is_some() {
        resize().await;
    }
    let mut typed = typed();
    let feed = tokio::spawn(async move {
        while let Some(bytes) = typed.recv().await {
            if input.write_all(&bytes).await.is_err() {
                return;
            }
        }
        // Its end is the end of the command's input.
        let _ = input.shutdown().await;
    });
    let mut sizes = signal(SignalKind::window_change()).ok();
    let changed = async |sizes: &mut Option<tokio::signal::unix::Signal>| match sizes {
        Some(sizes) => sizes.recv().await,
        None => std::future::pending().await,
    };
    loop {
        tokio::select! {
            part = output.next() => match part {
                None => break,
                Some(part) => {
                    let part = part.map_err(failed)?;
                    if write(&part).is_err() {
                        // Nobody reads any more.
                        break;
                    }
                }
            },
            _ = changed(&mut sizes), if raw.is_some() => resize().await,
        }
    }
    feed.abort();
    drop(raw);
    let done = client.inspect_exec(&exec).await.map_err(failed)?;
    Ok(done.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1))
}
