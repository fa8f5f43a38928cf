//! What is known of a client's connection, whatever is spoken on it.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::ops::Deref;
use std::rc::Rc;

use keel_model::ProxyVersion;
use keel_route::{proxy_protocol, retry_after};

use crate::callers::Caller;
use crate::cluster::WorkerCluster;
use crate::conn::Conn;
use crate::counted::{Affinity, Counted};
use crate::deadline::Deadline;
use crate::edge::{Edge, EdgeKey};
use crate::reply::Reply;
use crate::worker::{Target, Worker};

/// A client's connection, as its requests see it.
#[derive(Debug)]
pub struct Session {
    /// The client, as the network or a trusted proxy in front says.
    pub peer: SocketAddr,
    /// The same as text, without the port.
    pub peer_text: String,
    /// Where the client connected to.
    pub local: SocketAddr,
    /// The listener.
    pub target: Rc<Target>,
    pub worker: Rc<Worker>,
    /// What TLS told, if it ended here.
    pub secure: Option<Secure>,
    /// What it says that an earlier proxy said is believed.
    pub trusted: bool,
    /// It came when memory was short.
    late: bool,
    caller: RefCell<Caller>,
    /// The edge of the request before: mostly that of the next one, too.
    last_edge: RefCell<Option<LastEdge>>,
}

/// What TLS told of a client.
#[derive(Clone, Debug, Default)]
pub struct Secure {
    /// The name that the client asked for.
    pub sni: Option<String>,
    /// `TLSv1.2` or `TLSv1.3`.
    pub version: Option<&'static str>,
    /// Header lines about the client's certificate.
    pub lines: Vec<u8>,
}

#[derive(Debug)]
struct LastEdge {
    cluster: Rc<WorkerCluster>,
    route: Option<Rc<str>>,
    /// What was known of callers then.
    callers: u64,
    edge: Rc<Edge>,
}

impl Session {
    pub fn new(
        peer: SocketAddr,
        local: SocketAddr,
        target: Rc<Target>,
        worker: Rc<Worker>,
        secure: Option<Secure>,
    ) -> Self {
        // Services speak to each other at virtual addresses.
        let trusted = !target.is_published() || target.believes(peer.ip());
        Self {
            trusted,
            peer,
            peer_text: peer.ip().to_canonical().to_string(),
            local,
            late: worker.shared.refuses_connections(),
            target,
            worker,
            secure,
            caller: RefCell::default(),
            last_edge: RefCell::default(),
        }
    }

    /// Begins to count a request to `cluster` that came over `route`.
    pub fn count(
        self: &Rc<Self>,
        cluster: Rc<WorkerCluster>,
        route: Option<&Rc<str>>,
        affinity: Affinity,
    ) -> Counted {
        let edge = self.edge(&cluster, route);
        Counted::begin(Rc::clone(self), cluster, edge, affinity)
    }

    /// What an endpoint is told of the client before anything else.
    pub fn proxy_header(&self, version: ProxyVersion) -> Vec<u8> {
        proxy_protocol::write(version, self.peer, self.local)
    }

    fn edge(&self, cluster: &Rc<WorkerCluster>, route: Option<&Rc<str>>) -> Rc<Edge> {
        let mut last = self.last_edge.borrow_mut();
        if let Some(last) = &*last
            && Rc::ptr_eq(&last.cluster, cluster)
            && last.route.as_ref() == route
            && last.callers == self.worker.callers.version()
        {
            return Rc::clone(&last.edge);
        }
        let edge = self.worker.edges.get(EdgeKey {
            route: route.cloned().unwrap_or_default(),
            caller: self.caller(),
            cluster: cluster.id().clone(),
        });
        *last = Some(LastEdge {
            cluster: Rc::clone(cluster),
            route: route.cloned(),
            callers: self.worker.callers.version(),
            edge: Rc::clone(&edge),
        });
        edge
    }

    /// The answer to a request for which there is no memory.
    pub fn shed(&self) -> Option<Reply> {
        let wait = self.worker.shared.sheds(self.late)?;
        let seconds = retry_after::seconds(wait, &mut self.worker.random.borrow_mut());
        Some(Reply::short_of_memory(seconds))
    }

    /// `stack/service` of the client; empty for one outside.
    pub fn caller(&self) -> Rc<str> {
        let virtual_address = self.target.virtual_address();
        self.worker.callers.name(&mut self.caller.borrow_mut(), self.peer, virtual_address)
    }

    /// The scheme of requests.
    pub fn is_secure(&self) -> bool {
        self.secure.is_some()
    }
}

/// A client's connection and what is known of it.
#[derive(Debug)]
pub struct Client {
    pub stream: Conn,
    /// For waiting on the client.
    pub deadline: Deadline,
    pub session: Rc<Session>,
}

impl Deref for Client {
    type Target = Session;

    fn deref(&self) -> &Session {
        &self.session
    }
}
