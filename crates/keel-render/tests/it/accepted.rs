//! The real engines accept every configuration.
