//! The HTTP API of the server, and a client for it.

pub mod adopt;
pub mod client;
pub mod images;
pub mod once;
pub mod types;
pub mod usage;
