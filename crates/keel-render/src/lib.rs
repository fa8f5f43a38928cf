//! The same listeners, routes and services, written as a configuration for HAProxy or nginx.
//!
//! [`render`] takes what our own data plane is told, a [`Snapshot`], and returns files. Nothing is dropped silently:
//! what the engine can't do, or does differently, is a [`Gap`]. Versions: HAProxy 2.6 and nginx 1.22, as in Debian 12.
//!
//! Text from users (names, header values, expressions, paths) is quoted for the place where it stands; where a
//! syntax has no quoting for it, it is left out and reported. The files are written line by line by code rather than
//! from templates: quoting depends on the place, and a template engine quotes for HTML or not at all.

mod change;
mod endpoints;
mod gaps;
mod haproxy;
mod lacks;
mod names;
mod nginx;
mod origin;
mod path;
mod pattern;
mod plan;
mod readings;
mod rules;
mod tls;
mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use keel_model::InstanceId;
use keel_route::snapshot::{Certificate, ClusterId, Snapshot};

pub use gaps::{Gap, Lack};

/// A load balancer that can be configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// HAProxy.
    Haproxy,
    /// nginx.
    Nginx,
}

impl Engine {
    /// The name of its command.
    #[must_use]
    pub const fn command(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
        }
    }

    /// The file that it is started with, among [`Rendered::files`].
    #[must_use]
    pub const fn main_file(self) -> &'static str {
        match self {
            Self::Haproxy => "haproxy.cfg",
            Self::Nginx => "nginx.conf",
        }
    }
}

/// What the configuration has to know about where it will be used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Tells this configuration's internal sockets from those of others on the machine: a word.
    pub instance: String,
    /// Directory in which the engine may make Unix sockets.
    pub socket_dir: String,
    /// HAProxy: where its admin socket is to be.
    pub admin_socket: Option<String>,
    /// HAProxy: the number of server slots for a cluster with so many endpoints. With slots, endpoints can be changed
    /// through the admin socket; without, servers have the names of their instances.
    pub slots: Option<fn(usize) -> usize>,
    /// Shown at TLS listeners when the snapshot has no certificate at all.
    pub fallback: Option<Certificate>,
    /// nginx: where its module for opaque connections is.
    pub stream: StreamModule,
    /// User and group of the processes that handle traffic; those of the caller if absent.
    pub user: Option<(String, String)>,
    /// Threads or processes that handle traffic; one per core if absent.
    pub workers: Option<usize>,
    /// HAProxy: every thread listens on a socket of its own, which 2.5 is the first to know. Sockets can then be passed
    /// to and from a proxy that has one per thread, too.
    pub socket_per_thread: bool,
    /// Connections that may be open at once.
    pub max_connections: Option<u32>,
    /// File with the certificate authorities that the system trusts.
    pub system_authorities: String,
}

/// nginx's module for opaque connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamModule {
    /// Part of the program.
    BuiltIn,
    /// To be loaded from this file.
    File(String),
    /// Not there.
    Absent,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            instance: "keel".to_owned(),
            socket_dir: "/run/keel".to_owned(),
            admin_socket: None,
            slots: None,
            fallback: None,
            stream: StreamModule::File("/usr/lib/nginx/modules/ngx_stream_module.so".to_owned()),
            user: None,
            workers: None,
            socket_per_thread: false,
            max_connections: None,
            system_authorities: "/etc/ssl/certs/ca-certificates.crt".to_owned(),
        }
    }
}

/// A configuration.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// Content by path, relative to the directory that the engine is started with.
    pub files: BTreeMap<String, String>,
    /// Those of the files that hold keys or password hashes.
    pub secret: BTreeSet<String>,
    /// Those of the secret files that the processes that handle traffic read, not just the one that starts them.
    pub read_by_workers: BTreeSet<String>,
    /// Files to be made of others on this machine, put one after the other. Secret.
    pub joined: BTreeMap<String, Vec<PathBuf>>,
    /// What the engine can't do.
    pub gaps: Vec<Gap>,
    /// HAProxy: where the endpoints of each cluster are.
    pub pools: BTreeMap<ClusterId, Pool>,
}

impl std::fmt::Debug for Rendered {
    /// Without contents, which may be secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rendered")
            .field("files", &self.files.keys())
            .field("gaps", &self.gaps)
            .finish_non_exhaustive()
    }
}

/// Where the endpoints of a cluster are in HAProxy's configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pool {
    /// Names of its backends; all have the same servers.
    pub backends: Vec<String>,
    /// Names of its servers in order, and which endpoint each one has.
    pub servers: Vec<(String, Option<InstanceId>)>,
}

/// Writes `snapshot` as a configuration for `engine`.
#[must_use]
pub fn render(engine: Engine, snapshot: &Snapshot, options: &Options) -> Rendered {
    let mut rendered = match engine {
        Engine::Haproxy => haproxy::render(snapshot, options),
        Engine::Nginx => nginx::render(snapshot, options),
    };
    rendered.gaps.sort();
    rendered.gaps.dedup();
    rendered
}
