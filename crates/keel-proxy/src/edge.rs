//! What is measured of the traffic from one caller over one route to one cluster.
//!
//! Each worker counts by itself, in plain cells: a request costs a few additions and no shared memory. The control
//! thread asks every worker for its edges and adds them up.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use keel_route::histogram::{BUCKETS, Histogram, bucket};
use keel_route::snapshot::{ClusterId, EdgeStats};

use crate::limits::MAX_EDGES;

/// Whose traffic it is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct EdgeKey {
    /// The route's name; empty without one.
    pub route: Rc<str>,
    /// `stack/service`; empty for callers outside.
    pub caller: Rc<str>,
    /// Where it goes; empty for answers of the proxy itself.
    pub cluster: ClusterId,
}

/// Counters of one edge in one worker.
#[derive(Debug)]
pub struct Edge {
    pub key: EdgeKey,
    statuses: RefCell<Vec<(u16, u64)>>,
    grpc_statuses: RefCell<Vec<(u16, u64)>>,
    retries: Cell<u64>,
    bytes_in: Cell<u64>,
    bytes_out: Cell<u64>,
    latency_sum: Cell<u64>,
    latency: RefCell<Box<[u64]>>,
}

/// What one request (or opaque connection) adds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Record {
    /// 0: none could be sent, or an opaque connection.
    pub status: u16,
    /// Of a call of gRPC.
    pub grpc_status: Option<u16>,
    pub retries: u32,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub latency_us: u64,
}

impl Edge {
    fn new(key: EdgeKey) -> Self {
        Self {
            key,
            statuses: RefCell::default(),
            grpc_statuses: RefCell::default(),
            retries: Cell::new(0),
            bytes_in: Cell::new(0),
            bytes_out: Cell::new(0),
            latency_sum: Cell::new(0),
            latency: RefCell::new(vec![0; BUCKETS].into()),
        }
    }

    /// Adds one request.
    pub fn add(&self, record: Record) {
        let add = |cell: &Cell<u64>, n: u64| cell.set(cell.get().wrapping_add(n));
        add(&self.retries, u64::from(record.retries));
        add(&self.bytes_in, record.bytes_in);
        add(&self.bytes_out, record.bytes_out);
        add(&self.latency_sum, record.latency_us);
        self.latency.borrow_mut()[bucket(record.latency_us)] += 1;
        count(&mut self.statuses.borrow_mut(), record.status);
        // A request counts as one failure, however often it says so.
        if let Some(status) = record.grpc_status
            && record.status < 500
        {
            count(&mut self.grpc_statuses.borrow_mut(), status);
        }
    }

    fn stats(&self) -> EdgeStats {
        EdgeStats {
            route: self.key.route.to_string(),
            caller: self.key.caller.to_string(),
            cluster: self.key.cluster.clone(),
            statuses: self.statuses.borrow().iter().copied().collect(),
            grpc_statuses: self.grpc_statuses.borrow().iter().copied().collect(),
            retries: self.retries.get(),
            bytes_in: self.bytes_in.get(),
            bytes_out: self.bytes_out.get(),
            latency: Histogram::new(self.latency_sum.get(), self.latency.borrow().iter().copied()),
        }
    }
}

/// The commonest status is mostly the first.
fn count(statuses: &mut Vec<(u16, u64)>, status: u16) {
    match statuses.iter_mut().find(|(known, _)| *known == status) {
        Some((_, count)) => *count += 1,
        None => statuses.push((status, 1)),
    }
}

/// The edges of one worker.
#[derive(Debug, Default)]
pub struct Edges(RefCell<HashMap<EdgeKey, Rc<Edge>>>);

impl Edges {
    /// The edge with this key. Beyond [`MAX_EDGES`] callers are no longer told apart, then routes are not.
    pub fn get(&self, key: EdgeKey) -> Rc<Edge> {
        let mut edges = self.0.borrow_mut();
        if let Some(edge) = edges.get(&key) {
            return Rc::clone(edge);
        }
        let key = if edges.len() < MAX_EDGES {
            key
        } else {
            EdgeKey { route: "".into(), caller: "".into(), cluster: ClusterId::new() }
        };
        let edge = edges.entry(key.clone()).or_insert_with(|| Rc::new(Edge::new(key)));
        Rc::clone(edge)
    }

    /// Drops the edges to a cluster that is gone.
    pub fn forget(&self, cluster: &str) {
        self.0.borrow_mut().retain(|key, _| key.cluster != cluster);
    }

    /// What was counted so far.
    pub fn stats(&self) -> Vec<EdgeStats> {
        self.0.borrow().values().map(|edge| edge.stats()).collect()
    }
}

/// Adds up what several workers have counted, in order of the keys.
pub fn merge(parts: impl IntoIterator<Item = EdgeStats>) -> Vec<EdgeStats> {
    let mut sums = std::collections::BTreeMap::<_, EdgeStats>::new();
    for part in parts {
        let key = (part.cluster.clone(), part.route.clone(), part.caller.clone());
        let Some(sum) = sums.get_mut(&key) else {
            sums.insert(key, part);
            continue;
        };
        for (status, count) in part.statuses {
            *sum.statuses.entry(status).or_default() += count;
        }
        for (status, count) in part.grpc_statuses {
            *sum.grpc_statuses.entry(status).or_default() += count;
        }
        sum.retries += part.retries;
        sum.bytes_in += part.bytes_in;
        sum.bytes_out += part.bytes_out;
        sum.latency.add(&part.latency);
    }
    sums.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(cluster: &str, caller: &str) -> EdgeKey {
        EdgeKey { route: "".into(), caller: caller.into(), cluster: cluster.into() }
    }

    #[test]
    fn workers_are_added_up() {
        let (one, two) = (Edges::default(), Edges::default());
        let record = Record {
            status: 200,
            grpc_status: Some(0),
            retries: 1,
            bytes_in: 2,
            bytes_out: 3,
            latency_us: 40,
        };
        one.get(key("a", "x")).add(record);
        one.get(key("a", "x")).add(Record { status: 503, ..record });
        two.get(key("a", "x")).add(record);
        two.get(key("a", "y")).add(record);
        let sums = merge(one.stats().into_iter().chain(two.stats()));
        assert_eq!(sums.len(), 2);
        assert_eq!(sums[0].statuses, [(200, 2), (503, 1)].into());
        assert_eq!(sums[0].grpc_statuses, [(0, 2)].into(), "503 says it already");
        assert_eq!((sums[0].retries, sums[0].bytes_in, sums[0].bytes_out), (3, 6, 9));
        assert_eq!((sums[0].latency.sum, sums[0].latency.count()), (120, 3));
        two.forget("a");
        assert!(two.stats().is_empty());
    }

    #[test]
    fn the_number_of_edges_is_bounded() {
        let edges = Edges::default();
        for n in 0..MAX_EDGES + 10 {
            edges.get(key("a", &n.to_string())).add(Record::default());
        }
        assert!(edges.stats().len() <= MAX_EDGES + 1);
    }
}
