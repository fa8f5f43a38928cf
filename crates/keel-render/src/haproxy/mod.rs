//! A configuration for HAProxy 2.6.
//!
//! One frontend per kind of listener, one backend per cluster (and per mode and compression, which are properties of
//! backends). A frontend with routes first finds the route of a request and keeps its name in a variable; all
//! filters then ask for that name. Sections come in the order in which HAProxy wants them. Files are named relative to
//! the directory of the configuration, in which HAProxy has to be started (`-C`).

mod acl;
mod backend;
mod cors;
mod filters;
mod frontend;
mod guards;
mod rewrite;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use keel_model::BasicAuth;
use keel_route::snapshot::{ClusterId, Snapshot};

use self::words::{Lines, word};
use crate::gaps::Lack;
use crate::plan::{Plan, PlannedRoute};
use crate::{Engine, Options, Rendered, tls, users};

/// Where the list of certificates is.
const CERTIFICATES: &str = "certs/list.txt";
/// A client may be silent for this long in the middle of a body.
const CLIENT_STALL: &str = "120s";

/// A use of a cluster that needs a backend of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PoolKey {
    cluster: ClusterId,
    mode: Mode,
    /// Media types to be compressed, as words.
    compress: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Mode {
    Http,
    /// HTTP that was found by its first bytes: rules of its frontend have not seen it.
    Upgraded,
    Tcp,
}

#[derive(Debug, Default)]
struct PoolUse {
    name: String,
    /// Routes with a time of their own, in milliseconds.
    timeouts: BTreeMap<String, u64>,
}

/// What is written, section by section.
struct Writer<'a> {
    plan: Plan<'a>,
    has_certificates: bool,
    users: Lines,
    frontends: Lines,
    backends: Lines,
    pools: BTreeMap<PoolKey, PoolUse>,
    /// Sockets between frontends of ours.
    loops: usize,
    /// Variables that hold chance.
    draws: usize,
    /// Sections of routes that were written: a table can be that of several frontends.
    written: BTreeSet<String>,
}

pub(crate) fn render(snapshot: &Snapshot, options: &Options) -> Rendered {
    let mut writer = Writer {
        plan: Plan::new(Engine::Haproxy, snapshot, options),
        has_certificates: false,
        users: Lines::default(),
        frontends: Lines::default(),
        backends: Lines::default(),
        pools: BTreeMap::new(),
        loops: 0,
        draws: 0,
        written: BTreeSet::new(),
    };
    writer.certificates();
    for group in writer.plan.groups.clone() {
        writer.group(&group);
    }
    writer.all_backends();
    let mut text = writer.head();
    for part in [writer.users, writer.frontends, writer.backends] {
        let part = part.into_text();
        if !part.is_empty() {
            text = format!("{text}\n{part}");
        }
    }
    let mut out = writer.plan.out;
    out.secret.insert(Engine::Haproxy.main_file().to_owned());
    out.files.insert(Engine::Haproxy.main_file().to_owned(), text);
    out
}

impl Writer<'_> {
    /// The sections that hold for all.
    fn head(&self) -> String {
        let options = self.plan.options;
        let mut lines = Lines::default();
        lines.section("global");
        // `normalize-uri`, which has been what it is since 2.4.
        lines.line("expose-experimental-directives");
        if let Some((user, group)) = &options.user {
            lines.line(format!("user {}", word(user)));
            lines.line(format!("group {}", word(group)));
        }
        if let Some(workers) = options.workers {
            lines.line(format!("nbthread {workers}"));
        }
        if let Some(most) = options.max_connections {
            lines.line(format!("maxconn {most}"));
        }
        if let Some(path) = &options.admin_socket {
            let socket = word(&format!("unix@{path}"));
            lines.line(format!("stats socket {socket} mode 600 level admin expose-fd listeners"));
        }
        lines.section("defaults");
        lines.lines([
            "mode http",
            "timeout connect 1s",
            &format!("timeout client {CLIENT_STALL}"),
            "timeout server 300s",
            "timeout http-request 10s",
            "timeout http-keep-alive 75s",
            "timeout queue 30s",
            "option redispatch 1",
            "option splice-auto",
            "http-reuse safe",
        ]);
        lines.into_text()
    }

    /// Writes the files with certificates, and the list of them.
    fn certificates(&mut self) {
        let usable = tls::usable(&mut self.plan);
        let mut list = String::new();
        for certificate in &usable {
            let path = format!("certs/{}.pem", certificate.index);
            let pem = certificate.pem;
            let text = format!("{}\n{}\n", pem.chain.trim_end(), pem.key.trim_end());
            list.push_str(&format!("{path} {}", certificate.names.join(" ")));
            list.truncate(list.trim_end().len());
            list.push('\n');
            self.plan.out.secret.insert(path.clone());
            self.plan.out.files.insert(path, text);
        }
        self.has_certificates = !usable.is_empty();
        if self.has_certificates {
            self.plan.out.files.insert(CERTIFICATES.to_owned(), list);
        }
    }

    /// The name of the backend for a use of a cluster.
    fn pool(&mut self, cluster: &str, mode: Mode, compress: Option<String>) -> &mut PoolUse {
        let key = PoolKey { cluster: cluster.to_owned(), mode, compress };
        let known = self.pools.len();
        let names = &mut self.plan.names;
        self.pools.entry(key).or_insert_with_key(|key| {
            let suffix = match (key.mode, &key.compress) {
                (Mode::Http, None) => String::new(),
                (Mode::Http, Some(_)) => format!(".gzip{known}"),
                (Mode::Upgraded, _) => ".http".to_owned(),
                (Mode::Tcp, _) => ".tcp".to_owned(),
            };
            let name = names.of(&format!("{cluster}{suffix}"));
            PoolUse { name, timeouts: BTreeMap::new() }
        })
    }

    /// A list of users; its name.
    fn user_list(&mut self, route: &PlannedRoute<'_>, auth: &BasicAuth) -> String {
        let name = format!("users_{}", route.name);
        if !self.written.insert(name.clone()) {
            return name;
        }
        self.users.section(&format!("userlist {name}"));
        let mut known = BTreeSet::new();
        for (index, line) in users::lines(auth) {
            let place = format!("route {}, user {}", route.entry.name, index + 1);
            let Some((user, hash)) = users::parse(line) else {
                self.plan.note(Lack::UserLine, place);
                continue;
            };
            if hash.starts_with("$apr1$") || hash.starts_with("{SHA}") {
                self.plan.note(Lack::PasswordHash, place);
                continue;
            }
            if !known.insert(user) {
                continue;
            }
            self.users.line(format!("user {} password {}", word(user), word(hash)));
        }
        name
    }

    /// The path of one more socket between frontends of ours.
    fn next_loop(&mut self) -> String {
        self.loops += 1;
        format!("unix@{}/loop{}.sock", self.plan.options.socket_dir, self.loops)
    }
}
