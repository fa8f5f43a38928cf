//! How things look on a terminal: colour, tables, times, diagnostics and progress.
//!
//! Nothing here talks to the server. Data goes to standard output and talk to standard error; colour never carries
//! meaning alone.

pub mod diagnostic;
pub mod paint;
pub mod prefix;
pub mod progress;
pub mod quantity;
pub mod status;
pub mod table;
pub mod time;
