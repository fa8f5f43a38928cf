//! Traffic decisions, without sockets: what is known about services and endpoints ([`snapshot`]).
pub mod snapshot;
