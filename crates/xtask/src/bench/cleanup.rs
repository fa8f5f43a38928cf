//! What must not be left behind: done when its guard is dropped, and on Ctrl-C or SIGTERM as well.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::Error;

/// Told to end: what must be undone is being undone, by another thread.
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
/// Something that was begun at that very moment is announced within this time.
const MOMENT: Duration = Duration::from_millis(100);

type Action = Box<dyn FnOnce() + Send>;

/// Of the next action. Never used again: a guard must not find the action of another.
static NEXT: AtomicU64 = AtomicU64::new(0);
/// What is still to be done, in the order in which it was announced.
static ACTIONS: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());

/// Does its action once, at the latest when it is dropped.
#[derive(Debug)]
pub struct Cleanup(u64);

impl Cleanup {
    /// Announces `action`.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let mut actions = ACTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        actions.insert(number, Box::new(action));
        drop(actions);
        let cleanup = Self(number);
        if INTERRUPTED.load(Ordering::SeqCst) {
            drop(cleanup);
            loop {
                wait_if_interrupted();
            }
        }
        cleanup
    }

    /// It is not needed any more.
    pub fn cancel(self) {
        drop(self.take());
    }

    fn take(&self) -> Option<Action> {
        ACTIONS.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.0)
    }
}

impl Drop for Cleanup {
    fn drop(&mut self) {
        if let Some(action) = self.take() {
            action();
        }
    }
}

/// From now on, being told to end does what is announced, the latest first, and ends with code 130.
pub fn on_interrupt() -> Result<(), Error> {
    ctrlc::set_handler(|| {
        INTERRUPTED.store(true, Ordering::SeqCst);
        let next = || ACTIONS.lock().unwrap_or_else(PoisonError::into_inner).pop_last();
        while let Some((_, action)) = next() {
            action();
            if ACTIONS.lock().unwrap_or_else(PoisonError::into_inner).is_empty() {
                std::thread::sleep(MOMENT);
            }
        }
        std::process::exit(130);
    })?;
    Ok(())
}

/// Does not return once this process was told to end: it ends when everything is undone, not before.
pub fn wait_if_interrupted() {
    while INTERRUPTED.load(Ordering::SeqCst) {
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::{Cleanup, Ordering};

    #[test]
    fn an_action_is_done_once_when_its_guard_goes_and_never_once_cancelled() {
        let done = Arc::new(AtomicU32::new(0));
        let guards: Vec<_> = (0..3)
            .map(|_| {
                let done = Arc::clone(&done);
                Cleanup::new(move || {
                    done.fetch_add(1, Ordering::Relaxed);
                })
            })
            .collect();
        assert_eq!(done.load(Ordering::Relaxed), 0);
        let mut guards = guards.into_iter();
        guards.next().unwrap().cancel();
        drop(guards);
        assert_eq!(done.load(Ordering::Relaxed), 2);
    }
}
