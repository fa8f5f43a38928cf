//! Policies of a service: scale, restart, rollout, stop, readiness, dependencies.

use std::collections::BTreeMap;

use keel_model::{
    Condition, Dependency, FailureAction, Order, Readiness, RestartCondition, RestartPolicy,
    RolloutPolicy, Scale, ServiceName, StopPolicy, signal_number,
};

use super::spec::is_true;
use super::{Context, Lower};
use crate::diagnostic::{Code, nearest};
use crate::print::number_of;
use crate::value::Node;

/// Most instances of one service that a file may ask for.
const MAX_REPLICAS: u32 = 10_000;

impl Lower<'_> {
    pub(super) fn scale(&mut self, service: &str, node: &Node) -> Scale {
        let deploy = node.get("deploy");
        let node = node.get("scale").or_else(|| deploy.and_then(|deploy| deploy.get("replicas")));
        let replicas = self.count(node).unwrap_or(1);
        if replicas > MAX_REPLICAS
            && let Some(node) = node
        {
            let message = format!(
                "{replicas} replicas of `{service}` are too many; at most {MAX_REPLICAS} are possible"
            );
            self.error(Code::Budget, &node.span, message, "ask for fewer");
        }
        let mode = deploy.and_then(|deploy| deploy.get("mode"));
        match mode.and_then(Node::as_str) {
            None | Some("" | "replicated") => Scale::Replicated(replicas),
            Some("global") => Scale::Global,
            Some("replicated-job") => Scale::Job(replicas),
            Some("global-job") => Scale::GlobalJob,
            Some(other) => {
                self.unknown_word(
                    mode,
                    other,
                    &["replicated", "global", "replicated-job", "global-job"],
                );
                Scale::Replicated(replicas)
            }
        }
    }

    /// A word that is none of those that are known, at its place.
    fn unknown_word(&mut self, node: Option<&Node>, word: &str, known: &[&str]) {
        let Some(node) = node else { return };
        let list: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
        let help = match nearest(word, known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => "use one of these words".to_owned(),
        };
        let message = format!("this must be one of {}, not `{word}`", list.join(", "));
        self.error(Code::InvalidValue, &node.span, message, help);
    }

    fn count(&mut self, node: Option<&Node>) -> Option<u32> {
        let node = node.filter(|node| !node.is_null())?;
        let number = self.take(number_of(node))?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        // A float cast saturates.
        Some(number as u32)
    }

    pub(super) fn restart(&mut self, context: &Context<'_>) -> RestartPolicy {
        let mut policy = RestartPolicy::default();
        let settings = &context.settings;
        policy.backoff_initial = settings.backoff_initial.unwrap_or(policy.backoff_initial);
        policy.backoff_max =
            settings.backoff_max.unwrap_or(policy.backoff_max).max(policy.backoff_initial);
        if let Some(node) =
            context.node.at(&["deploy", "restart_policy"]).filter(|node| !node.is_null())
        {
            let condition = node.get("condition");
            policy.condition = match condition.and_then(Node::as_str) {
                None | Some("" | "any") => RestartCondition::Always,
                Some("none") => RestartCondition::Never,
                Some("on-failure") => RestartCondition::OnFailure,
                Some(other) => {
                    self.unknown_word(condition, other, &["none", "on-failure", "any"]);
                    policy.condition
                }
            };
            policy.delay = self.duration(node.get("delay"));
            policy.max_attempts = self.count(node.get("max_attempts"));
            if let Some(window) =
                self.duration(node.get("window")).filter(|window| !window.is_zero())
            {
                policy.reset_after = window;
            }
        } else if let Some(node) = context.node.get("restart") {
            self.restart_word(node, &mut policy);
        }
        policy.reset_after = settings.backoff_reset_after.unwrap_or(policy.reset_after);
        policy
    }

    fn restart_word(&mut self, node: &Node, policy: &mut RestartPolicy) {
        let text = node.as_str().unwrap_or_default();
        let (word, attempts) = match text.split_once(':') {
            Some((word, attempts)) => (word, Some(attempts)),
            None => (text, None),
        };
        policy.condition = match word {
            "no" => RestartCondition::Never,
            "" => policy.condition,
            "always" | "unless-stopped" => RestartCondition::Always,
            "on-failure" => RestartCondition::OnFailure,
            other => {
                self.unknown_word(
                    Some(node),
                    other,
                    &["no", "always", "on-failure", "unless-stopped"],
                );
                return;
            }
        };
        match attempts.map(str::parse::<u32>) {
            None => {}
            Some(Ok(attempts)) if word == "on-failure" => {
                policy.max_attempts = (attempts > 0).then_some(attempts);
            }
            Some(_) => {
                let message = format!("`{text}` is not a restart policy");
                self.error(
                    Code::InvalidValue,
                    &node.span,
                    message,
                    "write for example `on-failure:3`",
                );
            }
        }
    }

    /// The policy of `update_config` or `rollback_config`.
    pub(super) fn rollout(&mut self, context: &Context<'_>, key: &str) -> RolloutPolicy {
        let mut policy = RolloutPolicy::default();
        let settings = &context.settings;
        policy.min_healthy_time = settings.min_healthy_time.unwrap_or(policy.min_healthy_time);
        policy.progress_deadline = settings.progress_deadline.unwrap_or(policy.progress_deadline);
        policy.drain_timeout = settings.drain_timeout.unwrap_or(policy.drain_timeout);
        if key == "rollback_config" {
            // There is nothing to return to when a rollback fails.
            policy.failure_action = FailureAction::Pause;
        }
        let Some(node) = context.node.at(&["deploy", key]).filter(|node| !node.is_null()) else {
            return policy;
        };
        if let Some(parallelism) = self.count(node.get("parallelism")) {
            policy.parallelism = parallelism;
        }
        policy.delay = self.duration(node.get("delay")).unwrap_or(policy.delay);
        policy.monitor = self.duration(node.get("monitor")).unwrap_or(policy.monitor);
        let ratio = node.get("max_failure_ratio");
        if let Some(node) = ratio
            && let Some(value) = self.take(number_of(node))
        {
            if !(0.0..=1.0).contains(&value) {
                self.error(
                    Code::InvalidValue,
                    &node.span,
                    "`max_failure_ratio` must be from 0 to 1",
                    "write for example 0.1",
                );
            }
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            // Clamped to the range.
            let ppm = (value.clamp(0.0, 1.0) * 1e6).round() as u32;
            policy.max_failure_ppm = ppm;
        }
        policy.order = match node.text("order") {
            Some("start-first") => Some(Order::StartFirst),
            Some("stop-first") => Some(Order::StopFirst),
            _ => None,
        };
        let action = node.get("failure_action");
        policy.failure_action = match action.and_then(Node::as_str) {
            None | Some("") => policy.failure_action,
            Some("rollback") if key == "update_config" => FailureAction::Rollback,
            Some("pause") => FailureAction::Pause,
            Some("continue") => FailureAction::Continue,
            Some(other) => {
                self.unknown_word(action, other, &["rollback", "pause", "continue"]);
                policy.failure_action
            }
        };
        policy
    }

    pub(super) fn stop(&mut self, context: &Context<'_>) -> StopPolicy {
        let mut policy = StopPolicy::default();
        if let Some(node) = context.node.get("stop_signal")
            && let Some(text) = node.as_str().filter(|text| !text.is_empty())
        {
            match signal_number(text) {
                Some(signal) => policy.signal = signal,
                None => {
                    let message = format!("`{text}` is not a signal");
                    self.error(
                        Code::InvalidValue,
                        &node.span,
                        message,
                        "write for example SIGTERM or SIGINT",
                    );
                }
            }
        }
        policy.grace = self.duration(context.node.get("stop_grace_period")).unwrap_or(policy.grace);
        policy
    }

    pub(super) fn readiness(context: &Context<'_>) -> Readiness {
        let settings = &context.settings.readiness;
        let default = Readiness::default();
        Readiness {
            from_image: false,
            probe: settings.probe.clone(),
            port: settings.port,
            interval: settings.interval.unwrap_or(default.interval),
            timeout: settings.timeout.unwrap_or(default.timeout),
            successes: settings.successes.unwrap_or(default.successes),
            failures: settings.failures.unwrap_or(default.failures),
            startup_timeout: settings.startup_timeout.unwrap_or(default.startup_timeout),
        }
    }

    /// Conditions on other active services.
    pub(super) fn depends_on(
        &mut self,
        context: &Context<'_>,
    ) -> BTreeMap<ServiceName, Dependency> {
        let active = self.project.services();
        let mut dependencies = BTreeMap::new();
        for (name, node) in context.node.get("depends_on").into_iter().flat_map(Node::entries) {
            let Ok(service) = ServiceName::new(name) else { continue };
            if !active.contains(&name) {
                continue;
            }
            let condition = match node.text("condition") {
                Some("service_healthy") => Condition::Healthy,
                Some("service_completed_successfully") => Condition::CompletedSuccessfully,
                _ => Condition::Started,
            };
            let required = node.get("required").is_none_or(|required| is_true(Some(required)));
            let restart = is_true(node.get("restart"));
            dependencies.insert(service, Dependency { condition, restart, required });
        }
        dependencies
    }
}
