//! The server's side of the control socket, as far as a bench needs it.
//!
//! A frame is a 4-byte big-endian length and that many bytes of JSON (`keel_route::codec`); the first one sent is a
//! full snapshot, and each change carries a higher generation, which the proxy acknowledges once every worker uses it.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::bench::Error;

/// A proxy that does not open its socket or answer by then never will.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest frame that is accepted; the proxy sends small ones.
const MAX_FRAME: usize = 16 << 20;

/// A connection to a proxy.
#[derive(Debug)]
pub struct Control {
    stream: UnixStream,
    generation: u64,
    /// The last that is in force, as far as was heard.
    acknowledged: u64,
}

impl Control {
    /// Connects and sends `snapshot`, whose generation is replaced; returns when it is in force.
    pub fn connect(socket: &Path, snapshot: &Value) -> Result<Self, Error> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > PATIENCE => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        // Above what a snapshot file says, which begins at 1.
        let mut control = Self { stream, generation: 2, acknowledged: 0 };
        let mut snapshot = snapshot.clone();
        snapshot["generation"] = control.generation.into();
        control.send(&json!({"snapshot": snapshot}).to_string())?;
        control.acknowledged(control.generation)?;
        Ok(control)
    }

    /// Changes endpoints of a cluster; returns when every worker uses them.
    pub fn change(&mut self, id: &str, endpoints: &str) -> Result<(), Error> {
        let generation = self.announce(id, endpoints)?;
        self.acknowledged(generation)
    }

    /// Changes the endpoints of a cluster that this JSON lists, without waiting, as the server tells of what has changed;
    /// the generation that will be acknowledged.
    pub fn announce(&mut self, id: &str, endpoints: &str) -> Result<u64, Error> {
        self.generation += 1;
        let (generation, id) = (self.generation, json!(id));
        let frame =
            format!(r#"{{"endpoints":{{"generation":{generation},"id":{id},"set":{endpoints}}}}}"#);
        self.send(&frame)?;
        Ok(generation)
    }

    /// The same connection for another thread, which reads while this one writes.
    pub fn reader(&self) -> Result<Self, Error> {
        let stream = self.stream.try_clone()?;
        Ok(Self { stream, generation: self.generation, acknowledged: self.acknowledged })
    }

    /// Waits until the generation is in force.
    pub fn acknowledged(&mut self, generation: u64) -> Result<(), Error> {
        while self.acknowledged < generation {
            let frame = self.receive()?;
            let Some(seen) = frame["ack"]["generation"].as_u64() else { continue };
            self.acknowledged = seen;
            let failed = frame["ack"]["failed"].as_array().map_or(0, Vec::len);
            if failed > 0 {
                let first = &frame["ack"]["failed"][0];
                return Err(format!("{failed} listeners failed, {first}").into());
            }
        }
        Ok(())
    }

    fn send(&mut self, json: &str) -> Result<(), Error> {
        let mut bytes = u32::try_from(json.len())?.to_be_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        self.stream.write_all(&bytes)?;
        Ok(())
    }

    fn receive(&mut self) -> Result<Value, Error> {
        let mut length = [0; 4];
        self.stream.read_exact(&mut length)?;
        let length = usize::try_from(u32::from_be_bytes(length))?;
        if length > MAX_FRAME {
            return Err("the proxy sends a frame that is too long".into());
        }
        let mut json = vec![0; length];
        self.stream.read_exact(&mut json)?;
        Ok(serde_json::from_slice(&json)?)
    }
}
