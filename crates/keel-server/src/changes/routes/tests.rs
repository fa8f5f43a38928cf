//! What is refused of two stacks, or of one, and in which words.

use keel_model::{PublishedPort, Rule, Split, Transport};

use super::*;
use crate::tests::{
    blank_service, plain_entrypoint as entrypoint, plain_record as record, plain_route,
    plain_stack, port_80, stored_stack,
};

fn name(text: &str) -> StackName {
    StackName::new(text).unwrap()
}

fn service(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn route(name: &str, rule: Rule) -> Route {
    plain_route(name, rule, "web")
}

fn host(text: &str) -> Rule {
    Rule::Host(text.to_owned())
}

/// A stack with a service `a` that has port 80 and these routes, and the entrypoint `web`.
fn stack(stack_name: &str, routes: Vec<Route>) -> Stack {
    let mut definition = blank_service();
    definition.ports.push(port_80(keel_model::Protocol::Auto));
    definition.routes = routes;
    let web = ("web".to_owned(), entrypoint("0.0.0.0:80", false));
    plain_stack(stack_name, BTreeMap::from([(service("a"), definition)]), BTreeMap::from([web]))
}

/// What is said to a stack beside others; `good` if nothing is.
fn verdict(wanted: Stack, others: Vec<Stack>) -> String {
    let mut world = World::default();
    for stack in others {
        world.stacks.insert(stack.name.clone(), stored_stack(record(stack)));
    }
    match check(&world, &record(wanted)) {
        Ok(()) => "good".to_owned(),
        Err(refusal) => format!("{}: {}", refusal.code, refusal.message),
    }
}

#[test]
fn stacks_share_an_address_as_long_as_they_want_different_requests() {
    let one = || stack("one", vec![route("r", host("a.de"))]);
    let of = |rule: Rule| verdict(stack("two", vec![route("r", rule)]), vec![one()]);
    assert_eq!(of(host("b.de")), "good");
    let deeper = Rule::All(vec![host("a.de"), Rule::PathPrefix("/api".to_owned())]);
    assert_eq!(of(deeper), "good", "the longer rule wins");
    assert_eq!(
        of(host("a.de")),
        "route_taken: route `r` of service `a` of stack `two` wants Host(`a.de`) at 0.0.0.0:80, which route `r` of \
         service `a` of stack `one` has"
    );
    assert!(of(Rule::Any(vec![host("b.de"), host("a.de")])).contains("Host(`a.de`)"));
    let mut louder = route("r", host("a.de"));
    louder.priority = Some(1000);
    assert_eq!(verdict(stack("two", vec![louder]), vec![one()]), "good");
    let mut same = one();
    same.name = name("one");
    assert_eq!(verdict(same, vec![one()]), "good", "a stack does not clash with what it was");
    let mut elsewhere = stack("two", vec![route("r", host("a.de"))]);
    elsewhere.entrypoints.insert("web".to_owned(), entrypoint("0.0.0.0:81", false));
    assert_eq!(verdict(elsewhere, vec![one()]), "good");
}

#[test]
fn a_route_that_no_proxy_could_use_is_refused_in_one_message() {
    let of = |route: Route| verdict(stack("one", vec![route]), Vec::new());
    let mut bad = route("r", Rule::PathRegex("(".to_owned()));
    bad.timeout = Some(std::time::Duration::ZERO);
    let said = of(bad);
    assert!(said.starts_with("invalid: route `r` of service `a` can't be used: "), "{said}");
    assert!(said.contains("unclosed") && said.contains("`timeout` must be more than 0"), "{said}");
    let said = of(route("a/\u{7}b", host("a.de")));
    assert!(said.contains("route `a/b`") && said.contains("slash"), "{said}");
    let mut nowhere = route("r", host("a.de"));
    nowhere.entrypoints.clear();
    assert!(of(nowhere).contains("names no entrypoint"));
    assert_eq!(listed(&["a", "b", "c", "d", "e"].map(str::to_owned)), "a; b; c; and 2 more");
}

#[test]
fn a_stack_that_goes_holds_nothing() {
    let mut world = World::default();
    let mut going = record(stack("one", vec![route("r", host("a.de"))]));
    going.removing = true;
    world.stacks.insert(name("one"), stored_stack(going));
    assert!(check(&world, &record(stack("two", vec![route("r", host("a.de"))]))).is_ok());
}

#[test]
fn routes_of_one_stack_are_compared_too() {
    let twice = stack("one", vec![route("r", host("a.de")), route("s", host("a.de"))]);
    assert!(verdict(twice, Vec::new()).starts_with("route_taken: route `s`"));
    let named = stack("one", vec![route("r", host("a.de")), route("r", host("b.de"))]);
    assert!(verdict(named, Vec::new()).contains("both have a route `r`"));
    let wider = Rule::Any(vec![host("a.de"), host("b.de")]);
    let ranked = stack("one", vec![route("r", host("a.de")), route("s", wider)]);
    assert_eq!(
        verdict(ranked, Vec::new()),
        "good",
        "the longer rule wins, and the author sees both"
    );
}

#[test]
fn entrypoints_at_one_port_must_be_alike() {
    let with = |entrypoint: Entrypoint| {
        let mut stack = stack("two", vec![route("r", host("b.de"))]);
        stack.entrypoints.insert("web".to_owned(), entrypoint);
        verdict(stack, vec![self::stack("one", vec![route("r", host("a.de"))])])
    };
    assert_eq!(with(entrypoint("0.0.0.0:80", false)), "good");
    assert!(with(entrypoint("0.0.0.0:80", true)).contains("only one of them speaks TLS"));
    assert!(with(entrypoint("127.0.0.1:80", false)).contains("their addresses differ"));
    let believing = Entrypoint {
        accept_proxy_from: vec!["10.0.0.0/8".parse().unwrap()],
        ..entrypoint("0.0.0.0:80", false)
    };
    let said = with(believing);
    assert!(said.starts_with("route_taken: entrypoint `web` (0.0.0.0:80) and entrypoint `web` (0.0.0.0:80) of stack `one`"), "{said}");
    let mut own = stack("one", Vec::new());
    own.entrypoints.insert("more".to_owned(), entrypoint("127.0.0.1:80", false));
    assert!(verdict(own, Vec::new()).contains("both want port 80"));
}

#[test]
fn an_entrypoint_and_a_published_port_exclude_each_other() {
    let published = |stack_name: &str, ip: Option<&str>| {
        let mut stack = stack(stack_name, Vec::new());
        stack.entrypoints.clear();
        let definition = stack.services.get_mut(&service("a")).unwrap();
        definition.publish.push(PublishedPort {
            ip: ip.map(|ip| ip.parse().unwrap()),
            published: Some(80),
            target: 80,
            transport: Transport::Tcp,
            protocol: keel_model::Protocol::Auto,
        });
        stack
    };
    let routed = || stack("two", vec![route("r", host("a.de"))]);
    let message = "port_in_use: port 80 can't be both: published by service `a` of stack `one`, and entrypoint `web` \
                   (0.0.0.0:80) of stack `two`";
    assert_eq!(verdict(routed(), vec![published("one", None)]), message);
    assert_eq!(verdict(published("one", Some("127.0.0.1")), vec![routed()]), message);
    let mut both = published("one", None);
    both.entrypoints = routed().entrypoints;
    assert!(verdict(both, Vec::new()).contains("of stack `one`, and entrypoint"));
}

#[test]
fn routes_lead_somewhere() {
    let of = |edit: &dyn Fn(&mut Route)| {
        let mut route = route("r", host("a.de"));
        edit(&mut route);
        verdict(stack("one", vec![route]), Vec::new())
    };
    assert_eq!(of(&|r| r.port = Some(80)), "good");
    assert!(of(&|r| r.port = Some(81)).contains("has no port 81"));
    assert!(of(&|r| r.entrypoints = vec!["wbe".to_owned()]).contains("no entrypoint `wbe`"));
    let part = |name: &str, port| Split { service: service(name), port, per_mille: 100 };
    assert!(of(&|r| r.split.push(part("b", None))).contains("gives a share to service `b`"));
    assert!(of(&|r| r.split.push(part("a", Some(9)))).contains("has no port 9"));
    let mut bare = stack("one", vec![route("r", host("a.de"))]);
    bare.services.get_mut(&service("a")).unwrap().ports.clear();
    assert!(verdict(bare, Vec::new()).contains("has no port"));
}

#[test]
fn connections_without_a_name_take_the_whole_address() {
    let tcp = || {
        let mut route = route("t", Rule::Sni("*".to_owned()));
        route.kind = RouteKind::Tcp;
        route
    };
    assert_eq!(verdict(stack("one", vec![tcp()]), Vec::new()), "good");
    let beside = stack("one", vec![tcp(), route("r", host("a.de"))]);
    assert!(verdict(beside, Vec::new()).contains("takes all connections"));
    let other = stack("two", vec![tcp()]);
    assert!(verdict(stack("one", vec![tcp()]), vec![other]).contains("all connections"));
}
