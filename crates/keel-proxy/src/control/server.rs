//! The connection of the server.

use std::io;
use std::os::unix::net::UnixStream as Unwatched;

use keel_route::codec::Decoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

pub struct Server {
    stream: Stream,
    pub decoder: Decoder,
}

enum Stream {
    Watched(UnixStream),
    /// What comes wakes nobody: a thousand changes in a second would cost as many wakes, though none is read before
    /// the workers had their rest.
    Unwatched(Unwatched),
    /// It could not be watched any more.
    Lost,
}

impl Server {
    pub fn new(stream: UnixStream, decoder: Decoder) -> Self {
        Self { stream: Stream::Watched(stream), decoder }
    }

    /// The connection, and what was read from it and is not understood yet.
    pub fn into_parts(mut self) -> Option<(UnixStream, Decoder)> {
        self.watched().ok()?;
        match self.stream {
            Stream::Watched(stream) => Some((stream, self.decoder)),
            Stream::Unwatched(_) | Stream::Lost => None,
        }
    }

    /// What comes is not watched for until something is read or written.
    pub fn look_away(&mut self) {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Watched(stream) => stream.into_std().map_or(Stream::Lost, Stream::Unwatched),
            other => other,
        };
    }

    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watched()?.read(buffer).await
    }

    pub async fn write(&mut self, frames: &[u8]) -> io::Result<()> {
        self.watched()?.write_all(frames).await
    }

    fn watched(&mut self) -> io::Result<&mut UnixStream> {
        self.stream = match std::mem::replace(&mut self.stream, Stream::Lost) {
            Stream::Unwatched(stream) => Stream::Watched(UnixStream::from_std(stream)?),
            other => other,
        };
        match &mut self.stream {
            Stream::Watched(stream) => Ok(stream),
            Stream::Unwatched(_) | Stream::Lost => Err(io::ErrorKind::NotConnected.into()),
        }
    }
}
