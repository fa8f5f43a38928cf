//! Runs instances.
