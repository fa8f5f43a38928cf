//! Configurations put to the test: the real engines accept them, and serve what the routes say.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod accepted;
mod cases;
mod echo;
mod engine;
mod make;
mod policies;
mod protocols;
mod readings;
mod reported;
mod secured;
mod served;
mod tls;
mod traffic;
