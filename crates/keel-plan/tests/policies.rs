//! The planner by example: restart policies, dependencies, jobs, one-shots, stop-first and rollout policies.
#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should stop")]

mod world;

use std::path::PathBuf;
use std::time::Duration;

use keel_model::{
    Condition, EventKind, FailureAction, Goal, Mount, MountSource, RestartCondition, RolloutState,
    Scale, Service,
};
use world::build::after;
use world::{World, name, record, service};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn up(service: Service) -> World {
    let mut world = World::new(record([("web", service)]));
    world.run(secs(5));
    world
}

fn with(mut service: Service, edit: impl FnOnce(&mut Service)) -> Service {
    edit(&mut service);
    service
}

fn owning_data(service: Service) -> Service {
    with(service, |s| {
        s.spec.mounts.push(Mount {
            source: MountSource::Anonymous,
            target: PathBuf::from("/data"),
            read_only: false,
            options: None,
        });
    })
}

fn attempts(world: &World, text: &str) -> Vec<u32> {
    world.slots(text).iter().map(|i| i.assignment.attempt).collect()
}

#[test]
fn what_ran_for_longer_than_the_backoff_is_replaced_at_once_again_and_again() {
    let mut world = up(service(1, "good"));
    for attempt in 2..5 {
        world.run(secs(20));
        let victim = world.running()[0].clone();
        world.kill(&victim);
        world.settle();
        assert_eq!(attempts(&world, "web"), [attempt]);
    }
}

#[test]
fn the_restart_condition_decides_what_is_started_again() {
    for (condition, mode, runs) in [
        (RestartCondition::Never, "fail", false),
        (RestartCondition::Never, "done", false),
        (RestartCondition::OnFailure, "fail", true),
        (RestartCondition::OnFailure, "done", false),
        (RestartCondition::Always, "fail", true),
        (RestartCondition::Always, "done", true),
        (RestartCondition::OnFailure, "missing", true),
        (RestartCondition::Never, "missing", false),
    ] {
        let world = up(with(service(1, mode), |s| s.restart.condition = condition));
        let again = attempts(&world, "web")[0] > 1;
        assert_eq!(again, runs, "{condition:?} {mode}\n{}", world.story());
    }
}

#[test]
fn attempts_are_limited_and_a_fixed_delay_is_kept() {
    let world = up(with(service(1, "crash"), |s| {
        s.restart.max_attempts = Some(2);
        s.restart.delay = Some(secs(1));
    }));
    assert_eq!(attempts(&world, "web"), [3]);
    let starts = world.log.iter().filter(|line| line.contains("update")).count();
    assert_eq!(starts, 2, "{}", world.story());
    assert!(world.log.iter().any(|line| line.trim().starts_with("1140   update")));
    assert_eq!(world.state("web"), RolloutState::Failed);
}

#[test]
fn an_unhealthy_instance_is_drained_first_if_another_is_ready() {
    let mut world = World::new(record([("web", service(2, "sick"))]));
    world.run(Duration::from_millis(3_000));
    let victim = world.running()[0].clone();
    world.kill(&victim);
    world.run(Duration::from_millis(600));
    let drained = world.log.iter().any(|l| l.contains("Drain>Run") && l.contains("unhealthy"));
    assert!(drained, "{}", world.story());

    let mut alone = World::new(record([("web", service(1, "sick"))]));
    alone.run(secs(4));
    assert_eq!(attempts(&alone, "web"), [2]);
    assert!(!alone.log.iter().any(|line| line.contains("Drain")), "{}", alone.story());
}

#[test]
fn a_dependency_that_fails_for_good_is_told_once_and_an_optional_one_is_ignored() {
    let never = |s: &mut Service| s.restart.condition = RestartCondition::Never;
    let migrate = with(service(1, "fail"), never);
    let web = after(service(1, "good"), "migrate", Condition::CompletedSuccessfully);
    let optional = with(web.clone(), |s| {
        s.depends_on.get_mut(&name("migrate")).unwrap().required = false;
    });
    let mut world =
        World::new(record([("migrate", migrate), ("web", web), ("optional", optional)]));
    world.run(secs(100));
    assert_eq!((world.ready("web"), world.ready("optional")), (0, 1), "{}", world.story());
    assert_eq!(world.state("web"), RolloutState::Failed);
    let told = world.events.iter().filter(|(kind, service, message)| {
        let web = service.as_ref().is_some_and(|s| s.as_str() == "web");
        *kind == EventKind::Rollout && web && message.contains("exited with code 1")
    });
    assert_eq!(told.count(), 1);
    world.deploy("migrate", "done", 2);
    world.run(secs(10));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
}

#[test]
fn a_new_revision_waits_for_the_new_migration_and_healing_does_not() {
    let web = after(service(2, "good"), "migrate", Condition::CompletedSuccessfully);
    let mut world = World::new(record([("migrate", service(1, "done")), ("web", web)]));
    world.run(secs(10));
    assert_eq!(world.ready("web"), 2);
    world.deploy("migrate", "never", 2);
    world.deploy("web", "good", 2);
    world.run(secs(2));
    let old = world.slots("web").iter().all(|i| i.assignment.id.as_str() < "shop-web-3");
    assert!(old && world.slots("web").len() == 2, "{}", world.story());
    world.scale("web", 3);
    let victim = world.slots("web")[0].assignment.id.clone();
    world.kill(&victim);
    world.settle();
    assert_eq!(world.slots("web").len(), 3);
    assert_eq!(world.observed.instances[&victim].assignment.attempt, 2);
}

#[test]
fn a_failed_migration_is_not_undone_by_running_the_old_one() {
    let mut world = up(service(1, "done"));
    world.deploy("web", "fail", 2);
    world.run(secs(30));
    assert_eq!(world.state("web"), RolloutState::RolledBack, "{}", world.story());
    assert_eq!(attempts(&world, "web"), [1]);
    assert!(world.slots("web")[0].assignment.id.as_str().ends_with("-1"));
}

#[test]
fn a_job_runs_to_completion_and_again_with_a_new_revision() {
    let mut world = up(with(service(1, "done"), |s| {
        s.scale = Scale::Job(3);
        s.restart.condition = RestartCondition::Always;
    }));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    assert_eq!(attempts(&world, "web"), [1, 1, 1]);
    world.deploy("web", "fail", 2);
    world.run(secs(30));
    assert_eq!(world.state("web"), RolloutState::Failed, "{}", world.story());
    assert_eq!(world.slots("web").len(), 3);
}

#[test]
fn a_global_service_has_one_instance_per_node() {
    let mut world =
        World::new(record([("web", with(service(1, "good"), |s| s.scale = Scale::Global))]));
    world.observed.nodes = vec![world::build::node("n1"), world::build::node("n2")];
    world.run(secs(5));
    let nodes: Vec<String> =
        world.slots("web").iter().map(|i| i.assignment.node.to_string()).collect();
    assert_eq!(nodes, ["n1", "n2"]);
    world.deploy("web", "good", 2);
    world.run(secs(60));
    assert_eq!((world.ready("web"), world.observed.instances.len()), (2, 2));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
}

#[test]
fn instances_are_spread_over_nodes() {
    let mut world = World::new(record([("web", service(4, "good"))]));
    world.observed.nodes = vec![world::build::node("n1"), world::build::node("n2")];
    world.settle();
    let nodes: Vec<String> =
        world.slots("web").iter().map(|i| i.assignment.node.to_string()).collect();
    assert_eq!(nodes, ["n1", "n2", "n1", "n2"]);
}

#[test]
fn what_owns_data_never_runs_twice_and_is_restarted_in_place() {
    let mut world = up(owning_data(service(1, "good")));
    world.restart("web");
    world.run(secs(10));
    assert_eq!(attempts(&world, "web"), [2], "{}", world.story());
    assert_eq!(world.ready("web"), 1);
    world.deploy("web", "good", 2);
    world.run(secs(20));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    assert_eq!((world.ready("web"), world.observed.instances.len()), (1, 1));
    world.deploy("web", "crash", 3);
    world.run(secs(20));
    assert_eq!(world.state("web"), RolloutState::RolledBack, "{}", world.story());
    assert_eq!(world.ready("web"), 1);
}

#[test]
fn the_failure_action_is_followed() {
    for (action, state) in [
        (FailureAction::Pause, RolloutState::Paused),
        (FailureAction::Continue, RolloutState::Complete),
    ] {
        let mut world = up(with(service(2, "good"), |s| s.rollout.failure_action = action));
        world.deploy("web", "crash", 2);
        world.run(secs(60));
        assert_eq!(world.state("web"), state, "{}", world.story());
        let ready = if action == FailureAction::Pause { 2 } else { 0 };
        assert_eq!(world.ready("web"), ready);
    }
}

#[test]
fn a_share_of_failures_is_tolerated() {
    let mut world = up(with(service(2, "good"), |s| {
        s.rollout.max_failure_ppm = 1_000_000;
        s.rollout.parallelism = 0;
    }));
    world.deploy("web", "late", 2);
    world.run(secs(60));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
}

#[test]
fn a_failed_revision_is_tried_again_only_when_the_user_speaks() {
    let mut world = up(service(1, "good"));
    world.deploy("web", "crash", 2);
    world.run(secs(20));
    assert_eq!(world.state("web"), RolloutState::RolledBack);
    let created = |world: &World| world.log.iter().filter(|l| l.contains("  create")).count();
    let before = created(&world);
    world.run(secs(100));
    assert_eq!(created(&world), before);
    world.change("up", |_| {});
    world.run(secs(20));
    assert_eq!(created(&world), before + 1);
    assert_eq!(world.state("web"), RolloutState::RolledBack, "{}", world.story());
}

#[test]
fn a_scale_in_the_middle_of_a_rollout_is_met_at_once() {
    let mut world = up(service(3, "good"));
    world.deploy("web", "good", 2);
    world.run(secs(1));
    world.scale("web", 6);
    world.settle();
    assert!(world.slots("web").len() >= 6, "{}", world.story());
    world.scale("web", 2);
    world.run(secs(60));
    assert_eq!((world.ready("web"), world.observed.instances.len()), (2, 2), "{}", world.story());
    assert_eq!(world.state("web"), RolloutState::Complete);
}

#[test]
fn an_explicit_restart_is_passed_on() {
    let web = with(after(service(1, "good"), "db", Condition::Healthy), |s| {
        s.depends_on.get_mut(&name("db")).unwrap().restart = true;
    });
    let mut world = World::new(record([("db", service(1, "good")), ("web", web)]));
    world.run(secs(5));
    world.restart("db");
    world.run(secs(20));
    let restarts = |text: &str| world.observed.rollouts[&name(text)].epoch;
    assert_eq!((restarts("db"), restarts("web")), (1, 1), "{}", world.story());
    assert_eq!((world.ready("db"), world.ready("web")), (1, 1));
    assert_eq!(world.observed.instances.len(), 2);
}

#[test]
fn an_orphan_is_drained_and_removed() {
    let mut world = World::new(record([("a", service(1, "good")), ("b", service(1, "good"))]));
    world.run(secs(5));
    world.change("drop b", |record| {
        record.stack.services.remove(&name("b"));
    });
    world.settle();
    let orphan = &world.observed.instances[&keel_model::InstanceId::new("shop-b-1").unwrap()];
    assert_eq!(orphan.assignment.goal, Goal::Drain);
    world.run(secs(5));
    assert_eq!(world.observed.instances.len(), 1, "{}", world.story());
}

#[test]
fn stopped_services_stop_in_reverse_order() {
    let web = after(service(1, "good"), "db", Condition::Started);
    let mut world = World::new(record([("db", service(1, "good")), ("web", web)]));
    world.run(secs(5));
    world.stop("db", true);
    world.stop("web", true);
    world.settle();
    assert_eq!((world.slots("db").len(), world.slots("web").len()), (1, 0));
    world.run(secs(10));
    assert!(world.running().is_empty(), "{}", world.story());
}

#[test]
fn a_revision_that_never_was_in_force_makes_room_at_once() {
    let mut world = up(service(2, "never"));
    world.deploy("web", "never", 2);
    world.run(secs(5));
    assert_eq!(world.observed.instances.len(), 2, "{}", world.story());
    world.deploy("web", "good", 3);
    world.run(secs(5));
    assert_eq!((world.ready("web"), world.observed.instances.len()), (2, 2));
}

#[test]
fn a_way_back_to_what_does_not_come_up_pauses_and_keeps_what_serves() {
    // Without an instance any revision is complete: `never` is what there is to return to.
    let mut world = up(service(0, "never"));
    world.deploy("web", "good", 2);
    world.edit("web", |s| s.scale = Scale::Replicated(2));
    world.run(Duration::from_millis(300));
    let victim = world.running()[0].clone();
    world.kill(&victim);
    world.run(secs(300));
    assert_eq!(world.state("web"), RolloutState::Paused, "{}", world.story());
    assert_eq!(world.ready("web"), 1);
    world.change("up again", |_| {});
    world.run(secs(60));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    assert_eq!(world.ready("web"), 2);
}

#[test]
fn where_failures_are_passed_over_every_instance_is() {
    let mut world = up(with(service(3, "good"), |s| {
        s.rollout.failure_action = FailureAction::Continue;
    }));
    world.deploy("web", "never", 2);
    world.run(secs(600));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    assert_eq!(world.slots("web").len(), 3);
}

#[test]
fn the_clock_may_jump_back_without_a_false_alarm_or_a_stall() {
    let mut world = up(service(2, "good"));
    world.deploy("web", "slow", 2);
    world.run(secs(1));
    world.behind = secs(3_600);
    world.run(secs(60));
    assert_eq!(world.state("web"), RolloutState::Complete, "{}", world.story());
    assert_eq!(world.ready("web"), 2);
}

#[test]
fn an_old_instance_killed_in_a_rollout_comes_back_as_what_is_trusted() {
    let mut world = up(service(3, "good"));
    world.deploy("web", "slow", 2);
    world.run(secs(1));
    let first = world.slots("web")[0].assignment.id.clone();
    world.kill(&first);
    world.settle();
    assert_eq!(world.observed.instances[&first].assignment.attempt, 2, "not proved yet");
    world.run(Duration::from_millis(4_500));
    assert_eq!(world.state("web"), RolloutState::Progressing, "{}", world.story());
    let old = world.observed.rollouts[&name("web")].from.clone().unwrap();
    let victim = world.slots("web").into_iter().find(|i| i.assignment.revision == old);
    let victim = victim.unwrap().assignment.id.clone();
    world.kill(&victim);
    world.settle();
    assert_eq!(world.observed.instances[&victim].assignment.goal, Goal::Remove);
    assert_eq!(world.slots("web").len(), 3, "{}", world.story());
}
