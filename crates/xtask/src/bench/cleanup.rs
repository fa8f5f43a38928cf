//! What must not be left behind: done when its guard is dropped, and on Ctrl-C or SIGTERM as well.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use super::Error;

type Action = Box<dyn FnOnce() + Send>;

/// What is still to be done, in the order in which it was announced.
static ACTIONS: Mutex<BTreeMap<u64, Action>> = Mutex::new(BTreeMap::new());

/// Does its action once, at the latest when it is dropped.
#[derive(Debug)]
pub struct Cleanup(u64);

impl Cleanup {
    /// Announces `action`.
    pub fn new(action: impl FnOnce() + Send + 'static) -> Self {
        let mut actions = ACTIONS.lock().unwrap_or_else(PoisonError::into_inner);
        // Numbers only grow while anything is announced, so that the latest is undone first.
        let number = actions.last_key_value().map_or(0, |(last, _)| last + 1);
        actions.insert(number, Box::new(action));
        Self(number)
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
        loop {
            let last = ACTIONS.lock().unwrap_or_else(PoisonError::into_inner).pop_last();
            match last {
                Some((_, action)) => action(),
                None => std::process::exit(130),
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::Cleanup;

    #[test]
    fn an_action_is_done_once_when_its_guard_goes() {
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
        drop(guards);
        assert_eq!(done.load(Ordering::Relaxed), 3);
    }
}
