//! Who serves a control socket now: asked by one that is to take its place.

use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use keel_route::codec::Decoder;
use keel_route::snapshot::FromProxy;
use rustix::process::{Pid, Signal, kill_process};

/// It says who it is within this time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Longest introduction, in bytes.
const MAX_HELLO: u64 = 64 << 10;

/// A proxy that serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Incumbent {
    /// Its process id.
    pub pid: u32,
    /// Its version, with what it drives.
    pub version: String,
}

impl Incumbent {
    /// The engine that it drives; `None` if it handles traffic itself.
    #[must_use]
    pub fn engine(&self) -> Option<&str> {
        self.version.split_once(" with ").map(|(_, engine)| engine)
    }

    /// Tells it to end: it accepts no more, gives the control socket up, and ends when its connections have. That it has
    /// ended already is no error.
    pub fn end(&self) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Connects to whoever serves a control socket; `None` if nobody does.
///
/// # Errors
/// When it can't be told.
pub fn connect(control_socket: &Path) -> io::Result<Option<UnixStream>> {
    match UnixStream::connect(control_socket) {
        Ok(stream) => Ok(Some(stream)),
        Err(e)
            if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The proxy that serves a control socket; `None` if none does. Blocks.
///
/// # Errors
/// When something is there that does not say who it is.
pub fn incumbent(control_socket: &Path) -> io::Result<Option<Incumbent>> {
    let Some(stream) = connect(control_socket)? else { return Ok(None) };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut stream = stream.take(MAX_HELLO);
    let mut decoder = Decoder::default();
    let mut buffer = [0; 4096];
    loop {
        let read = stream.read(&mut buffer)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        decoder.push(&buffer[..read]);
        if let Some(FromProxy::Hello { pid, version }) =
            decoder.decode().map_err(io::Error::other)?
        {
            return Ok(Some(Incumbent { pid, version }));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use keel_route::codec::encode;

    use super::*;

    #[test]
    fn it_says_who_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        assert_eq!(incumbent(&path).unwrap(), None);
        let listener = UnixListener::bind(&path).unwrap();
        let answering = std::thread::spawn(move || {
            for version in ["1 with haproxy", "1"] {
                let hello = FromProxy::Hello { pid: 7, version: version.to_owned() };
                let (mut stream, _) = listener.accept().unwrap();
                stream.write_all(&encode(&hello).unwrap()).unwrap();
            }
        });
        assert_eq!(incumbent(&path).unwrap().unwrap().engine(), Some("haproxy"));
        assert_eq!(incumbent(&path).unwrap().unwrap().engine(), None);
        answering.join().unwrap();
        assert_eq!(incumbent(&path).unwrap(), None, "nobody serves what is left over");
    }
}
