//! What the crate does with real engines and registries, which the tests start and end themselves.
//!
//! Where that can't be done, a test says `skipped: no engine` and why, and passes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod buildkit;
mod builds;
mod conformance;
mod engine;
mod images;
mod manifests;
mod rig;
