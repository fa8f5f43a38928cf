//! Connecting, reading and writing with deadlines.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use crate::conn::Conn;
use crate::deadline::Deadline;
use crate::limits::{self, BODY_STALL};
use crate::tcp::Tcp;

/// Reads what there is, waiting for it until the deadline. 0 at the end of the stream.
pub async fn read(stream: &Conn, room: &mut [u8], deadline: &Deadline) -> io::Result<usize> {
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
pub async fn readable(stream: &Conn, deadline: &Deadline) -> io::Result<()> {
    deadline.until(|cx| stream.poll_read_ready(cx)).await
}

/// Writes all of `bytes`. On failure says how many went out before.
pub async fn write_all(
    stream: &Conn,
    bytes: &[u8],
    deadline: &Deadline,
) -> Result<(), (usize, io::Error)> {
    write_both(stream, bytes, &[], deadline).await
}

/// Writes all of `first`, then all of `second`, in one system call if the socket takes it.
pub async fn write_both(
    stream: &Conn,
    first: &[u8],
    second: &[u8],
    deadline: &Deadline,
) -> Result<(), (usize, io::Error)> {
    let (mut written, all) = (0, first.len() + second.len());
    while written < all {
        let result = stream.try_write(
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
    /// The endpoint's or that of the policy: they do not agree on TLS, and will not by trying again.
    NoTls,
    /// Nobody's: it has as many connections as it may have.
    Full,
    /// Ours: no file descriptors, ports or memory left.
    Exhausted(io::Error),
}

/// Connects to an endpoint within `time`.
pub async fn connect(address: SocketAddr, time: Duration) -> Result<Tcp, ConnectError> {
    let stream = match tokio::time::timeout(time, Tcp::connect(address)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(e)) if is_exhaustion(&e) => return Err(ConnectError::Exhausted(e)),
        Ok(Err(_)) | Err(_) => return Err(ConnectError::Refused),
    };
    // A port in the range of client ports with nobody listening can connect to itself (simultaneous open).
    if stream.socket().local_addr().is_ok_and(|local| local == address) {
        return Err(ConnectError::Refused);
    }
    stream.socket().set_nodelay(true).map_err(|_| ConnectError::Refused)?;
    Ok(stream)
}

/// Whether `error` says that this process or machine ran out of something.
pub fn is_exhaustion(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let exhausted = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
    error.raw_os_error().is_some_and(|code| exhausted.iter().any(|e| e.raw_os_error() == code))
}

/// Ends a connection on which everything has been said.
pub async fn close(stream: &Conn, deadline: &Deadline) {
    if !stream.close() {
        deadline.set(limits::LINGER);
        // It is dropped either way.
        let _ = Box::pin(stream.end(deadline)).await;
    }
}

/// Ends the connection so that the peer can read our last words although it is still sending.
pub async fn linger(stream: &Conn, scratch: &std::cell::RefCell<Vec<u8>>, deadline: &Deadline) {
    deadline.set(limits::LINGER);
    if stream.end(deadline).await.is_err() {
        return;
    }
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
