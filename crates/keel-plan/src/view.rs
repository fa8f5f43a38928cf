//! What can be read off one instance: whether it serves, has ended, or is in trouble.
//!
//! A status speaks of the attempt and generation that the node knew when it wrote it. Whatever was said of an
//! earlier attempt says nothing about this one.

use std::time::Duration;

use keel_model::{
    Goal, Health, InstanceStatus, NodeName, Phase, Probe, RestartCondition, Scale, Service,
    StartFailure, Timestamp,
};

use crate::Instance;
use crate::clock::Clock;

/// Why an instance does not do what it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// It ended though it should run.
    Exited,
    /// It could not be started.
    NotStarted,
    /// Its health check failed.
    Unhealthy,
    /// It was not ready within the startup timeout.
    NeverReady,
}

impl Instance {
    /// The status, if it speaks of the attempt that is wanted.
    pub(crate) fn fresh(&self) -> Option<&InstanceStatus> {
        self.status.as_ref().filter(|status| status.attempt >= self.assignment.attempt)
    }

    /// Whether it occupies one of the places of its service: it runs, or will again after its drain.
    pub(crate) fn is_slot(&self) -> bool {
        match self.assignment.goal {
            Goal::Run => true,
            Goal::Drain => self.assignment.after_drain == Goal::Run,
            Goal::Stop | Goal::Remove => false,
        }
    }

    /// Whether it is wanted and takes requests.
    pub(crate) fn is_ready(&self) -> bool {
        self.assignment.goal == Goal::Run
            && self.fresh().is_some_and(|status| status.phase == Phase::Running && status.ready)
    }

    /// Whether it may be taking requests, so that it must be drained before it ends.
    pub(crate) fn serves(&self) -> bool {
        let serving = |status: &InstanceStatus| status.phase == Phase::Running && status.ready;
        !self.gone && self.status.as_ref().is_some_and(serving)
    }

    /// Whether its process runs.
    pub(crate) fn runs(&self) -> bool {
        self.fresh().is_some_and(|status| status.phase == Phase::Running)
    }

    /// Whether no process of it exists or will be started.
    pub(crate) fn has_ended(&self) -> bool {
        let Some(status) = &self.status else {
            return self.gone || self.assignment.goal == Goal::Stop;
        };
        let over = matches!(status.phase, Phase::Exited | Phase::Failed);
        let current = status.attempt >= self.assignment.attempt
            || (self.assignment.goal > Goal::Drain
                && status.generation >= self.assignment.generation);
        self.gone || (over && current)
    }

    /// Whether it did what it was for: it ended well and is not to be started again.
    pub(crate) fn has_completed(&self, service: &Service) -> bool {
        let Some(status) = self.fresh() else { return false };
        let success = status.exit.as_ref().is_some_and(keel_model::Exit::success);
        let again = service.restart.condition == RestartCondition::Always && !is_job(service);
        // What had ended before it was taken over may have served; nobody here has seen it.
        let unseen = self.assignment.adoption.is_some() && self.assignment.attempt == 1;
        let to_serve = is_to_serve(service) && !is_job(service) && !unseen;
        let served = status.ready_since.is_some() || !to_serve;
        status.phase == Phase::Exited && success && !again && served
    }

    /// When it last became ready, for one that is.
    pub(crate) fn ready_since(&self) -> Option<Timestamp> {
        let status = self.fresh()?;
        if self.is_ready() {
            status.ready_since.or(status.started_at).or(Some(self.assignment.goal_since))
        } else {
            None
        }
    }

    /// Whether it has been ready for `wait`.
    pub(crate) fn ready_for(&self, wait: Duration, clock: &Clock) -> bool {
        self.ready_since().is_some_and(|since| self.lasted(since, wait, clock))
    }

    /// Whether `wait` has passed since a time in its status.
    pub(crate) fn lasted(&self, reported: Timestamp, wait: Duration, clock: &Clock) -> bool {
        clock.passed_since_report(reported, self.assignment.goal_since, wait)
    }

    /// What is wrong with it, if it is meant to run.
    pub(crate) fn trouble(&self, service: &Service, clock: &Clock) -> Option<Trouble> {
        let status = self.fresh()?;
        match status.phase {
            Phase::Failed => Some(Trouble::NotStarted),
            Phase::Exited if self.has_completed(service) => None,
            Phase::Exited => Some(Trouble::Exited),
            Phase::Running if status.health == Health::Unhealthy => Some(Trouble::Unhealthy),
            Phase::Running if !status.ready => {
                let started = status.started_at?;
                let never = status.ready_since.is_none_or(|since| since <= started);
                let timeout = service.readiness.startup_timeout;
                let late = never && self.lasted(started, timeout, clock);
                late.then_some(Trouble::NeverReady)
            }
            Phase::Running | Phase::Preparing | Phase::Stopping => None,
        }
    }

    /// The running number in its name.
    pub(crate) fn serial(&self) -> u64 {
        let id = self.assignment.id.as_str();
        id.rsplit('-').next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
    }

    /// Where it is.
    pub(crate) fn node(&self) -> &NodeName {
        &self.assignment.node
    }

    /// Its trouble in words.
    pub(crate) fn explain(&self, trouble: Trouble, service: &Service) -> String {
        let status = self.fresh();
        let text = match trouble {
            Trouble::Exited => status.and_then(|s| s.exit.as_ref()).map_or_else(
                || "ended, nobody knows how".to_owned(),
                |exit| match (exit.oom, exit.code, exit.signal) {
                    (true, ..) => "was killed for want of memory".to_owned(),
                    (_, Some(code), _) => format!("exited with code {code}"),
                    (_, None, Some(signal)) => format!("was ended by signal {signal}"),
                    (_, None, None) => "ended, nobody knows how".to_owned(),
                },
            ),
            Trouble::NotStarted => match status.and_then(|s| s.failure) {
                Some(StartFailure::NotFound) => "could not start: program not found".to_owned(),
                Some(StartFailure::NotExecutable) => {
                    "could not start: program is not executable".to_owned()
                }
                Some(StartFailure::Hook) => "could not start: a pre_start step failed".to_owned(),
                Some(StartFailure::Environment | StartFailure::Away) | None => {
                    "could not start".to_owned()
                }
            },
            Trouble::Unhealthy => "is unhealthy".to_owned(),
            Trouble::NeverReady => {
                let limit = service.readiness.startup_timeout.as_secs();
                format!("was not ready within {limit} s")
            }
        };
        match status.map(|s| first_line(&s.message)).filter(|line| !line.is_empty()) {
            Some(line) => format!("{text} ({line})"),
            None => text,
        }
    }
}

/// Whether a service runs to completion by definition.
pub(crate) fn is_job(service: &Service) -> bool {
    matches!(service.scale, Scale::Job(_) | Scale::GlobalJob)
}

/// Whether a service says that it takes requests: if it ends before it ever has, it has not done what it was for.
fn is_to_serve(service: &Service) -> bool {
    let asked = !matches!(service.readiness.probe, None | Some(Probe::None));
    asked || !service.publish.is_empty()
}

/// The first line of a message, cut to a length that fits an event.
fn first_line(message: &str) -> String {
    const LONGEST: usize = 200;
    message.trim().lines().next().unwrap_or_default().chars().take(LONGEST).collect()
}
