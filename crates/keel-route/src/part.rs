//! What changes about the endpoints of a cluster, where that is less than the whole.

use keel_model::{Endpoint, InstanceId};

use crate::snapshot::{Cluster, ClusterId, ToProxy};

/// Endpoints that are set or gone; the others stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// New ones, and those that have changed.
    pub set: Vec<Endpoint>,
    /// Those that are not there any more.
    pub gone: Vec<InstanceId>,
}

impl Part {
    /// What leads from `old` to `new`; `None` if there is more to it, or if the whole is hardly longer.
    #[must_use]
    pub fn between(old: &Cluster, new: &Cluster) -> Option<Self> {
        // Taken apart so that no field is forgotten.
        let Cluster { endpoints, expected, protocol, policy, zones } = new;
        let same = (*expected, *protocol, policy, zones)
            == (old.expected, old.protocol, &old.policy, &old.zones);
        if !same || !is_in_order(endpoints) || !is_in_order(&old.endpoints) {
            return None;
        }
        let known = |all: &[Endpoint], id: &InstanceId| {
            all.binary_search_by(|endpoint| endpoint.instance.cmp(id)).ok()
        };
        let changed = |endpoint: &&Endpoint| {
            let before = known(&old.endpoints, &endpoint.instance);
            before.is_none_or(|at| old.endpoints[at] != **endpoint)
        };
        let set: Vec<_> = endpoints.iter().filter(changed).cloned().collect();
        let left = old.endpoints.iter().map(|endpoint| &endpoint.instance);
        let gone: Vec<_> = left.filter(|id| known(endpoints, id).is_none()).cloned().collect();
        let length = set.len() + gone.len();
        (length > 0 && length * 2 <= endpoints.len()).then_some(Self { set, gone })
    }

    /// Brings `cluster` to where the part leads.
    pub fn apply(self, cluster: &mut Cluster) {
        let endpoints = &mut cluster.endpoints;
        for endpoint in self.set {
            match endpoints.binary_search_by(|known| known.instance.cmp(&endpoint.instance)) {
                Ok(at) => endpoints[at] = endpoint,
                Err(at) => endpoints.insert(at, endpoint),
            }
        }
        endpoints.retain(|endpoint| !self.gone.contains(&endpoint.instance));
    }
}

/// Each once, in order of instance.
fn is_in_order(endpoints: &[Endpoint]) -> bool {
    endpoints.is_sorted_by(|one, next| one.instance < next.instance)
}

/// The frame that tells a proxy, which has `old`, of `new`.
#[must_use]
pub fn news(
    generation: keel_model::Generation,
    id: ClusterId,
    old: Option<&Cluster>,
    new: &Cluster,
) -> ToProxy {
    match old.and_then(|old| Part::between(old, new)) {
        Some(Part { set, gone }) => ToProxy::Endpoints { generation, id, set, gone },
        None => ToProxy::Cluster { generation, id, cluster: new.clone() },
    }
}

#[cfg(test)]
mod tests {
    use keel_model::{EndpointState, Generation};
    use proptest::prelude::*;

    use super::*;

    fn cluster() -> impl Strategy<Value = Cluster> {
        let one = (any::<bool>(), 1u16..4);
        let endpoints = prop::collection::btree_map(0u32..12, one, 0..10);
        (endpoints, prop::bool::weighted(0.9)).prop_map(|(endpoints, expected)| {
            let mut endpoints: Vec<_> = endpoints
                .into_iter()
                .map(|(number, (is_ready, port))| Endpoint {
                    instance: InstanceId::new(format!("shop-cart-{number}")).unwrap(),
                    address: ([127, 0, 0, 1], port).into(),
                    state: if is_ready { EndpointState::Ready } else { EndpointState::Draining },
                })
                .collect();
            // As the text of their names has it: 10 comes before 2.
            endpoints.sort_by(|one, other| one.instance.cmp(&other.instance));
            Cluster { endpoints, expected, ..Cluster::default() }
        })
    }

    proptest! {
        #[test]
        fn a_part_leads_to_the_whole(old in cluster(), new in cluster()) {
            match news(Generation(1), "a".to_owned(), Some(&old), &new) {
                ToProxy::Endpoints { set, gone, .. } => {
                    prop_assert!((set.len() + gone.len()) * 2 <= new.endpoints.len());
                    let mut led = old;
                    Part { set, gone }.apply(&mut led);
                    prop_assert_eq!(led, new);
                }
                ToProxy::Cluster { cluster, .. } => prop_assert_eq!(cluster, new),
                other => prop_assert!(false, "{other:?}"),
            }
        }
    }

    #[test]
    fn what_is_out_of_order_travels_as_a_whole() {
        let endpoint = |name: &str, port: u16| Endpoint {
            instance: InstanceId::new(name).unwrap(),
            address: ([127, 0, 0, 1], port).into(),
            state: EndpointState::Ready,
        };
        let cluster = |endpoints: Vec<Endpoint>| Cluster { endpoints, ..Cluster::default() };
        let old = cluster(vec![endpoint("b", 1), endpoint("a", 1)]);
        let new = cluster(vec![endpoint("b", 1), endpoint("a", 2)]);
        assert_eq!(Part::between(&old, &new), None);
        let old = cluster(vec![endpoint("a", 1), endpoint("b", 1)]);
        let new = cluster(vec![endpoint("a", 1), endpoint("b", 2)]);
        let part = Part { set: vec![endpoint("b", 2)], gone: Vec::new() };
        assert_eq!(Part::between(&old, &new), Some(part));
        assert_eq!(Part::between(&new, &new), None, "nothing has changed");
    }
}
