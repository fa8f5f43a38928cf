//! Where a request goes and what is done to it on the way: the decisions of [`keel_route::table`], with the clusters
//! of this worker.

use std::rc::Rc;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};
use keel_model::Balance;
use keel_route::client_key::client_key_hash;
use keel_route::filter::{AuthCheck, Decision, FieldChange, Pass, Verified};
use keel_route::request::{Headers, RequestView, cookie_value, passes_for};
use keel_route::sticky;
use keel_route::table::{Route, Table};

use crate::access::Entry;
use crate::cluster::{WorkerCluster, WorkerEndpoint};
use crate::counted::{Affinity, Counted};
use crate::edge::Record;
use crate::reply::Reply;
use crate::session::Session;

/// Where certificate authorities look for proofs (RFC 8555, 8.3).
const CHALLENGE: &str = "/.well-known/acme-challenge/";

/// The routes of an entrypoint, as one worker sees them.
#[derive(Debug)]
pub struct WorkerTable {
    pub table: Arc<Table>,
    /// By route, then as the route lists them.
    clusters: Vec<Vec<Rc<WorkerCluster>>>,
    names: Vec<Rc<str>>,
}

impl WorkerTable {
    /// `cluster` finds those of this worker.
    pub fn new(table: Arc<Table>, mut cluster: impl FnMut(&str) -> Rc<WorkerCluster>) -> Self {
        let routes = table.routes();
        let clusters = routes
            .iter()
            .map(|route| route.clusters().iter().map(|(id, _)| cluster(id)).collect())
            .collect();
        let names = routes.iter().map(|route| route.name().into()).collect();
        Self { table, clusters, names }
    }
}

/// A route of a table.
#[derive(Clone, Debug)]
pub struct RouteAt {
    table: Rc<WorkerTable>,
    index: usize,
}

impl RouteAt {
    pub fn new(table: &Rc<WorkerTable>, route: &Route) -> Self {
        Self { table: Rc::clone(table), index: route.index() }
    }

    pub fn route(&self) -> &Route {
        &self.table.table.routes()[self.index]
    }

    pub fn name(&self) -> &Rc<str> {
        &self.table.names[self.index]
    }

    /// The cluster that takes a request (or connection).
    pub fn cluster(&self, session: &Session) -> Option<Rc<WorkerCluster>> {
        let random = &mut *session.worker.random.borrow_mut();
        let at = self.route().cluster(random, None);
        self.table.clusters[self.index].get(at).map(Rc::clone)
    }
}

/// Where a request goes, and what is changed on the way.
#[derive(Debug)]
pub struct Way {
    pub cluster: Rc<WorkerCluster>,
    pub route: Option<RouteAt>,
    pub pass: Option<Box<Pass>>,
    pub affinity: Affinity,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Decided {
    Go(Way),
    /// It is answered here, by this route if one wanted it.
    Answer(Reply, Option<RouteAt>),
    /// A password has to be checked on another thread first.
    Verify(AuthCheck),
}

impl Session {
    /// Where requests go if nothing is to be decided about any of them.
    pub fn straight(&self) -> Option<Way> {
        if self.target.table().is_some() {
            return None;
        }
        let cluster = self.target.cluster();
        if cluster.asks_for_key() {
            return None;
        }
        Some(Way { cluster, route: None, pass: None, affinity: Affinity::default() })
    }

    /// Decides about one request. `length` is that of its body, if it says so.
    pub fn decide(
        &self,
        view: &RequestView<'_>,
        length: Option<u64>,
        verified: Option<&Verified>,
    ) -> Decided {
        let Some(table) = self.target.table() else {
            return self.go(view, self.target.cluster(), None, None);
        };
        if let Some(proof) = self.proof(view) {
            return Decided::Answer(Reply::proof(proof), None);
        }
        let Some(found) = table.table.find(view) else {
            if let Some(answer) = table.table.unwanted(view) {
                return Decided::Answer(answer.into(), None);
            }
            let cluster = self.target.cluster();
            if cluster.id().is_empty() {
                return Decided::Answer(Reply::no_route(), None);
            }
            return self.go(view, cluster, None, None);
        };
        let route = RouteAt::new(&table, found);
        let mut pass = None;
        if !found.is_plain(view) {
            let now_ms = self.worker.shared.now_ms();
            let decision = match verified {
                Some(verified) => found.decide_verified(view, length, now_ms, verified),
                None => found.decide(view, length, now_ms),
            };
            match decision {
                Decision::Pass(changes) => pass = Some(Box::new(changes)),
                Decision::Answer(answer) => return Decided::Answer(answer.into(), Some(route)),
                Decision::Verify(check) => return Decided::Verify(check),
            }
        }
        match route.cluster(self) {
            Some(cluster) => self.go(view, cluster, Some(route), pass),
            None => Decided::Answer(Reply::no_route(), Some(route)),
        }
    }

    fn go(
        &self,
        view: &RequestView<'_>,
        cluster: Rc<WorkerCluster>,
        route: Option<RouteAt>,
        pass: Option<Box<Pass>>,
    ) -> Decided {
        let mut affinity = Affinity::default();
        if cluster.asks_for_key() {
            let policy = cluster.policy();
            affinity.hash = match &policy.balance {
                Balance::RingHash(key) | Balance::Maglev(key) => client_key_hash(key, view),
                Balance::LeastRequest | Balance::RoundRobin | Balance::Random => None,
            };
            let cookie = policy.sticky.as_ref().and_then(|c| cookie_value(view.headers, &c.name));
            affinity.token = cookie.and_then(|token| token.parse().ok());
        }
        Decided::Go(Way { cluster, route, pass, affinity })
    }

    /// The proof that a certificate authority asks for; such requests go by no route.
    fn proof(&self, view: &RequestView<'_>) -> Option<String> {
        let token = view.path.strip_prefix(CHALLENGE).filter(|_| !view.tls)?;
        self.worker.proof(token)
    }

    /// Counts a request that was answered here as `own` says, and writes its line of the access log.
    pub fn answered_here(
        &self,
        reply: &Reply,
        own: Record,
        route: Option<&RouteAt>,
        entry: Option<Box<Entry>>,
    ) {
        let route = route.map(RouteAt::name);
        self.worker.count_own(self.caller(), route, own);
        if let Some(entry) = entry {
            entry.replied(reply, own, route.map_or("", |name| name));
        }
    }
}

impl Way {
    /// Begins to count the request.
    pub fn count(&self, session: &Rc<Session>) -> Counted {
        let route = self.route.as_ref().map(RouteAt::name);
        session.count(Rc::clone(&self.cluster), route, self.affinity)
    }

    /// Whether nothing is changed, either way.
    pub fn changes_nothing(&self) -> bool {
        let edits = self.route.as_ref().is_some_and(|route| {
            let route = route.route();
            !route.request_edits().is_empty()
                || !route.response_edits().is_empty()
                || route.host().is_some()
        });
        self.pass.is_none() && !edits && !self.cluster.is_sticky()
    }

    /// Whether answers may be compressed; if the client takes none, they still say that others might get one.
    pub fn compresses(&self) -> bool {
        self.route.as_ref().is_some_and(|route| route.route().compression().is_some())
    }

    /// Largest body of the request.
    pub fn max_body(&self) -> Option<u64> {
        self.route.as_ref().and_then(|route| route.route().max_body())
    }

    /// The answer must have come by then.
    pub fn time_limit(&self) -> Option<std::time::Duration> {
        let own = self.route.as_ref().and_then(|route| route.route().timeout_ms());
        own.map(std::time::Duration::from_millis).or(self.cluster.times().request)
    }

    /// What the service sees as path and query, if not what was sent.
    pub fn target(&self) -> Option<&str> {
        self.pass.as_ref()?.target.as_deref()
    }

    /// What the service sees as host, if not what was sent.
    pub fn host(&self) -> Option<&str> {
        self.route.as_ref()?.route().host()
    }

    /// Whether a field of the request does not pass.
    pub fn drops(&self, name: &str) -> bool {
        let edited =
            self.route.as_ref().is_some_and(|r| r.route().request_edits().leaves_out(name));
        edited || self.pass.as_ref().is_some_and(|pass| changes_field(&pass.request, name))
    }

    /// Fields that the request gets.
    pub fn request_fields(&self) -> Vec<(&str, &str)> {
        let edits = self.route.as_ref().map(|route| route.route().request_edits());
        let edits = edits.into_iter().flat_map(|edits| edits.set().iter().chain(edits.add()));
        let own = self.pass.iter().flat_map(|pass| pass.request.iter());
        fields(edits, own)
    }

    /// What becomes of the answer's fields; `None` if nothing.
    pub fn answer_changes(self) -> Option<Box<AnswerChanges>> {
        let edits = self.route.as_ref().is_some_and(|r| !r.route().response_edits().is_empty());
        let own = self.pass.as_ref().is_some_and(|p| !p.response.is_empty() || p.vary_origin);
        let Self { route, pass, .. } = self;
        (edits || own).then(|| Box::new(AnswerChanges { route, pass, cookie: None }))
    }
}

/// What becomes of an answer's fields.
#[derive(Debug, Default)]
pub struct AnswerChanges {
    route: Option<RouteAt>,
    pass: Option<Box<Pass>>,
    /// Brings the client back to its endpoint.
    pub cookie: Option<String>,
}

impl AnswerChanges {
    /// Whether a field of the answer does not pass.
    pub fn drops(&self, name: &str) -> bool {
        let edited =
            self.route.as_ref().is_some_and(|r| r.route().response_edits().leaves_out(name));
        edited || self.pass.as_ref().is_some_and(|pass| changes_field(&pass.response, name))
    }

    /// Fields that the answer gets.
    pub fn fields(&self) -> Vec<(&str, &str)> {
        let edits = self.route.as_ref().map(|route| route.route().response_edits());
        let edits = edits.into_iter().flat_map(|edits| edits.set().iter().chain(edits.add()));
        let own = self.pass.iter().flat_map(|pass| pass.response.iter());
        let mut all = fields(edits, own);
        if self.pass.as_ref().is_some_and(|pass| pass.vary_origin) {
            all.push(("vary", "Origin"));
        }
        all.extend(self.cookie.as_deref().map(|cookie| ("set-cookie", cookie)));
        all
    }

    /// As lines of HTTP/1.
    pub fn lines(&self) -> Vec<u8> {
        lines(&self.fields())
    }

    /// Changes `headers`.
    pub fn apply(&self, headers: &mut HeaderMap) {
        let dropped: Vec<_> =
            headers.keys().filter(|name| self.drops(name.as_str())).cloned().collect();
        dropped.iter().for_each(|name| drop(headers.remove(name)));
        append(&self.fields(), headers);
    }
}

fn changes_field(changes: &[FieldChange], name: &str) -> bool {
    changes.iter().any(|(changed, _)| passes_for(name, changed))
}

fn fields<'a>(
    edits: impl Iterator<Item = &'a (Box<str>, Box<str>)>,
    own: impl Iterator<Item = &'a FieldChange>,
) -> Vec<(&'a str, &'a str)> {
    let edits = edits.map(|(name, value)| (&**name, &**value));
    let own = own.filter_map(|(name, value)| Some((&**name, value.as_deref()?)));
    edits.chain(own).collect()
}

/// As lines of HTTP/1.
pub fn lines(fields: &[(&str, &str)]) -> Vec<u8> {
    let parts = fields.iter().flat_map(|(name, value)| [*name, ": ", *value, "\r\n"]);
    parts.flat_map(str::bytes).collect()
}

/// Adds fields that were checked when their route was declared.
pub fn append(fields: &[(&str, &str)], headers: &mut HeaderMap) {
    for (name, value) in fields {
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value))
        {
            headers.append(name, value);
        }
    }
}

/// Binds a client to where its request goes, unless its cookie does so already.
pub fn bind(
    changes: &mut Option<Box<AnswerChanges>>,
    request: &Counted,
    endpoint: &WorkerEndpoint,
) {
    if !request.cluster.is_sticky() {
        return;
    }
    let policy = request.cluster.policy();
    let token = endpoint.token.get().filter(|token| request.affinity.token != Some(*token));
    let declared = policy.sticky.as_ref();
    let cookie = declared.zip(token).map(|(cookie, token)| sticky::set_cookie(cookie, token));
    if cookie.is_some() || changes.is_some() {
        changes.get_or_insert_default().cookie = cookie;
    }
}

/// Fields of HTTP/1, as routes look at them.
#[derive(Debug)]
pub struct Http1Fields<'a>(pub &'a [httparse::Header<'a>]);

impl Headers for Http1Fields<'_> {
    fn each<'a>(
        &'a self,
        name: &str,
        visit: &mut dyn FnMut(&'a [u8]) -> std::ops::ControlFlow<()>,
    ) {
        for field in self.0.iter().filter(|field| field.name.eq_ignore_ascii_case(name)) {
            if visit(field.value).is_break() {
                return;
            }
        }
    }
}

/// Fields of a [`HeaderMap`], as routes look at them.
#[derive(Clone, Debug)]
pub struct MappedFields(pub HeaderMap);

impl Headers for MappedFields {
    fn each<'a>(
        &'a self,
        name: &str,
        visit: &mut dyn FnMut(&'a [u8]) -> std::ops::ControlFlow<()>,
    ) {
        for value in self.0.get_all(name) {
            if visit(value.as_bytes()).is_break() {
                return;
            }
        }
    }
}
