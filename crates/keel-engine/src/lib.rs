//! HAProxy or nginx as the data plane: their programs, their configuration on disk, and the driver that keeps one of
//! them in step with the server.

mod control;
mod driver;
mod files;
mod haproxy;
mod limits;
mod listeners;
mod nginx;
mod place;
mod process;
mod program;

pub use driver::{DriverOptions, run};
pub use files::write;
pub use program::{Error, check, options, start_line};
