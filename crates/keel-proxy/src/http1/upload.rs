//! The body of a request on its way to an endpoint. What was sent is kept, up to [`MAX_REPEATABLE_BODY`], so that it can go out
//! once more.

use std::cell::Cell;
use std::task::Context;

use crate::buffer::Buffer;
use crate::conn::Conn;
use crate::deadline::Idle;
use crate::http1::body::{Body, Malformed};
use crate::http1::relay::{Broken, Relay};
use crate::limits::{BUFFER, MAX_REPEATABLE_BODY};
use crate::session::Client;
use crate::stream;

/// The body of a request on its way, and what of it was kept.
pub struct Upload<'a> {
    pub input: &'a mut Buffer,
    pub body: Body,
    /// The head and the body so far.
    pub sent: &'a mut Vec<u8>,
    /// All that was sent is in `sent`.
    pub repeatable: bool,
    /// Bytes of it that have come.
    pub moved: Cell<u64>,
}

impl Upload<'_> {
    /// Takes what was read together with the head.
    pub fn take_what_is_there(&mut self) -> Result<(), Malformed> {
        let taken = self.body.take(self.input.bytes())?;
        self.sent.extend_from_slice(&self.input.bytes()[..taken]);
        self.input.consume(taken);
        self.moved.set(taken as u64);
        Ok(())
    }

    /// Sends the rest of the body as it comes, keeping what fits to be repeated.
    pub async fn rest(
        &mut self,
        client: &Client,
        to: &Conn,
        head: usize,
        idle: Idle<'_>,
    ) -> Result<(), Broken> {
        client.stream.got_part(self.sent.len());
        while self.repeatable && !self.body.is_over() {
            let ready = |cx: &mut Context<'_>| client.stream.poll_read_ready(cx);
            client.deadline.until_idle(idle, ready).await.map_err(|_| Broken::Source)?;
            let room = self.input.room(BUFFER);
            match stream::read(&client.stream, room, &client.deadline).await {
                Ok(0) | Err(_) => return Err(Broken::Source),
                Ok(n) => self.input.filled(n),
            }
            let taken = self.body.take(self.input.bytes()).map_err(|_| Broken::Malformed)?;
            let from = self.sent.len();
            // What is in `sent` is out of `input` before anything is awaited: this may end at any await.
            self.sent.extend_from_slice(&self.input.bytes()[..taken]);
            self.input.consume(taken);
            self.moved.set(self.moved.get() + taken as u64);
            if let Some(flow) = idle.flow {
                flow.passed();
            }
            self.repeatable = self.sent.len() - head <= MAX_REPEATABLE_BODY;
            let write = stream::write_all(to, &self.sent[from..], &client.deadline);
            write.await.map_err(|_| Broken::Sink)?;
        }
        let mut relay = Relay {
            worker: &client.worker,
            from: &client.stream,
            to,
            deadline: &client.deadline,
            idle,
            unchunk: false,
            moved: &self.moved,
        };
        relay.run(&mut self.body, self.input).await
    }
}
