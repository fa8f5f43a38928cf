//! HTTP/2 as clients and endpoints see it, alone and across versions.

pub mod background;
pub mod client;
pub mod either;
mod endings;
pub mod endpoint;
mod failures;
mod flow;
pub mod heads;
mod retries;
mod upgrade;
mod versions;
pub mod websocket;
