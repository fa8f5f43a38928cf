//! Traffic decisions, without sockets.
//!
//! What is known about services and endpoints ([`snapshot`]) and how it travels ([`codec`], in [`part`]s). What a client speaks
//! ([`detect`]) and on whose behalf ([`proxy_protocol`]); which route wants a request ([`table`]), as what it is seen
//! ([`request`], [`path`]), and what is done to it there ([`filter`]). Which endpoint takes it ([`balance`], by [`ewma`]
//! latency, with a [`slow_start`], or by [`client_key`]); which one is left out for a while ([`eject`], [`outlier`],
//! [`active_check`]); what may be tried again ([`retry`]); what is refused ([`breaker`], [`concurrency`], [`shed`]) and
//! until when ([`retry_after`]). Time and randomness are handed in.

pub mod access_log;
pub mod active_check;
pub mod balance;
pub mod breaker;
pub mod client_key;
pub mod codec;
pub mod concurrency;
pub mod detect;
pub mod edges;
pub mod eject;
pub mod ewma;
pub mod filter;
pub mod histogram;
mod host;
pub mod line;
pub mod memory;
pub mod outlier;
pub mod part;
pub mod path;
mod pattern;
pub mod proxy_protocol;
pub mod request;
pub mod retry;
pub mod retry_after;
mod rule;
pub mod rule_text;
pub mod shed;
pub mod slow_start;
pub mod snapshot;
pub mod sticky;
pub mod table;
pub mod validate;
