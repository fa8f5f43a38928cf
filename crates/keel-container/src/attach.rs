//! The main process of a container, with the caller's own streams.

use bollard::errors::Error as ApiError;
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, KillContainerOptionsBuilder, ResizeContainerTTYOptionsBuilder,
    WaitContainerOptions,
};
use futures_util::StreamExt as _;
use keel_runtime::ContainerExec;

use crate::answer::understood;
use crate::terminal::{Ends, Signals, converse};
use crate::{Engine, Error};

/// With these keys one leaves, unless others are named.
const DETACH_KEYS: &str = "ctrl-p,ctrl-q";

/// How a container's streams are taken.
#[derive(Clone, Debug, Default)]
pub struct Attach {
    /// What is typed goes to the container, if it listens.
    pub input: bool,
    /// Signals that come here go to the container instead of ending this process.
    pub signals: bool,
    /// The container is started once its streams are taken, so that nothing is missed.
    pub start: bool,
    /// The keys that end this and leave the container as it is, such as `ctrl-p,ctrl-q`, which are the usual ones.
    pub detach_keys: Option<String>,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The main process ended, with this code.
    Exited(i32),
    /// The streams were left, and the container runs on.
    Detached,
}

/// Starts a container and leaves it alone.
///
/// # Errors
/// When it can't be started.
pub async fn start(container: &ContainerExec) -> Result<(), Error> {
    let engine = Engine::of(container);
    let started = engine.client().await?.start_container(&container.container, None).await;
    started.map_err(|error| engine.failed(&error))
}

/// Takes a container's streams until its main process ends or the keys to leave are typed.
///
/// # Errors
/// When the container does not run, or the engine goes away.
pub async fn attach(container: &ContainerExec, how: &Attach) -> Result<End, Error> {
    let engine = Engine::of(container);
    let id = &container.container;
    let leave = keys(how.detach_keys.as_deref().unwrap_or(DETACH_KEYS))?;
    let client = engine.client().await?;
    let failed = |error: ApiError| engine.failed(&error);
    let seen = understood(client.inspect_container(id, None).await).map_err(failed)?;
    let running = seen.state.and_then(|state| state.running) == Some(true);
    if !running && !how.start {
        let message = format!("instance {} does not run", container.instance);
        return Err(Error::Conflict { message });
    }
    let config = seen.config.unwrap_or_default();
    let terminal = config.tty == Some(true);
    let listens = how.input && config.open_stdin == Some(true);
    let mut options = AttachContainerOptionsBuilder::default()
        .stream(true)
        .stdin(listens)
        .stdout(true)
        .stderr(true);
    if let Some(keys) = &how.detach_keys {
        options = options.detach_keys(keys);
    }
    let signals = how.signals.then(Signals::listen).transpose();
    let signals =
        signals.map_err(|error| Error::Refused { status: None, message: error.to_string() })?;
    let attached = client.attach_container(id, Some(options.build())).await.map_err(failed)?;
    if how.start {
        client.start_container(id, None).await.map_err(failed)?;
    }
    let resize = async |(rows, columns): (u16, u16)| {
        let size = ResizeContainerTTYOptionsBuilder::default();
        let size = size.h(i32::from(rows)).w(i32::from(columns)).build();
        let _ = client.resize_container_tty(id, size).await;
    };
    let signal = async |name: &str| {
        let options = KillContainerOptionsBuilder::default().signal(name).build();
        let _ = client.kill_container(id, Some(options)).await;
    };
    let ends = Ends {
        output: attached.output,
        input: listens.then_some(attached.input),
        // One that is started here is ours alone; Podman does not tell.
        ends_input: how.start || config.stdin_once == Some(true),
        terminal: terminal && listens,
        signals,
        leave,
    };
    if converse(ends, resize, signal).await.map_err(failed)? && terminal {
        let seen = understood(client.inspect_container(id, None).await).map_err(failed)?;
        if seen.state.and_then(|state| state.running) == Some(true) {
            return Ok(End::Detached);
        }
    }
    ended(&engine, container).await
}

/// How the container ended.
async fn ended(engine: &Engine, container: &ContainerExec) -> Result<End, Error> {
    let client = engine.client().await?;
    let mut waited = client.wait_container(&container.container, None::<WaitContainerOptions>);
    let code = |code: i64| End::Exited(i32::try_from(code).unwrap_or(-1));
    match waited.next().await {
        Some(Ok(done)) => Ok(code(done.status_code)),
        Some(Err(ApiError::DockerContainerWaitError { code: number, .. })) => Ok(code(number)),
        Some(Err(error)) => Err(engine.failed(&error)),
        None => Ok(End::Exited(0)),
    }
}

/// What a terminal sends for `ctrl-p,ctrl-q`, or for single characters.
fn keys(text: &str) -> Result<Vec<u8>, Error> {
    let key = |key: &str| match (key.strip_prefix("ctrl-"), key.as_bytes()) {
        (None, [single]) => Some(*single),
        (Some(with), _) => match with.as_bytes() {
            [letter @ (b'a'..=b'z' | b'@' | b'[' | b'\\' | b']' | b'^' | b'_')] => {
                Some(letter.to_ascii_uppercase() & 0x1f)
            }
            _ => None,
        },
        _ => None,
    };
    text.split(',').map(key).collect::<Option<Vec<u8>>>().ok_or_else(|| {
        let message = format!("{text:?} names no keys: write letters or ctrl-LETTER, with commas");
        Error::Refused { status: None, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_what_a_terminal_sends() {
        assert_eq!(keys(DETACH_KEYS).unwrap(), [0x10, 0x11]);
        assert_eq!(keys("a,ctrl-@,ctrl-_").unwrap(), [b'a', 0, 0x1f]);
        for bad in ["", "ctrl-", "ctrl-pp", "ctrl-P", "ab", "a,"] {
            assert!(keys(bad).is_err(), "{bad}");
        }
    }
}
