//! Tasks that serve requests of HTTP/2, one after the other.
//!
//! What serves a request is some kilobytes large. Made anew for each it would cost as much as the rest of the work, so
//! a task that has served one rests until the next comes. Those that were not needed for a while are let go.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::Request;

use crate::bridge;
use crate::deadline::Deadline;
use crate::http1::Next;
use crate::http2::{GivenUp, Open};
use crate::limits::{H2_SOON, MAX_RESTING};
use crate::session::Session;

/// A request to be served.
#[derive(Debug)]
pub struct Job {
    pub session: Rc<Session>,
    pub request: Request<RecvStream>,
    pub respond: SendResponse<Bytes>,
    pub open: Open,
    pub given_up: Rc<GivenUp>,
}

impl Job {
    async fn run(self, deadline: &Deadline) {
        let Self { session, request, respond, open, given_up } = self;
        let begun_ms = session.worker.deadlines.now_ms();
        let next = bridge::serve_http2(&session, request, respond, deadline).await;
        let now_ms = session.worker.deadlines.now_ms();
        if next == Next::Reset && u128::from(now_ms - begun_ms) < H2_SOON.as_millis() {
            given_up.add(now_ms);
        }
        drop(open);
    }
}

/// The tasks of a worker that rest.
#[derive(Debug, Default)]
pub struct Runners {
    resting: RefCell<Vec<Rc<Resting>>>,
    /// How many have rested all the time since the last tick.
    spare: Cell<usize>,
}

/// A task that rests.
#[derive(Debug, Default)]
struct Resting {
    job: RefCell<Option<Job>>,
    /// It is not needed any more.
    dismissed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Resting {
    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Waits for a request; `None` if no more come.
    async fn job(&self) -> Option<Job> {
        poll_fn(|cx| {
            let job = self.job.take();
            if job.is_some() || self.dismissed.get() {
                return Poll::Ready(job);
            }
            let mut waker = self.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Runners {
    /// Has a request served.
    pub fn run(&self, job: Job) {
        let mut all = self.resting.borrow_mut();
        match all.pop() {
            Some(resting) => {
                self.spare.set(self.spare.get().min(all.len()));
                resting.job.replace(Some(job));
                resting.wake();
            }
            None => drop(tokio::task::spawn_local(run(job))),
        }
    }

    /// Lets half of those go that were not needed since the last time.
    pub fn tick(&self) {
        let mut all = self.resting.borrow_mut();
        let unneeded = self.spare.get().min(all.len()).div_ceil(2);
        // The first have rested longest.
        for resting in all.drain(..unneeded) {
            resting.dismissed.set(true);
            resting.wake();
        }
        self.spare.set(all.len());
    }

    /// Whether a task is to rest.
    fn rest(&self, resting: &Rc<Resting>) -> bool {
        let mut all = self.resting.borrow_mut();
        let room = all.len() < MAX_RESTING;
        if room {
            all.push(Rc::clone(resting));
        }
        room
    }
}

async fn run(first: Job) {
    let worker = Rc::clone(&first.session.worker);
    let deadline = Deadline::new(&worker.deadlines);
    let resting = Rc::<Resting>::default();
    let mut job = first;
    loop {
        job.run(&deadline).await;
        deadline.unset();
        if !worker.runners.rest(&resting) {
            return;
        }
        let Some(next) = resting.job().await else { return };
        job = next;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_are_not_needed_are_let_go() {
        let runners = Runners::default();
        let all: Vec<_> = (0..MAX_RESTING).map(|_| Rc::<Resting>::default()).collect();
        assert!(all.iter().all(|resting| runners.rest(resting)));
        assert!(!runners.rest(&Rc::default()), "there are as many as there may be");
        let dismissed = || all.iter().filter(|resting| resting.dismissed.get()).count();
        // Nobody has rested since the last tick.
        runners.tick();
        assert_eq!(dismissed(), 0);
        runners.tick();
        assert_eq!(dismissed(), MAX_RESTING / 2);
        assert!(all[0].dismissed.get(), "it has rested longest");
        for _ in 0..20 {
            runners.tick();
        }
        assert_eq!(dismissed(), MAX_RESTING);
        assert!(runners.resting.borrow().is_empty());
    }
}
