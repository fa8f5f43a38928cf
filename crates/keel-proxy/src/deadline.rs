//! Timeouts that cost a store each, not a timer.
//!
//! A connection moves its deadlines several times per request and almost never reaches one. So a deadline is a
//! cell that the worker looks at on every tick ([`Deadlines::tick`]); whoever waits is woken when it has
//! passed. Precision is one [`crate::limits::TICK`], always late, never early.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use slab::Slab;

use crate::limits::TICK;

const NEVER: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    at_ms: Cell<u64>,
    idle: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// The deadlines of one worker.
#[derive(Debug, Default)]
pub struct Deadlines {
    now_ms: Cell<u64>,
    /// No idle wait ends later than this once set.
    idle_until_ms: Cell<Option<u64>>,
    slots: RefCell<Slab<Rc<Slot>>>,
}

impl Deadlines {
    /// The time of the last tick, in milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.now_ms.get()
    }

    /// Moves time on and wakes those whose deadline has passed.
    pub fn tick(&self, now_ms: u64) {
        self.now_ms.set(now_ms);
        for (_, slot) in self.slots.borrow().iter() {
            self.wake_if_passed(slot);
        }
    }

    /// From now on nobody waits idle for longer than `time`.
    pub fn shorten_idle(&self, time: Duration) {
        let until = self.now_ms.get().saturating_add(whole_ms(time));
        self.idle_until_ms.set(Some(until));
        for (_, slot) in self.slots.borrow().iter() {
            if slot.idle.get() && slot.at_ms.get() > until {
                slot.at_ms.set(until);
            }
        }
    }

    fn wake_if_passed(&self, slot: &Slot) {
        if slot.at_ms.get() <= self.now_ms.get()
            && let Some(waker) = slot.waker.borrow_mut().take()
        {
            waker.wake();
        }
    }
}

/// Counts what passes between two sides, either way: a side that says nothing is not idle while the other one speaks.
#[derive(Debug, Default)]
pub struct Flow(Cell<u64>);

impl Flow {
    /// Something has passed.
    pub fn passed(&self) {
        self.0.set(self.0.get().wrapping_add(1));
    }
}

/// For how long a side may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Idle<'a> {
    pub time: Duration,
    /// What is no silence either, if there are two sides that speak at a time.
    pub flow: Option<&'a Flow>,
}

/// One deadline; at most one task waits on it.
#[derive(Debug)]
pub struct Deadline {
    owner: Rc<Deadlines>,
    key: usize,
    slot: Rc<Slot>,
    bounded: bool,
}

impl Deadline {
    /// A deadline that never passes, whatever it is set to.
    pub fn never(owner: &Rc<Deadlines>) -> Self {
        let mut deadline = Self::new(owner);
        deadline.bounded = false;
        deadline
    }

    /// A deadline that is not set.
    pub fn new(owner: &Rc<Deadlines>) -> Self {
        let slot = Rc::new(Slot {
            at_ms: Cell::new(NEVER),
            idle: Cell::new(false),
            waker: RefCell::new(None),
        });
        let key = owner.slots.borrow_mut().insert(Rc::clone(&slot));
        Self { owner: Rc::clone(owner), key, slot, bounded: true }
    }

    /// Lets it pass after `time`.
    pub fn set(&self, time: Duration) {
        // The clock may stand up to one tick behind.
        let at = self.owner.now_ms.get().saturating_add(whole_ms(time + TICK));
        self.slot.at_ms.set(if self.bounded { at } else { NEVER });
        self.slot.idle.set(false);
    }

    /// Lets it never pass, until it is set again.
    pub fn unset(&self) {
        self.slot.at_ms.set(NEVER);
        self.slot.idle.set(false);
    }

    /// As [`Deadline::set`], for a wait in which nothing is lost if the proxy ends.
    pub fn set_idle(&self, time: Duration) {
        self.set(time);
        self.slot.idle.set(true);
        if let Some(until) = self.owner.idle_until_ms.get() {
            self.slot.at_ms.set(self.slot.at_ms.get().min(until));
        }
    }

    /// Waits for `poll`, at most until the deadline.
    ///
    /// # Errors
    /// Those of `poll`, and `TimedOut`.
    pub async fn until<T>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        poll_fn(|cx| {
            if let Poll::Ready(result) = poll(cx) {
                return Poll::Ready(result);
            }
            if self.slot.at_ms.get() <= self.owner.now_ms.get() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            let mut waker = self.slot.waker.borrow_mut();
            if !waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
                *waker = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Deadline {
    /// As [`Deadline::until`], for as long as something passes either way within the time of `idle`. Up to twice that
    /// time passes before silence is noticed.
    ///
    /// # Errors
    /// Those of `poll`, and `TimedOut`.
    pub async fn until_idle<T>(
        &self,
        idle: Idle<'_>,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> io::Result<T> {
        let passed = || idle.flow.map_or(0, |flow| flow.0.get());
        loop {
            let before = passed();
            self.set(idle.time);
            match self.until(&mut poll).await {
                Err(e) if e.kind() == io::ErrorKind::TimedOut && passed() != before => {}
                done => return done,
            }
        }
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        self.owner.slots.borrow_mut().remove(self.key);
    }
}

fn whole_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn passed(deadline: &Deadline) -> bool {
        let never = |_: &mut Context<'_>| Poll::<io::Result<()>>::Pending;
        let mut wait = Box::pin(deadline.until(never));
        poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_ready())).await
    }

    #[tokio::test]
    async fn passes_late_never_early_and_leaves_nothing_behind() {
        let deadlines = Rc::new(Deadlines::default());
        let deadline = Deadline::new(&deadlines);
        assert!(!passed(&deadline).await);
        deadline.set(Duration::from_secs(1));
        deadlines.tick(1_000);
        assert!(!passed(&deadline).await);
        deadlines.tick(1_250);
        assert!(passed(&deadline).await);
        drop(deadline);
        assert!(deadlines.slots.borrow().is_empty());
    }

    #[tokio::test]
    async fn silence_is_what_both_sides_keep() {
        let deadlines = Rc::new(Deadlines::default());
        let (deadline, flow) = (Deadline::new(&deadlines), Flow::default());
        let idle = Idle { time: Duration::from_secs(1), flow: Some(&flow) };
        let never = |_: &mut Context<'_>| Poll::<io::Result<()>>::Pending;
        let mut wait = Box::pin(deadline.until_idle(idle, never));
        let mut ended = async || poll_fn(|cx| Poll::Ready(wait.as_mut().poll(cx).is_ready())).await;
        for second in 0..10 {
            deadlines.tick(second * 1_250);
            assert!(!ended().await);
            flow.passed();
        }
        deadlines.tick(20_000);
        assert!(!ended().await, "it passed since the last look");
        deadlines.tick(21_250);
        assert!(ended().await);
    }

    #[tokio::test]
    async fn only_idle_waits_are_shortened() {
        let deadlines = Rc::new(Deadlines::default());
        let (idle, busy) = (Deadline::new(&deadlines), Deadline::new(&deadlines));
        idle.set_idle(Duration::from_secs(60));
        busy.set(Duration::from_secs(60));
        deadlines.shorten_idle(Duration::from_secs(1));
        deadlines.tick(2_000);
        assert!(passed(&idle).await);
        assert!(!passed(&busy).await);
    }
}
