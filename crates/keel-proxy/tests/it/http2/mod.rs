//! HTTP/2 as clients and endpoints see it, alone and across versions.

pub mod background;
pub mod client;
pub mod either;
pub mod endpoint;
mod failures;
mod endings;
mod flow;
mod heads;
mod upgrade;
mod versions;
mod websocket;
