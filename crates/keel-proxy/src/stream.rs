//! Reading and writing with deadlines, in as few system calls as possible.
//!
//! A short read or write tells that there is no more for now: readiness is then forgotten without asking the
//! system again, so that a request costs one read and one write per side. This is safe because readiness is
//! edge-triggered and only noted between two polls: whatever arrives later makes a new event.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, sockopt};
use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::deadline::Deadline;
use crate::limits::{self, BODY_STALL};

/// Reads what there is. `WouldBlock`, mostly without a system call, if there is nothing.
pub fn try_read(stream: &TcpStream, room: &mut [u8]) -> io::Result<usize> {
    let mut short = None;
    let read = stream.try_io(Interest::READABLE, || {
        let n = rustix::io::read(stream, &mut *room)?;
        if n > 0 && n < room.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(read, Ok)
}

/// Writes what the system takes. `WouldBlock` if it takes nothing.
pub fn try_write(stream: &TcpStream, first: &[u8], second: &[u8]) -> io::Result<usize> {
    let mut short = None;
    let flags = SendFlags::NOSIGNAL;
    let written = stream.try_io(Interest::WRITABLE, || {
        let n = if first.is_empty() || second.is_empty() {
            let one = if first.is_empty() { second } else { first };
            rustix::net::send(stream, one, flags)?
        } else {
            let both = [IoSlice::new(first), IoSlice::new(second)];
            rustix::net::sendmsg(stream, &both, &mut SendAncillaryBuffer::default(), flags)?
        };
        if n > 0 && n < first.len() + second.len() {
            short = Some(n);
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(n)
    });
    short.map_or(written, Ok)
}

/// Reads what there is, waiting for it until the deadline. 0 at the end of the stream.
pub async fn read(stream: &TcpStream, room: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
    loop {
        match try_read(stream, room) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            done => return done,
        }
        deadline.until(|cx| stream.poll_read_ready(cx)).await?;
    }
}

/// Waits until there is something to read (or the end).
pub async fn readable(stream: &TcpStream, deadline: &Deadline) -> io::Result<()> {
    deadline.until(|cx| stream.poll_read_ready(cx)).await
}

/// Writes all of `bytes`. On failure says how many went out before.
pub async fn write_all(
    stream: &TcpStream,
    bytes: &[u8],
    deadline: &Deadline,
) -> Result<(), (usize, io::Error)> {
    write_both(stream, bytes, &[], deadline).await
}

/// Writes all of `first`, then all of `second`, in one system call if the socket takes it.
pub async fn write_both(
    stream: &TcpStream,
    first: &[u8],
    second: &[u8],
    deadline: &Deadline,
) -> Result<(), (usize, io::Error)> {
    let (mut written, all) = (0, first.len() + second.len());
    while written < all {
        let result = try_write(
            stream,
            &first[written.min(first.len())..],
            &second[written.saturating_sub(first.len())..],
        );
        match result {
            Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
            Ok(n) => written += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                deadline.set(BODY_STALL);
                let ready = deadline.until(|cx| stream.poll_write_ready(cx)).await;
                ready.map_err(|e| (written, e))?;
            }
            Err(e) => return Err((written, e)),
        }
    }
    Ok(())
}

/// Whose fault it is that a connection could not be made.
#[derive(Debug)]
pub enum ConnectError {
    /// The endpoint's.
    Refused,
    /// Ours: no file descriptors, ports or memory left.
    Exhausted(io::Error),
}

/// Connects to an endpoint within `time`.
pub async fn connect(address: SocketAddr, time: Duration) -> Result<TcpStream, ConnectError> {
    let stream = match tokio::time::timeout(time, TcpStream::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) if is_exhaustion(&e) => return Err(ConnectError::Exhausted(e)),
        Ok(Err(_)) | Err(_) => return Err(ConnectError::Refused),
    };
    // A port in the range of client ports with nobody listening can connect to itself (simultaneous open).
    if stream.local_addr().is_ok_and(|local| local == address) {
        return Err(ConnectError::Refused);
    }
    stream.set_nodelay(true).map_err(|_| ConnectError::Refused)?;
    Ok(stream)
}

/// Whether `error` says that this process or machine ran out of something.
pub fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| exhausted.iter().any(|e| e.raw_os_error() == code))
}

/// Whether a connection that should be silent still is: neither closed nor sending. Costs no system call
/// unless something is known to have happened.
pub fn is_quiet(stream: &TcpStream) -> bool {
    matches!(try_read(stream, &mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
}

/// As [`is_quiet`], asking the system.
pub fn is_quiet_now(stream: &TcpStream) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let peeked = rustix::net::recv(stream.as_fd(), &mut [0u8; 1][..], flags);
    is_quiet(stream) && matches!(peeked, Err(rustix::io::Errno::AGAIN))
}

/// Makes the coming close a reset, so that the peer does not take a cut-off stream for a whole one.
pub fn reset_on_close(stream: &TcpStream) {
    // Failing means that the connection is gone already.
    let _ = sockopt::set_socket_linger(stream.as_fd(), Some(Duration::ZERO));
}

/// Ends the connection so that the peer can read our last words although it is still sending.
pub async fn linger(
    stream: &TcpStream,
    scratch: &std::cell::RefCell<Vec<u8>>,
    deadline: &Deadline,
) {
    if rustix::net::shutdown(stream.as_fd(), rustix::net::Shutdown::Write).is_err() {
        return;
    }
    deadline.set(limits::LINGER);
    let mut dropped = 0;
    while dropped < limits::LINGER_BYTES {
        if readable(stream, deadline).await.is_err() {
            return;
        }
        match try_read(stream, &mut scratch.borrow_mut()[..]) {
            Ok(0) => return,
            Ok(n) => dropped += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
