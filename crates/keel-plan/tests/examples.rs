//! The planner by example: one situation, one expectation each.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should stop")]

mod world;

use std::time::Duration;

use keel_model::{Condition, Goal, RolloutState};
use world::build::after;
use world::{World, record, service};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn up(mode: &str, replicas: u32) -> World {
    let mut world = World::new(record([("web", service(replicas, mode))]));
    world.run(secs(5));
    world
}

#[test]
fn a_first_deployment_starts_all_at_once_and_completes_when_ready() {
    let mut world = World::new(record([("web", service(3, "good"))]));
    world.run(Duration::from_millis(400));
    assert_eq!(world.ready("web"), 3);
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
}

#[test]
fn a_killed_instance_is_started_again_at_once() {
    let mut world = up("good", 2);
    let victim = world.running()[0].clone();
    world.kill(&victim);
    world.settle();
    let assignment = &world.observed.instances[&victim].assignment;
    assert_eq!((assignment.attempt, assignment.failures), (2, 1));
}

#[test]
fn scaling_goes_up_at_once_and_down_newest_first() {
    let mut world = up("good", 1);
    world.scale("web", 6);
    world.settle();
    assert_eq!(world.slots("web").len(), 6);
    world.run(secs(2));
    world.scale("web", 1);
    world.run(secs(10));
    assert_eq!(world.observed.instances.len(), 1, "{}", world.story());
    assert!(world.observed.instances.keys().next().unwrap().as_str().ends_with("-1"));
}

#[test]
fn a_new_revision_replaces_the_old_one_by_one() {
    let mut world = up("good", 3);
    world.deploy("web", "good", 2);
    world.run(secs(60));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    let wanted = world.desired.record.stack.services[&world::name("web")].spec.revision();
    assert!(world.slots("web").iter().all(|i| i.assignment.revision == wanted));
    assert_eq!(world.ready("web"), 3);
}

#[test]
fn a_failing_revision_is_rolled_back_and_its_instance_kept_for_a_while() {
    for mode in ["crash", "late", "never", "missing", "fail"] {
        let mut world = up("good", 3);
        let old = world.slots("web")[0].assignment.revision.clone();
        world.deploy("web", mode, 2);
        world.run(secs(120));
        assert_eq!(world.state("web"), RolloutState::RolledBack, "{mode}\n{}", world.story());
        assert_eq!(world.ready("web"), 3);
        assert!(world.slots("web").iter().all(|i| i.assignment.revision == old));
        let failed = world.observed.rollouts[&world::name("web")].failed_instance.clone().unwrap();
        assert_eq!(world.observed.instances[&failed].assignment.goal, Goal::Stop);
        world.run(secs(700));
        assert_eq!(world.observed.instances.len(), 3, "{}", world.story());
    }
}

#[test]
fn a_first_deployment_that_fails_says_so_and_goes_on_trying() {
    let mut world = World::new(record([("web", service(1, "crash"))]));
    world.run(secs(3));
    assert_eq!(world.state("web"), RolloutState::Failed, "{}", world.story());
    assert!(world.observed.rollouts[&world::name("web")].reason.contains("exited with code 1"));
    world.deploy("web", "good", 2);
    world.run(secs(3));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
}

#[test]
fn what_failed_before_it_was_corrected_does_not_count() {
    let mut world = World::new(record([("web", service(2, "crash"))]));
    world.run(secs(60));
    assert_eq!(world.state("web"), RolloutState::Failed, "{}", world.story());
    let before = world.events.len();
    world.deploy("web", "good", 2);
    world.run(secs(10));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    let failed = world.events[before..].iter().any(|event| event.2.contains(" failed: "));
    assert!(!failed, "{}", world.story());
}

#[test]
fn what_publishes_a_port_and_ends_before_it_served_has_not_completed() {
    let mut ends = service(1, "done");
    let mut world = World::new(record([("web", ends.clone())]));
    world.run(secs(3));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    ends.publish.push(keel_model::PublishedPort {
        ip: None,
        published: Some(8080),
        target: 80,
        transport: keel_model::Transport::Tcp,
        protocol: keel_model::Protocol::default(),
    });
    let mut world = World::new(record([("web", ends)]));
    world.run(secs(10));
    assert_eq!(world.state("web"), RolloutState::Failed, "{}", world.story());
}

#[test]
fn services_start_after_what_they_depend_on_and_stop_before() {
    let web = after(service(1, "good"), "db", Condition::Healthy);
    let mut world = World::new(record([("db", service(1, "slow")), ("web", web)]));
    world.run(secs(1));
    assert_eq!((world.slots("db").len(), world.slots("web").len()), (1, 0));
    world.run(secs(4));
    assert_eq!((world.ready("db"), world.ready("web")), (1, 1), "{}", world.story());
    world.down();
    world.settle();
    assert_eq!((world.ready("db"), world.ready("web")), (1, 0));
    world.run(secs(10));
    assert!(world.forgotten, "{}", world.story());
}

#[test]
fn a_restart_of_a_single_replica_loses_no_capacity() {
    let mut world = up("good", 1);
    world.restart("web");
    world.run(secs(10));
    assert_eq!(world.ready("web"), 1);
    assert!(world.slots("web")[0].assignment.id.as_str().ends_with("-2"), "{}", world.story());
    assert_eq!(world.observed.instances.len(), 1);
}

#[test]
fn a_restart_in_place_keeps_the_instances_and_most_of_the_capacity() {
    let mut world = up("good", 3);
    let ids = |world: &World| -> Vec<String> {
        world.slots("web").iter().map(|slot| slot.assignment.id.to_string()).collect()
    };
    let before = ids(&world);
    let attempts = |world: &World| -> u32 {
        world.slots("web").iter().map(|slot| slot.assignment.attempt).sum()
    };
    let tried = attempts(&world);
    world.restart_in_place("web");
    for _ in 0..40 {
        world.run(secs(1));
        assert!(world.ready("web") >= 2, "{}", world.story());
    }
    assert_eq!((world.ready("web"), ids(&world)), (3, before), "{}", world.story());
    assert_eq!(attempts(&world), tried + 3, "{}", world.story());
    // The next one is of the usual kind again, once it is asked for as such.
    world.restart("web");
    world.run(secs(40));
    assert_eq!(world.ready("web"), 3);
}

#[test]
fn a_stopped_service_keeps_its_instances_and_starts_them_again() {
    let mut world = up("good", 2);
    world.stop("web", true);
    world.run(secs(10));
    assert!(world.running().is_empty());
    assert_eq!(world.observed.instances.len(), 2);
    world.stop("web", false);
    world.run(secs(2));
    assert_eq!((world.ready("web"), world.observed.instances.len()), (2, 2), "{}", world.story());
}

/// `guest` runs in the network of `owner`.
fn sharing() -> World {
    let mut guest = after(service(1, "good"), "owner", Condition::Started);
    let network = keel_model::ContainerNetwork::Service(world::name("owner"));
    let container = keel_model::ContainerSpec { network, ..Default::default() };
    guest.spec.container = Some(Box::new(container));
    let mut world = World::new(record([("owner", service(1, "good")), ("guest", guest)]));
    world.run(secs(5));
    world
}

/// As the node says it of the attempt that it started last.
fn shares(world: &mut World) {
    let with = |id: &keel_model::InstanceId, attempt| keel_model::SharesWith {
        service: world::name("owner"),
        id: id.clone(),
        attempt,
    };
    let id = |service| world.slots(service)[0].assignment.id.clone();
    let (owner, guest) = (id("owner"), id("guest"));
    let with = with(&owner, world.processes[&owner].status.attempt);
    world.processes.get_mut(&guest).unwrap().status.shares = vec![with];
}

fn attempt(world: &World, service: &str) -> u32 {
    world.slots(service)[0].assignment.attempt
}

#[test]
fn who_shares_namespaces_starts_again_in_those_of_the_next() {
    let mut world = sharing();
    shares(&mut world);
    world.run(secs(5));
    assert_eq!(attempt(&world, "guest"), 1, "{}", world.story());
    let owner = world.slots("owner")[0].assignment.id.clone();
    world.kill(&owner);
    world.run(secs(5));
    assert_eq!((attempt(&world, "owner"), attempt(&world, "guest")), (2, 2), "{}", world.story());
    shares(&mut world);
    world.run(secs(5));
    assert_eq!(attempt(&world, "guest"), 2, "{}", world.story());
    world.deploy("owner", "good", 2);
    world.run(secs(60));
    assert_eq!(attempt(&world, "guest"), 3, "{}", world.story());
}

#[test]
fn who_shares_namespaces_waits_until_there_are_some() {
    let mut world = sharing();
    shares(&mut world);
    let guest = world.slots("guest")[0].assignment.id.clone();
    world.desired.record.intents.entry(world::name("owner")).or_default().stopped = true;
    world.run(secs(5));
    world.kill(&guest);
    world.run(secs(30));
    assert_eq!(attempt(&world, "guest"), 1, "{}", world.story());
    world.desired.record.intents.clear();
    world.run(secs(5));
    assert_eq!(attempt(&world, "guest"), 2, "{}", world.story());
}
