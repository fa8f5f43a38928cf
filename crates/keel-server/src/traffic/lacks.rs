//! What an engine in the place of our proxy can't do of what is wanted: which of it is news, and whom it concerns. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use keel_model::StackName;
use keel_route::snapshot::{Lacking, Listener, Snapshot};

/// Places that one message names.
const NAMED: usize = 5;

/// What is lacking now and was not before, in one message for each kind and each stack that it concerns; no stack where it
/// concerns several, or none.
pub fn news(
    before: &[Lacking],
    now: &[Lacking],
    snapshot: Option<&Snapshot>,
) -> Vec<(Option<StackName>, String)> {
    let mut told = Vec::new();
    // Most acknowledgements say nothing new.
    if before == now {
        return told;
    }
    for lacking in now {
        let same = |other: &&Lacking| {
            (&other.engine, &other.what, &other.why)
                == (&lacking.engine, &lacking.what, &lacking.why)
        };
        let known: BTreeSet<&String> =
            before.iter().filter(same).flat_map(|other| &other.places).collect();
        let mut fresh: BTreeMap<Option<&str>, Vec<String>> = BTreeMap::new();
        for place in lacking.places.iter().filter(|place| !known.contains(place)) {
            let stacks = stacks(place, snapshot);
            let only = stacks.first().filter(|_| stacks.len() == 1).copied();
            fresh.entry(only).or_default().push(place.clone());
        }
        told.extend(fresh.into_iter().map(|(stack, places)| {
            let stack = stack.and_then(|stack| StackName::new(stack).ok());
            (stack, message(&Lacking { places, ..lacking.clone() }))
        }));
    }
    told
}

fn message(lacking: &Lacking) -> String {
    let Lacking { engine, what, why, .. } = lacking;
    format!("{engine} lacks {what} ({}): {why}", lacking.named(NAMED))
}

/// What of this concerns a stack.
pub fn of_stack(stack: &StackName, lacks: &[Lacking], snapshot: Option<&Snapshot>) -> Vec<Lacking> {
    let concerns = |place: &&String| stacks(place, snapshot).contains(stack.as_str());
    let of_it = lacks.iter().map(|lacking| {
        let places = lacking.places.iter().filter(concerns).cloned().collect();
        Lacking { places, ..lacking.clone() }
    });
    of_it.filter(|lacking| !lacking.places.is_empty()).collect()
}

/// The stacks that have to do with a place, as [`Lacking::places`] names them.
fn stacks<'a>(place: &'a str, snapshot: Option<&'a Snapshot>) -> BTreeSet<&'a str> {
    let owner = |name: &'a str| name.split_once('/').map(|(stack, _)| stack);
    match place.split_once(' ') {
        Some(("route" | "cluster", name)) => owner(name).into_iter().collect(),
        Some(("listener", rest)) => {
            let bind = rest.split(' ').next().and_then(|bind| bind.parse::<SocketAddr>().ok());
            let listener = snapshot.iter().flat_map(|snapshot| &snapshot.listeners);
            let mut found = listener.filter(|listener| Some(listener.bind) == bind);
            let Some((listener, snapshot)) = found.next().zip(snapshot) else {
                return BTreeSet::new();
            };
            served(listener, snapshot).filter_map(owner).collect()
        }
        _ => BTreeSet::new(),
    }
}

/// The cluster and the routes of a listener.
fn served<'a>(listener: &'a Listener, snapshot: &'a Snapshot) -> impl Iterator<Item = &'a str> {
    let table = listener.table.as_ref().and_then(|id| snapshot.tables.get(id));
    let routes = table.into_iter().flat_map(|table| &table.routes);
    routes.map(|route| route.name.as_str()).chain([listener.cluster.as_str()])
}

#[cfg(test)]
mod tests {
    use keel_model::Rule;
    use keel_route::snapshot::{RouteEntry, RouteTable};

    use super::*;

    fn lacking(what: &str, places: &[&str]) -> Lacking {
        Lacking {
            engine: "nginx".to_owned(),
            what: what.to_owned(),
            why: "it is so".to_owned(),
            places: places.iter().map(|place| (*place).to_owned()).collect(),
        }
    }

    /// One listener for `shop/cart`, and one for routes of two stacks.
    fn snapshot() -> Snapshot {
        let route = |name: &str| RouteEntry {
            name: name.to_owned(),
            rule: Rule::default(),
            priority: 0,
            kind: keel_model::RouteKind::Http,
            clusters: Vec::new(),
            filters: keel_model::Filters::default(),
            timeout_ms: None,
        };
        let routes = vec![route("shop/web"), route("blog/web")];
        let table = RouteTable { routes, redirect_https: None };
        let at = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        Snapshot {
            listeners: vec![
                Listener { bind: at(1), cluster: "shop/cart:80".to_owned(), ..Listener::default() },
                Listener { bind: at(2), table: Some("t".to_owned()), ..Listener::default() },
            ],
            tables: BTreeMap::from([("t".to_owned(), table)]),
            ..Snapshot::default()
        }
    }

    #[test]
    fn each_place_concerns_its_stacks() {
        let snapshot = snapshot();
        for (place, expected) in [
            ("route shop/web, user 1", vec!["shop"]),
            ("cluster blog/web:80, 429", vec!["blog"]),
            ("listener 127.0.0.1:1 (shop/cart:80)", vec!["shop"]),
            ("listener 127.0.0.1:2", vec!["blog", "shop"]),
            ("listener 127.0.0.1:3", vec![]),
            ("listener x", vec![]),
            ("certificate 1, name \"shop/web\"", vec![]),
            ("all traffic", vec![]),
            ("", vec![]),
        ] {
            assert_eq!(Vec::from_iter(stacks(place, Some(&snapshot))), expected, "{place}");
        }
        let lacks =
            [lacking("a", &["route shop/web", "route blog/web"]), lacking("b", &["all traffic"])];
        let name = StackName::new("shop").unwrap();
        let expected = [lacking("a", &["route shop/web"])];
        assert_eq!(of_stack(&name, &lacks, Some(&snapshot)), expected);
    }

    #[test]
    fn only_news_is_told_and_once_for_each_stack() {
        let snapshot = snapshot();
        let news = |before: &[Lacking], now: &[Lacking]| {
            let news = super::news(before, now, Some(&snapshot)).into_iter();
            news.map(|(stack, text)| (stack.map(String::from), text)).collect::<Vec<_>>()
        };
        let first = [lacking("a", &["route shop/web"])];
        let told = (Some("shop".to_owned()), "nginx lacks a (route shop/web): it is so".to_owned());
        assert_eq!(news(&[], &first), [told]);
        assert_eq!(news(&first, &first), [], "the next acknowledgement");
        assert_eq!(news(&first, &[]), [], "what is no lack any more");

        let more = [
            lacking("a", &["route shop/web", "route shop/a", "route shop/b", "route blog/x"]),
            lacking("b", &["listener 127.0.0.1:2", "all traffic"]),
        ];
        let expected = [
            (Some("blog".to_owned()), "nginx lacks a (route blog/x): it is so".to_owned()),
            (
                Some("shop".to_owned()),
                "nginx lacks a (route shop/a; route shop/b): it is so".to_owned(),
            ),
            (None, "nginx lacks b (listener 127.0.0.1:2; all traffic): it is so".to_owned()),
        ];
        assert_eq!(news(&first, &more), expected);
        // Another engine is another matter.
        let other = [Lacking { engine: "haproxy".to_owned(), ..first[0].clone() }];
        assert_eq!(news(&first, &other).len(), 1);
    }

    #[test]
    fn a_message_is_bounded() {
        let places: Vec<String> = (0..500).map(|n| format!("route shop/{n}")).collect();
        let places: Vec<&str> = places.iter().map(String::as_str).collect();
        let told = news(&[], &[lacking("a", &places)], None);
        assert_eq!(told.len(), 1);
        assert!(told[0].1.ends_with("; route shop/4; 495 more): it is so"), "{}", told[0].1);
    }
}
