//! YAML in and out: text → spanned tree as go-yaml would decode it, and canonical values → text as go-yaml prints.

mod emit;
mod parse;
mod scalar;

pub(crate) use emit::emit;
pub(crate) use parse::{Limits, parse};
