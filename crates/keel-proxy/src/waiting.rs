//! Waiting for one of the connections that an endpoint may have, first come first served ([`keel_route::line`]).
//!
//! The one lock of the data plane that requests take: only where there is a bound, and to make or end a connection.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use keel_route::breaker::{Bound, Full, Pass};
use keel_route::line::{Line, Number};
use tokio::sync::Notify;

use crate::shared::EndpointShared;

/// Those who wait at one endpoint.
#[derive(Debug, Default)]
pub struct Waiting {
    line: Mutex<Line<Arc<Notify>>>,
    /// How many there may be, as last heard.
    most: AtomicUsize,
}

impl Waiting {
    fn line(&self) -> MutexGuard<'_, Line<Arc<Notify>>> {
        // Nothing in there can be half done.
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn free(endpoint: &EndpointShared) -> usize {
    let inside = usize::try_from(endpoint.connections.inside()).unwrap_or(usize::MAX);
    endpoint.waiting.most.load(SeqCst).saturating_sub(inside)
}

/// Tells those whose turn it is.
fn tell(endpoint: &EndpointShared) {
    endpoint.waiting.line().first(free(endpoint)).for_each(|waiter| waiter.notify_one());
}

/// A place among the connections to an endpoint; whose turn it is then hears when it is given back.
#[derive(Debug)]
pub struct Place {
    pass: Option<Pass>,
    endpoint: Option<Arc<EndpointShared>>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pass = None;
        if let Some(endpoint) = &self.endpoint {
            tell(endpoint);
        }
    }
}

/// Takes a place, of which there are `most`, unless others were here before; `ticket` says since when one waits.
///
/// # Errors
/// When there is none for this one.
pub fn enter(
    endpoint: &Arc<EndpointShared>,
    most: Option<u32>,
    ticket: Option<&Ticket>,
) -> Result<Place, Full> {
    let Some(limit) = most else {
        let pass = endpoint.connections.enter(None)?;
        return Ok(Place { pass: Some(pass), endpoint: None });
    };
    let waiting = &endpoint.waiting;
    waiting.most.store(usize::try_from(limit).unwrap_or(usize::MAX), SeqCst);
    // Under the lock, so that what is free is not given to two.
    let line = waiting.line();
    let number = ticket.filter(|t| Arc::ptr_eq(&t.endpoint, endpoint)).map(|t| t.number);
    if !line.is_turn_of(number, free(endpoint)) {
        return Err(Full { bound: Bound::Connections, limit });
    }
    let pass = endpoint.connections.enter(most)?;
    Ok(Place { pass: Some(pass), endpoint: Some(Arc::clone(endpoint)) })
}

/// A number in the line of an endpoint.
#[derive(Debug)]
pub struct Ticket {
    endpoint: Arc<EndpointShared>,
    number: Number,
    told: Arc<Notify>,
}

impl Ticket {
    /// The last one.
    pub fn of(endpoint: &Arc<EndpointShared>) -> Self {
        let told = Arc::<Notify>::default();
        let number = endpoint.waiting.line().join(Arc::clone(&told));
        Self { endpoint: Arc::clone(endpoint), number, told }
    }

    pub fn endpoint(&self) -> &Arc<EndpointShared> {
        &self.endpoint
    }

    /// Whether there is a place for this one.
    pub fn is_turn(&self) -> bool {
        self.endpoint.waiting.line().is_turn_of(Some(self.number), free(&self.endpoint))
    }

    /// Waits until there is.
    pub async fn turn(&self) {
        while !self.is_turn() {
            self.told.notified().await;
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.endpoint.waiting.line().leave(self.number);
        // The turn of the next may have come.
        tell(&self.endpoint);
    }
}
