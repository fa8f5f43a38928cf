//! Middlewares: what each does to requests and answers, and how several of them come together in one route.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use keel_model::{
    BasicAuth, ClientKey, Compress, Cors, HeaderEdits, PathRewrite, RateLimit, Redirect, Rewrite,
};

use super::entry::Entry;
use super::{Labels, Named, Section};
use crate::diagnostic::{Code, Diagnostic, Span};
use crate::number::parse_duration;
use crate::routes::{AuthDraft, Draft, Located, credentials, forms};
use crate::rule::parse_network;
use crate::value::Node;

/// Chains inside each other.
const MAX_CHAIN_DEPTH: usize = 8;

/// What one middleware does.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Path(PathRewrite),
    Redirect(Redirect),
    Headers {
        request: HeaderEdits,
        response: HeaderEdits,
        cors: Option<Cors>,
    },
    Auth(AuthDraft),
    Rate(RateLimit),
    Allow(Vec<IpNet>),
    Compress(Compress),
    MaxBody(u64),
    Retry(u32),
    Chain(Vec<Node>),
    /// It asks for nothing that is to be done here.
    Nothing,
    /// It can't be read, and belongs to a service that does not run: whoever uses it is told.
    Broken(Vec<Diagnostic>),
}

/// One middleware of a project.
#[derive(Debug)]
pub(super) struct Middleware {
    step: Step,
    /// A router or another middleware names it.
    named: Cell<bool>,
    /// Where it is defined, unless by a service that does not run.
    place: Option<Span>,
}

/// The middlewares of a project by name.
pub(super) type Middlewares = BTreeMap<String, Middleware>;

impl Labels<'_> {
    pub(super) fn middlewares(
        &mut self,
        section: Section<'_>,
        active: &BTreeSet<&str>,
    ) -> Middlewares {
        let mut middlewares = Middlewares::new();
        for (name, named) in section {
            let mistakes = self.reader.errors.len();
            let mut step = self.middleware(&name, &named).unwrap_or(Step::Nothing);
            if !active.contains(named.owner) {
                let errors = self.reader.errors.split_off(mistakes);
                if !errors.is_empty() {
                    step = Step::Broken(errors);
                }
            }
            let place = named.entries.first().filter(|_| active.contains(named.owner));
            let place = place.map(|entry| entry.key_place.clone());
            middlewares.insert(name, Middleware { step, named: Cell::new(false), place });
        }
        middlewares
    }

    /// A router of a service that does not run names these.
    pub(super) fn named_elsewhere(names: &[Node], known: &Middlewares) {
        for name in names.iter().filter_map(Node::as_str) {
            let name = name.split('@').next().unwrap_or_default();
            if let Some(middleware) = known.get(name) {
                middleware.named.set(true);
            }
        }
    }

    /// Tells of middlewares that no router comes to.
    pub(super) fn unnamed(&mut self, middlewares: &Middlewares) {
        for (name, middleware) in middlewares {
            if let (false, Some(place)) = (middleware.named.get(), &middleware.place) {
                let message = format!("the middleware `{name}` has no effect: no router names it");
                self.notes.push(Diagnostic::warning(Code::Unsupported, message).at(place));
            }
        }
    }

    fn middleware(&mut self, name: &str, named: &Named<'_>) -> Option<Step> {
        let kind = |entry: &Entry| entry.path.get(3).cloned().unwrap_or_default();
        let first = named.entries.first()?;
        if let Some(other) = named.entries.iter().find(|entry| kind(entry) != kind(first)) {
            let message =
                format!("the middleware `{name}` is both `{}` and `{}`", kind(first), kind(other));
            self.reader.error(Code::Conflict, &other.key_place, message).help =
                Some("define two, and name both at the router".to_owned());
            return None;
        }
        let options: BTreeMap<String, &Entry> = named
            .entries
            .iter()
            .map(|entry| (entry.path.get(4..).unwrap_or_default().join("."), entry))
            .collect();
        let options = Options { kind: kind(first), place: first, options };
        match options.kind.as_str() {
            "addprefix" => {
                self.path_of(&options, "prefix").map(PathRewrite::AddPrefix).map(Step::Path)
            }
            "stripprefix" => self.strip(&options),
            "stripprefixregex" => self.strip_by_pattern(&options),
            "replacepath" => {
                self.path_of(&options, "path").map(PathRewrite::Replace).map(Step::Path)
            }
            "replacepathregex" => {
                let regex = self.needed(&options, "regex")?;
                let from = self.reader.pattern(&regex.value)?;
                let to = self.needed(&options, "replacement")?.text().to_owned();
                Some(Step::Path(PathRewrite::Regex { from, to }))
            }
            "redirectscheme" => self.redirect_scheme(&options).map(Step::Redirect),
            "redirectregex" => self.redirect_pattern(&options).map(Step::Redirect),
            "headers" => self.headers(&options),
            "basicauth" => self.basic_auth(&options).map(Step::Auth),
            "ratelimit" => self.rate_limit(&options),
            "ipallowlist" | "ipwhitelist" => {
                let ranges = self.needed(&options, "sourcerange")?.list();
                let networks = ranges.iter().flat_map(|range| {
                    match parse_network(range.as_str().unwrap_or_default()) {
                        Some(network) => vec![network],
                        None => self.reader.networks(range),
                    }
                });
                Some(Step::Allow(networks.collect())).filter(|_| !ranges.is_empty())
            }
            "compress" => self.compress(&options),
            "buffering" => {
                let size = self.reader.bytes(&options.get("maxrequestbodybytes")?.value)?;
                // 0 is Traefik's word for no limit.
                Some(if size == 0 { Step::Nothing } else { Step::MaxBody(size) })
            }
            "retry" => {
                let attempts = self.needed(&options, "attempts")?;
                let tries = self.reader.number(&attempts.value, 0, 100)?;
                // Traefik counts the first try too.
                Some(Step::Retry(u32::try_from(tries).unwrap_or_default().saturating_sub(1)))
            }
            "chain" => Some(Step::Chain(self.needed(&options, "middlewares")?.list())),
            _ => None,
        }
    }

    /// An option without which the middleware makes no sense.
    pub(super) fn needed<'o>(&mut self, options: &Options<'o>, name: &str) -> Option<&'o Entry> {
        let found = options.get(name).filter(|entry| !entry.text().is_empty());
        if found.is_none() {
            let message = format!("`{}` needs `{name}`", options.kind);
            self.reader.error(Code::MissingKey, &options.place.key_place, message);
        }
        found
    }

    fn path_of(&mut self, options: &Options<'_>, name: &str) -> Option<String> {
        let text = self.needed(options, name)?.text();
        // Traefik adds a missing slash too.
        Some(if text.starts_with('/') { text.to_owned() } else { format!("/{text}") })
    }

    fn strip(&mut self, options: &Options<'_>) -> Option<Step> {
        let prefixes = self.needed(options, "prefixes")?.list();
        let texts = prefixes.iter().filter_map(|prefix| self.reader.path(prefix)).collect();
        Some(Step::Path(PathRewrite::StripPrefix(texts)))
    }

    /// What matches at the start is left out, and the slash behind it, so that one can stand there.
    fn strip_by_pattern(&mut self, options: &Options<'_>) -> Option<Step> {
        let list = self.needed(options, "regex")?.list();
        let patterns: Option<Vec<String>> =
            list.iter().map(|pattern| self.reader.pattern(pattern)).collect();
        let joined = patterns?.join("|");
        Some(Step::Path(PathRewrite::Regex {
            from: format!("^(?:{joined})/?"),
            to: "/".to_owned(),
        }))
    }

    fn basic_auth(&mut self, options: &Options<'_>) -> Option<AuthDraft> {
        let auth = BasicAuth {
            realm: options.text("realm").unwrap_or(credentials::REALM).to_owned(),
            users: Vec::new(),
            user_header: options.text("headerfield").map(str::to_owned),
            remove_header: self.flag(options, "removeheader")?,
        };
        let span = options.place.key_place.clone();
        let mut draft = AuthDraft { span, auth, file: None, secret: None };
        for user in options.get("users").map(Entry::list).unwrap_or_default() {
            let line = user.as_str().unwrap_or_default();
            match credentials::check(line) {
                Ok(()) => draft.auth.users.push(line.to_owned()),
                Err((message, help)) => {
                    self.reader.error(Code::InvalidValue, &user.span, message).help =
                        Some(help.to_owned());
                }
            }
        }
        draft.file = options
            .get("usersfile")
            .map(|entry| Located::new(entry.text().into(), &entry.value.place_of(0)));
        if draft.file.is_none() && options.get("users").is_none() {
            self.needed(options, "users")?;
        }
        Some(draft)
    }

    fn rate_limit(&mut self, options: &Options<'_>) -> Option<Step> {
        let average = self.needed(options, "average")?;
        let requests = self.reader.number(&average.value, 0, i64::from(u32::MAX))?;
        if requests == 0 {
            return Some(Step::Nothing);
        }
        let per = match options.get("period") {
            Some(entry) => self.duration(entry)?,
            None => Duration::from_secs(1),
        };
        let burst = match options.get("burst") {
            Some(entry) => self.reader.amount(&entry.value, 1)?,
            None => 1,
        };
        let key = if let Some(name) = options.get("sourcecriterion.requestheadername") {
            ClientKey::Header(self.reader.header_name(name.text(), &name.value.place_of(0))?)
        } else if self.flag(options, "sourcecriterion.requesthost")? {
            ClientKey::All
        } else {
            ClientKey::Source
        };
        let requests = u32::try_from(requests).unwrap_or(u32::MAX);
        Some(Step::Rate(RateLimit { requests, per, burst, key }))
    }

    fn compress(&mut self, options: &Options<'_>) -> Option<Step> {
        if options.get("").is_some() && !self.flag(options, "")? {
            return Some(Step::Nothing);
        }
        let mut compress = Compress::default();
        if let Some(entry) = options.get("minresponsebodybytes") {
            compress.min_size = self.reader.bytes(&entry.value)?;
        }
        if let Some(entry) = options.get("includedcontenttypes") {
            let types = entry.list();
            compress.types =
                types.iter().filter_map(|node| node.as_str().map(str::to_owned)).collect();
        }
        if let Some(entry) = options.get("encodings") {
            compress.encodings.clear();
            for node in entry.list() {
                match node.as_str().and_then(forms::encoding) {
                    Some(encoding) => compress.encodings.push(encoding),
                    None => self.reader.wrong(&node, "`zstd`, `br` or `gzip`", ""),
                }
            }
        }
        Some(Step::Compress(compress))
    }

    /// A flag that is off when it is absent; `None` when it can't be read.
    pub(super) fn flag(&mut self, options: &Options<'_>, name: &str) -> Option<bool> {
        match options.get(name) {
            None => Some(false),
            Some(entry) => self.bool_of(entry),
        }
    }

    /// A flag as Go reads it; nothing written means yes.
    pub(super) fn bool_of(&mut self, entry: &Entry) -> Option<bool> {
        match entry.text() {
            "" | "1" | "t" => Some(true),
            "0" | "f" => Some(false),
            _ => self.reader.flag(&entry.value),
        }
    }

    /// A duration; a number without unit is seconds.
    pub(super) fn duration(&mut self, entry: &Entry) -> Option<Duration> {
        if let Ok(seconds) = entry.text().parse::<u32>()
            && seconds > 0
        {
            return Some(Duration::from_secs(u64::from(seconds)));
        }
        match parse_duration(entry.text()).and_then(|nanos| u64::try_from(nanos).ok()) {
            Some(nanos) if nanos >= 1_000_000 => Some(Duration::from_nanos(nanos)),
            _ => {
                self.reader.wrong(&entry.value, "a duration", "write for example `10s` or `1m`");
                None
            }
        }
    }

    /// Adds what a list of middlewares does to a route; how often the service is tried again, if one says that.
    pub(super) fn apply(
        &mut self,
        names: &[Node],
        known: &Middlewares,
        draft: &mut Draft,
    ) -> Option<u32> {
        let mut retries = None;
        let mut waiting: Vec<(Node, usize)> = names.iter().rev().map(|n| (n.clone(), 0)).collect();
        while let Some((node, depth)) = waiting.pop() {
            let Some(step) = self.step(&node, known) else { continue };
            match step {
                Step::Retry(times) => retries = Some(*times),
                Step::Broken(errors) => self.reader.errors.extend(errors.iter().cloned()),
                Step::Chain(inner) if depth < MAX_CHAIN_DEPTH => {
                    waiting.extend(inner.iter().rev().map(|node| (node.clone(), depth + 1)));
                }
                Step::Chain(_) => {
                    let message = format!("chains are more than {MAX_CHAIN_DEPTH} deep");
                    self.reader.error(Code::Cycle, &node.span, message);
                    return retries;
                }
                step => self.add(step, &node, draft),
            }
        }
        retries
    }

    fn step<'k>(&mut self, node: &Node, known: &'k Middlewares) -> Option<&'k Step> {
        let text = node.as_str().unwrap_or_default();
        // What Traefik's other providers define is not here.
        let name =
            text.strip_suffix("@docker").or_else(|| text.strip_suffix("@swarm")).unwrap_or(text);
        let found = known.get(name);
        if let Some(middleware) = found {
            middleware.named.set(true);
        } else {
            let message = format!("no label defines the middleware `{text}`");
            let near = crate::diagnostic::nearest(name, known.keys().map(String::as_str));
            self.reader.error(Code::UndefinedReference, &node.span, message).help =
                Some(near.map_or_else(
                    || "define it by labels of a service of this project".to_owned(),
                    |near| format!("did you mean `{near}`?"),
                ));
        }
        found.map(|middleware| &middleware.step)
    }

    fn add(&mut self, step: &Step, node: &Node, draft: &mut Draft) {
        let filters = &mut draft.filters;
        let twice = match step {
            Step::Redirect(_) => filters.redirect.is_some(),
            Step::Auth(_) => draft.auth.is_some(),
            Step::Allow(_) => !filters.allow.is_empty(),
            Step::Compress(_) => filters.compress.is_some(),
            Step::Headers { cors, .. } => cors.is_some() && filters.cors.is_some(),
            _ => false,
        };
        if twice {
            let name = node.as_str().unwrap_or_default();
            let message =
                format!("`{name}` does what another middleware of this router does already");
            self.reader.error(Code::Conflict, &node.span, message).help =
                Some("keep one of them".to_owned());
            return;
        }
        match step.clone() {
            Step::Path(change) => {
                filters.rewrite.get_or_insert_with(Rewrite::default).path.push(change)
            }
            Step::Redirect(redirect) => filters.redirect = Some(redirect),
            Step::Headers { request, response, cors } => {
                join(&mut filters.request_headers, request);
                join(&mut filters.response_headers, response);
                filters.cors = cors.or_else(|| filters.cors.take());
            }
            Step::Auth(auth) => draft.auth = Some(auth),
            Step::Rate(limit) => filters.rate_limits.push(limit),
            Step::Allow(networks) => filters.allow = networks,
            Step::Compress(compress) => filters.compress = Some(compress),
            Step::MaxBody(size) => {
                filters.max_body = Some(filters.max_body.map_or(size, |other| other.min(size)));
            }
            Step::Retry(_) | Step::Chain(_) | Step::Nothing | Step::Broken(_) => {}
        }
    }
}

/// The options of one middleware by name; the empty name is the middleware itself (`compress=true`).
pub(super) struct Options<'o> {
    pub kind: String,
    /// A label to point at.
    pub place: &'o Entry,
    pub options: BTreeMap<String, &'o Entry>,
}

impl<'o> Options<'o> {
    pub fn get(&self, name: &str) -> Option<&'o Entry> {
        self.options.get(name).copied()
    }

    pub fn text(&self, name: &str) -> Option<&'o str> {
        self.get(name).map(Entry::text).filter(|text| !text.is_empty())
    }
}

/// Adds later changes of headers to earlier ones.
fn join(edits: &mut HeaderEdits, later: HeaderEdits) {
    for name in &later.remove {
        edits.set.retain(|known, _| !known.eq_ignore_ascii_case(name));
    }
    for name in later.set.keys() {
        edits.remove.retain(|known| !known.eq_ignore_ascii_case(name));
        edits.set.retain(|known, _| !known.eq_ignore_ascii_case(name));
    }
    edits.remove.extend(later.remove);
    edits.set.extend(later.set);
    edits.add.extend(later.add);
}
