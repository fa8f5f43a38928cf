//! What is done to the requests and answers of a route: decided here, carried out by the proxy.
//!
//! Filters act in the order of the fields of [`keel_model::Filters`]; one that answers ends the matter, and those after it
//! never see the request: headers that a route adds to answers are not on a 401 or 429. Answers of filters after
//! `cors` carry its fields, so that scripts can read why they were refused.
//!
//! The client's address is what the caller says it is; whom to believe about it is the proxy's business.

mod answer;
pub(crate) mod auth;
mod compress;
mod cors;
mod headers;
mod htpasswd;
pub(crate) mod rate;
pub(crate) mod redirect;
pub(crate) mod remembered;
mod rewrite;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use keel_model::Encoding;

pub use self::answer::Answer;
pub use self::auth::{AuthCheck, MAX_CHECKS, Verified};
pub use self::compress::{Coding, Compression, DROPPED, ResponseView, coding_name, weak_etag};
pub use self::headers::Edits;

use self::auth::{Auth, Entry};
use self::cors::{Cors, Told};
use self::rate::Limiter;
use self::redirect::Redirect;
use self::rewrite::Rewrite;
use crate::host;
use crate::memory::Memory;
use crate::path::Forms;
use crate::request::RequestView;
use crate::rule::canonical_net;

/// What becomes of a request.
#[derive(Debug)]
pub enum Decision {
    /// It goes to the service, with these changes.
    Pass(Pass),
    /// It is answered here. The rest of its body is of no interest.
    Answer(Answer),
    /// A password has to be checked first, on another thread; then the decision is asked for again with the result.
    Verify(AuthCheck),
}

/// A header field that is set in the place of all of its name, or without a value is taken out. The name is in lower case.
pub type FieldChange = (Cow<'static, str>, Option<String>);

/// What is changed on the way of one request, beside what the route changes for all of them
/// ([`crate::table::Route::request_edits`] and [`crate::table::Route::response_edits`], which come first).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pass {
    /// Path and query towards the service; `None`: as sent.
    pub target: Option<String>,
    /// Changes of the request's fields.
    pub request: Vec<FieldChange>,
    /// Changes of the answer's fields.
    pub response: Vec<FieldChange>,
    /// `Origin` belongs into the answer's `Vary`.
    pub vary_origin: bool,
    /// The coding that the client accepts best, for [`Compression::choose`]; `None` also if the route compresses nothing.
    pub accepted: Option<Encoding>,
}

/// The filters of a route.
#[derive(Debug, Default)]
pub(crate) struct Filters {
    allow: Vec<IpNet>,
    redirect: Option<Redirect>,
    cors: Option<Cors>,
    auth: Option<Auth>,
    limits: Vec<Arc<Limiter>>,
    pub max_body: Option<u64>,
    rewrite: Rewrite,
    pub host: Option<Box<str>>,
    pub request: Edits,
    pub response: Edits,
    pub compress: Option<Compression>,
    /// Nothing is decided per request.
    idle: bool,
}

impl Filters {
    /// The filters of the route `name`. Adds to `problems` what is wrong with them.
    pub fn new(
        declared: &keel_model::Filters,
        name: &str,
        memory: &Memory,
        problems: &mut Vec<String>,
    ) -> Self {
        let rewrite = declared.rewrite.clone().unwrap_or_default();
        if rewrite.host.as_deref().is_some_and(|host| host::usable(host).is_none()) {
            problems
                .push("rewrite: `host` must be the name of a host, with a port if need be".into());
        }
        let mut limits = Vec::new();
        for (at, limit) in declared.rate_limits.iter().enumerate() {
            rate::check(limit, problems);
            limits.push(memory.limiter(name, at, limit));
        }
        let mut filters = Self {
            allow: declared.allow.iter().copied().map(canonical_net).collect(),
            redirect: declared.redirect.as_ref().map(|redirect| Redirect::new(redirect, problems)),
            cors: declared.cors.as_ref().map(|cors| Cors::new(cors, problems)),
            auth: declared.basic_auth.as_ref().map(|auth| Auth::new(auth, memory.auth(), problems)),
            limits,
            max_body: declared.max_body,
            rewrite: Rewrite::new(&rewrite.path, problems),
            host: rewrite.host.as_deref().map(Box::from),
            request: Edits::new(&declared.request_headers, "request_headers", problems),
            response: Edits::new(&declared.response_headers, "response_headers", problems),
            compress: declared
                .compress
                .as_ref()
                .map(|compress| Compression::new(compress, problems)),
            idle: false,
        };
        filters.idle = filters.is_idle();
        filters
    }

    fn is_idle(&self) -> bool {
        let Self { allow, redirect, cors, auth, limits, max_body, rewrite, compress, .. } = self;
        let refuses =
            !allow.is_empty() || auth.is_some() || !limits.is_empty() || max_body.is_some();
        let changes = !rewrite.is_empty() || compress.is_some();
        !refuses && !changes && redirect.is_none() && cors.is_none()
    }

    /// Nothing is done to any request or answer.
    pub fn is_plain(&self) -> bool {
        self.idle && self.host.is_none() && self.request.is_empty() && self.response.is_empty()
    }

    pub fn allows(&self, client: IpAddr) -> bool {
        let client = client.to_canonical();
        self.allow.is_empty() || self.allow.iter().any(|net| net.contains(&client))
    }

    pub fn decide(
        &self,
        view: &RequestView<'_>,
        content_length: Option<u64>,
        now_ms: u64,
        verified: Option<&Verified>,
    ) -> Decision {
        let forms = Forms::of(view.path);
        if self.idle {
            return Decision::Pass(Pass { target: unchanged(view, &forms), ..Pass::default() });
        }
        if !self.allows(view.client) {
            return Decision::Answer(Answer::text(403, "This address may not come in here."));
        }
        if let Some(answer) = self.redirect.as_ref().and_then(|r| r.answer(view, &forms)) {
            return Decision::Answer(answer);
        }
        if let Some(answer) = self.cors.as_ref().and_then(|cors| cors.preflight(view)) {
            return Decision::Answer(answer);
        }
        let told = self.cors.as_ref().map(|cors| cors.told(view)).unwrap_or_default();
        let mut pass = Pass::default();
        if let Err(stop) = self.admit(view, content_length, now_ms, verified, &mut pass) {
            return match stop {
                Decision::Answer(answer) => Decision::Answer(readable(answer, told)),
                stop => stop,
            };
        }
        self.change(view, &forms, &mut pass);
        let fields = told.fields.into_iter().map(|(name, value)| (name.into(), value));
        Decision::Pass(Pass { response: fields.collect(), vary_origin: told.vary, ..pass })
    }

    /// Whether the request may go on, by password, rate and size.
    fn admit(
        &self,
        view: &RequestView<'_>,
        content_length: Option<u64>,
        now_ms: u64,
        verified: Option<&Verified>,
        pass: &mut Pass,
    ) -> Result<(), Decision> {
        if let Some(auth) = &self.auth {
            match auth.entry(view, now_ms, verified) {
                Entry::Granted { user, remove_header } => {
                    if remove_header {
                        pass.request.push(("authorization".into(), None));
                    }
                    let user = user.map(|(header, name)| (String::from(header).into(), Some(name)));
                    pass.request.extend(user);
                }
                Entry::Denied(answer) => return Err(Decision::Answer(answer)),
                Entry::Check(check) => return Err(Decision::Verify(check)),
            }
        }
        rate::take_all(&self.limits, view, now_ms).map_err(Decision::Answer)?;
        match (self.max_body, content_length) {
            (Some(most), Some(length)) if length > most => Err(Decision::Answer(too_large(most))),
            _ => Ok(()),
        }
    }

    fn change(&self, view: &RequestView<'_>, forms: &Forms<'_>, pass: &mut Pass) {
        pass.target = unchanged(view, forms);
        // `OPTIONS *` has no path.
        if !self.rewrite.is_empty() && forms.forwarded.starts_with('/') {
            let rewritten = self.rewrite.apply(forms);
            if let Some(prefix) = rewritten.stripped {
                pass.request.push(("x-forwarded-prefix".into(), Some(prefix)));
            }
            if rewritten.path != view.path {
                pass.target = Some(with_query(rewritten.path, view.query));
            }
        }
        pass.accepted = self.compress.as_ref().and_then(|compress| compress.accepted(view.headers));
    }
}

/// The answer to a request whose body is larger than `most` bytes, also for one that turns out so on the way.
#[must_use]
pub fn too_large(most: u64) -> Answer {
    Answer::text(413, &format!("The request may have at most {most} bytes."))
}

/// Path and query towards the service when no filter changes them; `None`: as sent.
fn unchanged(view: &RequestView<'_>, forms: &Forms<'_>) -> Option<String> {
    (forms.forwarded != view.path)
        .then(|| with_query(forms.forwarded.clone().into_owned(), view.query))
}

fn with_query(mut path: String, query: Option<&str>) -> String {
    if let Some(query) = query {
        path.push('?');
        path.push_str(query);
    }
    path
}

/// An answer with what lets scripts of other sites read it.
fn readable(mut answer: Answer, told: Told) -> Answer {
    for (name, value) in told.fields {
        if let Some(value) = value {
            answer = answer.with(name, value);
        }
    }
    if told.vary { answer.with("vary", "Origin") } else { answer }
}

#[cfg(test)]
mod tests;
