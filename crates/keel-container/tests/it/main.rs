//! What the crate does with a real engine and real registries, which the tests start and end themselves.
//!
//! Where that can't be done, a test says `skipped: no engine` and why, and passes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod builds;
mod images;
mod rig;
