//! What an instance is started with: command, environment, directory, user, health, hooks, logs.

use std::collections::BTreeMap;
use std::time::Duration;

use keel_model::{HealthCheck, Hook, LogPolicy, NetworkMode, RuntimeKind, Spec, Test};

use super::{Context, Lower};
use crate::diagnostic::Code;
use crate::loader::join;
use crate::number::{parse_decimal, parse_size};
use crate::print::{command_of, duration_of, environment_of, number_of};
use crate::shellwords;
use crate::value::{Node, Value};

impl Lower<'_> {
    pub(super) fn spec(&mut self, context: &Context<'_>, ports: &[u16]) -> Option<Spec> {
        let node = context.node;
        let mut command = self.words(node.get("entrypoint"));
        command.extend(self.words(node.get("command")));
        if command.is_empty() {
            let span = self.project.span_of(context.name).unwrap_or(&node.span).clone();
            let message = format!("the service `{}` has nothing to run", context.name);
            self.error(Code::MissingKey, &span, message, "give it a `command`");
            return None;
        }
        let environment = self.environment(node.get("environment"));
        let directory = node.text("working_dir").unwrap_or_default();
        Some(Spec {
            runtime: RuntimeKind::Process,
            image: None,
            container: None,
            command,
            environment,
            working_dir: Some(join(&self.project.directory, directory)),
            user: node.text("user").filter(|user| !user.is_empty()).map(str::to_owned),
            groups: texts(node.get("group_add")),
            mounts: self.mounts(context),
            files: self.files(context),
            limits: self.limits(context),
            health: self.health(context),
            network: context.settings.network.unwrap_or(NetworkMode::Shared),
            hosts: self.hosts(node.get("extra_hosts")),
            init: is_true(node.get("init")),
            pre_start: self.hooks(context, "pre_start"),
            post_start: self.hooks(context, "post_start"),
            pre_stop: self.hooks(context, "pre_stop"),
            logs: self.logs(context),
            tty: is_true(node.get("tty")),
            stdin_open: is_true(node.get("stdin_open")),
            labels: self.instance_labels(node.get("labels")),
            ports: ports.to_vec(),
        })
    }

    /// Labels without those about routing: a new route replaces no instance.
    fn instance_labels(&mut self, node: Option<&Node>) -> BTreeMap<String, String> {
        let mut labels = self.labels(node);
        labels.retain(|key, _| !crate::labels::is_routing(key));
        labels
    }

    /// A command as words; warns when a shell would have been needed.
    fn words(&mut self, node: Option<&Node>) -> Vec<String> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return Vec::new() };
        if let Some(rest) = node.as_str().and_then(shellwords::dropped) {
            self.warn(
                &node.span,
                format!("no shell runs this command: `{rest}` is dropped, as Docker Compose does; write [sh, -c, …]"),
            );
        }
        self.take(command_of(node)).unwrap_or_default()
    }

    fn environment(&mut self, node: Option<&Node>) -> BTreeMap<String, String> {
        let Some(node) = node.filter(|node| !node.is_null()) else { return BTreeMap::new() };
        let variables = self.take(environment_of(node)).unwrap_or_default();
        variables.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }

    fn hosts(&mut self, node: Option<&Node>) -> BTreeMap<String, Vec<String>> {
        let mut hosts: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let Some(node) = node.filter(|node| !node.is_null()) else { return hosts };
        for line in self.take(crate::print::hosts_of(node)).unwrap_or_default() {
            if let Some((host, address)) = line.split_once('=') {
                hosts.entry(host.to_owned()).or_default().push(address.to_owned());
            }
        }
        hosts
    }

    fn hooks(&mut self, context: &Context<'_>, key: &str) -> Vec<Hook> {
        let mut hooks = Vec::new();
        for item in context.node.get(key).map(Node::items).unwrap_or_default() {
            let command = self.words(item.get("command"));
            if command.is_empty() {
                let message = format!("a step of `{key}` has no command");
                self.error(Code::MissingKey, &item.span, message, "give it a `command`");
                continue;
            }
            let working_dir = item.text("working_dir").filter(|path| !path.is_empty());
            hooks.push(Hook {
                command,
                environment: self.environment(item.get("environment")),
                working_dir: working_dir.map(|path| join(&self.project.directory, path)),
                user: item.text("user").filter(|user| !user.is_empty()).map(str::to_owned),
                per_replica: is_true(item.get("per_replica")),
                image: None,
                privileged: false,
            });
        }
        hooks
    }

    fn health(&mut self, context: &Context<'_>) -> Option<HealthCheck> {
        let node = context.node.get("healthcheck").filter(|node| !node.is_null())?;
        if is_true(node.get("disable")) {
            return None;
        }
        let test = match &node.get("test").map(|test| &test.value) {
            Some(Value::String(line)) => Test::Shell(line.clone()),
            Some(Value::Seq(items)) => {
                let words: Vec<String> = items.iter().filter_map(Node::display).collect();
                match words.split_first() {
                    Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => {
                        Test::Exec(rest.to_vec())
                    }
                    Some((kind, rest)) if kind == "CMD-SHELL" && !rest.is_empty() => {
                        Test::Shell(rest.join(" "))
                    }
                    Some((kind, _)) if kind == "NONE" => return None,
                    _ => {
                        self.error(
                            Code::InvalidValue,
                            &node.span,
                            "the health check runs nothing",
                            "give `test` a command",
                        );
                        return None;
                    }
                }
            }
            _ => {
                self.warn(&node.span, "`healthcheck` has no effect without a `test`: there is no image to take one from");
                return None;
            }
        };
        let retries = node.get("retries").and_then(|node| number_of(node).ok());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped to the range.
        let retries = retries.map_or(3, |retries| retries.clamp(1.0, 1000.0) as u32);
        let mut time = |key: &str, default: u64| {
            self.duration(node.get(key))
                .filter(|time| !time.is_zero())
                .unwrap_or(Duration::from_secs(default))
        };
        Some(HealthCheck {
            test,
            interval: time("interval", 30),
            timeout: time("timeout", 30),
            start_period: time("start_period", 0),
            start_interval: time("start_interval", 1),
            retries,
        })
    }

    pub(super) fn duration(&mut self, node: Option<&Node>) -> Option<Duration> {
        let node = node.filter(|node| !node.is_null())?;
        let nanos = self.take(duration_of(node))?;
        match u64::try_from(nanos) {
            Ok(nanos) => Some(Duration::from_nanos(nanos)),
            Err(_) => {
                self.error(
                    Code::InvalidValue,
                    &node.span,
                    "a duration cannot be negative",
                    "write for example `10s`",
                );
                None
            }
        }
    }

    fn logs(&mut self, context: &Context<'_>) -> LogPolicy {
        let mut policy = LogPolicy::default();
        let Some(logging) = context.node.get("logging") else { return policy };
        match logging.get("driver").and_then(Node::as_str) {
            Some("none") => policy.keep = false,
            None | Some("" | "json-file" | "local") => {}
            Some(driver) => {
                let message = format!(
                    "the log driver `{driver}` has no effect: output is kept in rotated files here"
                );
                self.warn(&logging.span, message);
            }
        }
        for (key, value) in logging.get("options").into_iter().flat_map(Node::entries) {
            let text = value.display().unwrap_or_default();
            let understood = match key {
                "max-size" => parse_size(&text)
                    .ok()
                    .and_then(|size| u64::try_from(size).ok())
                    .filter(|size| *size > 0)
                    .map(|size| policy.max_size = size)
                    .is_some(),
                "max-file" => parse_decimal(&text)
                    .and_then(|files| u32::try_from(files).ok())
                    .filter(|files| *files > 0)
                    .map(|files| policy.max_files = files)
                    .is_some(),
                _ => {
                    self.warn(&value.span, format!("the log option `{key}` has no effect: output is kept in rotated files here"));
                    true
                }
            };
            if !understood {
                let message = format!("`{text}` is not a value of the log option `{key}`");
                self.error(
                    Code::InvalidValue,
                    &value.span,
                    message,
                    "write for example max-size: 10m, max-file: 3",
                );
            }
        }
        policy
    }
}

/// Whether a flag is set.
pub(super) fn is_true(node: Option<&Node>) -> bool {
    node.is_some_and(|node| match &node.value {
        Value::Bool(value) => *value,
        Value::String(text) => crate::interpolate::boolean(text) == Some(true),
        _ => false,
    })
}

/// The items of a list as strings.
pub(super) fn texts(node: Option<&Node>) -> Vec<String> {
    node.map(Node::items).unwrap_or_default().iter().filter_map(Node::display).collect()
}
