//! A retired proxy, as the one in its place sees it: a second proxy to keep in step until it has ended.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use keel_model::{Generation, InstanceId};
use keel_route::codec::{Decoder, encode};
use keel_route::snapshot::{FromProxy, ToProxy};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

/// Bytes read at once.
const READ: usize = 16 * 1024;
/// It has this long to bring a change into force.
const PATIENCE: Duration = Duration::from_secs(1);

/// A proxy that drains. Gone when it has ended or hangs.
#[derive(Debug)]
pub struct Elder {
    stream: UnixStream,
    decoder: Decoder,
    acknowledged: Generation,
    /// What it last said of each draining instance, and in which generation.
    in_flight: BTreeMap<InstanceId, (Generation, u64)>,
}

impl Elder {
    /// The one at the other end of this.
    ///
    /// # Errors
    /// When the connection can't be waited for.
    pub fn new(stream: std::os::unix::net::UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: UnixStream::from_std(stream)?,
            decoder: Decoder::default(),
            acknowledged: Generation(0),
            in_flight: BTreeMap::new(),
        })
    }

    /// Waits for news; an error means that it has ended.
    ///
    /// # Errors
    /// When it is gone.
    pub async fn hear(&mut self) -> io::Result<()> {
        let mut bytes = vec![0; READ];
        let n = self.stream.read(&mut bytes).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.decoder.push(&bytes[..n]);
        while let Some(message) = self.decoder.decode().map_err(io::Error::other)? {
            match message {
                FromProxy::Ack { generation, .. } => self.acknowledged = generation,
                FromProxy::InFlight { generation, instance, count } => {
                    self.in_flight.insert(instance, (generation, count));
                }
                // The one in its place sees the same, or counts for itself.
                FromProxy::Hello { .. }
                | FromProxy::Refused { .. }
                | FromProxy::Stats(_)
                | FromProxy::Place { .. }
                | FromProxy::Retired => {}
            }
        }
        Ok(())
    }

    /// Brings changes to it, of which the last is `generation`, and waits until all are in force there.
    ///
    /// # Errors
    /// When it is gone or does not answer in time: it can't be reckoned with any more.
    pub async fn tell(&mut self, changes: &[ToProxy], generation: Generation) -> io::Result<()> {
        let frames: Result<Vec<_>, _> = changes.iter().map(encode).collect();
        let frames = frames.map_err(io::Error::other)?.concat();
        let told = async {
            self.stream.write_all(&frames).await?;
            while self.acknowledged < generation {
                self.hear().await?;
            }
            Ok(())
        };
        timeout(PATIENCE, told).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// What is in flight there at `instance`, which drains since `since` at the latest. Until it has said so,
    /// something may be.
    #[must_use]
    pub fn in_flight(&self, instance: &InstanceId, since: Generation) -> u64 {
        match self.in_flight.get(instance) {
            Some((generation, count)) if *generation >= since => *count,
            Some(_) | None => 1,
        }
    }
}
