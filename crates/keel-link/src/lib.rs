//! The link between the server and a proxy, whoever handles the traffic: our own data plane or an engine.
//!
//! Who may serve a control socket ([`lock`], [`Unpublished`], [`ControlSocket`]), who serves it now ([`incumbent`]), how
//! its place is taken ([`handover`], [`Elder`]), and the last state in a file ([`load`], [`save`]). The frames are
//! `keel_route`'s.

pub mod descriptors;
mod elder;
pub mod handover;
mod incumbent;
mod socket;
mod state;

pub use elder::Elder;
pub use incumbent::{Incumbent, connect, incumbent};
pub use socket::{ControlSocket, Lock, Unpublished, lock};
pub use state::{load, save, to_json};

use std::time::Duration;

/// A proxy waits this long for another one to give up the control socket.
pub const LOCK_PATIENCE: Duration = Duration::from_secs(1);
/// So long when it has told it to.
pub const SUCCESSION_PATIENCE: Duration = Duration::from_secs(5);
