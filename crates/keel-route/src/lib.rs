//! Traffic decisions, without sockets.
//!
//! What is known about services and endpoints ([`snapshot`]) and how it travels ([`codec`]); which endpoint
//! takes a request ([`balance`], by [`ewma`] latency, with a [`slow_start`]); which one is left out for a while
//! ([`eject`], [`outlier`], [`active_check`]); what may be tried again ([`retry`]); what is refused ([`breaker`],
//! [`concurrency`], [`shed`]) and until when ([`retry_after`]); and what a client speaks ([`detect`]). Time and
//! randomness are handed in.

pub mod active_check;
pub mod balance;
pub mod breaker;
pub mod codec;
pub mod concurrency;
pub mod detect;
pub mod eject;
pub mod ewma;
pub mod histogram;
pub mod outlier;
pub mod retry;
pub mod retry_after;
pub mod shed;
pub mod slow_start;
pub mod snapshot;
