//! What is the same about the engines.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use keel_render::Engine;
use keel_route::snapshot::{Lacking, Snapshot};

use crate::haproxy::Haproxy;
use crate::nginx::Nginx;
use crate::place::Place;
use crate::process::Process;
use crate::program::Error;

/// The engine that is driven.
#[derive(Debug)]
pub enum Driven {
    Haproxy(Haproxy),
    Nginx(Nginx),
}

impl Driven {
    /// What an earlier driver left running, if there is something.
    pub fn new(engine: Engine, place: Place) -> Self {
        match engine {
            Engine::Haproxy => Self::Haproxy(Haproxy::new(place)),
            Engine::Nginx => Self::Nginx(Nginx::new(place)),
        }
    }

    /// Brings it in step with `snapshot`.
    pub async fn apply(&mut self, snapshot: &Snapshot) -> Result<(), Error> {
        match self {
            Self::Haproxy(haproxy) => haproxy.apply(snapshot).await,
            Self::Nginx(nginx) => nginx.apply(snapshot).await,
        }
    }

    /// Addresses that are listened on.
    pub fn open(&self) -> &BTreeSet<SocketAddr> {
        match self {
            Self::Haproxy(haproxy) => haproxy.open(),
            Self::Nginx(nginx) => nginx.open(),
        }
    }

    /// What it can't do of what is wanted.
    pub fn lacks(&self) -> Vec<Lacking> {
        match self {
            Self::Haproxy(haproxy) => haproxy.lacks(),
            Self::Nginx(nginx) => nginx.lacks(),
        }
    }

    /// The process to be watched.
    pub fn process(&self) -> Option<&Process> {
        match self {
            Self::Haproxy(haproxy) => haproxy.process(),
            Self::Nginx(nginx) => nginx.process(),
        }
    }

    /// Nothing is served.
    pub fn is_gone(&self) -> bool {
        self.process().is_none_or(Process::has_ended)
    }

    /// Its process has ended: clears away what is left of it.
    pub async fn forget(&mut self) {
        match self {
            Self::Haproxy(haproxy) => haproxy.ended().await,
            Self::Nginx(nginx) => nginx.ended().await,
        }
    }

    /// No other one can be started.
    pub fn give_up(&mut self) {
        match self {
            Self::Haproxy(haproxy) => haproxy.give_up(),
            // It has its sockets for itself.
            Self::Nginx(_) => {}
        }
    }

    /// Tells it to end when all connections have.
    pub fn stop(&mut self) {
        match self {
            Self::Haproxy(haproxy) => haproxy.stop(),
            Self::Nginx(nginx) => nginx.stop(),
        }
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        match self {
            Self::Haproxy(haproxy) => haproxy.kill(),
            Self::Nginx(nginx) => nginx.kill(),
        }
    }
}

/// Waits for the end of the engine; for ever without one.
pub async fn ended(driven: &Driven) {
    match driven.process() {
        Some(process) => process.ended().await,
        None => std::future::pending().await,
    }
}
