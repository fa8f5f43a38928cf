//! What both engines begin with: listeners that are alike put together, routes in order with their rules taken apart.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use keel_model::{Protocol, RouteKind};
use keel_route::snapshot::{Listener, RouteEntry, RouteTable, Snapshot, TableId};

use crate::gaps::{Gap, Lack};
use crate::names::Names;
use crate::rules::{self, Alternative, Layer, Unfit};
use crate::{Engine, Options, Rendered, lacks, readings};

/// What a configuration is made from, and where what is found on the way is noted.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub engine: Engine,
    pub snapshot: &'a Snapshot,
    pub options: &'a Options,
    /// Listeners that differ in nothing but their address, in order of the first address.
    pub groups: Vec<Group<'a>>,
    pub tables: BTreeMap<&'a str, Table<'a>>,
    pub names: Names,
    pub out: Rendered,
}

/// Listeners that differ in nothing but their address.
#[derive(Clone, Debug)]
pub(crate) struct Group<'a> {
    pub name: String,
    /// In order.
    pub binds: Vec<SocketAddr>,
    pub listener: &'a Listener,
    pub speaks: Speaks<'a>,
}

/// What is spoken at listeners.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Speaks<'a> {
    Opaque,
    Http,
    Http2,
    Detected,
    /// What the routes of a table say.
    Routed(&'a str),
}

/// The routes of a table in the order in which they are tried.
#[derive(Debug, Default)]
pub(crate) struct Table<'a> {
    pub http: Vec<PlannedRoute<'a>>,
    /// Chosen before anything of a request is known.
    pub connections: Vec<PlannedRoute<'a>>,
    pub redirect_https: Option<u16>,
}

/// A route with its rule taken apart.
#[derive(Clone, Debug)]
pub(crate) struct PlannedRoute<'a> {
    /// Its name in the configuration.
    pub name: String,
    pub entry: &'a RouteEntry,
    pub alternatives: Vec<Alternative>,
}

impl<'a> Plan<'a> {
    pub fn new(engine: Engine, snapshot: &'a Snapshot, options: &'a Options) -> Self {
        let mut plan = Self {
            engine,
            snapshot,
            options,
            groups: Vec::new(),
            tables: BTreeMap::new(),
            names: Names::default(),
            out: Rendered::default(),
        };
        for (id, cluster) in &snapshot.clusters {
            for lack in lacks::of_cluster(cluster) {
                plan.note(lack, format!("cluster {id}"));
            }
        }
        if !snapshot.challenges.tls_alpn.is_empty() {
            plan.note(Lack::AlpnChallenge, "certificates".to_owned());
        }
        if snapshot.access_log.is_some() {
            plan.note(Lack::AccessLog, "all traffic");
        }
        plan.plan_tables();
        plan.plan_groups();
        plan
    }

    /// Notes that something is lacking, if this engine lacks it.
    pub fn note(&mut self, what: Lack, place: impl Into<String>) {
        if let Some(why) = what.why(self.engine) {
            self.out.gaps.push(Gap { what, place: place.into(), why });
        }
    }

    fn plan_tables(&mut self) {
        let snapshot = self.snapshot;
        let used: BTreeSet<&TableId> =
            snapshot.listeners.iter().filter_map(|listener| listener.table.as_ref()).collect();
        for id in used {
            let table = match snapshot.tables.get(id) {
                Some(table) => {
                    let of_it = |listener: &&Listener| listener.table.as_ref() == Some(id);
                    let mut listeners = snapshot.listeners.iter().filter(of_it);
                    let is_plain = listeners.any(|listener| listener.tls.is_none());
                    self.plan_table(table, is_plain)
                }
                None => Table::default(),
            };
            self.tables.insert(id, table);
        }
    }

    /// `is_plain`: clients may come without TLS.
    fn plan_table(&mut self, table: &'a RouteTable, is_plain: bool) -> Table<'a> {
        let mut entries: Vec<&RouteEntry> = table.routes.iter().collect();
        entries.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let mut planned = Table { redirect_https: table.redirect_https, ..Table::default() };
        for entry in entries {
            let place = format!("route {}", entry.name);
            let layer = match entry.kind {
                RouteKind::Http => Layer::Http,
                RouteKind::Tcp | RouteKind::Passthrough => Layer::Connection,
            };
            let alternatives = match rules::alternatives(&entry.rule, layer) {
                Ok(alternatives) => alternatives,
                Err(unfit) => {
                    self.note(lack_of(&unfit), place);
                    continue;
                }
            };
            if rules::of_paths(&alternatives).any(|tests| readings::is_vague(tests.iter())) {
                self.note(Lack::PathReadings, &place);
            }
            for lack in lacks::of_route(entry) {
                self.note(lack, &place);
            }
            if is_plain && lacks::is_for_http2(entry, &self.snapshot.clusters) {
                self.note(Lack::CleartextHttp2, &place);
            }
            // Not by its name alone: nothing keeps two routes from having the same one.
            let name = self.names.fresh(&entry.name);
            let route = PlannedRoute { name, entry, alternatives };
            match layer {
                Layer::Http => planned.http.push(route),
                Layer::Connection => planned.connections.push(route),
            }
        }
        planned
    }

    fn plan_groups(&mut self) {
        let mut seen = BTreeSet::new();
        let mut listeners: Vec<&Listener> = self.snapshot.listeners.iter().collect();
        listeners.sort_by_key(|listener| listener.bind);
        for listener in listeners {
            if !seen.insert(listener.bind) {
                self.note(Lack::Listener, place_of(listener, listener.bind));
                continue;
            }
            for lack in lacks::of_listener(listener) {
                self.note(lack, place_of(listener, listener.bind));
            }
            let alike = |group: &&mut Group<'_>| {
                let bind = group.listener.bind;
                Listener { bind, ..listener.clone() } == *group.listener
            };
            match self.groups.iter_mut().find(alike) {
                Some(group) => group.binds.push(listener.bind),
                None => {
                    let name = self.names.of(&format!("at {}", listener.bind));
                    let binds = vec![listener.bind];
                    let speaks = speaks(listener);
                    self.groups.push(Group { name, binds, listener, speaks });
                }
            }
        }
    }
}

/// Where something is lacking that has to do with a listener, or one that is like it.
pub(crate) fn place_of(listener: &Listener, bind: SocketAddr) -> String {
    match listener.cluster.as_str() {
        "" => format!("listener {bind}"),
        cluster => format!("listener {bind} ({cluster})"),
    }
}

fn speaks(listener: &Listener) -> Speaks<'_> {
    match (&listener.table, listener.protocol) {
        (Some(table), _) => Speaks::Routed(table),
        (None, Protocol::Tcp) => Speaks::Opaque,
        (None, Protocol::Http) => Speaks::Http,
        (None, Protocol::Http2) => Speaks::Http2,
        (None, Protocol::Auto) => Speaks::Detected,
    }
}

fn lack_of(unfit: &Unfit) -> Lack {
    match unfit {
        Unfit::TooWide => Lack::RuleSize,
        Unfit::NotAnExpression(_) => Lack::Expression,
        Unfit::HeaderName(_) => Lack::HeaderName,
    }
}
