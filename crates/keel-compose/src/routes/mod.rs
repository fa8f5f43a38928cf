//! Routes on their way from a file to a [`keel_model::Route`].
//!
//! A [`Draft`] is what one entry of `x-keel.routes` or one router of labels says, with the places of what can only be
//! checked later: names of services, entrypoints and secrets, ports, files.

use std::path::PathBuf;
use std::time::Duration;

use keel_model::{BasicAuth, Filters, RouteKind, RouteTls, Rule, Split};

use crate::diagnostic::Span;

pub(crate) mod credentials;
pub(crate) mod forms;

/// Most routes of one service.
pub(crate) const MAX_ROUTES: usize = 1000;

/// A value and where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Located<T> {
    pub value: T,
    pub span: Span,
}

impl<T> Located<T> {
    pub fn new(value: T, span: &Span) -> Self {
        Self { value, span: span.clone() }
    }
}

/// A route as far as its own description says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Draft {
    /// Where it is described.
    pub span: Span,
    pub name: Option<Located<String>>,
    pub entrypoints: Vec<Located<String>>,
    pub rule: Rule,
    pub priority: Option<i64>,
    pub kind: RouteKind,
    pub port: Option<Located<u16>>,
    pub split: Vec<Located<Split>>,
    pub tls: Option<Located<RouteTls>>,
    pub filters: Filters,
    pub auth: Option<AuthDraft>,
    pub timeout: Option<Duration>,
}

impl Draft {
    pub fn new(span: &Span) -> Self {
        Self {
            span: span.clone(),
            name: None,
            entrypoints: Vec::new(),
            rule: Rule::default(),
            priority: None,
            kind: RouteKind::Http,
            port: None,
            split: Vec::new(),
            tls: None,
            filters: Filters::default(),
            auth: None,
            timeout: None,
        }
    }

    /// Connections know no status: who is not allowed is not served by the rule itself.
    pub fn allow_by_rule(&mut self) {
        if self.kind == RouteKind::Http || self.filters.allow.is_empty() {
            return;
        }
        let allowed = std::mem::take(&mut self.filters.allow);
        let clients = allowed.into_iter().map(Rule::Client).collect();
        let rule = std::mem::take(&mut self.rule);
        self.rule =
            crate::rule::joined(vec![rule, crate::rule::joined(clients, Rule::Any)], Rule::All);
    }
}

/// Names and passwords, and where more of them are kept.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct AuthDraft {
    /// Where it is described.
    pub span: Span,
    /// With the users that stand in the Compose file.
    pub auth: BasicAuth,
    /// An htpasswd file.
    pub file: Option<Located<PathBuf>>,
    /// A top-level secret that holds one.
    pub secret: Option<Located<String>>,
}

impl std::fmt::Debug for AuthDraft {
    /// As [`BasicAuth`]: without the hashes.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthDraft").field("auth", &self.auth).finish_non_exhaustive()
    }
}
