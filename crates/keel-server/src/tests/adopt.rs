//! Containers that something else has started become instances, and are not started.

use keel_model::{Adoption, HeldPort, InstanceId};

use super::*;
use crate::changes::Taken;

fn taken(of: &[(&str, u64, &str)]) -> Taken {
    let mut all = BTreeMap::new();
    for (name, serial, container) in of {
        let adoption = Adoption {
            container: (*container).to_owned(),
            since: None,
            holds: Vec::new(),
            undeclared: Vec::new(),
        };
        let adoptions: &mut BTreeMap<u64, Adoption> = all.entry(service(name)).or_default();
        adoptions.insert(*serial, adoption);
    }
    Taken(all)
}

fn id(text: &str) -> InstanceId {
    InstanceId::new(text).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_and_what_has_ended_is_left_as_it_is() {
    let server = Server::new().await;
    server.runtime.foreign("c1", None);
    server.runtime.foreign("c3", None);
    server.runtime.foreign("j1", Some(0));
    let mut stack = stack(&[("cart", 2), ("job", 1), ("other", 1)], "1");
    // Nobody knows whether it has served.
    stack.services.get_mut("job").unwrap().publish.push(keel_model::PublishedPort {
        ip: None,
        published: None,
        target: 80,
        transport: Transport::Tcp,
        protocol: Protocol::Auto,
    });
    let all = taken(&[("cart", 1, "c1"), ("cart", 3, "c3"), ("job", 1, "j1")]);
    server.changes.take(stack.clone(), &all, "adopt".to_owned()).await.unwrap();
    let view = server.settled().await;
    assert_eq!((ready(&view, "cart"), view.services["job"].state.as_str()), (2, "completed"));
    assert!(!view.services.contains_key("other"), "it had no container");
    assert_eq!(server.runtime.starts(), []);
    assert_eq!(view.services["cart"].instances[0].attempts, 1);

    // Twice is once.
    let again = server.changes.take(stack.clone(), &all, "adopt".to_owned()).await.unwrap_err();
    assert_eq!(again.code, "conflict");

    // What follows counts on from the highest, over the death of a server.
    let server = server.replace().await;
    let mut more = stack;
    more.services.get_mut("cart").unwrap().scale = keel_model::Scale::Replicated(3);
    server.apply(more).await;
    server.until("one more", |view| ready(view, "cart") == 3 && view.converged).await;
    let mut starts = server.runtime.starts();
    starts.sort();
    assert_eq!(starts, [(id("shop-cart-4"), 1), (id("shop-other-1"), 1)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_dies_right_after_is_followed_by_one_that_goes_on() {
    let server = Server::new().await;
    server.runtime.foreign("c1", None);
    let all = taken(&[("cart", 1, "c1")]);
    server.changes.take(stack(&[("cart", 1)], "1"), &all, "adopt".to_owned()).await.unwrap();
    let server = server.replace().await;
    server.until("one", |view| view.converged && ready(view, "cart") == 1).await;
    assert_eq!(server.runtime.starts(), Vec::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_gone_is_made_anew_and_too_many_are_stopped() {
    let server = Server::new().await;
    server.runtime.foreign("c2", None);
    let all = taken(&[("cart", 1, "c1"), ("web", 1, "c2"), ("web", 2, "c2")]);
    let stack = stack(&[("cart", 1), ("web", 1)], "1");
    server.changes.take(stack, &all, "adopt".to_owned()).await.unwrap();
    let view =
        server.until("settling", |view| view.converged && view.services["web"].running == 1).await;
    assert_eq!(server.runtime.starts(), [(id("shop-cart-1"), 1)]);
    assert_eq!(view.services["web"].instances[0].id, id("shop-web-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn ports_that_are_held_are_no_hindrance() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new().await;
    server.runtime.foreign("c1", None);
    let mut stack = stack(&[("web", 1)], "1");
    stack.services.get_mut("web").unwrap().publish.push(keel_model::PublishedPort {
        ip: Some(address.ip()),
        published: Some(address.port()),
        target: 80,
        transport: Transport::Tcp,
        protocol: Protocol::Auto,
    });
    let nobody = taken(&[("web", 1, "c1")]);
    let refused = server.changes.take(stack.clone(), &nobody, String::new()).await.unwrap_err();
    assert_eq!(refused.code, "port_in_use");
    let mut held = nobody.clone();
    let holds = HeldPort { ip: address.ip(), port: address.port(), target: 80 };
    for adoption in held.0.values_mut().flat_map(BTreeMap::values_mut) {
        adoption.holds.push(holds.clone());
    }
    server.changes.take(stack.clone(), &held, String::new()).await.unwrap();
    let world = server.changes.worlds.current();
    let detours = &world.stacks[&name()].detours[&service("web")];
    assert_eq!(detours.keys().collect::<Vec<_>>(), [&address.port()]);
    // The next revision neither.
    stack.services.get_mut("web").unwrap().spec.environment.insert("NEW".into(), "yes".into());
    server.apply(stack).await;
}
