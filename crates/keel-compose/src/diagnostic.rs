//! What the loader tells its user: errors, warnings and notes, each with a place and a remedy.
//!
//! A [`Diagnostic`] is data; how it looks on a terminal is decided by whoever shows it. Every diagnostic about
//! the content of a file carries the file, line and column.

use std::fmt;
use std::sync::Arc;

/// A position in a file. Lines and columns count from 1; columns count characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// The file as the user would name it.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl Span {
    /// The first character of a file.
    #[must_use]
    pub fn start_of(file: &str) -> Self {
        Self { file: Arc::from(file), line: 1, column: 1 }
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// How much a diagnostic matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The file cannot be used.
    Error,
    /// The file can be used, but something in it has no effect or is about to be refused.
    Warning,
    /// The file means something that its author may not expect.
    Note,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

/// The kind of a diagnostic, stable for scripts and documentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// Not YAML, or YAML of a form that Compose files cannot have.
    Syntax,
    /// Too large, too deep, or aliases that expand without bound.
    Budget,
    /// A key that does not exist.
    UnknownKey,
    /// A value of the wrong type or form.
    InvalidValue,
    /// A required key is absent.
    MissingKey,
    /// `${…}` that is malformed or whose variable is required and absent.
    Interpolation,
    /// Two definitions contradict each other.
    Conflict,
    /// A name that refers to nothing.
    UndefinedReference,
    /// A circle of `depends_on`, `extends` or `include`.
    Cycle,
    /// A file that cannot be read.
    File,
    /// Nothing to load, or no usable project name.
    Project,
    /// A feature that this platform refuses, or accepts without effect.
    Unsupported,
    /// An old spelling that still works.
    Deprecated,
}

impl Code {
    /// The code as text, in kebab case.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Budget => "budget",
            Self::UnknownKey => "unknown-key",
            Self::InvalidValue => "invalid-value",
            Self::MissingKey => "missing-key",
            Self::Interpolation => "interpolation",
            Self::Conflict => "conflict",
            Self::UndefinedReference => "undefined-reference",
            Self::Cycle => "cycle",
            Self::File => "file",
            Self::Project => "project",
            Self::Unsupported => "unsupported",
            Self::Deprecated => "deprecated",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing to tell the user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How much it matters.
    pub severity: Severity,
    /// What kind it is.
    pub code: Code,
    /// What happened.
    pub message: String,
    /// Where; absent only when no file is concerned.
    pub span: Option<Span>,
    /// What to do about it.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error without a place yet.
    #[must_use]
    pub fn error(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), span: None, help: None }
    }

    /// A warning without a place yet.
    #[must_use]
    pub fn warning(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, message) }
    }

    /// A note without a place yet.
    #[must_use]
    pub fn note(code: Code, message: impl Into<String>) -> Self {
        Self { severity: Severity::Note, ..Self::error(code, message) }
    }

    /// Adds the place.
    #[must_use]
    pub fn at(mut self, span: &Span) -> Self {
        self.span = Some(span.clone());
        self
    }

    /// Adds what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(span) = &self.span {
            write!(f, "{span}: ")?;
        }
        write!(f, "{}: {}", self.severity, self.message)?;
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// The result of a phase: a value, or everything that is wrong.
pub(crate) type Outcome<T> = Result<T, Vec<Diagnostic>>;

/// A failed phase with one diagnostic.
pub(crate) fn fail<T>(diagnostic: Diagnostic) -> Outcome<T> {
    Err(vec![diagnostic])
}

/// The candidate that `word` was most probably meant to be.
///
/// Damerau-Levenshtein distance, at most a third of the longer word, so that `helthcheck` finds `healthcheck`
/// and `foo` finds nothing.
pub(crate) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let lower = word.to_lowercase();
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, candidate), candidate))
        .filter(|(distance, candidate)| {
            *distance <= (candidate.chars().count().max(lower.chars().count()) / 3).max(1)
        })
        .min_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.cmp(b.1)))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nearest_finds_typing_errors_and_nothing_else() {
        let keys = ["healthcheck", "image", "ports", "hostname"];
        assert_eq!(nearest("helthcheck", keys), Some("healthcheck"));
        assert_eq!(nearest("Port", keys), Some("ports"));
        assert_eq!(nearest("zzz", keys), None);
    }
}
