//! The routes of an entrypoint, compiled: which one wants a request, and what it does with it.
//!
//! A [`Table`] never changes; all workers share one, and a change of routes makes a new one. What has to live on is in
//! [`Memory`]. Routes are found by host first (an exact name, one label below a parent, or none that narrows it
//! down), so that thousands of routes of different hosts cost no more than one; among the routes of one host rules are
//! asked one after the other, from the highest priority down.

use std::collections::HashMap;
use std::net::IpAddr;

use keel_model::RouteKind;

use crate::balance::Random;
use crate::filter::redirect::to_https;
use crate::filter::{Answer, Compression, Decision, Edits, Filters, Verified};
use crate::host::{NamePattern, parent_of, split, with_name};
use crate::memory::Memory;
use crate::path::{Forms, other_readings};
use crate::request::RequestView;
use crate::rule::{Matcher, Names, Subject, looks_at_paths, names_doubtful_characters};
use crate::snapshot::{ClusterId, RouteEntry, RouteTable};

/// The routes of an entrypoint.
#[derive(Debug)]
pub struct Table {
    /// In the order in which they are asked; the last one is nobody's and refuses.
    routes: Box<[Route]>,
    http: Index,
    connections: Index,
    /// Some rule looks at paths; otherwise it does not matter how they are read.
    by_path: bool,
    redirect_https: Option<u16>,
}

/// A route.
#[derive(Debug)]
pub struct Route {
    index: usize,
    name: Box<str>,
    kind: RouteKind,
    matcher: Matcher,
    /// Its rule names characters that services read in different ways.
    literal: bool,
    clusters: Vec<(ClusterId, u32)>,
    total_weight: u64,
    filters: Filters,
    timeout_ms: Option<u64>,
    /// Answers all requests.
    refusal: Option<Answer>,
}

/// A route that can't be used as it is declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("route {route}: {problem}")]
pub struct Error {
    /// The route's name.
    pub route: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Routes by the names they want, each list in the order in which they are asked.
#[derive(Debug, Default)]
struct Index {
    exact: HashMap<Box<str>, Vec<usize>>,
    /// By parent.
    below: HashMap<Box<str>, Vec<usize>>,
    others: Vec<usize>,
}

impl Index {
    fn add(&mut self, route: &Route, names: Names) {
        let Some(wanted) = route.matcher.names(names) else {
            self.others.push(route.index);
            return;
        };
        for pattern in wanted {
            let list = match pattern {
                NamePattern::Exact(name) => self.exact.entry(name.clone()).or_default(),
                NamePattern::Below(parent) => self.below.entry(parent.clone()).or_default(),
                NamePattern::Any => &mut self.others,
            };
            // One rule may name a host twice.
            if list.last() != Some(&route.index) {
                list.push(route.index);
            }
        }
    }

    /// The routes that may want `name`, in the order in which they are asked.
    fn candidates(&self, name: &str) -> impl Iterator<Item = usize> {
        let exact = self.exact.get(name);
        let below = parent_of(name).and_then(|parent| self.below.get(parent));
        let lists = [exact, below, Some(&self.others)];
        let mut lists = lists.map(|list| list.map(Vec::as_slice).unwrap_or_default().iter());
        std::iter::from_fn(move || {
            // The lists are in order, so that the next is the least of their heads.
            let heads = lists.iter_mut().filter(|list| !list.as_slice().is_empty());
            heads.min_by_key(|list| list.as_slice()[0])?.next().copied()
        })
    }
}

impl Table {
    /// Compiles a table. Limits and passwords of routes that are the same in another table of `memory` go on.
    ///
    /// # Errors
    /// The first route that can't be used. Whoever declares routes asks [`crate::validate::validate_route`] before.
    pub fn compile(table: &RouteTable, memory: &Memory) -> Result<Self, Error> {
        let mut entries: Vec<&RouteEntry> = table.routes.iter().collect();
        entries.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let mut routes = Vec::with_capacity(entries.len() + 1);
        let (mut http, mut connections) = (Index::default(), Index::default());
        for (index, entry) in entries.into_iter().enumerate() {
            let route = Route::new(index, entry, memory)?;
            match route.kind {
                RouteKind::Http => http.add(&route, Names::Host),
                RouteKind::Tcp | RouteKind::Passthrough => connections.add(&route, Names::Sni),
            }
            routes.push(route);
        }
        routes.push(Route::refusing(routes.len()));
        memory.tidy();
        let by_path = table.routes.iter().any(|entry| looks_at_paths(&entry.rule));
        let redirect_https = table.redirect_https;
        Ok(Self { routes: routes.into(), http, connections, by_path, redirect_https })
    }

    /// All routes, those that are asked first in front, and at the end one that refuses requests that could be meant
    /// for several ([`crate::path`]); [`Route::index`] is the place in this list.
    #[must_use]
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The route that wants a request.
    #[must_use]
    pub fn find(&self, view: &RequestView<'_>) -> Option<&Route> {
        let sni = view.sni.unwrap_or_default();
        with_name(split(view.host).0, |host| with_name(sni, |sni| self.find_named(view, host, sni)))
    }

    fn find_named(&self, view: &RequestView<'_>, host: &str, sni: &str) -> Option<&Route> {
        let forms = Forms::of(view.path);
        let client = view.client.to_canonical();
        let find = |path: &str| {
            let subject = Subject { host, sni, path, client, request: Some(view) };
            self.first(self.http.candidates(host), &subject)
        };
        let found = find(&forms.matched);
        let settled = !forms.doubtful || !self.by_path;
        if settled || found.is_some_and(|route| route.literal) {
            return found;
        }
        let index = |route: Option<&Route>| route.map(|route| route.index);
        let alike = |path: &String| index(find(path)) == index(found);
        let readings = other_readings(&forms.forwarded);
        if readings.is_some_and(|readings| readings.iter().all(alike)) {
            return found;
        }
        self.routes.last()
    }

    /// The route (of kind `Tcp` or `Passthrough`) that wants a connection.
    #[must_use]
    pub fn find_tcp(&self, sni: Option<&str>, client: IpAddr) -> Option<&Route> {
        let client = client.to_canonical();
        with_name(sni.unwrap_or_default(), |sni| {
            let subject = Subject { host: "", sni, path: "", client, request: None };
            self.first(self.connections.candidates(sni), &subject)
        })
    }

    fn first(
        &self,
        mut candidates: impl Iterator<Item = usize>,
        subject: &Subject<'_>,
    ) -> Option<&Route> {
        let index = candidates.find(|index| self.routes[*index].matcher.matches(subject))?;
        self.routes.get(index)
    }

    /// The answer to a request that no route wants, if there is one: to the same place over TLS (308). `None`: the
    /// listener's own cluster, or 404.
    #[must_use]
    pub fn unwanted(&self, view: &RequestView<'_>) -> Option<Answer> {
        let port = self.redirect_https.filter(|_| !view.tls)?;
        Some(to_https(port, view))
    }
}

impl Route {
    fn new(index: usize, entry: &RouteEntry, memory: &Memory) -> Result<Self, Error> {
        let mut problems = Vec::new();
        let matcher = Matcher::new(&entry.rule, entry.kind, &mut problems);
        let filters = Filters::new(&entry.filters, &entry.name, memory, &mut problems);
        let total_weight = entry.clusters.iter().map(|(_, weight)| u64::from(*weight)).sum();
        if total_weight == 0 {
            problems.push("there is no cluster with a weight above 0".into());
        }
        if let Some(problem) = problems.into_iter().next() {
            return Err(Error { route: entry.name.clone(), problem });
        }
        Ok(Self {
            index,
            name: entry.name.as_str().into(),
            kind: entry.kind,
            matcher,
            literal: names_doubtful_characters(&entry.rule),
            clusters: entry.clusters.clone(),
            total_weight,
            filters,
            timeout_ms: entry.timeout_ms,
            refusal: None,
        })
    }

    /// Takes requests that could be meant for several routes. An answer through a route like any other, so that no
    /// caller can forget about it.
    fn refusing(index: usize) -> Self {
        let text = "The path can be read in several ways, which lead to different places.";
        Self {
            index,
            name: "refused".into(),
            kind: RouteKind::Http,
            matcher: Matcher::Any(Box::default()),
            literal: false,
            clusters: Vec::new(),
            total_weight: 0,
            filters: Filters::default(),
            timeout_ms: None,
            refusal: Some(Answer::text(400, text)),
        }
    }

    /// Its place in [`Table::routes`].
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// `stack/route`; `refused` for the one that is nobody's.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests or connections.
    #[must_use]
    pub fn kind(&self) -> RouteKind {
        self.kind
    }

    /// The whole answer must have come by then, in milliseconds; overrides the cluster's.
    #[must_use]
    pub fn timeout_ms(&self) -> Option<u64> {
        self.timeout_ms
    }

    /// Where its traffic goes, with weights. Empty only for the route that refuses.
    #[must_use]
    pub fn clusters(&self) -> &[(ClusterId, u32)] {
        &self.clusters
    }

    /// The cluster (its place in [`Route::clusters`]) that takes a request: at random by weight, or always the same for the
    /// same `sticky_hash` while weights are the same; when they change, as few clients as can be change over.
    pub fn cluster(&self, random: &mut Random, sticky_hash: Option<u64>) -> usize {
        if self.clusters.len() < 2 {
            return 0;
        }
        let mut point = match sticky_hash {
            Some(hash) => scaled(mixed(hash), self.total_weight),
            // Two draws, as one has 32 bits and weights can add up to more.
            None => {
                let mut draw = || random.below(1 << 16) as u64;
                let bits = draw() << 48 | draw() << 32 | draw() << 16 | draw();
                scaled(bits, self.total_weight)
            }
        };
        let takes = |(_, weight): &(ClusterId, u32)| {
            let weight = u64::from(*weight);
            let taken = point < weight;
            point = point.saturating_sub(weight);
            taken
        };
        self.clusters.iter().position(takes).unwrap_or(0)
    }

    /// Whether nothing at all is decided about a request of this route and nothing changed: it goes as it came. Then there
    /// is no need to ask [`Route::decide`].
    #[must_use]
    pub fn is_plain(&self, view: &RequestView<'_>) -> bool {
        let unchanged = || Forms::of(view.path).forwarded == view.path;
        self.refusal.is_none() && self.filters.is_plain() && unchanged()
    }

    /// What becomes of a request that this route wants. `content_length` is that of its body, if known; `now_ms` any clock
    /// that all workers share. Allocates nothing for routes without filters.
    #[must_use]
    pub fn decide(
        &self,
        view: &RequestView<'_>,
        content_length: Option<u64>,
        now_ms: u64,
    ) -> Decision {
        self.decide_with(view, content_length, now_ms, None)
    }

    /// The same after a [`Decision::Verify`], with the result of that check.
    #[must_use]
    pub fn decide_verified(
        &self,
        view: &RequestView<'_>,
        content_length: Option<u64>,
        now_ms: u64,
        verified: &Verified,
    ) -> Decision {
        self.decide_with(view, content_length, now_ms, Some(verified))
    }

    fn decide_with(
        &self,
        view: &RequestView<'_>,
        content_length: Option<u64>,
        now_ms: u64,
        verified: Option<&Verified>,
    ) -> Decision {
        match &self.refusal {
            Some(answer) => Decision::Answer(answer.clone()),
            None => self.filters.decide(view, content_length, now_ms, verified),
        }
    }

    /// Whether the route takes connections of this client; asked for connections only, as [`Route::decide`] sees to it
    /// for requests.
    #[must_use]
    pub fn allows(&self, client: IpAddr) -> bool {
        self.filters.allows(client)
    }

    /// The `Host` that the service sees; as sent if `None`.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        self.filters.host.as_deref()
    }

    /// Changes of the fields of every request.
    #[must_use]
    pub fn request_edits(&self) -> &Edits {
        &self.filters.request
    }

    /// Changes of the fields of every answer of the service. Not for answers of the proxy itself.
    #[must_use]
    pub fn response_edits(&self) -> &Edits {
        &self.filters.response
    }

    /// Largest request body in bytes, to be watched while it comes (then [`crate::filter::too_large`]).
    #[must_use]
    pub fn max_body(&self) -> Option<u64> {
        self.filters.max_body
    }

    /// How answers are compressed.
    #[must_use]
    pub fn compression(&self) -> Option<&Compression> {
        self.filters.compress.as_ref()
    }
}

/// `bits` as a part of 2⁶⁴, taken of `total`.
fn scaled(bits: u64, total: u64) -> u64 {
    // The product's upper half is below `total`.
    u64::try_from((u128::from(bits) * u128::from(total)) >> 64).unwrap_or(0)
}

/// Bits of a hash that do not go along with those by which an endpoint is chosen later (the finish of splitmix64).
fn mixed(hash: u64) -> u64 {
    let hash = (hash ^ (hash >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    hash ^ (hash >> 31)
}

#[cfg(test)]
mod tests;
