//! What the proxy is told: the snapshot, and the link that carries it.

mod callers;
mod credentials;
mod figures;
mod files;
mod kept;
mod lacks;
mod link;
mod notices;
mod snapshot;
mod tables;
#[cfg(test)]
mod tests;
mod told;

pub use credentials::Credentials;
pub use figures::Figures;
pub use files::{CertificateFiles, certificate_flaw};
pub use lacks::of_stack as lacks_of_stack;
pub use link::{Link, ProxyState};
pub use notices::LeftOut;
pub use snapshot::{is_served, tcp_ports};
pub use tables::default_priority;
pub use told::Told;
