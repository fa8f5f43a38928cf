//! The control plane of one machine: control loops, node agent and HTTP API.

pub mod api;
