//! The caller's own terminal as that of a container, or of a command inside one.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::PathBuf;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bollard::container::LogOutput;
use bollard::exec::{CreateExecOptions, ResizeExecOptions, StartExecOptions, StartExecResults};
use futures_util::{Stream, StreamExt as _};
use keel_runtime::ContainerExec;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};

use crate::{Engine, Error};

/// How long the engine may take to end the streams when the keys to leave were typed.
const LEAVING: std::time::Duration = std::time::Duration::from_millis(500);

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
    /// With all rights of the host.
    pub privileged: bool,
    /// With a pseudo-terminal in the container; the caller's is raw meanwhile.
    pub terminal: bool,
}

impl Command {
    /// As the engine wants to hear it, without input.
    pub(crate) fn options(&self) -> CreateExecOptions<String> {
        let environment = self.environment.iter().map(|(key, value)| format!("{key}={value}"));
        CreateExecOptions {
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            tty: Some(self.terminal),
            env: Some(environment.collect()),
            cmd: Some(self.command.clone()),
            user: self.user.clone(),
            privileged: self.privileged.then_some(true),
            working_dir: self.working_dir.as_ref().map(|dir| dir.display().to_string()),
            ..Default::default()
        }
    }
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

/// Signals that are passed on instead of ending this process.
pub(crate) struct Signals([(&'static str, Signal); 4]);

impl Signals {
    /// From now on.
    pub(crate) fn listen() -> io::Result<Self> {
        let on = |name, kind| Ok::<_, io::Error>((name, signal(kind)?));
        Ok(Self([
            on("SIGINT", SignalKind::interrupt())?,
            on("SIGTERM", SignalKind::terminate())?,
            on("SIGHUP", SignalKind::hangup())?,
            on("SIGQUIT", SignalKind::quit())?,
        ]))
    }

    async fn next(&mut self) -> &'static str {
        let [(a, first), (b, second), (c, third), (d, fourth)] = &mut self.0;
        tokio::select! {
            _ = first.recv() => a,
            _ = second.recv() => b,
            _ = third.recv() => c,
            _ = fourth.recv() => d,
        }
    }
}

/// The streams of the other side.
pub(crate) struct Ends {
    /// What it says.
    pub output: Pin<Box<dyn Stream<Item = Result<LogOutput, bollard::errors::Error>> + Send>>,
    /// What it listens to.
    pub input: Option<Pin<Box<dyn AsyncWrite + Send>>>,
    /// The end of what is typed is the end of its input. Otherwise an engine takes that for the end of everything.
    pub ends_input: bool,
    /// It has a terminal, which the caller's becomes.
    pub terminal: bool,
    /// What is passed on.
    pub signals: Option<Signals>,
    /// Keys with which the caller leaves; the engine ends the streams then.
    pub leave: Vec<u8>,
}

/// Passes what is typed in and what is said out until the other side has said all. True if the last that was typed were
/// the keys to leave.
pub(crate) async fn converse(
    ends: Ends,
    resize: impl AsyncFn((u16, u16)),
    send: impl AsyncFn(&str),
) -> Result<bool, bollard::errors::Error> {
    let Ends { mut output, input, ends_input, terminal, mut signals, leave } = ends;
    let size = async || {
        if let Ok(size) = tcgetwinsize(io::stdin()) {
            resize((size.ws_row, size.ws_col)).await;
        }
    };
    let raw = (terminal && io::stdin().is_terminal()).then(Raw::begin).and_then(Result::ok);
    if raw.is_some() {
        size().await;
    }
    let left = Arc::new(Left::default());
    let feed = input.map(|input| tokio::spawn(feed(input, ends_input, leave, left.clone())));
    let mut sizes = signal(SignalKind::window_change()).ok();
    let changed = async |sizes: &mut Option<Signal>| match sizes {
        Some(sizes) => sizes.recv().await,
        None => std::future::pending().await,
    };
    let signalled = async |signals: &mut Option<Signals>| match signals {
        Some(signals) => signals.next().await,
        None => std::future::pending().await,
    };
    let result = loop {
        tokio::select! {
            part = output.next() => match part {
                None => break Ok(()),
                Some(Err(error)) => break Err(error),
                // Nobody reads any more.
                Some(Ok(part)) => if write(&part).is_err() { break Ok(()) },
            },
            _ = changed(&mut sizes), if raw.is_some() => size().await,
            name = signalled(&mut signals) => send(name).await,
            // The engine ends the streams then; Podman does not always.
            () = left.typed.notified(), if terminal => {
                let last = async {
                    while let Some(Ok(part)) = output.next().await {
                        let _ = write(&part);
                    }
                };
                let _ = tokio::time::timeout(LEAVING, last).await;
                break Ok(());
            }
        }
    };
    feed.iter().for_each(tokio::task::JoinHandle::abort);
    drop(raw);
    result.map(|()| left.is_so.load(Ordering::SeqCst))
}

/// Whether the keys to leave were typed.
#[derive(Default)]
struct Left {
    is_so: AtomicBool,
    typed: Notify,
}

async fn feed(
    mut input: Pin<Box<dyn AsyncWrite + Send>>,
    ends_input: bool,
    leave: Vec<u8>,
    left: Arc<Left>,
) {
    let mut typed = typed();
    let mut last: Vec<u8> = Vec::new();
    while let Some(bytes) = typed.recv().await {
        last.extend_from_slice(&bytes);
        last.drain(..last.len().saturating_sub(leave.len()));
        let is_so = !leave.is_empty() && last == leave;
        left.is_so.store(is_so, Ordering::SeqCst);
        if input.write_all(&bytes).await.is_err() || input.flush().await.is_err() {
            return;
        }
        if is_so {
            left.typed.notify_one();
        }
    }
    if ends_input {
        let _ = input.shutdown().await;
    } else {
        // It must stay open as long as there is output.
        std::future::pending::<()>().await;
    }
}

/// Runs a command inside the container that `into` describes, with this process's own streams. Its exit code.
///
/// # Errors
/// When it could not be run.
pub async fn exec(into: &ContainerExec, command: Command) -> Result<i32, Error> {
    let engine = Engine::of(into);
    let client = engine.client().await?;
    let failed = |error: bollard::errors::Error| engine.failed(&error);
    let options = CreateExecOptions { attach_stdin: Some(true), ..command.options() };
    let exec = client.create_exec(&into.container, options).await.map_err(failed)?.id;
    let start = StartExecOptions { tty: command.terminal, ..Default::default() };
    let started = client.start_exec(&exec, Some(start)).await.map_err(failed)?;
    let StartExecResults::Attached { output, input } = started else {
        return Ok(0);
    };
    let resize = async |(height, width): (u16, u16)| {
        let _ = client.resize_exec(&exec, ResizeExecOptions { height, width }).await;
    };
    let ends = Ends {
        output,
        input: Some(input),
        ends_input: true,
        terminal: command.terminal,
        signals: None,
        leave: Vec::new(),
    };
    converse(ends, resize, async |_: &str| {}).await.map_err(failed)?;
    let done = client.inspect_exec(&exec).await.map_err(failed)?;
    Ok(done.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1))
}
