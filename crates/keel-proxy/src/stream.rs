//! Reading and writing with deadlines, in as few system calls as possible.
//!
//! `try_read` and `try_write` make no system call while the socket is known not to be ready, and tokio
//! forgets readiness after a short read, so that a request costs one read and one write per side.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::{RecvFlags, sockopt};
use tokio::net::TcpStream;

use crate::deadline::Deadline;
use crate::limits::{self, BODY_STALL};

/// Reads what there is, waiting for it until the deadline. 0 at the end of the stream.
pub async fn read(stream: &TcpStream, room: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
    loop {
        match stream.try_read(room) {
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
        let result = if written >= first.len() {
            stream.try_write(&second[written - first.len()..])
        } else if second.is_empty() {
            stream.try_write(&first[written..])
        } else {
            stream.try_write_vectored(&[IoSlice::new(&first[written..]), IoSlice::new(second)])
        };
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
    matches!(stream.try_read(&mut [0]), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
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
        match stream.try_read(&mut scratch.borrow_mut()[..]) {
            Ok(0) => return,
            Ok(n) => dropped += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
