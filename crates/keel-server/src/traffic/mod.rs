//! What the proxy is told: the snapshot, and the link that carries it.

mod callers;
mod figures;
mod link;
mod snapshot;

pub use figures::Figures;
pub use link::{Link, ProxyState};
