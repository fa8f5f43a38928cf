//! The proxy as a process, between scripted clients and endpoints on the loopback interface.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod access;
mod attacks;
mod backend;
mod callers;
mod client;
mod control;
mod forwarded;
mod frames;
mod hostile;
mod http;
mod http2;
mod lossless;
mod lossless_streams;
mod official;
mod placement;
mod policies;
mod proxy;
mod recorder;
mod rivals;
mod routes;
mod secure;
mod smuggling;
mod takeover;
mod takeover_faults;
mod tcp;

/// Not a test: the process that the tests start (see [`proxy::Proxy`]).
#[test]
#[ignore = "is started by the tests as a process of its own"]
fn proxy_process() {
    proxy::run_as_told();
}

/// Not a test: a caller in a cgroup of its own.
#[test]
#[ignore = "is started by a test as a process of its own"]
fn caller_process() {
    callers::call_as_told();
}

/// Not a test: a proxy that fails when another one takes its place.
#[test]
#[ignore = "is started by a test as a process of its own"]
fn elder_process() {
    takeover_faults::fail_as_told();
}
