//! The control socket, and the right to it.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::Mode;
use rustix::process::umask;
use tokio::net::{UnixListener, UnixStream};

/// Between two tries to get the right.
const PAUSE: Duration = Duration::from_millis(10);

/// The right to serve a control socket, for as long as this lives.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "closing it gives the right up")] File);

/// Makes sure that there is one proxy per control socket; `None` if somebody else has the right for so long. Connecting
/// would tell as well, but would take the server's place. Blocks.
///
/// # Errors
/// When the file beside the socket, with `.lock` added to its name, can't be used.
pub fn lock(control_socket: &Path, patience: Duration) -> io::Result<Option<Lock>> {
    let mut path = control_socket.as_os_str().to_owned();
    path.push(".lock");
    let file = File::options().create(true).append(true).open(path)?;
    let since = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(Lock(file))),
            // One that is ending gives it up in a moment.
            Err(TryLockError::WouldBlock) if since.elapsed() < patience => {
                std::thread::sleep(PAUSE);
            }
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
}

/// The control socket and the right to it; removed and given up when dropped.
#[derive(Debug)]
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    _lock: Lock,
}

/// A control socket that nobody finds yet.
#[derive(Debug)]
pub struct Unpublished {
    /// Until it is published.
    listener: Option<UnixListener>,
    beside: PathBuf,
    path: PathBuf,
}

impl Unpublished {
    /// Makes the socket under another name, for this user only. What can fail for want of rights or space does so here,
    /// while the proxy whose place is taken still serves.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        let beside = beside(path);
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let before = umask(Mode::RWXG | Mode::RWXO | Mode::XUSR);
        let listener = UnixListener::bind(&beside);
        umask(before);
        Ok(Self { listener: Some(listener?), beside, path: path.to_owned() })
    }

    /// Where it will be found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts it into its place. With the right to that, a file that exists is left from a proxy that died.
    ///
    /// # Errors
    /// When it can't be put there.
    pub fn publish(mut self, lock: Lock) -> io::Result<ControlSocket> {
        fs::rename(&self.beside, &self.path)?;
        let listener = self.listener.take().ok_or(io::ErrorKind::NotConnected)?;
        Ok(ControlSocket { listener, path: self.path.clone(), _lock: lock })
    }
}

impl Drop for Unpublished {
    fn drop(&mut self) {
        // Once published it is not there any more.
        let _ = fs::remove_file(&self.beside);
    }
}

/// A name of the same length, as that of a socket is bounded.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().as_bytes().to_vec();
    if let Some(last) = name.last_mut() {
        *last = if *last == b'~' { b'-' } else { b'~' };
    }
    OsString::from_vec(name).into()
}

impl ControlSocket {
    /// Makes the socket at once.
    ///
    /// # Errors
    /// When it can't be made.
    pub fn create(path: &Path, lock: Lock) -> io::Result<Self> {
        Unpublished::create(path)?.publish(lock)
    }

    /// The next connection.
    ///
    /// # Errors
    /// The system's reason.
    pub async fn accept(&self) -> io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Whoever looks for a proxy shall not find one that is gone. The lock is given up after this.
        let _ = fs::remove_file(&self.path);
    }
}
