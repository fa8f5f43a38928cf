//! What the proxy is told: the snapshot, and the link that carries it.

mod link;
mod snapshot;

pub use link::{Link, ProxyState};
