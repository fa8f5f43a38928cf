//! The planner's promises, checked after every applied plan.

use std::time::Duration;

use keel_model::{
    FailureAction, Goal, Order, Phase, RestartCondition, Scale, Service, ServiceName,
};
use keel_plan::{Instance, Observed};

use super::World;

pub fn ready(instance: &Instance) -> bool {
    let a = &instance.assignment;
    let fresh = instance.status.as_ref().filter(|s| s.attempt >= a.attempt);
    a.goal == Goal::Run && fresh.is_some_and(|s| s.phase == Phase::Running && s.ready)
}

fn serves(instance: &Instance) -> bool {
    instance.status.as_ref().is_some_and(|s| s.phase == Phase::Running && s.ready)
}

fn completed(instance: &Instance, service: &Service) -> bool {
    if service.restart.condition == RestartCondition::Always {
        return false;
    }
    let exit = instance.status.as_ref().and_then(|s| s.exit.as_ref());
    exit.is_some_and(keel_model::Exit::success)
}

impl World {
    pub(super) fn check(&self, before: &Observed) {
        for (id, was) in &before.instances {
            if let Some(is) = self.observed.instances.get(id) {
                self.check_withdrawal(was, is);
            }
        }
        for (name, service) in &self.desired.record.stack.services {
            if let Scale::Replicated(n) = service.scale {
                let n = usize::try_from(n).expect("small");
                self.check_number(before, name, service, n);
                self.check_capacity(before, name, service, n);
            }
        }
    }

    /// What serves is drained before it ends, and drained until it is drained.
    fn check_withdrawal(&self, was: &Instance, is: &Instance) {
        let id = &is.assignment.id;
        let ends =
            is.assignment.goal > Goal::Drain || is.assignment.attempt > was.assignment.attempt;
        if !ends {
            return;
        }
        match was.assignment.goal {
            Goal::Run => {
                assert!(!serves(was), "{id} ends while it serves\n{}", self.story());
            }
            Goal::Drain => {
                let definition = self.desired.record.stack.services.get(&is.assignment.service);
                let timeout = definition.map_or(Duration::ZERO, |s| s.rollout.drain_timeout);
                let long = self.leader_now().since(was.assignment.goal_since) >= timeout;
                let over = was.status.as_ref().is_some_and(|s| s.exit.is_some());
                assert!(
                    was.drained || long || over || self.behind > Duration::ZERO,
                    "{id} ends before it is drained\n{}",
                    self.story()
                );
            }
            Goal::Stop | Goal::Remove => {}
        }
    }

    /// Never more than the surge allows, and a stop-first service never runs twice.
    fn check_number(&self, before: &Observed, name: &ServiceName, service: &Service, n: usize) {
        let surge = |p: u32| if p == 0 { n } else { usize::try_from(p).expect("small") };
        let first = self.observed.rollouts.get(name).is_none_or(|r| r.from.is_none());
        let policies = [Some(&service.rollout), service.rollback.as_ref()];
        let surge = policies.into_iter().flatten().map(|p| surge(p.parallelism)).max();
        let surge = if first { n } else { surge.unwrap_or(0) };
        let of = |observed: &Observed, goal: fn(Goal) -> bool| {
            let mine = observed.instances.values().filter(|i| i.assignment.service == *name);
            mine.filter(|i| goal(i.assignment.goal)).count()
        };
        let was = of(before, |goal| goal == Goal::Run);
        let is = of(&self.observed, |goal| goal == Goal::Run);
        assert!(is <= (n + surge).max(was), "{name}: {is} of {n}+{surge}\n{}", self.story());
        let new = |i: &&Instance| {
            i.assignment.service == *name && !before.instances.contains_key(&i.assignment.id)
        };
        let grew = self.observed.instances.values().any(|i| new(&i));
        if service.order() == Order::StopFirst && grew && !completes(service) {
            let mine = self.observed.instances.values().filter(|i| i.assignment.service == *name);
            let alive = mine.filter(|i| !i.gone && !over(i)).count();
            assert!(alive <= n.max(was), "{name}: {alive} alive of {n}\n{}", self.story());
        }
    }

    /// A decision of ours never takes ready instances below what is wanted.
    fn check_capacity(&self, before: &Observed, name: &ServiceName, service: &Service, n: usize) {
        // In place nothing new can be ready before the old has ended.
        let intent = self.desired.record.intents.get(name);
        let stopped = intent.is_some_and(|i| i.stopped || i.in_place);
        let tolerant = service.rollout.failure_action == FailureAction::Continue
            || service.rollout.max_failure_ppm > 0;
        let stop_first = service.order() == Order::StopFirst;
        if stopped || self.desired.record.removing || stop_first || tolerant {
            return;
        }
        // One whose namespaces may have ended with those of another serves nobody, whatever it says.
        let alone = |i: &&Instance| i.status.as_ref().is_none_or(|it| it.shares.is_empty());
        let count = |observed: &Observed| {
            let mine = observed.instances.values().filter(|i| i.assignment.service == *name);
            let mine = mine.filter(alone);
            mine.filter(|i| i.assignment.goal == Goal::Run && (ready(i) || completed(i, service)))
                .count()
        };
        let (was, is) = (count(before), count(&self.observed));
        assert!(is >= was.min(n), "{name}: ready {was} to {is} of {n}\n{}", self.story());
    }
}

fn completes(service: &Service) -> bool {
    matches!(service.spec.environment["MODE"].as_str(), "done" | "fail")
}

fn over(instance: &Instance) -> bool {
    let Some(status) = &instance.status else { return false };
    matches!(status.phase, Phase::Exited | Phase::Failed)
        && (status.attempt >= instance.assignment.attempt
            || status.generation >= instance.assignment.generation)
}
