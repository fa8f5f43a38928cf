//! A client for opaque TCP: on each connection a message, its answer, the next message.
//!
//! `stream target=ADDRESS connections=N seconds=S send=BYTES receive=BYTES`; prints JSON. Answers of
//! the length of the message must be its echo.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Instant;

use serde_json::json;

use super::poll::{Interest, Poll, Progress};
use super::{Arguments, Error};

/// Bytes read at once.
const READ: usize = 256 * 1024;

struct Connection {
    stream: TcpStream,
    message: Vec<u8>,
    /// Bytes of the answer so far.
    received: usize,
}

pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let (send, receive) = (arguments.get("send")?, arguments.get("receive")?);
    let seconds = arguments.seconds()?;
    let mut poll = Poll::new()?;
    let mut connections = Vec::new();
    for number in 0..arguments.get("connections")? {
        let stream = TcpStream::connect(arguments.target()?)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        poll.add(&stream, number, Interest::Read)?;
        let letter = b'a' + u8::try_from(number % 26).unwrap_or(0);
        connections.push(Some(Connection { stream, message: vec![letter; send], received: 0 }));
    }
    let (mut requests, mut errors) = (0u64, 0u64);
    let start = Instant::now();
    for connection in connections.iter_mut().flatten() {
        connection.stream.write_all(&connection.message)?;
    }
    let mut scratch = vec![0; READ];
    let mut ready = Vec::new();
    while start.elapsed() < seconds && connections.iter().any(Option::is_some) {
        poll.wait(&mut ready, Some(seconds.saturating_sub(start.elapsed())))?;
        for number in &ready {
            let Some(slot) = usize::try_from(*number).ok().and_then(|at| connections.get_mut(at))
            else {
                continue;
            };
            match slot.as_mut().map(|connection| connection.turn(&mut scratch, receive)) {
                Some(Ok(done)) => requests += u64::from(done),
                Some(Err(_)) => {
                    errors += 1;
                    *slot = None;
                }
                None => {}
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = requests * receive as u64;
    let report =
        json!({"requests": requests, "errors": errors, "seconds": seconds, "bytes": bytes});
    println!("{report}");
    Ok(())
}

impl Connection {
    /// Reads once; true when that ended an answer, and then the next message is on its way.
    fn turn(&mut self, scratch: &mut [u8], receive: usize) -> Result<bool, Error> {
        match Progress::of(self.stream.read(scratch)) {
            Progress::Blocked => return Ok(false),
            Progress::Over => return Err("the connection ended".into()),
            Progress::Bytes(n) => {
                let wanted = self.message.first();
                let is_echo = self.message.len() == receive;
                if is_echo && scratch[..n].iter().any(|byte| Some(byte) != wanted) {
                    return Err("what came back is not what was sent".into());
                }
                self.received += n;
            }
        }
        if self.received > receive {
            return Err("more came back than was asked for".into());
        }
        if self.received < receive {
            return Ok(false);
        }
        self.received = 0;
        // A message is far smaller than the socket's buffer, which is empty now.
        self.stream.write_all(&self.message)?;
        Ok(true)
    }
}
