//! The control plane of one machine: control loops, node agent, HTTP API, and the link to the proxy.
//!
//! [`run`] opens the state directory, takes over what an earlier server left running, and works until it is told to
//! end. Ending the server, in whatever way, ends no instance and not the proxy.
//!
//! Wake-ups carry nothing: the store and the board say *that* something changed, and each loop looks at the whole
//! world again.

pub mod api;

mod agent;
mod board;
mod changes;
mod clock;
mod controller;
mod detour;
mod error;
mod events;
mod http;
mod images;
mod issuance;
mod keys;
mod logs;
mod metrics;
mod names;
mod network;
mod preflight;
mod serve;
mod sockets;
#[cfg(test)]
mod tests;
mod traffic;
mod views;
mod volumes;
mod world;

pub use error::Error;
pub use serve::{ServerOptions, run, socket_path};
pub use traffic::certificate_flaw;
