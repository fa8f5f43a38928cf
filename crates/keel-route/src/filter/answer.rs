//! Answers that the proxy gives by itself.

/// An answer of the proxy itself. Its length, `Date` and what becomes of the connection are the proxy's affair, as is
/// that the answer to a `HEAD` request has no body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Header fields, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Text (`text/plain`), or nothing.
    pub body: String,
}

impl Answer {
    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: String::new() }
    }

    pub(crate) fn text(status: u16, text: &str) -> Self {
        let answer = Self { body: format!("{text}\n"), ..Self::empty(status) };
        answer.with("content-type", "text/plain; charset=utf-8")
    }

    pub(crate) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}
