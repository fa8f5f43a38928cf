//! Whole histories: a seed makes a stack, a user who changes their mind, and a node with faults.
//!
//! The planner's promises are checked after every applied plan (`world/check.rs`), and at the end, when faults have
//! stopped, everything must have come to rest in the right place. `KEEL_SEED=<seed>:<steps>` replays one history and
//! prints it.

#![allow(clippy::unwrap_used, reason = "a test that meets the unexpected should stop")]

mod world;

use std::time::Duration;

use keel_model::{
    Condition, Dependency, FailureAction, Goal, Order, RestartCondition, RolloutState, Scale,
    Service,
};
use keel_plan::Instance;
use proptest::prelude::*;
use world::{Dice, Faults, World, name, record, service};

const NAMES: [&str; 4] = ["a", "b", "c", "d"];
const MODES: [&str; 12] = [
    "good", "good", "good", "good", "slow", "slow", "crash", "late", "never", "missing", "sick",
    "done",
];

fn pick<'a>(dice: &mut Dice, from: &[&'a str]) -> &'a str {
    let sides = u64::try_from(from.len()).unwrap();
    from[usize::try_from(dice.roll(sides)).unwrap()]
}

fn number(dice: &mut Dice, below: u64) -> u32 {
    u32::try_from(dice.roll(below)).unwrap()
}

/// A service with random policies that depends on some of those before it.
fn random_service(dice: &mut Dice, before: &[&str]) -> Service {
    let mut service = service(number(dice, 5), pick(dice, &MODES));
    let policy = &mut service.rollout;
    policy.parallelism = number(dice, 4);
    policy.delay = Duration::from_secs(dice.roll(3));
    policy.monitor = Duration::from_secs(dice.roll(6));
    if dice.one_in(6) {
        policy.max_failure_ppm = 1_000_000;
    }
    if dice.one_in(4) {
        policy.min_healthy_time = Duration::ZERO;
    }
    policy.order = match dice.roll(3) {
        0 => Some(Order::StopFirst),
        1 => Some(Order::StartFirst),
        _ => None,
    };
    policy.failure_action = match dice.roll(8) {
        0 => FailureAction::Pause,
        1 => FailureAction::Continue,
        _ => FailureAction::Rollback,
    };
    if dice.one_in(4) {
        service.rollback = Some(service.rollout.clone());
        service.rollback.as_mut().unwrap().parallelism = number(dice, 3);
    }
    if dice.one_in(6) {
        service.scale = Scale::Global;
    } else if dice.one_in(8) {
        service.scale = Scale::Job(number(dice, 4));
    }
    if dice.one_in(5) {
        service.restart.condition = RestartCondition::Always;
    }
    for on in before {
        if dice.one_in(3) {
            let condition = match dice.roll(5) {
                0 | 1 => Condition::Started,
                2 | 3 => Condition::Healthy,
                _ => Condition::CompletedSuccessfully,
            };
            let (restart, required) = (dice.one_in(3), !dice.one_in(4));
            let dependency = Dependency { condition, restart, required };
            service.depends_on.insert(name(on), dependency);
        }
    }
    service
}

fn random_world(seed: u64) -> World {
    let mut dice = Dice::new(seed);
    let mut record = record([]);
    let count = usize::try_from(1 + dice.roll(4)).unwrap();
    for (rank, text) in NAMES.iter().enumerate().take(count) {
        let service = random_service(&mut dice, &NAMES[..rank]);
        record.stack.services.insert(name(text), service);
    }
    let mut world = World::new(record);
    let often = |dice: &mut Dice, n: u64| if dice.one_in(2) { 0 } else { n };
    world.faults = Faults {
        lost_plan: often(&mut dice, 6),
        lag: often(&mut dice, 4),
        kill: often(&mut dice, 25),
        stuck_drain: often(&mut dice, 5),
        clock: often(&mut dice, 60),
    };
    for extra in ["n2", "n3"] {
        if dice.one_in(3) {
            world.observed.nodes.push(world::build::node(extra));
        }
    }
    world.dice = dice;
    world
}

/// One wish of the user, and some time afterwards.
fn user_step(world: &mut World, version: u32) {
    let services: Vec<String> =
        world.desired.record.stack.services.keys().map(ToString::to_string).collect();
    let Some(first) = services.first() else { return };
    let chosen = usize::try_from(world.dice.roll(4)).unwrap();
    let target = services.get(chosen).unwrap_or(first).clone();
    match world.dice.roll(13) {
        0..=3 => {
            let mode = pick(&mut world.dice, &MODES);
            world.deploy(&target, mode, version);
        }
        4..=6 => {
            let n = number(&mut world.dice, 6);
            world.scale(&target, n);
        }
        7 => world.stop(&target, true),
        8 => world.stop(&target, false),
        9 => world.restart(&target),
        10 => world.change("up again", |_| {}),
        11 => {
            let node = world::build::node("n9");
            world.note("node n9 comes or goes");
            match world.observed.nodes.iter().position(|known| *known == node) {
                Some(place) => drop(world.observed.nodes.remove(place)),
                None => world.observed.nodes.push(node),
            }
        }
        _ => {
            let key = name(&target);
            if world.dice.one_in(2) {
                world.change("drop a service", |record| {
                    record.stack.services.remove(&key);
                    record.intents.remove(&key);
                });
            }
        }
    }
    let pause = match world.dice.roll(3) {
        0 => 200,
        1 => 5_000,
        _ => 60_000,
    };
    let pause = 1 + world.dice.roll(pause);
    world.run(Duration::from_millis(pause));
}

fn history(seed: u64, steps: u32) -> World {
    let mut world = random_world(seed);
    let start = world.dice.roll(20_000);
    world.run(Duration::from_millis(start));
    for step in 0..steps {
        user_step(&mut world, step);
    }
    world.note("faults stop");
    world.faults = Faults::default();
    world.behind = Duration::ZERO;
    world.run(Duration::from_secs(1_800));
    check_rest(&world);
    // Whatever fell victim to a fault gets another chance, and must take it.
    world.change("up again", |_| {});
    world.run(Duration::from_secs(1_800));
    check_rest(&world);
    check_arrived(&world);
    world.down();
    world.run(Duration::from_secs(600));
    assert!(world.forgotten, "something is left\n{}", world.story());
    world
}

/// Nothing is half done.
fn check_rest(world: &World) {
    for (service, rollout) in &world.observed.rollouts {
        let listed = world.desired.record.stack.services.get(service);
        let stopped = world.desired.record.intents.get(service).is_some_and(|i| i.stopped);
        let mine =
            || world.observed.instances.values().filter(|i| i.assignment.service == *service);
        let Some(listed) = listed else {
            assert_eq!(mine().count(), 0, "{service} is an orphan\n{}", world.story());
            continue;
        };
        let kept = mine().filter(|i| i.assignment.goal == Goal::Stop).count();
        if stopped {
            assert_eq!(kept, mine().count(), "{service} is stopped\n{}", world.story());
            continue;
        }
        let waits = world.slots(service.as_str()).is_empty();
        let evidence = usize::from(rollout.failed_instance.is_some());
        assert!(waits || kept <= evidence, "{service} keeps {kept}\n{}", world.story());
        // A new revision may wait for ever for a server to complete.
        let completion = |d: &Dependency| d.condition == Condition::CompletedSuccessfully;
        let job = matches!(listed.scale, Scale::Job(_) | Scale::GlobalJob);
        let rests = rollout.state.is_final()
            || waits
            || job
            || listed.rollout.failure_action == FailureAction::Continue
            || listed.depends_on.values().any(completion);
        assert!(rests, "{service} is still {:?}\n{}", rollout.state, world.story());
        let wanted = wanted(world, listed);
        let nodes = &world.observed.nodes;
        let global = matches!(listed.scale, Scale::Global | Scale::GlobalJob);
        let counts = |i: &&Instance| !global || nodes.contains(&i.assignment.node);
        let have = world.slots(service.as_str()).into_iter().filter(counts).count();
        let comes_back = |i: &&Instance| i.assignment.goal == Goal::Drain && counts(i);
        let draining = mine().filter(comes_back).count();
        // Programs that fall ill for ever are drained for ever.
        let full = have + draining == wanted;
        // What was superseded before it was complete serves on if what came after it never works.
        let failed_first = rollout.state == RolloutState::Failed && rollout.from.is_none();
        let both = failed_first && have <= 2 * wanted;
        assert!(waits || full || both, "{service}: {have} of {wanted}\n{}", world.story());
    }
}

fn wanted(world: &World, service: &Service) -> usize {
    match service.scale {
        Scale::Replicated(n) | Scale::Job(n) => usize::try_from(n).unwrap(),
        Scale::Global | Scale::GlobalJob => world.observed.nodes.len(),
    }
}

/// Good revisions run, bad ones were taken back.
fn check_arrived(world: &World) {
    for (key, listed) in &world.desired.record.stack.services {
        let text = key.as_str();
        let stopped = world.desired.record.intents.get(key).is_some_and(|i| i.stopped);
        let tolerant = listed.rollout.max_failure_ppm > 0;
        let job = matches!(listed.scale, Scale::Job(_) | Scale::GlobalJob);
        let away = |i: &&Instance| !world.observed.nodes.contains(&i.assignment.node);
        if listed.scale == Scale::Global && world.slots(text).iter().any(away) {
            continue;
        }
        if stopped || tolerant || job || !listed.depends_on.is_empty() {
            continue;
        }
        let rollout = &world.observed.rollouts[key];
        let mode = listed.spec.environment["MODE"].as_str();
        let always = listed.restart.condition == RestartCondition::Always;
        let story = || format!("{key} ({mode}) is {:?}\n{}", rollout.state, world.story());
        match mode {
            "good" | "slow" => {
                assert_eq!(rollout.state, RolloutState::Complete, "{}", story());
                assert_eq!(world.ready(text), wanted(world, listed), "{}", story());
            }
            "done" if !always => {
                assert_eq!(rollout.state, RolloutState::Complete, "{}", story());
            }
            "crash" | "never" | "missing" if wanted(world, listed) > 0 => {
                let astray = rollout.reason.starts_with("the revision before does not come up");
                if astray || world.emptied.contains(key) {
                    continue;
                }
                let bad = match (&rollout.from, listed.rollout.failure_action) {
                    (None, _) => RolloutState::Failed,
                    (Some(from), _) if *from == rollout.to => continue,
                    (_, FailureAction::Rollback) => RolloutState::RolledBack,
                    (_, FailureAction::Pause) => RolloutState::Paused,
                    (_, FailureAction::Continue) => continue,
                };
                assert_eq!(rollout.state, bad, "{}", story());
                check_old(world, text, &story());
            }
            _ => {}
        }
    }
}

/// After a rollback the old revision runs, in full where it is a good one.
fn check_old(world: &World, text: &str, story: &str) {
    let rollout = &world.observed.rollouts[&name(text)];
    if rollout.state != RolloutState::RolledBack {
        return;
    }
    let from = rollout.from.clone().unwrap();
    let slots = world.slots(text);
    assert!(slots.iter().all(|i| i.assignment.revision == from), "{story}");
    let old = &world.desired.revisions[&(name(text), from)];
    if matches!(old.spec.environment["MODE"].as_str(), "good" | "slow") {
        assert_eq!(world.ready(text), slots.len(), "{story}");
    }
}

#[test]
fn one_history_again() {
    let Ok(chosen) = std::env::var("KEEL_SEED") else { return };
    let (seed, steps) = chosen.split_once(':').expect("KEEL_SEED=<seed>:<steps>");
    let world = history(seed.parse().expect("a number"), steps.parse().expect("a number"));
    println!("{}\n{} turns", world.story(), world.turns);
}

/// Sixty histories unless `PROPTEST_CASES` says otherwise.
fn config() -> ProptestConfig {
    let standard = ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::default() };
    let chosen = std::env::var_os("PROPTEST_CASES").is_some();
    let cases = if chosen { standard.cases } else { 60 };
    ProptestConfig { cases, failure_persistence: None, ..standard }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn every_history_keeps_the_promises(seed: u64, steps in 0u32..14) {
        history(seed, steps);
    }
}
