//! The driver as a process with the real engines, between a scripted server, clients under load and endpoints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod changes;
mod driver;
mod endpoint;
mod failures;
mod load;

/// Not a test: the process that the tests start (see [`driver::Driver`]).
#[test]
#[ignore = "is started by the tests as a process of its own"]
fn driver_process() {
    driver::run_as_told();
}
