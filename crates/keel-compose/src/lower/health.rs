//! Health checks: the file's own, or for a container that of its image.

use std::time::Duration;

use keel_model::{HealthCheck, HealthTimes, Test};

use super::spec::is_true;
use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::print::number_of;
use crate::value::{Node, Value};

/// What checks the health of a service.
pub(super) enum Health {
    /// Nothing does.
    Unchecked,
    /// What the file says.
    Check(HealthCheck),
    /// What the image says, with these times.
    OfImage(HealthTimes),
}

impl Lower<'_> {
    pub(super) fn health(&mut self, context: &Context<'_>) -> Health {
        let node = context.node.get("healthcheck").filter(|node| !node.is_null());
        let Some(node) = node else {
            return if context.is_container() {
                Health::OfImage(HealthTimes::default())
            } else {
                Health::Unchecked
            };
        };
        if is_true(node.get("disable")) {
            return Health::Unchecked;
        }
        let test = match &node.get("test").map(|test| &test.value) {
            Some(Value::String(line)) => Test::Shell(line.clone()),
            Some(Value::Seq(items)) if items.is_empty() && context.is_container() => {
                return Health::OfImage(self.health_times(node));
            }
            Some(Value::Seq(items)) => {
                let words: Vec<String> = items.iter().filter_map(Node::display).collect();
                match words.split_first() {
                    Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => {
                        Test::Exec(rest.to_vec())
                    }
                    Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                        Test::Shell(rest.join(" "))
                    }
                    Some((kind, _)) if kind == "NONE" => return Health::Unchecked,
                    _ => {
                        self.error(
                            Code::InvalidValue,
                            &node.span,
                            "the health check runs nothing",
                            "give `test` a command",
                        );
                        return Health::Unchecked;
                    }
                }
            }
            _ if context.is_container() => return Health::OfImage(self.health_times(node)),
            _ => {
                self.warn(&node.span, "`healthcheck` has no effect without a `test`: there is no image to take one from");
                return Health::Unchecked;
            }
        };
        let times = self.health_times(node);
        let seconds = Duration::from_secs;
        Health::Check(HealthCheck {
            test,
            interval: times.interval.unwrap_or(seconds(30)),
            timeout: times.timeout.unwrap_or(seconds(30)),
            start_period: times.start_period.unwrap_or_default(),
            start_interval: times.start_interval.unwrap_or(seconds(1)),
            retries: times.retries.unwrap_or(3),
        })
    }

    fn health_times(&mut self, node: &Node) -> HealthTimes {
        let retries = node.get("retries").and_then(|node| number_of(node).ok());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped to the range.
        let retries = retries.map(|retries| retries.clamp(1.0, 1000.0) as u32);
        let mut time = |key: &str| self.duration(node.get(key)).filter(|time| !time.is_zero());
        HealthTimes {
            interval: time("interval"),
            timeout: time("timeout"),
            start_period: time("start_period"),
            start_interval: time("start_interval"),
            retries,
        }
    }
}
