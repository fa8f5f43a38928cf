//! Who calls: the service behind a connection.
//!
//! An instance with a network of its own is known by its address. Those that share the host's are told apart by the
//! cgroup in which the calling process opened its socket: the kernel is asked once per connection, when the first
//! request on it is counted.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use keel_route::snapshot::Snapshot;

use crate::sock_diag::SockDiag;

/// `stack/service` by what a caller is known by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CallerNames {
    addresses: HashMap<IpAddr, String>,
    cgroups: HashMap<u64, String>,
}

impl CallerNames {
    /// What `snapshot` says.
    pub fn new(snapshot: &Snapshot) -> Self {
        let owned = |name: &String| name.clone();
        let cgroups = snapshot.caller_cgroups.iter().map(|(id, name)| (*id, owned(name)));
        Self {
            addresses: snapshot.callers.iter().map(|(ip, name)| (*ip, owned(name))).collect(),
            cgroups: cgroups.collect(),
        }
    }
}

/// The callers, as one worker knows them.
#[derive(Debug, Default)]
pub struct Callers {
    known: RefCell<Arc<CallerNames>>,
    /// Rises with every change; never that of a [`Caller`] that was not looked for yet.
    version: Cell<u64>,
    /// Opened when first needed; `None` where that fails.
    diag: OnceCell<Option<SockDiag>>,
    /// The name of who is not known.
    nobody: Rc<str>,
}

/// Who calls on one connection, as far as was found out.
#[derive(Debug, Default)]
pub struct Caller {
    name: Option<Rc<str>>,
    version: Option<u64>,
    /// Once the kernel was asked.
    cgroup: OnceCell<Option<u64>>,
}

impl Callers {
    /// Takes over what is known now.
    pub fn set(&self, known: Arc<CallerNames>) {
        self.known.replace(known);
        self.version.set(self.version.get() + 1);
    }

    /// Tells whether anything has changed.
    pub fn version(&self) -> u64 {
        self.version.get()
    }

    /// The name of who calls from `peer`, through the virtual address `virtual_address` if it is one. One that is not
    /// known yet is looked for again when the callers change: a process may be faster than the news of it.
    pub fn name(
        &self,
        caller: &mut Caller,
        peer: SocketAddr,
        virtual_address: Option<SocketAddr>,
    ) -> Rc<str> {
        if caller.name.is_none() && caller.version != Some(self.version.get()) {
            caller.version = Some(self.version.get());
            caller.name = self.find(&caller.cgroup, peer, virtual_address);
        }
        Rc::clone(caller.name.as_ref().unwrap_or(&self.nobody))
    }

    /// The name of an instance with an address of its own.
    pub fn at(&self, address: IpAddr) -> Option<String> {
        self.known.borrow().addresses.get(&address.to_canonical()).cloned()
    }

    fn find(
        &self,
        cgroup: &OnceCell<Option<u64>>,
        peer: SocketAddr,
        virtual_address: Option<SocketAddr>,
    ) -> Option<Rc<str>> {
        let known = self.known.borrow();
        let ip = peer.ip().to_canonical();
        if let Some(name) = known.addresses.get(&ip) {
            return Some(name.as_str().into());
        }
        let server = virtual_address.filter(|_| !known.cgroups.is_empty())?;
        // A process of this host calls from its loopback address, or from the one that it calls.
        if !ip.is_loopback() && ip != server.ip() {
            return None;
        }
        let asked =
            || self.diag.get_or_init(|| SockDiag::open().ok()).as_ref()?.cgroup(peer, server);
        let id = (*cgroup.get_or_init(asked))?;
        known.cgroups.get(&id).map(|name| name.as_str().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(ip: &str, name: &str) -> Arc<CallerNames> {
        let mut snapshot = Snapshot::default();
        snapshot.callers.insert(ip.parse().unwrap(), name.to_owned());
        Arc::new(CallerNames::new(&snapshot))
    }

    #[test]
    fn a_caller_that_is_not_known_yet_is_looked_for_again() {
        let callers = Callers::default();
        let mut caller = Caller::default();
        let peer = "10.1.0.2:4000".parse().unwrap();
        assert_eq!(&*callers.name(&mut caller, peer, None), "");
        callers.set(known("10.1.0.2", "shop/web"));
        assert_eq!(&*callers.name(&mut caller, peer, None), "shop/web");
        callers.set(known("10.1.0.2", "shop/other"));
        assert_eq!(
            &*callers.name(&mut caller, peer, None),
            "shop/web",
            "it is the same connection"
        );
        let mut next = Caller::default();
        assert_eq!(
            &*callers.name(&mut next, "[::ffff:10.1.0.2]:1".parse().unwrap(), None),
            "shop/other"
        );
    }

    #[test]
    fn only_processes_of_this_host_are_asked_for() {
        let callers = Callers::default();
        let mut snapshot = Snapshot::default();
        snapshot.caller_cgroups.insert(1, "shop/web".to_owned());
        callers.set(Arc::new(CallerNames::new(&snapshot)));
        let mut caller = Caller::default();
        callers.name(&mut caller, "10.1.0.2:4000".parse().unwrap(), "10.77.0.2:80".parse().ok());
        assert!(caller.cgroup.get().is_none(), "elsewhere");
        callers.set(Arc::new(CallerNames::new(&snapshot)));
        callers.name(&mut caller, "127.0.0.1:4000".parse().unwrap(), None);
        assert!(caller.cgroup.get().is_none(), "not at a virtual address");
        callers.set(Arc::new(CallerNames::new(&snapshot)));
        callers.name(&mut caller, "127.0.0.1:1".parse().unwrap(), "10.77.0.2:80".parse().ok());
        assert_eq!(caller.cgroup.get(), Some(&None), "there is no such connection");
    }
}
