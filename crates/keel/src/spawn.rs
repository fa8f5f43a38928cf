//! Starts the server in the background when none runs.
//!
//! Two commands may do so at the same time: the server's own lock decides, the loser's command goes on with the
//! winner's server.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use keel_server::api::client::{Client, Error};
use keel_server::api::types::ServerInfo;
use tokio::time::{Instant, sleep};

use crate::commands::server::EXIT_IN_USE;
use crate::context::Context;
use crate::failure::Failure;

/// How long a server may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How long a server that breaks connections is given to be gone.
const DYING_LIMIT: Duration = Duration::from_secs(2);
/// Pause between two attempts to reach it.
const PAUSE: Duration = Duration::from_millis(10);
/// Size from which the log begins anew.
const MAX_LOG: u64 = 10 << 20;
/// Bytes of the log that are read for the last lines.
const TAIL_BYTES: u64 = 8 << 10;
/// Lines of the log that are shown when the server does not start.
const TAIL_LINES: usize = 12;

/// A client of the server, which is started if need be.
///
/// # Errors
/// When the server can't be reached or started.
pub async fn ensure_server(ctx: &Context) -> Result<Client, Failure> {
    let client = ctx.client();
    if find(&client).await?.is_none() {
        start(ctx, &client, &[]).await?;
    }
    Ok(client)
}

/// The server that runs, if one does.
///
/// # Errors
/// When it is there but can't be used.
pub async fn find(client: &Client) -> Result<Option<ServerInfo>, Failure> {
    let deadline = Instant::now() + DYING_LIMIT;
    loop {
        match client.info().await {
            Ok(info) => return Ok(Some(info)),
            Err(Error::NotRunning { .. }) => return Ok(None),
            // A server that is being killed breaks connections for a moment before nothing answers any more.
            Err(Error::Broken { .. }) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Starts a server in the background with these options and waits until it answers; true when it is the one that was
/// started, false when another command was faster.
///
/// # Errors
/// When it does not start.
pub async fn start(ctx: &Context, client: &Client, options: &[String]) -> Result<bool, Failure> {
    let log_path = ctx.state_dir.join("server.log");
    let (log, begin) = open_log(&ctx.state_dir, &log_path)?;
    let mut child = spawn(ctx, log, options)?;
    let deadline = Instant::now() + START_LIMIT;
    let mut lost = false;
    while Instant::now() < deadline {
        if let Ok(info) = client.info().await {
            return Ok(info.pid == child.id());
        }
        if let (false, Ok(Some(status))) = (lost, child.try_wait()) {
            if status.code() != Some(i32::from(EXIT_IN_USE)) {
                return Err(died(&log_path, begin, &format!("it ended with {status}")));
            }
            lost = true;
        }
        sleep(PAUSE).await;
    }
    let failure = died(&log_path, begin, &format!("it did not answer within {START_LIMIT:?}"));
    if !lost {
        end(&mut child);
    }
    Err(failure)
}

/// A server that can't be used must not stay.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn open_log(state_dir: &Path, path: &Path) -> Result<(File, u64), Failure> {
    let failed = |error: std::io::Error| {
        Failure::unreachable(format!("the state directory {} is not writable: {error}", state_dir.display()))
            .hint("make it writable for this user, or name another one with --state-dir or KEEL_STATE_DIR")
    };
    create_directory(state_dir).map_err(failed)?;
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > MAX_LOG) {
        fs::rename(path, path.with_extension("log.1")).map_err(failed)?;
    }
    let log = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
    let begin = log.metadata().map_err(failed)?.len();
    Ok((log, begin))
}

/// As the server itself makes it: instances may pass through it, but not look around.
fn create_directory(directory: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    if directory.is_dir() {
        return Ok(());
    }
    fs::DirBuilder::new().recursive(true).mode(0o711).create(directory)
}

fn spawn(ctx: &Context, log: File, options: &[String]) -> Result<Child, Failure> {
    let program = program();
    let failed = |error: std::io::Error| {
        Failure::unreachable(format!("cannot start {} as a server: {error}", program.display()))
    };
    let errors = log.try_clone().map_err(failed)?;
    Command::new(&program)
        .arg("server")
        .arg("run")
        .arg("--background")
        .arg("--state-dir")
        .arg(&ctx.state_dir)
        .args(options)
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(errors)
        .current_dir("/")
        .spawn()
        .map_err(failed)
}

/// This program, also when its file was replaced by a newer one since it began.
fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

fn died(path: &Path, begin: u64, how: &str) -> Failure {
    let lines = last_lines(path, begin);
    let failure = Failure::unreachable(format!("the keel server did not start: {how}"));
    if lines.is_empty() {
        // A full disk, for one, leaves no room for the reason.
        return failure.hint("it left no word why: run `keel server` in the foreground to see");
    }
    failure.details(lines).hint(format!("its whole log is {}", path.display()))
}

/// The last lines that were written since `begin`.
fn last_lines(path: &Path, begin: u64) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(length.saturating_sub(TAIL_BYTES))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines.iter().skip(lines.len().saturating_sub(TAIL_LINES)).map(|&l| l.to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_new_lines_are_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        let old = "old\n";
        let new: String = (0..30).map(|n| format!("line {n}\n")).collect();
        fs::write(&path, format!("{old}{new}")).unwrap();
        let lines = last_lines(&path, old.len() as u64);
        assert_eq!(lines.len(), TAIL_LINES);
        assert_eq!(lines.last().map(String::as_str), Some("line 29"));
        fs::write(&path, "old\nnew\n").unwrap();
        assert_eq!(last_lines(&path, 4), ["new"]);
    }

    #[test]
    fn a_large_log_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("server.log");
        File::create(&path).unwrap().set_len(MAX_LOG + 1).unwrap();
        let (_, begin) = open_log(directory.path(), &path).unwrap();
        assert_eq!(begin, 0);
        assert!(directory.path().join("server.log.1").exists());
    }
}
