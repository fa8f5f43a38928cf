//! Commands inside a container whose output somebody else shows.

use bollard::exec::{StartExecOptions, StartExecResults};
use futures_util::StreamExt as _;
use keel_runtime::ContainerExec;

use crate::terminal::Command;
use crate::{Engine, Error};

/// Longest line that is told in one piece, in bytes.
const MAX_LINE: usize = 16 << 10;

/// Runs a command without input inside the container that `into` describes, and tells each line as it comes. Its exit
/// code.
///
/// # Errors
/// When it could not be run.
pub async fn run(
    into: &ContainerExec,
    command: Command,
    mut tell: impl FnMut(&str),
) -> Result<i32, Error> {
    let engine = Engine::of(into);
    let client = engine.client().await?;
    let failed = |error: bollard::errors::Error| engine.failed(&error);
    let exec = client.create_exec(&into.container, command.options()).await.map_err(failed)?.id;
    let started = client.start_exec(&exec, None::<StartExecOptions>).await.map_err(failed)?;
    let mut lines = Lines::default();
    if let StartExecResults::Attached { mut output, .. } = started {
        while let Some(part) = output.next().await {
            lines.add(part.map_err(failed)?.as_ref(), &mut tell);
        }
    }
    lines.end(&mut tell);
    let done = client.inspect_exec(&exec).await.map_err(failed)?;
    Ok(done.exit_code.and_then(|code| i32::try_from(code).ok()).unwrap_or(-1))
}

/// Cuts what comes in pieces into lines.
#[derive(Debug, Default)]
pub struct Lines {
    left: Vec<u8>,
}

impl Lines {
    /// Takes a piece, and tells the lines that it completes.
    pub fn add(&mut self, piece: &[u8], tell: &mut impl FnMut(&str)) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            self.left.extend_from_slice(part);
            if part.ends_with(b"\n") || self.left.len() > MAX_LINE {
                self.end(tell);
            }
        }
    }

    /// Tells what came last, if it has no end.
    pub fn end(&mut self, tell: &mut impl FnMut(&str)) {
        if !self.left.is_empty() {
            let text = String::from_utf8_lossy(&self.left);
            tell(text.trim_end_matches(['\n', '\r']));
            self.left.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_become_lines() {
        let (mut lines, mut told) = (Lines::default(), Vec::new());
        let mut tell = |line: &str| told.push(line.to_owned());
        for piece in ["a", "b\nc\r\n\n", "d"] {
            lines.add(piece.as_bytes(), &mut tell);
        }
        lines.end(&mut tell);
        assert_eq!(told, ["ab", "c", "", "d"]);
    }
}
