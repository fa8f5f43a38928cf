//! HAProxy or nginx as the data plane: their programs, their configuration on disk, and the driver that keeps one of
//! them in step with the server.

mod files;
mod program;

pub use files::write;
pub use program::{Error, check, options, start_line};
