//! Sockets on their way from one process to another (`SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Most descriptors in one message: the system's limit.
const MOST: usize = 253;

/// Sends `sockets`, at most 253, with at least one byte that goes along; how many bytes went.
///
/// # Errors
/// The system's reason.
pub fn send(stream: impl AsFd, along: &[u8], sockets: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::Error::other("too many sockets for one message"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(along)], &mut ancillary, SendFlags::NOSIGNAL)?)
}

/// Receives one message and the sockets that came with it; how many bytes went along, none at the end of the stream.
///
/// # Errors
/// The system's reason, or that there were too few descriptors for all.
pub fn receive(
    stream: impl AsFd,
    along: &mut [u8],
    received: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(stream, &mut [IoSliceMut::new(along)], &mut ancillary, flags)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sockets) = message {
            received.extend(sockets);
        }
    }
    match got.flags.contains(ReturnFlags::CTRUNC) {
        true => Err(io::Error::other("not all sockets arrived: too few file descriptors")),
        false => Ok(got.bytes),
    }
}
