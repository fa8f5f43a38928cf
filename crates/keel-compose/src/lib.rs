//! Compose files → canonical project → [`keel_model::Stack`].
//!
//! Follows the Compose Specification in compose-go's order of phases, down to what go-yaml makes of a scalar, and adds
//! what Docker does not give: every diagnostic has file, line and column, and services may be host processes.
//! The crate is pure: files come through [`FileSource`], the environment through [`LoadOptions`].
//!
//! Invariants: hostile input is an error and never a panic; nesting, expansion and file size are bounded; the result
//! depends on nothing but the arguments.

mod canonical;
mod consistency;
mod diagnostic;
mod discover;
mod dotenv;
mod interpolate;
mod keys;
mod labels;
mod load;
mod loader;
mod lower;
mod merge;
mod normalize;
mod number;
mod path;
mod print;
mod project;
mod reset;
mod resolve;
mod routes;
mod rule;
mod schema;
mod services;
mod shellwords;
mod short;
mod source;
mod template;
mod unique;
mod validate;
mod value;
mod xkeel;
mod yaml;

pub use diagnostic::{Code, Diagnostic, Severity, Span};
pub use discover::{FILE_NAMES, OVERRIDE_NAMES};
pub use keys::{KeyRow, NESTED_KEYS, SERVICE_KEYS, Support, TOP_KEYS, support_table_markdown};
pub use labels::{LABELS, LabelRow, label_table_markdown};
pub use load::{LoadOptions, load};
pub use lower::{CertificateUse, Lowered, WatchAction, WatchRule};
pub use project::Project;
pub use shellwords::split as split_words;
pub use source::{FileSource, MemorySource, PathKind, ReadError};
pub use template::Variable;
