//! Traffic decisions, without sockets.
//!
//! What is known about services and endpoints ([`snapshot`]) and how it travels ([`codec`]); which endpoint
//! takes a request ([`balance`]), which one is left out for a while ([`eject`]), what may be tried again
//! ([`retry`]), what a client speaks ([`detect`]) and on whose behalf ([`proxy_protocol`]). Which route wants a request ([`table`]), as what it is seen
//! ([`request`], [`path`]), and what is done to it there ([`filter`]). Time and randomness are handed in.

pub mod balance;
pub mod client_key;
pub mod codec;
pub mod detect;
pub mod eject;
pub mod filter;
pub mod histogram;
mod host;
pub mod memory;
pub mod path;
mod pattern;
pub mod request;
pub mod proxy_protocol;
pub mod retry;
mod rule;
pub mod rule_text;
pub mod snapshot;
pub mod sticky;
pub mod table;
pub mod validate;
