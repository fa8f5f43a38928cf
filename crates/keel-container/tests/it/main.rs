//! The container runtime on real engines. Where none can be started, tests say `skipped: no engine` and why.

#![allow(clippy::unwrap_used, reason = "tests")]

mod conformance;
mod engine;
mod engines;
