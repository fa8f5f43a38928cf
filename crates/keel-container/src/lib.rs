//! Containers of an engine that speaks the Docker Engine API: Docker itself, or Podman's API service.
//!
//! The engine is found when it is first needed ([`Engine`]), and may go away and come back at any time.

mod answer;
pub mod archive;
pub mod attach;
pub mod compose;
pub mod copy;
mod engine;
mod error;
pub mod external;
pub mod images;
pub mod inside;
mod place;
pub mod ports;
mod runtime;
pub mod terminal;
#[cfg(feature = "testing")]
pub mod testing;
mod upgrade;

pub use engine::{Engine, EngineInfo, Kind};
pub use error::Error;
pub use place::{Place, Surroundings, Tls};
pub use runtime::ContainerRuntime;
