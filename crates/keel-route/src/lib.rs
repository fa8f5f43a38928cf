//! Traffic decisions, without sockets.
//!
//! What is known about services and endpoints ([`snapshot`]) and how it travels ([`codec`]); which endpoint
//! takes a request ([`balance`]), which one is left out for a while ([`eject`]), what may be tried again
//! ([`retry`]) and what a client speaks ([`detect`]). Time and randomness are handed in.

pub mod access_log;
pub mod balance;
pub mod codec;
pub mod detect;
pub mod edges;
pub mod eject;
pub mod histogram;
pub mod retry;
pub mod snapshot;
